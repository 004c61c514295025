// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"fmt"
	"maps"
	"slices"
)

// noTransaction is the id before the first transaction. Servers that keep no
// history give it for all of them.
const noTransaction = "00000000-0000-0000-0000-000000000000"

// cache is the rows of the monitored tables. What it holds after a connection
// ended is kept, since the next may tell only what has changed since.
type cache struct {
	tables   map[string]*table
	contents map[string]snapshot
	// lent are the tables whose rows a view has: they are copied before they
	// are changed.
	lent map[string]bool
	// transaction is the last one that was applied, and "" if there was none
	// or the rows are not to be trusted.
	transaction string

	version, session uint64
	last             *View // nil if something has changed since
}

// view returns what the cache holds.
func (c *cache) view() *View {
	if c.last == nil {
		c.last = &View{Session: c.session, Version: c.version, tables: maps.Clone(c.contents)}
		for name := range c.contents {
			c.lent[name] = true
		}
	}
	return c.last
}

// since returns the transaction from which on changes of the tables are enough.
func (c *cache) since(tables map[string]*table) string {
	if c.transaction == "" || !maps.EqualFunc(c.tables, tables, (*table).same) {
		return noTransaction
	}
	return c.transaction
}

// load replaces all rows, at the beginning of a session. Rows that are the same
// stay the same pointers.
func (c *cache) load(tables map[string]*table, changes []change, transaction string) error {
	contents := make(map[string]snapshot, len(tables))
	for name := range tables {
		contents[name] = snapshot{rows: map[UUID]*Row{}, version: c.version + 1}
	}
	for _, ch := range changes {
		if ch.op != opInsert && ch.op != opPut {
			return fmt.Errorf("the first contents change row %s of table %s", ch.uuid, ch.table.name)
		}
		rows := contents[ch.table.name].rows
		if _, again := rows[ch.uuid]; again {
			return fmt.Errorf("the first contents have row %s of table %s twice", ch.uuid, ch.table.name)
		}
		row := &Row{uuid: ch.uuid, table: ch.table, values: ch.values}
		if old, ok := c.contents[ch.table.name].rows[ch.uuid]; ok && old.same(row) {
			row = old
		}
		rows[ch.uuid] = row
	}
	lent := map[string]bool{}
	for name, was := range c.contents {
		if now, ok := contents[name]; ok && c.tables[name].same(tables[name]) && maps.Equal(was.rows, now.rows) {
			contents[name], lent[name] = was, c.lent[name]
		}
	}
	c.tables, c.contents, c.lent = tables, contents, lent
	c.began(transaction)
	return nil
}

// resume applies what has changed since the last session ended.
func (c *cache) resume(changes []change, transaction string) error {
	if err := c.apply(changes, transaction); err != nil {
		return err
	}
	c.began(transaction)
	return nil
}

func (c *cache) began(transaction string) {
	c.session++
	c.version++
	c.applied(transaction)
}

func (c *cache) applied(transaction string) {
	c.transaction = transaction
	c.last = nil
}

// distrust makes the next session begin anew.
func (c *cache) distrust() { c.transaction = "" }

// apply applies all changes of an update, or none if one of them does not
// belong to the rows that are there.
func (c *cache) apply(changes []change, transaction string) error {
	rows := make([]*Row, len(changes))
	for i, ch := range changes {
		old, there := c.contents[ch.table.name].rows[ch.uuid]
		if ch.op == opInsert && there {
			return fmt.Errorf("the server inserts row %s of table %s, which is there", ch.uuid, ch.table.name)
		}
		if (ch.op == opModify || ch.op == opDelete) && !there {
			return fmt.Errorf("the server changes row %s of table %s, which is not there", ch.uuid, ch.table.name)
		}
		rows[i] = ch.apply(old)
	}
	if len(changes) > 0 {
		c.version++
	}
	for i, ch := range changes {
		s := c.contents[ch.table.name]
		if c.lent[ch.table.name] {
			s.rows = maps.Clone(s.rows)
			c.lent[ch.table.name] = false
		}
		if rows[i] == nil {
			delete(s.rows, ch.uuid)
		} else {
			s.rows[ch.uuid] = rows[i]
		}
		s.version = c.version
		c.contents[ch.table.name] = s
	}
	c.applied(transaction)
	return nil
}

// apply returns the row after the change, or nil if it is deleted.
func (ch *change) apply(old *Row) *Row {
	switch ch.op {
	case opInsert, opPut:
		return &Row{uuid: ch.uuid, table: ch.table, values: ch.values}
	case opModify:
		row := &Row{uuid: ch.uuid, table: ch.table, values: slices.Clone(old.values)}
		for i, diff := range ch.diffs {
			row.values[i] = row.values[i].apply(diff, ch.table.columns[i].typ)
		}
		return row
	case opDelete:
	}
	return nil
}

// same returns whether the rows hold the same.
func (r *Row) same(other *Row) bool {
	return r.uuid == other.uuid && r.table.same(other.table) && slices.EqualFunc(r.values, other.values, datum.equal)
}
