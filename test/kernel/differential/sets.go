// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// ipset is a set that a node has from the beginning; each ruleset fills it
// anew.
type ipset struct {
	name, kind, options string
	// dims is how many dimensions the type has, families which it exists for.
	dims     int
	families string
	// element returns one to add.
	element func(g *generator) string
}

// ipsets has a line for each type and option. Names get the family's number
// appended.
var ipsets = []ipset{
	{"ip", "hash:ip", "", 1, "46", func(g *generator) string { return g.address() }},
	{"iptimeout", "hash:ip", "timeout 6000 counters comment", 1, "46", func(g *generator) string { return g.address() + g.some(" timeout 0", " timeout 3000", "") }},
	{"ipskb", "hash:ip", "skbinfo", 1, "46", func(g *generator) string { return g.address() }},
	{"ipmask", "hash:ip", "netmask 24", 1, "4", func(g *generator) string { return g.address() }},
	{"ipmask", "hash:ip", "netmask 64", 1, "6", func(g *generator) string { return g.address() }},
	{"ipmark", "hash:ip,mark", "", 2, "46", func(g *generator) string { return g.address() + ",0x" + g.some("0", "1", "2") }},
	{"ipport", "hash:ip,port", "", 2, "46", func(g *generator) string { return g.address() + "," + g.protocolPort() }},
	{"ipporttimeout", "hash:ip,port", "timeout 0", 2, "46", func(g *generator) string { return g.address() + "," + g.protocolPort() + g.some("", " timeout 5000") }},
	{"ipportip", "hash:ip,port,ip", "", 3, "46", func(g *generator) string { return g.address() + "," + g.protocolPort() + "," + g.address() }},
	{"ipportnet", "hash:ip,port,net", "", 3, "46", func(g *generator) string {
		return g.address() + "," + g.protocolPort() + "," + g.network() + g.nomatch()
	}},
	{"net", "hash:net", "", 1, "46", func(g *generator) string { return g.network() + g.nomatch() }},
	{"nettimeout", "hash:net", "timeout 3000", 1, "46", func(g *generator) string { return g.network() + g.nomatch() }},
	{"netnet", "hash:net,net", "", 2, "46", func(g *generator) string { return g.network() + "," + g.network() + g.nomatch() }},
	{"netport", "hash:net,port", "", 2, "46", func(g *generator) string { return g.network() + "," + g.protocolPort() + g.nomatch() }},
	{"netportnet", "hash:net,port,net", "", 3, "46", func(g *generator) string {
		return g.network() + "," + g.protocolPort() + "," + g.network() + g.nomatch()
	}},
	{"netiface", "hash:net,iface", "", 2, "46", func(g *generator) string {
		return g.network() + "," + g.some("", "physdev:") + g.device() + g.nomatch()
	}},
	{"bmip", "bitmap:ip", "range 10.244.0.0/20", 1, "4", func(g *generator) string {
		return g.some("10.244.1.10", "10.244.1.20", "10.244.2.10", "10.244.1.0/24", "10.244.3.0-10.244.4.15")
	}},
	{"bmmac", "bitmap:ip,mac", "range 10.244.1.0/24", 2, "4", func(g *generator) string {
		return g.some("10.244.1.10", "10.244.1.20", "10.244.1.10,02:00:00:00:00:01", "10.244.1.20,02:00:00:00:00:01")
	}},
	{"bmport", "bitmap:port", "range 0-10000", 1, "4", func(g *generator) string { return g.port() }},
	{"list", "list:set", "size 4", 1, "46", func(g *generator) string {
		return g.some("ip", "net", "ipport", "nettimeout") + g.version()
	}},
}

func (s ipset) create(name string) string {
	family := ""
	if strings.HasPrefix(s.kind, "hash:") {
		family = map[string]string{"4": " family inet", "6": " family inet6"}[name[len(name)-1:]]
	}
	return "create " + name + " " + s.kind + family + " " + s.options
}

// createSets creates the sets of those types that the kernel has.
func (n *Node) createSets(ctx context.Context) error {
	for _, s := range ipsets {
		kept := s
		kept.families = ""
		for version := range strings.SplitSeq(s.families, "") {
			if err := run(ctx, n.env, s.create(s.name+version)+"\n", "ipset", "restore"); err != nil {
				if strings.Contains(err.Error(), "set type not supported") {
					continue
				}
				return err
			}
			kept.families += version
		}
		if kept.families != "" {
			n.sets = append(n.sets, kept)
		}
	}
	return nil
}

// fill returns what fills the sets, of which there are not any but the ones
// given.
func (g *generator) fill() Load {
	l := Load{Tool: "ipset"}
	names := []string{}
	var adds []Line
	for _, s := range g.sets {
		for version := range strings.SplitSeq(s.families, "") {
			name := s.name + version
			names = append(names, name)
			g.v6 = version == "6"
			for range g.IntN(5) {
				adds = append(adds, Line{"add " + name + " " + s.element(g), true})
			}
		}
	}
	// Sets of sets hold the others: theirs is the first to be emptied.
	slices.Reverse(names)
	for _, name := range names {
		l.Lines = append(l.Lines, Line{"flush " + name, false})
	}
	l.Lines = append(l.Lines, adds...)
	return l
}

// matchSet returns a condition on a set of the family.
func (g *generator) matchSet() string {
	var able []ipset
	for _, s := range g.sets {
		if strings.Contains(s.families, g.version()) || s.kind == "bitmap:port" && g.IntN(2) == 0 {
			able = append(able, s)
		}
	}
	s := able[g.IntN(len(able))]
	version := g.version()
	if !strings.Contains(s.families, version) {
		version = s.families
	}
	dims := make([]string, s.dims)
	for i := range dims {
		dims[i] = g.some("src", "dst", "dst")
		if strings.Contains(s.kind, "port") && i == s.dims-1 && s.dims < 3 || i == 1 && s.dims == 3 {
			dims[i] = g.some("dst", "dst", "dst", "dst", "src")
		}
	}
	switch g.IntN(30) {
	case 0:
		dims = append(dims, "dst")
	case 1:
		dims = dims[1:]
	}
	if len(dims) == 0 {
		dims = []string{"src"}
	}
	g.use("ipset " + s.kind)
	return fmt.Sprintf("-m set %s--match-set %s%s %s", g.not(), s.name, version, strings.Join(dims, ","))
}
