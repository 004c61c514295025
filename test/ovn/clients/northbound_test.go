// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

func TestRowsOfTheNorthbound(t *testing.T) {
	s := serve(t, northboundSchema)
	c := follow(t, ovsdb.Options{Endpoints: []string{s.endpoint()}, Leader: true})
	empty := c.awaitView("there is nothing", whatever)
	if n := empty.Len("Port_Group"); n != 0 {
		t.Errorf("an empty database has %d port groups", n)
	}

	s.transact(
		object{"op": "insert", "table": "NB_Global", "row": object{}},
		object{"op": "insert", "table": "Logical_Switch", "row": object{"name": "ovn-default", "ports": set([]any{"named-uuid", "srv"})}},
		object{"op": "insert", "table": "Logical_Switch_Port", "uuid-name": "srv", "row": object{
			"name": "srv.db", "addresses": set("0a:00:00:00:00:05 10.16.0.5"), "up": true,
		}},
		object{"op": "insert", "table": "Port_Group", "row": object{
			"name": "deny.db", "ports": set([]any{"named-uuid", "srv"}), "acls": set([]any{"named-uuid", "drop"}),
			"external_ids": dict("np", "db/deny", "vendor", "kube-ovn"),
		}},
		object{"op": "insert", "table": "ACL", "uuid-name": "drop", "row": object{
			"priority": 2000, "direction": "to-lport", "match": "outport == @deny.db && ip", "action": "drop",
		}},
	)
	v := c.awaitView("the port group is there", func(v *ovsdb.View) bool { return v.Len("Port_Group") == 1 })
	if v.Version == empty.Version || v.Session != empty.Session {
		t.Errorf("version %d, session %d after a transaction on version %d, session %d", v.Version, v.Session, empty.Version, empty.Session)
	}
	if n := empty.Len("Port_Group"); n != 0 {
		t.Errorf("the view of before has %d port groups now", n)
	}
	group := only(t, v, "Port_Group")
	if got := group.String("name"); got != "deny.db" {
		t.Errorf("name %q", got)
	}
	if diff := cmp.Diff(map[string]string{"np": "db/deny", "vendor": "kube-ovn"}, group.Map("external_ids")); diff != "" {
		t.Errorf("external_ids (-want +got):\n%s", diff)
	}
	// All of one transaction are in one view.
	acl, ok := v.Get("ACL", group.UUIDs("acls")[0])
	if !ok {
		t.Fatal("the port group's ACL is not in its view")
	}
	if acl.Int("priority") != 2000 || acl.Bool("log") || acl.Has("tier") || acl.String("action") != "drop" {
		t.Errorf("priority %d, log %v, has tier %v, action %q", acl.Int("priority"), acl.Bool("log"), acl.Has("tier"), acl.String("action"))
	}
	port, ok := v.Get("Logical_Switch_Port", group.UUIDs("ports")[0])
	if !ok {
		t.Fatal("the port group's port is not in its view")
	}
	if !port.Bool("up") || port.Has("tag") || len(port.Strings("addresses")) != 1 {
		t.Errorf("up %v, has tag %v, addresses %q", port.Bool("up"), port.Has("tag"), port.Strings("addresses"))
	}

	s.transact(object{"op": "update", "table": "Logical_Switch_Port", "where": []any{}, "row": object{"tag": 7, "up": set()}})
	after := c.awaitView("the port has a tag", func(v *ovsdb.View) bool { return only(t, v, "Logical_Switch_Port").Int("tag") == 7 })
	if now := only(t, after, "Logical_Switch_Port"); now.Has("up") || !port.Has("up") {
		t.Errorf("has up %v after it was taken away, %v before", now.Has("up"), port.Has("up"))
	}
	if only(t, after, "Port_Group") != group || after.TableVersion("Port_Group") != v.TableVersion("Port_Group") {
		t.Error("a row that was not touched is another one")
	}
}

// only returns the one row of the table.
func only(t *testing.T, v *ovsdb.View, table string) *ovsdb.Row {
	t.Helper()
	rows := slices.Collect(v.Rows(table))
	if len(rows) != 1 {
		t.Fatalf("%d rows in %s, want 1", len(rows), table)
	}
	return rows[0]
}

// TestViewEqualsTheDatabase commits transactions at random and holds each view
// against what the server says if it is asked for the rows.
func TestViewEqualsTheDatabase(t *testing.T) {
	s := serve(t, northboundSchema)
	s.transact(object{"op": "insert", "table": "NB_Global", "row": object{}})
	c := follow(t, ovsdb.Options{Endpoints: []string{s.endpoint()}})
	c.awaitView("it is in sync", whatever)
	random := rand.New(rand.NewPCG(7, 7))
	w := &writer{random: random}
	for round := range 60 {
		operations := w.operations(1 + random.IntN(6))
		// The counter tells which transaction a view is of.
		operations = append(operations, object{"op": "update", "table": "NB_Global", "where": []any{}, "row": object{"nb_cfg": round + 1}})
		s.transact(operations...)
		v := c.awaitView("the transaction is there", func(v *ovsdb.View) bool {
			return only(t, v, "NB_Global").Int("nb_cfg") == int64(round+1)
		})
		if diff := cmp.Diff(databaseRows(s), viewRows(v)); diff != "" {
			t.Fatalf("after transaction %d: %v\nview differs (-database +view):\n%s", round, operations, diff)
		}
	}
}

