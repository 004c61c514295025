// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import "slices"

// UUID names a row. It is in the canonical text form, lower case.
type UUID string

// Row is a row of one table, with the columns that were asked for. It is
// immutable, and safe for concurrent use. A row that a transaction does not
// touch is the same pointer in the view before and after it.
//
// The accessors never fail: they return the zero value for a column that is
// empty, that was not asked for, that the server's schema lacks, or that was
// asked for as another Kind. Has tells an empty one.
type Row struct {
	uuid   UUID
	table  *table
	values []datum // by the table's column index
}

// UUID returns the row's name.
func (r *Row) UUID() UUID { return r.uuid }

// Has returns whether the column has a value: scalars always do, an optional
// scalar if it is set, a set or map if it is not empty.
func (r *Row) Has(column string) bool {
	i, ok := r.table.index[column]
	return ok && len(r.values[i].keys) > 0
}

// String returns the value of a column that was asked for as String.
func (r *Row) String(column string) string {
	if d, ok := r.get(column, String); ok && len(d.keys) > 0 {
		return d.keys[0]
	}
	return ""
}

// Int returns the value of a column that was asked for as Int.
func (r *Row) Int(column string) int64 {
	if d, ok := r.get(column, Int); ok && len(d.keys) > 0 {
		return atomInt(d.keys[0])
	}
	return 0
}

// Bool returns the value of a column that was asked for as Bool.
func (r *Row) Bool(column string) bool {
	d, ok := r.get(column, Bool)
	return ok && len(d.keys) > 0 && d.keys[0] == atomTrue
}

// Strings returns the elements of a column that was asked for as Strings, in
// ascending order. The slice is shared: it must not be changed.
func (r *Row) Strings(column string) []string {
	if d, ok := r.get(column, Strings); ok {
		return slices.Clip(d.keys)
	}
	return nil
}

// UUIDs returns the elements of a column that was asked for as UUIDs, in
// ascending order.
func (r *Row) UUIDs(column string) []UUID {
	d, ok := r.get(column, UUIDs)
	if !ok || len(d.keys) == 0 {
		return nil
	}
	all := make([]UUID, len(d.keys))
	for i, k := range d.keys {
		all[i] = UUID(k)
	}
	return all
}

// Map returns a copy of a column that was asked for as Map; nil if it is empty.
func (r *Row) Map(column string) map[string]string {
	d, ok := r.get(column, Map)
	if !ok || len(d.keys) == 0 {
		return nil
	}
	all := make(map[string]string, len(d.keys))
	for i, k := range d.keys {
		all[k] = d.values[i]
	}
	return all
}

// Key returns the value that a column that was asked for as Map has for the
// key, and whether it has the key. It copies nothing.
func (r *Row) Key(column, key string) (value string, ok bool) {
	d, ok := r.get(column, Map)
	if !ok {
		return "", false
	}
	i, found := slices.BinarySearch(d.keys, key)
	if !found {
		return "", false
	}
	return d.values[i], true
}

func (r *Row) get(column string, as Kind) (datum, bool) {
	i, ok := r.table.index[column]
	if !ok || r.table.columns[i].as != as {
		return datum{}, false
	}
	return r.values[i], true
}
