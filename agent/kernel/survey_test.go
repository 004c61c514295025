// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/ruleset"
)

// base returns a base chain with rules that have these targets.
func base(name string, hook ruleset.Hook, targets ...ruleset.Target) *ruleset.Chain {
	c := &ruleset.Chain{Name: name, Base: &ruleset.Base{Hook: hook}}
	for _, t := range targets {
		c.Rules = append(c.Rules, ruleset.Rule{Target: t})
	}
	return c
}

// table returns a table of IPv4.
func table(b ruleset.Backend, name string, chains ...*ruleset.Chain) ruleset.Table {
	return ruleset.Table{Family: ruleset.IPv4, Backend: b, Name: name, Chains: chains}
}

func TestDataplanesThatDoSomethingToForwardedPackets(t *testing.T) {
	const forward, legacy, nft = ruleset.Forward, ruleset.Legacy, ruleset.NFT
	accept, drop := ruleset.Target{Kind: ruleset.Accept}, ruleset.Target{Kind: ruleset.Drop}
	jump := func(to *ruleset.Chain) ruleset.Target { return ruleset.Target{Kind: ruleset.Jump, Chain: to} }
	dropping := base("FORWARD", forward)
	dropping.Base.Drop = true
	loop := &ruleset.Chain{Name: "loop"}
	loop.Rules = []ruleset.Rule{{Target: jump(loop)}}
	asking := &ruleset.Chain{Name: "asking", Rules: []ruleset.Rule{{Matches: []ruleset.Match{ruleset.Set{Name: "s"}}, Target: accept}}}
	unreadable := base("FORWARD", forward)
	unreadable.Read = func() ([]ruleset.Rule, error) { return nil, errors.New("gone") }
	unread := &ruleset.Chain{Name: "unread", Read: func() ([]ruleset.Rule, error) { panic("it was read") }}
	many := base("FORWARD", forward)
	for i := range 2 * mostSurveyed {
		many.Rules = append(many.Rules, ruleset.Rule{Target: jump(&ruleset.Chain{Name: fmt.Sprint(i)})})
	}
	many.Rules = append(many.Rules, ruleset.Rule{Target: jump(asking)})

	for name, tc := range map[string]struct {
		tables []ruleset.Table
		want   []string
	}{
		"nothing": {},
		"tables that are empty or accept": {tables: []ruleset.Table{
			table(legacy, "filter", base("FORWARD", forward)),
			table(nft, "filter", base("FORWARD", forward, accept, ruleset.Target{Kind: ruleset.Continue}, ruleset.Target{Kind: ruleset.Return})),
			table(nft, "x", base("f", forward, jump(&ruleset.Chain{Name: "empty"})), base("g", forward, jump(loop))),
		}},
		"what is sent and delivered":    {tables: []ruleset.Table{table(legacy, "filter", base("INPUT", ruleset.Input, drop), base("OUTPUT", ruleset.Output, drop))}},
		"a chain that nothing leads to": {tables: []ruleset.Table{table(nft, "x", &ruleset.Chain{Name: "loose", Rules: []ruleset.Rule{{Target: drop}}})}},
		"a policy":                      {tables: []ruleset.Table{table(legacy, "filter", dropping)}, want: []string{LegacyTables}},
		"a rule behind a jump": {
			tables: []ruleset.Table{table(nft, "filter", base("FORWARD", forward, jump(&ruleset.Chain{Rules: []ruleset.Rule{{Target: drop}}})))},
			want:   []string{CompatTables},
		},
		"a rewritten source": {
			tables: []ruleset.Table{table(nft, "nat", base("POSTROUTING", ruleset.Postrouting, ruleset.Target{Kind: ruleset.NewSource}))},
			want:   []string{CompatTables},
		},
		"nobody knows what":          {tables: []ruleset.Table{table(nft, "x", base("f", forward, ruleset.Target{}))}, want: []string{NativeTables}},
		"what cannot be read":        {tables: []ruleset.Table{table(legacy, "filter", unreadable)}, want: []string{LegacyTables}},
		"what is opaque":             {tables: []ruleset.Table{{Family: ruleset.Bridge, Backend: nft, Name: "filter", Chains: []*ruleset.Chain{{Name: "FORWARD", Base: &ruleset.Base{Hook: forward}, Opaque: "x"}}}}, want: []string{NativeTables}},
		"another chain of that name": {tables: []ruleset.Table{table(nft, "filter", base("forward", forward, drop))}, want: []string{NativeTables}},
		"both variants": {
			tables: []ruleset.Table{table(nft, "filter", base("FORWARD", forward, drop)), table(legacy, "nat", base("PREROUTING", ruleset.Prerouting, drop))},
			want:   []string{LegacyTables, CompatTables},
		},
		"a set in a table that only accepts": {
			tables: []ruleset.Table{table(legacy, "filter", base("FORWARD", forward, jump(asking)))}, want: []string{Sets},
		},
		"a set in the second table": {
			tables: []ruleset.Table{table(legacy, "raw", base("PREROUTING", ruleset.Prerouting, drop)), table(legacy, "filter", base("FORWARD", forward, jump(asking)))},
			want:   []string{LegacyTables, Sets},
		},
		"a set behind too many chains": {tables: []ruleset.Table{table(legacy, "filter", many)}},
		"chains of nftables, which ask no ipset, beyond the first that acts": {
			tables: []ruleset.Table{table(nft, "x", base("f", forward, drop, jump(unread)))}, want: []string{NativeTables},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := dataplanesOf(tc.tables)
			if diff := cmp.Diff(append([]string{}, tc.want...), got); diff != "" {
				t.Errorf("dataplanes (-want +got):\n%s", diff)
			}
		})
	}
}
