// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// northbound writes the first contents of OVN's northbound database in
// Kube-OVN's shape: a port per Pod, and per policy a port group of three of
// them, an address set of 200 peers and its exceptions, and three ACLs.
func northbound(pods, policies int) []byte {
	var b strings.Builder
	id := func(kind, n int) string { return fmt.Sprintf("%08x-0000-4000-8000-%012x", kind, n) }
	rows := func(name string, count int, row func(int) string) {
		fmt.Fprintf(&b, "%q:{", name)
		for i := range count {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(row(i))
		}
		b.WriteString("}")
	}
	address := func(n int) string { return fmt.Sprintf("10.%d.%d.%d", 16+n>>16, n>>8&255, n&255) }
	b.WriteByte('{')
	rows("Logical_Switch_Port", pods, func(i int) string {
		return fmt.Sprintf(`"%s":{"initial":{"name":"pod-%d.namespace-%d","addresses":"0a:00:00:%02x:%02x:%02x %s",
			"external_ids":["map",[["ls","ovn-default"],["pod","namespace-%d/pod-%d"],["vendor","kube-ovn"]]]}}`,
			id(1, i), i, i%10, i>>16, i>>8&255, i&255, address(i), i%10, i)
	})
	b.WriteByte(',')
	rows("Port_Group", policies, func(i int) string {
		return fmt.Sprintf(`"%s":{"initial":{"name":"policy.%d.namespace.%d","ports":["set",[["uuid","%s"],["uuid","%s"],["uuid","%s"]]],
			"acls":["set",[["uuid","%s"],["uuid","%s"],["uuid","%s"]]],"external_ids":["map",[["np","namespace-%d/policy-%d"],["vendor","kube-ovn"]]]}}`,
			id(2, i), i, i%10, id(1, 3*i%pods), id(1, (3*i+1)%pods), id(1, (3*i+2)%pods), id(4, 3*i), id(4, 3*i+1), id(4, 3*i+2), i%10, i)
	})
	b.WriteByte(',')
	rows("Address_Set", 2*policies, func(i int) string {
		var peers []string
		for p := range 200 * ((i + 1) % 2) {
			peers = append(peers, `"`+address((i+p)%pods)+`"`)
		}
		return fmt.Sprintf(`"%s":{"initial":{"name":"policy.%d.namespace.%d.ingress.allow.IPv4.0","addresses":["set",[%s]],
			"external_ids":["map",[["np","namespace-%d/policy-%d/ingress"],["vendor","kube-ovn"]]]}}`, id(3, i), i, i%10, strings.Join(peers, ","), i%10, i)
	})
	b.WriteByte(',')
	rows("ACL", 3*policies, func(i int) string {
		return fmt.Sprintf(`"%s":{"initial":{"name":"np/policy.%d.namespace.%d/ingress/IPv4/0","priority":2001,"direction":"to-lport","action":"allow-related",
			"match":"outport == @policy.%d.namespace.%d && ip && ip4.src == $policy.%d.namespace.%d.ingress.allow.IPv4.0 && tcp.dst == 80",
			"external_ids":["map",[["parent","policy.%d.namespace.%d"],["vendor","kube-ovn"]]]}}`, id(4, i), i/3, i%10, i/3, i%10, i/3, i%10, i/3, i%10)
	})
	b.WriteByte('}')
	return []byte(b.String())
}

func northboundTables() map[string]*table {
	of := func(name string, columns ...column) *table {
		t := &table{name: name, columns: columns, index: map[string]int{}}
		for i, c := range columns {
			t.index[c.name] = i
		}
		return t
	}
	name, ids := column{"name", String, aString}, column{"external_ids", Map, texts}
	return map[string]*table{
		"Logical_Switch_Port": of("Logical_Switch_Port", name, column{"addresses", Strings, strs}, ids),
		"Port_Group":          of("Port_Group", name, column{"ports", UUIDs, refs}, column{"acls", UUIDs, refs}, ids),
		"Address_Set":         of("Address_Set", name, column{"addresses", Strings, strs}, ids),
		"ACL": of("ACL", name, column{"priority", Int, anInt}, column{"direction", String, aString}, column{"action", String, aString},
			column{"match", String, aString}, ids),
	}
}

// BenchmarkFirstContents reads the first contents of northbound databases and
// tells what they take on the wire and in memory.
func BenchmarkFirstContents(b *testing.B) {
	for _, size := range [][2]int{{300, 100}, {3000, 1000}} {
		b.Run(fmt.Sprintf("%d pods, %d policies", size[0], size[1]), func(b *testing.B) {
			raw := northbound(size[0], size[1])
			tables := northboundTables()
			c := &cache{}
			before := heap()
			for b.Loop() {
				changes, err := parseUpdates2(json.RawMessage(raw), tables)
				if err != nil {
					b.Fatal(err)
				}
				c = &cache{}
				if err := c.load(tables, changes, txn1); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(raw))/(1<<20), "wire-MiB")
			b.ReportMetric(float64(heap()-before)/(1<<20), "cache-MiB")
			if n := c.view().Len("ACL"); n != 3*size[1] {
				b.Fatalf("%d ACLs", n)
			}
		})
	}
}

// heap returns how many bytes are in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkUpdate applies an update of one address set and takes the view.
func BenchmarkUpdate(b *testing.B) {
	tables := northboundTables()
	changes, err := parseUpdates2(northbound(3000, 1000), tables)
	if err != nil {
		b.Fatal(err)
	}
	c := &cache{}
	if err := c.load(tables, changes, txn1); err != nil {
		b.Fatal(err)
	}
	update := json.RawMessage(`{"Address_Set":{"00000003-0000-4000-8000-000000000000":{"modify":{"addresses":"192.0.2.1"}}}}`)
	for b.Loop() {
		changes, err := parseUpdates2(update, tables)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.apply(changes, txn1); err != nil {
			b.Fatal(err)
		}
		c.view()
	}
}