// writer makes operations.
type writer struct {
	random *rand.Rand
	names  int
}

func (w *writer) operations(count int) []any {
	var all []any
	for range count {
		where := []any{[]any{"name", "==", fmt.Sprintf("set%d", w.random.IntN(w.names+1))}}
		switch w.random.IntN(6) {
		case 0, 1:
			w.names++
			all = append(all, object{"op": "insert", "table": "Address_Set", "row": object{
				"name": fmt.Sprintf("set%d", w.names), "addresses": w.addresses(), "external_ids": w.ids(),
			}})
		case 2:
			all = append(all, object{"op": "mutate", "table": "Address_Set", "where": where, "mutations": []any{
				[]any{"addresses", "insert", w.addresses()}, []any{"addresses", "delete", w.addresses()},
			}})
		case 3:
			all = append(all, object{"op": "update", "table": "Address_Set", "where": where, "row": object{"external_ids": w.ids()}})
		case 4:
			all = append(all, object{"op": "update", "table": "Address_Set", "where": where, "row": object{"addresses": w.addresses()}})
		case 5:
			all = append(all, object{"op": "delete", "table": "Address_Set", "where": where})
		}
	}
	return all
}

func (w *writer) addresses() []any {
	all := map[string]bool{}
	for range w.random.IntN(12) {
		all[fmt.Sprintf("10.16.0.%d", w.random.IntN(20))] = true
	}
	elements := []any{}
	for a := range all {
		elements = append(elements, a)
	}
	return set(elements...)
}

func (w *writer) ids() []any {
	all := map[string]string{}
	for range w.random.IntN(4) {
		all[fmt.Sprintf("key%d", w.random.IntN(5))] = fmt.Sprintf("\u00fc \"%d\"", w.random.IntN(3))
	}
	pairs := []any{}
	for k, v := range all {
		pairs = append(pairs, k, v)
	}
	return dict(pairs...)
}

type addressSet struct {
	Name      string
	Addresses []string
	IDs       map[string]string
}

func viewRows(v *ovsdb.View) map[string]addressSet {
	all := map[string]addressSet{}
	for row := range v.Rows("Address_Set") {
		all[string(row.UUID())] = addressSet{row.String("name"), row.Strings("addresses"), row.Map("external_ids")}
	}
	return all
}

// databaseRows reads the same without the client.
func databaseRows(s *server) map[string]addressSet {
	results := s.transact(object{"op": "select", "table": "Address_Set", "where": []any{}, "columns": []any{"_uuid", "name", "addresses", "external_ids"}})
	raw, _ := json.Marshal(results[0])
	var found struct {
		Rows []struct {
			UUID      []string `json:"_uuid"`
			Name      string   `json:"name"`
			Addresses any      `json:"addresses"`
			IDs       []any    `json:"external_ids"`
		} `json:"rows"`
	}
	if err := json.Unmarshal(raw, &found); err != nil {
		s.t.Fatal(err)
	}
	all := map[string]addressSet{}
	for _, r := range found.Rows {
		a := addressSet{Name: r.Name}
		switch v := r.Addresses.(type) {
		case string:
			a.Addresses = []string{v}
		case []any:
			for _, e := range v[1].([]any) {
				a.Addresses = append(a.Addresses, e.(string))
			}
		}
		slices.Sort(a.Addresses)
		for _, p := range r.IDs[1].([]any) {
			if a.IDs == nil {
				a.IDs = map[string]string{}
			}
			a.IDs[p.([]any)[0].(string)] = p.([]any)[1].(string)
		}
		all[r.UUID[1]] = a
	}
	return all
}

func TestSeveralIncrements(t *testing.T) {
	s := serve(t, northboundSchema)
	c := follow(t, ovsdb.Options{Endpoints: []string{s.endpoint()}, Leader: true})
	c.awaitView("it is in sync", whatever)
	if _, err := c.Increment(t.Context(), "NB_Global", "nb_cfg"); err == nil || !strings.Contains(err.Error(), "not that of one row") {
		t.Errorf("increment without a row: %v", err)
	}
	s.transact(object{"op": "insert", "table": "NB_Global", "row": object{"nb_cfg": 41}})
	var mu sync.Mutex
	got := map[int64]bool{}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			n, err := c.Increment(context.Background(), "NB_Global", "nb_cfg")
			if err != nil {
				t.Errorf("increment: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			got[n] = true
		})
	}
	all.Wait()
	want := map[int64]bool{}
	for n := int64(42); n < 62; n++ {
		want[n] = true
	}
	if !maps.Equal(want, got) {
		t.Errorf("increments gave %v, want 42 to 61", slices.Sorted(maps.Keys(got)))
	}
	c.awaitView("the last increment is there", func(v *ovsdb.View) bool { return only(t, v, "NB_Global").Int("nb_cfg") == 61 })
	for _, wrong := range [][2]string{{"ACL", "priority"}, {"NB_Global", "nb_cfg_timestamp_"}, {"NB_Global", "name"}, {"Nope", "nb_cfg"}} {
		if _, err := c.Increment(t.Context(), wrong[0], wrong[1]); err == nil || !strings.Contains(err.Error(), "no such") {
			t.Errorf("increment %s of %s: %v", wrong[1], wrong[0], err)
		}
	}
}

