// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"fmt"
	"slices"

	"github.com/policygate/policygate/agent/ruleset"
)

// Dataplanes that can hold rules, as hub.proto names them.
const (
	// LegacyTables are those of iptables-legacy and ip6tables-legacy.
	LegacyTables = "iptables-legacy"
	// CompatTables are those that iptables-nft makes in nf_tables.
	CompatTables = "iptables-nft"
	// NativeTables are all others of nf_tables.
	NativeTables = "nftables"
	// Sets are ipsets that rules ask.
	Sets = "ipset"
)

// Survey is what can be told of a node's dataplane as a whole.
type Survey struct {
	// Dataplanes are those that do something to forwarded packets but to let
	// them pass, in the order of the constants above.
	Dataplanes []string
	// Unfiltered are the bridges between whose ports packets meet no rules.
	Unfiltered []string
	// VirtualServers: the node has some (IPVS).
	VirtualServers bool
}

// Survey reads what is loaded, of one moment, as Look does. The error is why it
// could not be read.
func (n *Netfilter) Survey(ctx context.Context) (Survey, error) {
	n.mu.Lock()
	// What a reading knows of switches is as old as the reading.
	n.newest = nil
	n.mu.Unlock()
	var s Survey
	var err error
	look := Look{netfilter: n}
	unsettled := look.atOnce(ctx, func(r *reading) { s, err = r.survey() })
	if unsettled != nil {
		return Survey{}, unsettled
	}
	return s, err
}

func (r *reading) survey() (Survey, error) {
	s := Survey{Dataplanes: dataplanesOf(r.tables)}
	var err error
	if s.Unfiltered, err = r.topology.Unfiltered(); err != nil {
		return Survey{}, fmt.Errorf("survey bridges: %w", err)
	}
	if s.VirtualServers, err = r.topology.VirtualServers(); err != nil {
		return Survey{}, fmt.Errorf("survey virtual servers: %w", err)
	}
	return s, nil
}

// mostSurveyed bounds how many chains are read to find out what a table holds.
// Whether they do anything is known after a few; that no rule asks a set, after
// all of them: kube-router writes 219 for 110 Pods.
const mostSurveyed = 256

// dataplanesOf returns which dataplanes do something to forwarded packets.
func dataplanesOf(tables []ruleset.Table) []string {
	found := map[string]bool{}
	for i := range tables {
		kind := kindOf(&tables[i])
		s := surveyor{acts: found[kind], sets: found[Sets], setless: kind == NativeTables, chains: map[*ruleset.Chain]bool{}}
		s.table(&tables[i])
		found[kind], found[Sets] = s.acts, s.sets
	}
	all := []string{LegacyTables, CompatTables, NativeTables, Sets}
	return slices.DeleteFunc(all, func(name string) bool { return !found[name] })
}

// kindOf returns whose table it is. iptables-nft leaves no mark on what it
// makes but the names; others may have added chains to it.
func kindOf(t *ruleset.Table) string {
	switch {
	case t.Backend == ruleset.Legacy:
		return LegacyTables
	case t.Family != ruleset.IPv4 && t.Family != ruleset.IPv6,
		!slices.Contains([]string{"filter", "nat", "mangle", "raw", "security"}, t.Name):
		return NativeTables
	}
	for _, c := range t.Chains {
		if c.Base != nil && slices.Contains([]string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}, c.Name) {
			return CompatTables
		}
	}
	return NativeTables
}

// surveyor goes through chains until it knows what there is to know.
type surveyor struct {
	// acts: some rule does something but let packets pass. sets: some rule asks
	// an ipset.
	acts, sets bool
	// setless: none can. Only rules of iptables ask ipsets.
	setless bool
	// chains are those that were gone through.
	chains map[*ruleset.Chain]bool
}

// table goes through the base chains that forwarded packets meet.
func (s *surveyor) table(t *ruleset.Table) {
	for _, c := range t.Chains {
		if c.Base == nil || c.Base.Hook == ruleset.Input || c.Base.Hook == ruleset.Output {
			continue
		}
		s.acts = s.acts || c.Base.Drop || c.Opaque != ""
		s.chain(c)
	}
}

// chain goes through a chain and those that it jumps to.
func (s *surveyor) chain(c *ruleset.Chain) {
	if s.chains[c] || s.acts && (s.sets || s.setless) || len(s.chains) >= mostSurveyed {
		return
	}
	s.chains[c] = true
	rules, err := c.List()
	if err != nil {
		// Whatever they do, they are there.
		s.acts = true
		return
	}
	for i := range rules {
		s.sets = s.sets || slices.ContainsFunc(rules[i].Matches, func(m ruleset.Match) bool {
			_, set := m.(ruleset.Set)
			return set
		})
		target := &rules[i].Target
		if target.Chain != nil {
			s.chain(target.Chain)
			continue
		}
		passes := target.Kind == ruleset.Continue || target.Kind == ruleset.Accept || target.Kind == ruleset.Return
		s.acts = s.acts || !passes
	}
}
