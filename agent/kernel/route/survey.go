// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"slices"

	"github.com/policygate/policygate/agent/ruleset"
)

// VirtualServers reports whether the node has any virtual servers (IPVS).
func (t *Topology) VirtualServers() (bool, error) { return t.virtualServers() }

// Unfiltered returns the names of the bridges between whose ports IPv4 packets
// pass without meeting a rule, sorted. Bridges without anything on the node
// behind a port, such as a container, are left out.
func (t *Topology) Unfiltered() ([]string, error) {
	used := map[int]bool{}
	for _, l := range t.known.links {
		if l.onsite() {
			used[l.master] = true
		}
	}
	var names []string
	for _, l := range t.known.links {
		if l.kind != "bridge" || !used[l.index] {
			continue
		}
		calls, err := t.bridgeCalls(ruleset.IPv4)
		if err != nil {
			return nil, err
		}
		if l.unseen(calls, ruleset.IPv4) {
			names = append(names, l.name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// unseen reports whether a bridge passes packets of a family on without asking
// any rule.
func (l link) unseen(c calls, family ruleset.Family) bool {
	own := l.callIPTables
	if family == ruleset.IPv6 {
		own = l.callIP6Tables
	}
	return !c.loaded || !c.on && !own
}
