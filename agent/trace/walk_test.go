// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

func jump(to *ruleset.Chain, matches ...ruleset.Match) ruleset.Rule {
	return does(ruleset.Target{Kind: ruleset.Jump, Chain: to, Name: to.Name}, matches...)
}

func sets(value, mask uint32, matches ...ruleset.Match) ruleset.Rule {
	return does(ruleset.Target{Kind: ruleset.SetMark, Value: value, Mask: mask}, matches...)
}

// doubt is a match of which nobody knows whether it matches.
var doubt = ruleset.Unknown{Text: "doubt"}

func TestChainsAreReadWhenTheWalkGetsThere(t *testing.T) {
	reads := 0
	late := func(rules []ruleset.Rule, err error) *ruleset.Chain {
		return &ruleset.Chain{Name: "late", Read: func() ([]ruleset.Rule, error) {
			reads++
			return rules, err
		}}
	}
	base := late([]ruleset.Rule{drop()}, nil)
	base.Base = &ruleset.Base{Hook: ruleset.Forward}
	dropping, gone := late([]ruleset.Rule{drop()}, nil), late(nil, errors.New("it is gone"))
	for title, c := range map[string]struct {
		tables []ruleset.Table
		want   flow.Answer
		reason string
		// reads of two walks.
		reads int
	}{
		"one that is reached":        {at(ruleset.Forward, 0, jump(dropping)), flow.Denied, "late", 1},
		"one that is not reached":    {at(ruleset.Forward, 0, jump(gone, ruleset.Proto{Number: 17})), flow.Allowed, "", 0},
		"one that cannot be read":    {at(ruleset.Forward, 0, jump(gone)), flow.Inconclusive, "nft ip t/c late: it is gone", 2},
		"one that would be too late": {at(ruleset.Forward, 0, drop(), jump(gone)), flow.Denied, "", 0},
		"a base chain":               {[]ruleset.Table{{Family: ruleset.IPv4, Chains: []*ruleset.Chain{base}}}, flow.Denied, "late", 1},
	} {
		t.Run(title, func(t *testing.T) {
			reads = 0
			for range 2 {
				got := trace.Trace(c.tables, forward, asked, namedSets{})
				if got.Answer != c.want || !strings.Contains(got.Reason, c.reason) {
					t.Errorf("got %s, want %s (... %s ...)", got, c.want, c.reason)
				}
			}
			if reads != c.reads {
				t.Errorf("read %d times, want %d", reads, c.reads)
			}
		})
	}
}

func TestWalksAtTheSameTimeShareTheirChains(t *testing.T) {
	late := &ruleset.Chain{Name: "late", Read: func() ([]ruleset.Rule, error) { return []ruleset.Rule{drop()}, nil }}
	tables := at(ruleset.Forward, 0, jump(late))
	var walks sync.WaitGroup
	for range 8 {
		walks.Go(func() {
			if got := trace.Trace(tables, forward, asked, namedSets{}); got.Answer != flow.Denied {
				t.Errorf("got %s", got)
			}
		})
	}
	walks.Wait()
}

// doubling returns a base chain's rules that jump twice to a chain that jumps
// twice, and so on for a number of chains, and then do what the last rules do.
func doubling(chains int, last ...ruleset.Rule) []ruleset.Rule {
	rules := last
	for i := range chains {
		next := &ruleset.Chain{Name: fmt.Sprintf("d%d", i), Rules: rules}
		rules = []ruleset.Rule{jump(next), jump(next)}
	}
	return rules
}

