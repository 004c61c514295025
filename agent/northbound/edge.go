// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"context"
	"iter"

	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

// Database is the name of OVN's northbound database.
const Database = "OVN_Northbound"

// Tables returns what has to be monitored.
func Tables() []ovsdb.Table {
	text := func(name string) ovsdb.Column { return ovsdb.Column{Name: name, As: ovsdb.String} }
	texts := func(name string) ovsdb.Column { return ovsdb.Column{Name: name, As: ovsdb.Strings} }
	rows := func(name string) ovsdb.Column { return ovsdb.Column{Name: name, As: ovsdb.UUIDs} }
	keys := func(name string) ovsdb.Column { return ovsdb.Column{Name: name, As: ovsdb.Map} }
	return []ovsdb.Table{
		{Name: tableGlobal, Columns: []ovsdb.Column{keys("options")}},
		{Name: tablePort, Columns: []ovsdb.Column{
			text("name"), text("type"), texts("addresses"), text("dynamic_addresses"), {Name: "enabled", As: ovsdb.Bool}, keys("external_ids"),
		}},
		{Name: tableSwitch, Columns: []ovsdb.Column{text("name"), rows("ports"), rows("acls")}},
		{Name: tableGroup, Columns: []ovsdb.Column{text("name"), rows("ports"), rows("acls"), keys("external_ids")}},
		{Name: tableACL, Columns: []ovsdb.Column{
			text("name"), text("direction"), text("match"), text("action"), {Name: "priority", As: ovsdb.Int}, keys("options"),
			// From OVN 23.06 on.
			{Name: "tier", As: ovsdb.Int, Optional: true},
		}},
		{Name: tableAddress, Columns: []ovsdb.Column{text("name"), texts("addresses"), keys("external_ids")}},
	}
}

// Views returns the newest view that a client has. The client monitors Tables.
func Views(c *ovsdb.Client) func() (View, error) {
	return func() (View, error) {
		v, err := c.View()
		if err != nil {
			return nil, err
		}
		return view{v}, nil
	}
}

// Increments returns what increments the number by which nodes acknowledge what
// is in the database.
func Increments(c *ovsdb.Client) func(context.Context) (int64, error) {
	return func(ctx context.Context) (int64, error) { return c.Increment(ctx, tableGlobal, "nb_cfg") }
}

// view is a View of a client of package ovsdb.
type view struct{ of *ovsdb.View }

// Version implements View.
func (v view) Version() uint64 { return v.of.Version }

// TableVersion implements View.
func (v view) TableVersion(table string) uint64 { return v.of.TableVersion(table) }

// Rows implements View.
func (v view) Rows(table string) iter.Seq[Row] {
	return func(yield func(Row) bool) {
		for r := range v.of.Rows(table) {
			if !yield(row{r}) {
				return
			}
		}
	}
}

// Has implements View.
func (v view) Has(table, uuid string) bool {
	_, ok := v.of.Get(table, ovsdb.UUID(uuid))
	return ok
}

// row is a Row of a client of package ovsdb, which keeps the pointer of a row
// that does not change.
type row struct{ *ovsdb.Row }

// Identity implements Row.
func (r row) Identity() string { return string(r.UUID()) }

// Set implements Row.
func (r row) Set(column string) bool { return r.Has(column) }

// References implements Row.
func (r row) References(column string) []string {
	uuids := r.UUIDs(column)
	all := make([]string, len(uuids))
	for i, u := range uuids {
		all[i] = string(u)
	}
	return all
}

// Key implements Row.
func (r row) Key(column, key string) string {
	value, _ := r.Row.Key(column, key)
	return value
}
