// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import "iter"

// View is what the tables held after one transaction. It is immutable, and
// safe for concurrent use.
type View struct {
	// Session counts the connections that came in sync, from 1. Views of
	// different sessions may skip or repeat transactions between them.
	Session uint64
	// Version counts the changes of the rows, by transactions and by new
	// connections, over all sessions. Views of equal Version hold the same rows.
	Version uint64

	tables map[string]snapshot
}

// snapshot is the rows of one table as a view has them.
type snapshot struct {
	rows    map[UUID]*Row
	version uint64 // the View.Version of the last change of the table
}

// Rows iterates over the rows of a table, in no order. A table that was not
// asked for, or that the server lacks, has none.
func (v *View) Rows(table string) iter.Seq[*Row] {
	return func(yield func(*Row) bool) {
		for _, row := range v.tables[table].rows {
			if !yield(row) {
				return
			}
		}
	}
}

// Get returns the row of that name.
func (v *View) Get(table string, uuid UUID) (*Row, bool) {
	row, ok := v.tables[table].rows[uuid]
	return row, ok
}

// Len returns how many rows the table has.
func (v *View) Len(table string) int { return len(v.tables[table].rows) }

// TableVersion returns the Version with which the table last changed, so that
// what was derived from an unchanged table need not be derived again.
func (v *View) TableVersion(table string) uint64 { return v.tables[table].version }
