// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"iter"
	"strings"
)

// The tables that are looked at.
const (
	tableGlobal  = "NB_Global"
	tablePort    = "Logical_Switch_Port"
	tableSwitch  = "Logical_Switch"
	tableGroup   = "Port_Group"
	tableACL     = "ACL"
	tableAddress = "Address_Set"
)

// View is what the database held after one transaction. It is immutable.
type View interface {
	// Version counts the changes of the rows: views of equal Version hold the
	// same.
	Version() uint64
	// TableVersion returns the Version with which a table changed last.
	TableVersion(table string) uint64
	// Rows returns the rows of a table, in no order.
	Rows(table string) iter.Seq[Row]
	// Has returns whether a table has a row.
	Has(table, uuid string) bool
}

// Row is a row of a table. It is immutable, and rows are comparable: a row is
// equal to one of another view if nothing in it has changed. A column that is
// empty, or that the database lacks, has the zero value.
type Row interface {
	// Identity returns the row's UUID.
	Identity() string
	String(column string) string
	Int(column string) int64
	Bool(column string) bool
	// Set returns whether the column has a value.
	Set(column string) bool
	// Strings returns a set. It must not be changed.
	Strings(column string) []string
	// References returns the UUIDs of the rows that a column refers to.
	References(column string) []string
	// Key returns what a map has for a key, or "".
	Key(column, key string) string
}

// follower keeps a model at what views say.
type follower struct {
	model *model
	// version is that of the newest view, and versions those of its tables.
	version  uint64
	versions map[string]uint64
	rows     map[string]map[id]Row
}

func newFollower() *follower {
	f := &follower{model: newModel(), versions: map[string]uint64{}, rows: map[string]map[id]Row{}}
	for table := range f.tables() {
		f.rows[table] = map[id]Row{}
	}
	return f
}

// tables returns what is done with rows that have changed, and with those that
// are gone.
func (f *follower) tables() map[string]struct {
	put  func(Row)
	gone func(id)
} {
	m := f.model
	return map[string]struct {
		put  func(Row)
		gone func(id)
	}{
		tableGlobal:  {func(r Row) { m.defaultDrop = r.Key("options", "default_acl_drop") == "true" }, func(id) { m.defaultDrop = false }},
		tablePort:    {func(r Row) { m.putPort(portOf(r)) }, m.dropPort},
		tableSwitch:  {func(r Row) { m.putSwitch(switchOf(r)) }, m.dropSwitch},
		tableGroup:   {func(r Row) { m.putGroup(groupOf(r)) }, m.dropGroup},
		tableACL:     {func(r Row) { m.putACL(aclOf(r), r.String("match")) }, m.dropACL},
		tableAddress: {func(r Row) { m.putSet(setOf(r)) }, m.dropSet},
	}
}

// follow brings the model to a view, and returns whether any row has changed.
func (f *follower) follow(v View) bool {
	if v.Version() == f.version {
		return false
	}
	f.version = v.Version()
	changed := false
	for table, does := range f.tables() {
		version := v.TableVersion(table)
		if version == f.versions[table] {
			continue
		}
		f.versions[table] = version
		known, count := f.rows[table], 0
		for r := range v.Rows(table) {
			count++
			i := id(r.Identity())
			if known[i] == r {
				continue
			}
			known[i] = r
			does.put(r)
			changed = true
		}
		if len(known) == count {
			continue
		}
		for i := range known {
			if !v.Has(table, string(i)) {
				delete(known, i)
				does.gone(i)
				changed = true
			}
		}
	}
	return changed
}

func portOf(r Row) *port {
	return &port{
		id: id(r.Identity()), name: r.String("name"), kind: r.String("type"),
		disabled:  r.Set("enabled") && !r.Bool("enabled"),
		pod:       r.Key("external_ids", "pod"),
		addresses: portAddresses(r.Strings("addresses"), r.String("dynamic_addresses")),
	}
}

func switchOf(r Row) *switchRow {
	return &switchRow{
		id: id(r.Identity()), name: r.String("name"),
		ports: ids(r.References("ports")), acls: ids(r.References("acls")),
	}
}

func groupOf(r Row) *group {
	g := &group{
		id: id(r.Identity()), name: r.String("name"),
		ports: map[id]struct{}{}, acls: ids(r.References("acls")),
	}
	for _, p := range r.References("ports") {
		g.ports[id(p)] = struct{}{}
	}
	// Kube-OVN has a group for each node and for each subnet on each node as well,
	// with "node/<node>" or "<subnet>/<node>" in the place of a policy. Their names
	// are in that order; that of a policy's group is the other way round.
	policy := policyOf(r)
	if namespace, name, ok := strings.Cut(policy, "/"); ok && g.name == strings.ReplaceAll(name+"."+namespace, "-", ".") {
		g.policy = policy
	}
	return g
}

func aclOf(r Row) *acl {
	return &acl{
		id: id(r.Identity()), name: r.String("name"),
		direction: r.String("direction"), action: r.String("action"), priority: r.Int("priority"), tier: r.Int("tier"),
		afterLB: r.Key("options", "apply-after-lb") == "true",
	}
}

func setOf(r Row) *addressSet {
	s := &addressSet{id: id(r.Identity()), name: r.String("name"), policy: policyOf(r)}
	s.read(r.Strings("addresses"))
	return s
}

// policyOf returns the "namespace/name", of a policy, that Kube-OVN notes on what
// it makes for one, and of an address set the direction behind it.
func policyOf(r Row) string { return r.Key("external_ids", "np") }

func ids(uuids []string) []id {
	all := make([]id, len(uuids))
	for i, u := range uuids {
		all[i] = id(u)
	}
	return all
}