func TestRulesThatMultiplyVisitsStayLinear(t *testing.T) {
	for title, c := range map[string]struct {
		rules []ruleset.Rule
		want  flow.Answer
	}{
		"31 rules that make 32,768 visits":    {doubling(15, does(ruleset.Target{Kind: ruleset.Continue})), flow.Allowed},
		"81 rules that make a billion":        {doubling(40, does(ruleset.Target{Kind: ruleset.Continue})), flow.Allowed},
		"with a mark that all of them set":    {append(doubling(40, sets(1, 1)), drop(ruleset.Mark{Value: 1, Mask: 1})), flow.Denied},
		"with a mark that each of them flips": {append(doubling(40, sets(1, 0)), drop(ruleset.Mark{Value: 1, Mask: 1})), flow.Allowed},
		"with a doubt in each of them":        {append(doubling(40, sets(1, 1, doubt)), drop(ruleset.Mark{Value: 2, Mask: 2})), flow.Allowed},
		"with a doubt that matters":           {append(doubling(40, sets(1, 1, doubt)), drop(ruleset.Mark{Value: 1, Mask: 1})), flow.Inconclusive},
		"with a drop that some may meet":      {doubling(40, drop(doubt)), flow.Inconclusive},
		"with a drop that comes at last":      {append(doubling(40, drop(ruleset.Proto{Number: 17})), drop()), flow.Denied},
		"with an accept that some may meet":   {append(doubling(40, does(ruleset.Target{Kind: ruleset.Accept}, doubt)), drop()), flow.Inconclusive},
	} {
		t.Run(title, func(t *testing.T) {
			tables := at(ruleset.Forward, 0, c.rules...)
			got := trace.Trace(tables, forward, asked, namedSets{})
			if got.Answer != c.want || strings.Contains(got.Reason, "visited") {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if visits := trace.Visits(tables, forward, asked, namedSets{}); visits > trace.Budget/50 {
				t.Errorf("%d visits", visits)
			}
			explained, steps, _ := trace.Explain(tables, forward, asked, namedSets{})
			if explained != got || len(steps) > trace.MostSteps+1 {
				t.Errorf("explained as %s in %d steps, traced as %s", explained, len(steps), got)
			}
		})
	}
}

func TestWhatALongWalkRemembersIsOfOneHook(t *testing.T) {
	rules := doubling(15, drop(ruleset.Iface{Out: true, Name: "cni0"}))
	tables := append(at(ruleset.Prerouting, 0, rules...), at(ruleset.Forward, 0, rules...)...)
	if got := trace.Trace(tables[:1], forward, asked, namedSets{}); got.Answer != flow.Allowed {
		t.Errorf("at prerouting, which has no output, got %s", got)
	}
	if got := trace.Trace(tables, forward, asked, namedSets{}); got.Answer != flow.Denied {
		t.Errorf("at forward got %s", got)
	}
}

func TestConntrackMayBeCalledBetweenTwoOfItsPriority(t *testing.T) {
	tables := append(at(ruleset.Prerouting, -200, sets(1, 1, ruleset.CTState{States: ruleset.Invalid})),
		at(ruleset.Prerouting, -200, drop(ruleset.CTState{States: ruleset.New}, ruleset.Mark{Value: 1, Mask: 1}))...)
	got := trace.Trace(tables, forward, asked, namedSets{})
	if got.Answer != flow.Inconclusive || !strings.Contains(got.Reason, "order") {
		t.Errorf("got %s, want it to depend on the order", got)
	}
}

func TestUndecidedMarksOfManyRulesAreJoined(t *testing.T) {
	var rules []ruleset.Rule
	for bit := range 32 {
		rules = append(rules, sets(1<<bit, 1<<bit, doubt))
	}
	for title, c := range map[string]struct {
		last ruleset.Rule
		want flow.Answer
	}{
		"and nobody asks for them": {does(ruleset.Target{Kind: ruleset.Accept}), flow.Allowed},
		"and one asks for a bit":   {drop(ruleset.Mark{Value: 4, Mask: 4}), flow.Inconclusive},
		"and they are overwritten": {drop(ruleset.Mark{Value: 0, Mask: 0}), flow.Denied},
	} {
		t.Run(title, func(t *testing.T) {
			if got := trace.Trace(at(ruleset.Forward, 0, append(rules, c.last)...), forward, asked, namedSets{}); got.Answer != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestBaseChainsOfOnePriorityHaveNoOrder(t *testing.T) {
	const yes, no, open = flow.Allowed, flow.Denied, flow.Inconclusive
	marks := func(n uint32) ruleset.Rule { return sets(n, n) }
	ifMarked := func(n uint32) ruleset.Rule { return drop(ruleset.Mark{Value: n, Mask: n}) }
	idle := ruleset.Rule{Target: ruleset.Target{Kind: ruleset.Accept}}
	unless := func(n uint32) ruleset.Rule { return drop(ruleset.Mark{Value: n, Mask: n, Not: true}) }
	for title, c := range map[string]struct {
		chains [][]ruleset.Rule
		// after is a rule of a later chain.
		after ruleset.Rule
		want  flow.Answer
	}{
		"none of which does anything":           {[][]ruleset.Rule{{idle}, {idle}, {idle}}, idle, yes},
		"one of which drops":                    {[][]ruleset.Rule{{idle}, {idle}, {drop()}}, idle, no},
		"one marks, another drops what it is":   {[][]ruleset.Rule{{idle}, {ifMarked(1)}, {marks(1)}}, idle, open},
		"one marks, another drops all":          {[][]ruleset.Rule{{marks(1)}, {drop()}}, idle, no},
		"one marks, another drops what is not":  {[][]ruleset.Rule{{marks(1)}, {unless(1)}, {idle}}, idle, open},
		"two mark, and nobody asks":             {[][]ruleset.Rule{{marks(1)}, {marks(2)}, {marks(4)}}, idle, yes},
		"two mark the same, and one asks later": {[][]ruleset.Rule{{marks(1)}, {idle}, {marks(1)}}, unless(1), yes},
		"two mark against each other":           {[][]ruleset.Rule{{sets(1, 3)}, {sets(2, 3)}}, drop(ruleset.Mark{Value: 1, Mask: 3}), open},
		"a chain of three in the one order":     {[][]ruleset.Rule{{ifMarked(2)}, {sets(2, 2, ruleset.Mark{Value: 1, Mask: 1})}, {marks(1)}}, idle, open},
		"four, in an order deep within":         {[][]ruleset.Rule{{ifMarked(4)}, {sets(4, 4, ruleset.Mark{Value: 2, Mask: 2})}, {sets(2, 2, ruleset.Mark{Value: 1, Mask: 1})}, {marks(1)}}, idle, open},
		"five that do nothing":                  {[][]ruleset.Rule{{idle}, {idle}, {idle}, {idle}, {idle}}, idle, yes},
		"five, one of which marks":              {[][]ruleset.Rule{{idle}, {idle}, {idle}, {idle}, {marks(1)}}, idle, open},
		"five, of which four turn out empty":    {[][]ruleset.Rule{{}, {}, {marks(1)}, {}, {}}, unless(1), yes},
		"five that turn out empty":              {[][]ruleset.Rule{{}, {}, {}, {}, {}}, idle, yes},
		"five, one of which drops":              {[][]ruleset.Rule{{idle}, {idle}, {drop()}, {idle}, {idle}}, idle, no},
		"a drop and one that nobody can read":   {[][]ruleset.Rule{{drop()}, {does(ruleset.Target{})}}, idle, open},
	} {
		t.Run(title, func(t *testing.T) {
			var tables []ruleset.Table
			for i, rules := range c.chains {
				tables = append(tables, at(ruleset.Forward, 0, rules...)...)
				tables[i].Name = fmt.Sprintf("t%d", i)
				tables[i].Chains[0].Read = func() ([]ruleset.Rule, error) { return rules, nil }
			}
			tables = append(tables, at(ruleset.Forward, 1, c.after)...)
			got := trace.Trace(tables, forward, asked, namedSets{})
			if got.Answer != c.want || got.Reason == "" {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if explained, _, _ := trace.Explain(tables, forward, asked, namedSets{}); explained != got {
				t.Errorf("explained as %s, traced as %s", explained, got)
			}
		})
	}
}

func TestNATChainsAreCalledWhereTheKernelCallsThem(t *testing.T) {
	masquerade := does(ruleset.Target{Kind: ruleset.NewSource})
	fromSource := drop(ruleset.Addr{Dir: ruleset.Src, Addr: asked.Src, Mask: v4Ones})
	nat := func(priority int, rules ...ruleset.Rule) ruleset.Table {
		tables := at(ruleset.Postrouting, priority, rules...)
		tables[0].Chains[0].Base.NAT = true
		return tables[0]
	}
	post := func(priority int, rules ...ruleset.Rule) ruleset.Table {
		return at(ruleset.Postrouting, priority, rules...)[0]
	}
	other := drop(ruleset.Addr{Dir: ruleset.Src, Addr: asked.Dst, Mask: v4Ones})
	for title, c := range map[string]struct {
		tables []ruleset.Table
		want   flow.Answer
	}{
		"before the source is rewritten it is known":    {[]ruleset.Table{nat(100, masquerade), post(0, fromSource)}, flow.Denied},
		"afterwards it is not":                          {[]ruleset.Table{nat(100, masquerade), post(200, fromSource)}, flow.Inconclusive},
		"nor whether it is another":                     {[]ruleset.Table{nat(100, masquerade), post(200, other)}, flow.Inconclusive},
		"nor its set":                                   {[]ruleset.Table{nat(100, masquerade), post(200, drop(ruleset.Set{Name: "no", Dims: []ruleset.Direction{ruleset.Src}}))}, flow.Inconclusive},
		"the destination's set is known":                {[]ruleset.Table{nat(100, masquerade), post(200, drop(ruleset.Set{Name: "no", Dims: []ruleset.Direction{ruleset.Dst}}))}, flow.Allowed},
		"nor its bytes":                                 {[]ruleset.Table{nat(100, masquerade), post(200, drop(equal(field(ruleset.SrcAddr, 4), "\x01\x02\x03\x04")))}, flow.Inconclusive},
		"nor whether conntrack calls it rewritten":      {[]ruleset.Table{nat(100, masquerade), post(200, drop(ruleset.CTState{States: ruleset.SNATed}))}, flow.Inconclusive},
		"nor by ct status":                              {[]ruleset.Table{nat(100, masquerade), post(200, drop(differs(masked(ruleset.ConnStatus, host(0x10), ""), host(0))))}, flow.Inconclusive},
		"nor the port":                                  {[]ruleset.Table{nat(100, masquerade), post(200, drop(ruleset.Ports{Dir: ruleset.Src, Ranges: []ruleset.PortRange{{From: 1, To: 99}}}))}, flow.Inconclusive},
		"a nat chain's own priority counts for nothing": {[]ruleset.Table{nat(-50, masquerade), post(0, fromSource)}, flow.Denied},
		"a second nat chain is not asked":               {[]ruleset.Table{nat(100, masquerade), nat(101, drop())}, flow.Allowed},
		"among nat chains the own priority counts":      {[]ruleset.Table{nat(101, masquerade), nat(100, drop(ruleset.CTState{States: ruleset.New}))}, flow.Denied},
		"who says that there are connections":           {[]ruleset.Table{nat(100, drop())}, flow.Inconclusive},
		"a rule before it that asks for them":           {[]ruleset.Table{post(-1, drop(ruleset.Mark{Conn: true, Value: 1, Mask: 1})), nat(100, drop())}, flow.Denied},
		"it need not be known where it changes nothing": {[]ruleset.Table{nat(100, does(ruleset.Target{Kind: ruleset.Accept}))}, flow.Allowed},
	} {
		t.Run(title, func(t *testing.T) {
			if got := trace.Trace(c.tables, forward, asked, namedSets{}); got.Answer != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestExplainTellsTheWalk(t *testing.T) {
	rules := filter("DROP",
		"-A FORWARD -s 1.2.3.4/32 -j DROP",
		"-A FORWARD -m conntrack --ctstate NEW -j a",
		"-A FORWARD "+coin+" -j b",
		"-A FORWARD "+coin+" -j MARK --set-xmark 0x4/0x4",
		"-A FORWARD -m mark --mark 0x1/0x1 -j ACCEPT",
		"-A a -p tcp -m limit --limit 10/min -j NFLOG",
		"-A a -j MARK --set-xmark 0x1/0x1",
		"-A b -j RETURN") +
		table("mangle", "-A POSTROUTING -p tcp -j MARK --set-xmark 0x2/0x2")
	verdict, got, _ := trace.Explain(parse(t, ruleset.NFT, rules), forward, asked, namedSets{})
	const base, jumps = "nft ip filter/FORWARD", "-A FORWARD " + coin + " -j b"
	const maybe = "-A FORWARD " + coin + " -j MARK --set-xmark 0x4/0x4"
	limited := "-A a -p tcp -m limit --limit 10/min -j NFLOG"
	want := []trace.Step{
		{Hook: ruleset.Forward, Base: base, Chain: "FORWARD", Rule: "-A FORWARD -m conntrack --ctstate NEW -j a", Effect: "jumps to a"},
		{Hook: ruleset.Forward, Base: base, Chain: "a", Depth: 1, Rule: limited, Effect: "passes NFLOG and goes on", Maybe: limited},
		{Hook: ruleset.Forward, Base: base, Chain: "a", Depth: 1, Rule: "-A a -j MARK --set-xmark 0x1/0x1", Effect: "sets mark 0x1/0x1"},
		{Hook: ruleset.Forward, Base: base, Chain: "FORWARD", Rule: jumps, Effect: "jumps to b", Maybe: jumps},
		{Hook: ruleset.Forward, Base: base, Chain: "b", Depth: 1, Rule: "-A b -j RETURN", Effect: "returns", Maybe: jumps},
		{Hook: ruleset.Forward, Base: base, Chain: "FORWARD", Rule: maybe, Effect: "sets mark 0x4/0x4", Maybe: maybe},
		{Hook: ruleset.Forward, Base: base, Chain: "FORWARD", Rule: "-A FORWARD -m mark --mark 0x1/0x1 -j ACCEPT", Effect: "accepts", Maybe: maybe},
		{Hook: ruleset.Postrouting, Base: "nft ip mangle/POSTROUTING", Chain: "POSTROUTING", Rule: "-A POSTROUTING -p tcp -j MARK --set-xmark 0x2/0x2", Effect: "sets mark 0x2/0x2", Maybe: maybe},
		{Hook: ruleset.Postrouting, Base: "nft ip mangle/POSTROUTING", Chain: "POSTROUTING", Effect: "policy accepts", Maybe: maybe},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if want := trace.Trace(parse(t, ruleset.NFT, rules), forward, asked, namedSets{}); verdict != want {
		t.Errorf("explained as %s, traced as %s", verdict, want)
	}
}

func TestExplainNamesWhatIsNotKnown(t *testing.T) {
	broken := &ruleset.Chain{Name: "broken", Opaque: "nobody reads it"}
	lookup := does(ruleset.Target{Kind: ruleset.Decide, Map: &ruleset.NativeSet{Name: "m"}, Key: field(ruleset.DstPort, 2)})
	for title, c := range map[string]struct {
		tables []ruleset.Table
		sets   trace.Speller
		want   []string
	}{
		"a target":             {at(ruleset.Forward, 0, does(ruleset.Target{})), namedSets{}, []string{"does what is not known", "may meet any fate (rule 0)"}},
		"a chain":              {at(ruleset.Forward, 0, jump(broken)), namedSets{}, []string{"jumps to broken", "may meet any fate (nft ip t/c broken: nobody reads it)"}},
		"a map":                {at(ruleset.Forward, 0, lookup), namedSets{}, []string{"may meet any fate (no native sets: rule 0)"}},
		"a map with nothing":   {at(ruleset.Forward, 0, lookup), elements{}, []string{"finds nothing in map m", "policy accepts"}},
		"a map with something": {at(ruleset.Forward, 0, lookup), elements{of: map[string]ruleset.Element{"\x0c\xea": {In: true, Verdict: ruleset.Target{Kind: ruleset.Drop}}}}, []string{"looks into map m", "drops"}},
		"a link layer chain":   {[]ruleset.Table{{Family: ruleset.Netdev, Backend: ruleset.NFT, Name: "n", Chains: []*ruleset.Chain{{Name: "i", Base: &ruleset.Base{Hook: ruleset.Ingress}}}}}, namedSets{}, []string{"may meet any fate (nft netdev n/i: its rules are not followed)"}},
		"an order":             {append(at(ruleset.Forward, 0, sets(1, 1)), at(ruleset.Forward, 0, drop(ruleset.Mark{Value: 1, Mask: 1}))...), namedSets{}, []string{"sets mark 0x1/0x1", "policy accepts", "drops", "may end otherwise (the order of nft ip t/c and nft ip t/c, which have one priority)"}},
	} {
		t.Run(title, func(t *testing.T) {
			_, steps, _ := trace.Explain(c.tables, forward, asked, c.sets)
			var got []string
			for _, s := range steps {
				text := s.Effect
				if s.Maybe != "" {
					text += " (" + s.Maybe + ")"
				}
				got = append(got, text)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
