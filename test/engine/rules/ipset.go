// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// SetType is an ipset type.
type SetType string

// The types that the engine uses.
const (
	HashIP  SetType = "hash:ip"
	HashNet SetType = "hash:net"
)

// Set is an ipset.
type Set struct {
	Name string
	Type SetType
	// Members are distinct by entry.
	Members []Member
}

// Member is an element of a set.
type Member struct {
	// Entry is an address or a prefix, as ipset save writes it.
	Entry string
	// NoMatch turns the element into an exception.
	NoMatch bool
}

// SetRestore returns the input of "ipset restore -exist" that makes the
// table's sets what they should be. Each is filled under a temporary name and
// swapped in, so that rules never see a set that is empty or half full. It is
// empty if there are no sets.
func (t Table) SetRestore() string {
	var b strings.Builder
	temps := map[string]bool{}
	for _, s := range t.Sets {
		options := s.options(t.Family)
		temp := tempSetName(t.Family, options)
		temps[temp] = true
		fmt.Fprintf(&b, "create %s %s\nflush %s\n", temp, options, temp)
		for _, m := range s.Members {
			fmt.Fprintf(&b, "add %s %s timeout 0", temp, m.Entry)
			if m.NoMatch {
				b.WriteString(" nomatch")
			}
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "create %s %s\nswap %s %s\nflush %s\n", s.Name, options, temp, s.Name, temp)
	}
	for _, temp := range slices.Sorted(maps.Keys(temps)) {
		fmt.Fprintf(&b, "destroy %s\n", temp)
	}
	return b.String()
}

// options are those that ipset itself defaults to, but for the timeout: it
// gives every member one of zero, which is never.
func (s Set) options(f Family) string {
	family := "inet"
	if f == IPv6 {
		family = "inet6"
	}
	return fmt.Sprintf("%s family %s hashsize 1024 maxelem 65536 timeout 0", s.Type, family)
}

// setTable collects sets. Of two with one name the later wins, as in
// kube-router where hashes of namespace and name are not delimited.
type setTable struct {
	family Family
	drop   map[netip.Addr]bool
	sets   map[string]Set
}

func (t setTable) add(name string, kind SetType, members []Member) string {
	t.sets[name] = Set{Name: name, Type: kind, Members: distinct(members)}
	return name
}

// addPods adds a set of Pods. Peers are subject to dropped addresses, targets
// are not.
func (t setTable) addPods(name string, kind SetType, pods []pod, peers bool) string {
	var members []Member
	for _, p := range pods {
		for _, a := range p.addresses {
			if t.family.contains(a) && (!peers || !t.drop[a]) {
				members = append(members, Member{Entry: a.String()})
			}
		}
	}
	return t.add(name, kind, members)
}

func (t setTable) sorted() []Set {
	sets := make([]Set, 0, len(t.sets))
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		sets = append(sets, t.sets[name])
	}
	return sets
}

// distinct keeps the last of the members with one entry: that is what
// repeated "add -exist" leaves in the kernel.
func distinct(members []Member) []Member {
	last := map[string]int{}
	for i, m := range members {
		last[m.Entry] = i
	}
	var result []Member
	for i, m := range members {
		if last[m.Entry] == i {
			result = append(result, m)
		}
	}
	return result
}
