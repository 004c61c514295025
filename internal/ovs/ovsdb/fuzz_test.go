// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
)

func testTables(t testing.TB) map[string]*table {
	t.Helper()
	schema, err := parseSchema(json.RawMessage(fakeSchema))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := schema.resolve(fakeTables())
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// firstRows returns two rows.
func firstRows(t testing.TB, tables map[string]*table) []change {
	t.Helper()
	changes, err := parseUpdates2(json.RawMessage(`{"Group":{"`+row1+`":{"initial":{"name":"a","ids":["map",[["k","v"]]],"tag":3}}},
		"Port":{"`+row2+`":{"initial":{"addresses":["set",["a","b"]],"n":5}}}}`), tables)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// loaded returns a cache with them.
func loaded(t testing.TB, tables map[string]*table) *cache {
	t.Helper()
	c := &cache{}
	if err := c.load(tables, firstRows(t, tables), txn1); err != nil {
		t.Fatal(err)
	}
	return c
}

// wellFormed fails unless a value is as datum says.
func wellFormed(t *testing.T, d datum, typ columnType) {
	t.Helper()
	if !slices.IsSorted(d.keys) || len(slices.Compact(slices.Clone(d.keys))) != len(d.keys) {
		t.Errorf("keys %q are not sorted or not unique", d.keys)
	}
	if want := len(d.keys); typ.value != "" && len(d.values) != want || typ.value == "" && d.values != nil {
		t.Errorf("%d keys with %d values", len(d.keys), len(d.values))
	}
}

// readAll reads every column of every row in every way.
func readAll(t *testing.T, v *View) {
	t.Helper()
	for name := range v.tables {
		for row := range v.Rows(name) {
			if found, ok := v.Get(name, row.UUID()); !ok || found != row {
				t.Errorf("row %s is not under its name", row.UUID())
			}
			for i, c := range row.table.columns {
				wellFormed(t, row.values[i], c.typ)
				_, _, _ = row.String(c.name), row.Int(c.name), row.Bool(c.name)
				_, _, _ = row.Strings(c.name), row.UUIDs(c.name), row.Map(c.name)
				_, _ = row.Key(c.name, "k")
			}
		}
	}
}

// fuzzUpdates holds that an update is applied as a whole or not at all, and that
// views of before stay as they are.
func fuzzUpdates(f *testing.F, parse func(json.RawMessage, map[string]*table) ([]change, error)) {
	tables := testTables(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		changes, err := parse(raw, tables)
		if err != nil {
			return
		}
		c := loaded(t, tables)
		before := c.view()
		groups, ports := maps.Clone(before.tables["Group"].rows), maps.Clone(before.tables["Port"].rows)
		err = c.apply(changes, txn2)
		after := c.view()
		readAll(t, after)
		if err != nil && after != before {
			t.Errorf("%v, but something was applied", err)
		}
		if !maps.Equal(groups, before.tables["Group"].rows) || !maps.Equal(ports, before.tables["Port"].rows) {
			t.Error("the view of before has changed")
		}
		// The next session begins with the same rows, then the changes come.
		c = loaded(t, tables)
		before = c.view()
		if err := c.load(tables, firstRows(t, tables), txn1); err != nil {
			t.Fatal(err)
		}
		if c.contents["Port"].version != before.TableVersion("Port") {
			t.Error("a table that did not change has another version in the next session")
		}
		if err := c.apply(changes, txn2); err == nil && (before.Len("Group") != 1 || before.Len("Port") != 1) {
			t.Error("the view of the session before has changed")
		}
		if err := (&cache{}).load(tables, changes, txn2); err == nil {
			for _, ch := range changes {
				if ch.op != opInsert && ch.op != opPut {
					t.Errorf("first contents with a row of which %d happened", ch.op)
				}
			}
		}
	})
}

func FuzzUpdates2(f *testing.F) {
	f.Add([]byte(`{"Group":{"` + row3 + `":{"insert":{"name":"b","ports":["uuid","` + row1 + `"]}},"` + row1 + `":{"modify":{"ids":["map",[["k","w"]]],"tag":["set",[]]}}}}`))
	f.Add([]byte(`{"Port":{"` + row2 + `":{"delete":null},"` + row1 + `":{"initial":{}}}}`))
	f.Add([]byte(`{"Port":{"` + row2 + `":{"modify":{"addresses":["set",["a","c"]]}}}}`))
	f.Add([]byte(`{"Port":{"` + row3 + `":{"delete":null}}}`))
	f.Add([]byte(`{"Port":null,"Group":{"":{}}}`))
	fuzzUpdates(f, parseUpdates2)
}

func FuzzUpdates1(f *testing.F) {
	f.Add([]byte(`{"Group":{"` + row3 + `":{"new":{"name":"b","up":true}},"` + row1 + `":{"old":{"tag":3},"new":{"tag":["set",[]]}}}}`))
	f.Add([]byte(`{"Port":{"` + row2 + `":{"old":{"n":5}}}}`))
	f.Add([]byte(`{"Port":{"` + row2 + `":{"old":null,"new":null}}}`))
	fuzzUpdates(f, parseUpdates1)
}

func FuzzDatum(f *testing.F) {
	for i, raw := range []string{
		`"a"`, `["set",["b","a"]]`, `7`, `["set",[1,2]]`, `1.5e300`, `true`, `["uuid","` + row1 + `"]`, `["map",[["a","b"]]]`, `["map",[[0,["uuid","` + row1 + `"]]]]`,
	} {
		f.Add([]byte(raw), []byte(`["set",[]]`), uint8(i))
	}
	f.Fuzz(func(t *testing.T, raw, other []byte, which uint8) {
		typ := allTypes[int(which)%len(allTypes)]
		d, err := parseDatum(raw, typ)
		if err != nil {
			return
		}
		wellFormed(t, d, typ)
		diff, err := parseDatum(other, typ)
		if err != nil {
			return
		}
		wellFormed(t, d.apply(diff, typ), typ)
		if typ.single() {
			return
		}
		if twice := d.apply(d, typ); len(twice.keys) != 0 {
			t.Errorf("%v without itself is %v", d, twice)
		}
		if typ.value == "" && !d.apply(diff, typ).apply(diff, typ).equal(d) {
			t.Errorf("%v changed by %v there and back is not itself", d, diff)
		}
	})
}

func FuzzSchema(f *testing.F) {
	f.Add([]byte(fakeSchema))
	f.Add([]byte(serverSchema))
	f.Add([]byte(`{"tables":{"Port":{"columns":{"n":{"type":{"key":"integer","min":0,"max":"unlimited"}}}}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		schema, err := parseSchema(raw)
		if err != nil {
			return
		}
		tables, err := schema.resolve(fakeTables())
		if err != nil {
			return
		}
		for name, table := range tables {
			for i, c := range table.columns {
				if table.index[c.name] != i || !c.as.reads(c.typ) {
					t.Errorf("table %s has column %s of type %s at %d, to be read as %s", name, c.name, c.typ, i, c.as)
				}
				wellFormed(t, c.typ.zero(), c.typ)
			}
		}
	})
}

// FuzzServerRows holds that nothing but a row of the database that says so makes
// a server the leader.
func FuzzServerRows(f *testing.F) {
	f.Add([]byte(`{"Database":{"` + row1 + `":{"initial":{"name":"Test","connected":true,"leader":true}}}}`))
	f.Add([]byte(`{"Database":{"` + row1 + `":{"initial":{"name":"Test","connected":true}},"` + row2 + `":{"insert":{"name":"_Server","connected":true,"leader":true}}}}`))
	f.Add([]byte(`{"Database":{"` + row1 + `":{"modify":{"leader":false}}}}`))
	schema, err := parseSchema(json.RawMessage(serverSchema))
	if err != nil {
		f.Fatal(err)
	}
	tables, err := schema.resolve(serverTables())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		changes, err := parseUpdates2(raw, tables)
		if err != nil {
			return
		}
		s := &session{client: &Client{options: Options{Database: "Test", Leader: true}}, serverTables: tables}
		if s.server.load(tables, changes, noTransaction) != nil || s.suits() != nil {
			return
		}
		for row := range s.server.view().Rows(serverTable) {
			if row.String("name") == "Test" && row.Bool("connected") && row.Bool("leader") {
				return
			}
		}
		t.Errorf("%s makes a leader", raw)
	})
}

func FuzzCondSince(f *testing.F) {
	f.Add([]byte(`[false,"` + txn1 + `",{"Port":{"` + row1 + `":{"initial":{"n":1}}}}]`))
	f.Add([]byte(`[true,"` + txn1 + `",{}]`))
	f.Add([]byte(`[null,null,null]`))
	tables := testTables(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		found, err := parseCondSince(raw, tables)
		if err != nil {
			return
		}
		c := loaded(t, tables)
		if found.whole {
			err = c.load(tables, found.changes, found.transaction)
		} else {
			err = c.resume(found.changes, found.transaction)
		}
		if err == nil && (c.session != 2 || c.version < 2) {
			t.Errorf("session %d, version %d after the second began", c.session, c.version)
		}
		readAll(t, c.view())
	})
}

func FuzzNotification(f *testing.F) {
	for _, method := range []string{"update", "update2", "update3", "monitor_canceled", "locked"} {
		f.Add(method, []byte(`["policygate","`+txn1+`",{"Port":{"`+row2+`":{"modify":{"n":1}}}}]`))
		f.Add(method, []byte(`["policygate",{"Port":{"`+row2+`":{"new":{"n":1}}}}]`))
	}
	tables := testTables(f)
	f.Fuzz(func(t *testing.T, method string, params []byte) {
		n, err := parseNotification(method, params)
		if err != nil || n == nil {
			return
		}
		if method != "update" && method != "update3" {
			t.Errorf("%q is taken for an update", method)
		}
		changes, err := n.parse(tables)
		if err != nil {
			return
		}
		c := loaded(t, tables)
		_ = c.apply(changes, n.transaction)
		readAll(t, c.view())
	})
}

func FuzzIncrement(f *testing.F) {
	f.Add([]byte(`[{"count":1},{"rows":[{"cfg":8}]}]`))
	f.Add([]byte(`[{"count":1},{"rows":[{"cfg":8}]},{"error":"timed out","details":"x"}]`))
	f.Add([]byte(`[null,{"error":"constraint violation"}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := parseIncrement(raw, "cfg")
		if err != nil && n != 0 {
			t.Errorf("%d with the error %v", n, err)
		}
	})
}