func TestServerThatIsRestarted(t *testing.T) {
	s := serve(t, northboundSchema)
	c := follow(t, ovsdb.Options{Endpoints: []string{s.endpoint()}, Leader: true})
	s.transact(object{"op": "insert", "table": "Address_Set", "row": object{"name": "kept"}})
	before := c.awaitView("the address set is there", func(v *ovsdb.View) bool { return v.Len("Address_Set") == 1 })
	s.kill()
	c.awaitError("")
	if _, err := c.Increment(t.Context(), "NB_Global", "nb_cfg"); err == nil {
		t.Error("increment without a server: no error")
	}
	s.start()
	v := c.awaitView("it is in sync again", func(v *ovsdb.View) bool { return v.Session == before.Session+1 })
	if v.Version <= before.Version {
		t.Errorf("version %d after version %d of another session", v.Version, before.Version)
	}
	if only(t, v, "Address_Set") != only(t, before, "Address_Set") || v.TableVersion("Address_Set") != before.TableVersion("Address_Set") {
		t.Error("a table that did not change is another one in the next session")
	}
	s.transact(object{"op": "insert", "table": "Address_Set", "row": object{"name": "new"}})
	c.awaitView("changes are told again", func(v *ovsdb.View) bool { return v.Len("Address_Set") == 2 })
	if n := before.Len("Address_Set"); n != 1 {
		t.Errorf("the view of before has %d address sets now", n)
	}
}

func TestServerThatIsStopped(t *testing.T) {
	s := serve(t, northboundSchema)
	fakeClock := clocktesting.NewFakeClock(time.Now())
	c := follow(t, ovsdb.Options{Endpoints: []string{s.endpoint()}, Clock: fakeClock})
	before := c.awaitView("it is in sync", whatever)
	pass := func(what string, holds func(*ovsdb.View, error) bool) {
		t.Helper()
		await(t, what, func() bool {
			fakeClock.Step(50 * time.Millisecond)
			return holds(c.View())
		}, s.process)
	}
	s.signal(syscall.SIGSTOP)
	pass("the server is given up", func(_ *ovsdb.View, err error) bool {
		return err != nil && strings.Contains(err.Error(), "the server has been silent for")
	})
	s.signal(syscall.SIGCONT)
	pass("it is in sync again", func(v *ovsdb.View, err error) bool { return err == nil && v.Session > before.Session })
}

func TestSchemaThatChanges(t *testing.T) {
	s := serve(t, northboundSchema)
	s.transact(object{"op": "insert", "table": "Address_Set", "row": object{"name": "kept"}})
	c := follow(t, ovsdb.Options{Endpoints: []string{s.endpoint()}, Tables: []ovsdb.Table{{Name: "Address_Set", Columns: []ovsdb.Column{
		{Name: "name", As: ovsdb.String}, {Name: "purpose", As: ovsdb.String, Optional: true},
	}}}})
	before := c.awaitView("it is in sync", whatever)
	if only(t, before, "Address_Set").Has("purpose") {
		t.Error("a column has a value that the schema lacks")
	}
	newer := strings.Replace(readFile(t, northboundSchema), `"Address_Set": {
            "columns": {`, `"Address_Set": {
            "columns": {
                "purpose": {"type": "string"},`, 1)
	path := writeFile(t, s.dir, "newer.ovsschema", newer)
	run(t, "ovsdb-client", "convert", s.endpoint(), path)
	c.awaitView("the new column is there", func(v *ovsdb.View) bool {
		return v.Session > before.Session && only(t, v, "Address_Set").Has("purpose")
	})
}

func TestServerThatDoesNotSuit(t *testing.T) {
	s := serve(t, northboundSchema)
	for name, test := range map[string]struct {
		database string
		tables   []ovsdb.Table
		want     string
	}{
		"another database": {
			database: "OVN_Southbound",
			want:     "the server has no database OVN_Southbound",
		},
		"a table is missing": {
			tables: []ovsdb.Table{{Name: "Banana"}},
			want:   "has no table Banana",
		},
		"a column is missing": {
			tables: []ovsdb.Table{{Name: "ACL", Columns: []ovsdb.Column{{Name: "tier", As: ovsdb.Int}}}},
			want:   "table ACL of the server's schema",
		},
		"a column is of another type": {
			tables: []ovsdb.Table{{Name: "ACL", Columns: []ovsdb.Column{{Name: "priority", As: ovsdb.String}}}},
			want:   "column priority of table ACL has the type integer and cannot be read as String",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := follow(t, ovsdb.Options{Endpoints: []string{s.endpoint()}, Database: test.database, Tables: test.tables})
			c.awaitError(test.want)
		})
	}
}
