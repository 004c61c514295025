// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"strings"

	"github.com/policygate/policygate/api/flow"
)

// testRow is a Row of values.
type testRow struct {
	uuid    string
	columns map[string]any
}

func (r *testRow) Identity() string { return r.uuid }
func (r *testRow) String(c string) string {
	s, _ := r.columns[c].(string)
	return s
}

func (r *testRow) Int(c string) int64 {
	n, _ := r.columns[c].(int)
	return int64(n)
}

func (r *testRow) Bool(c string) bool {
	b, _ := r.columns[c].(bool)
	return b
}

func (r *testRow) Set(c string) bool {
	_, ok := r.columns[c]
	return ok
}

func (r *testRow) Strings(c string) []string {
	s, _ := r.columns[c].([]string)
	return s
}

func (r *testRow) References(c string) []string { return r.Strings(c) }

func (r *testRow) Key(c, key string) string {
	m, _ := r.columns[c].(map[string]string)
	return m[key]
}

// testView is a View of values.
type testView struct {
	version uint64
	tables  map[string]map[string]*testRow
	changed map[string]uint64
}

func (v *testView) Version() uint64              { return v.version }
func (v *testView) TableVersion(t string) uint64 { return v.changed[t] }
func (v *testView) Has(table, uuid string) bool  { _, ok := v.tables[table][uuid]; return ok }
func (v *testView) Rows(table string) iter.Seq[Row] {
	return func(yield func(Row) bool) {
		for _, r := range v.tables[table] {
			if !yield(r) {
				return
			}
		}
	}
}

// database makes views. Names are UUIDs as well.
type database struct {
	view *testView
	err  error
}

func newDatabase() *database {
	return &database{view: &testView{version: 1, tables: map[string]map[string]*testRow{}, changed: map[string]uint64{}}}
}

func (d *database) newest() (View, error) {
	if d.err != nil {
		return nil, d.err
	}
	return d.view, nil
}

// put makes a view with one row more, or with another in its place.
func (d *database) put(table, uuid string, columns map[string]any) {
	d.next(table)
	d.view.tables[table][uuid] = &testRow{uuid, columns}
}

func (d *database) drop(table, uuid string) {
	d.next(table)
	delete(d.view.tables[table], uuid)
}

func (d *database) next(table string) {
	v := &testView{version: d.view.version + 1, tables: maps.Clone(d.view.tables), changed: maps.Clone(d.view.changed)}
	v.tables[table] = maps.Clone(v.tables[table])
	if v.tables[table] == nil {
		v.tables[table] = map[string]*testRow{}
	}
	v.changed[table] = v.version
	d.view = v
}

// with returns the row's columns with others in their place.
func (d *database) with(table, uuid string, columns map[string]any) {
	all := maps.Clone(d.view.tables[table][uuid].columns)
	maps.Copy(all, columns)
	d.put(table, uuid, all)
}

// logicalSwitch, port and the like are Kube-OVN's rows.
func (d *database) logicalSwitch(name string, ports ...string) {
	d.put(tableSwitch, name, map[string]any{"name": name, "ports": ports})
}

func (d *database) port(pod, namespace string, addresses ...string) {
	d.put(tablePort, pod+"."+namespace, map[string]any{
		"name": pod + "." + namespace, "external_ids": map[string]string{"pod": namespace + "/" + pod},
		"addresses": []string{"0a:00:00:00:00:01 " + strings.Join(addresses, " ")},
	})
}

func (d *database) group(policy, namespace string, ports, acls []string) {
	d.put(tableGroup, policy+"."+namespace, map[string]any{
		"name": policy + "." + namespace, "ports": ports, "acls": acls,
		"external_ids": map[string]string{"np": namespace + "/" + policy},
	})
}

func (d *database) acl(uuid, name, direction string, priority int, match, action string) {
	d.put(tableACL, uuid, map[string]any{
		"name": name, "direction": direction, "priority": priority, "match": match, "action": action,
		"options": map[string]string{"apply-after-lb": fmt.Sprint(direction == "from-lport")},
	})
}

func (d *database) set(name, policy string, addresses ...string) {
	d.put(tableAddress, name, map[string]any{
		"name": name, "addresses": addresses, "external_ids": map[string]string{"np": policy},
	})
}

var errNoConnection = errors.New("not connected")

func tcp(src, dst string, port uint16) flow.Flow {
	return flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Port: port}
}

const (
	server, client, other = "10.16.0.5", "10.16.0.6", "10.16.0.7"
	allowSet, exceptSet   = "np.db.ingress.allow.IPv4.0", "np.db.ingress.except.IPv4.0"
)

// example has a server to whose port 80 a policy lets a client, and somebody else.
func example() *database {
	d := newDatabase()
	d.put(tableGlobal, "global", map[string]any{})
	d.port("srv", "db", server)
	d.port("cli", "db", client)
	d.port("oth", "x", other)
	d.logicalSwitch("ovn-default", "srv.db", "cli.db", "oth.x")
	d.acl("drop", "db/np", "to-lport", 2000, "outport == @np.db && ip", "drop")
	d.acl("allow", "np/np.db/ingress/IPv4/0", "to-lport", 2001,
		"outport == @np.db && ip && ip4.src == $"+allowSet+" && ip4.src != $"+exceptSet+" && tcp.dst == 80", "allow-related")
	d.group("np", "db", []string{"srv.db"}, []string{"drop", "allow"})
	d.set(allowSet, "db/np/ingress", client)
	d.set(exceptSet, "db/np/ingress")
	return d
}
