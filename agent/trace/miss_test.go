// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// inShort returns a near miss in a few words: those of the set, what the rule
// does, and what the verdict would be.
func inShort(m trace.NearMiss) string {
	would, lacks := "", " lacks "
	if m.Matched {
		would = "matched: "
	}
	if m.Held {
		lacks = " has "
	}
	return would + m.Set + lacks + m.Element + ": " + m.Effect + ", else " + m.Otherwise.String()
}

func allInShort(misses []trace.NearMiss) []string {
	var all []string
	for _, m := range misses {
		all = append(all, inShort(m))
	}
	return all
}

func TestARuleThatOneSetKeepsFromMatchingIsANearMiss(t *testing.T) {
	const accepts, src, dst = "no lacks 10.244.2.20: accepts, else allowed", "-m set --match-set no src", "-m set --match-set no dst"
	for title, c := range map[string]struct {
		rules string
		want  []string
	}{
		"a set that lacks the source":                 {filter("DROP", "-A FORWARD "+src+" -j ACCEPT"), []string{accepts}},
		"among conditions that match":                 {filter("DROP", "-A FORWARD -s 10.244.2.0/24 -p tcp -m tcp --dport 3306 "+src+" -j ACCEPT"), []string{accepts}},
		"beside a condition that does not match":      {filter("DROP", "-A FORWARD -p udp "+src+" -j ACCEPT"), nil},
		"beside a set that holds the packet":          {filter("DROP", "-A FORWARD "+src+" -m set --match-set yes dst -j ACCEPT"), []string{accepts}},
		"beside another that lacks it":                {filter("DROP", "-A FORWARD "+src+" "+dst+" -j ACCEPT"), nil},
		"beside a condition that may match":           {filter("DROP", "-A FORWARD "+coin+" "+src+" -j ACCEPT"), []string{"no lacks 10.244.2.20: accepts, else inconclusive"}},
		"a set of two dimensions":                     {filter("DROP", "-A FORWARD -m set --match-set no src,dst -j ACCEPT"), []string{"no lacks 10.244.2.20,10.244.1.10: accepts, else allowed"}},
		"a set that holds what the rule is not for":   {filter("DROP", "-A FORWARD -m set ! --match-set yes src -j ACCEPT"), []string{"yes has 10.244.2.20: accepts, else allowed"}},
		"a set that cannot hold the packet":           {filter("DROP", "-A FORWARD -m set --match-set nothing src -j ACCEPT"), nil},
		"a list of sets":                              {filter("DROP", "-A FORWARD -m set --match-set union src -j ACCEPT"), []string{"no in list union lacks 10.244.2.20: accepts, else allowed"}},
		"a set that does not answer":                  {filter("DROP", "-A FORWARD -m set --match-set foo src -j ACCEPT"), nil},
		"a rule that is not reached":                  {filter("DROP", "-A FORWARD -j DROP", "-A FORWARD "+src+" -j ACCEPT"), nil},
		"a drop of what is dropped":                   {filter("DROP", "-A FORWARD "+src+" -j DROP"), nil},
		"a drop of what passes":                       {filter("ACCEPT", "-A FORWARD "+src+" -j DROP"), []string{"no lacks 10.244.2.20: drops, else denied"}},
		"an accept of what passes":                    {filter("ACCEPT", "-A FORWARD "+src+" -j ACCEPT"), nil},
		"a log":                                       {filter("DROP", "-A FORWARD "+src+" -j NFLOG"), nil},
		"a mark in a chain, as kube-router has it":    {filter("DROP", "-A FORWARD -j a", "-A FORWARD -m mark --mark 0x1/0x1 -j ACCEPT", "-A a "+src+" -j MARK --set-xmark 0x1/0x1", "-A a "+src+" -m mark --mark 0x1/0x1 -j RETURN"), []string{"no lacks 10.244.2.20: sets mark 0x1/0x1, else allowed"}},
		"a mark that nobody asks for":                 {filter("DROP", "-A FORWARD "+src+" -j MARK --set-xmark 0x1/0x1"), []string{"no lacks 10.244.2.20: sets mark 0x1/0x1, else denied"}},
		"a mark that nobody asks for, of what passes": {filter("ACCEPT", "-A FORWARD "+src+" -j MARK --set-xmark 0x1/0x1"), nil},
		"one that turns the verdict beside another":   {filter("DROP", "-A FORWARD "+src+" -j MARK --set-xmark 0x1/0x1", "-A FORWARD "+dst+" -j ACCEPT"), []string{"no lacks 10.244.1.10: accepts, else allowed"}},
		"a jump to what accepts":                      {filter("DROP", "-A FORWARD "+src+" -j a", "-A a -j ACCEPT"), []string{"no lacks 10.244.2.20: jumps to a, else allowed"}},
		"a jump to what does not":                     {filter("DROP", "-A FORWARD "+src+" -j a", "-A a -j DROP"), nil},
		"a chain that is reached twice":               {filter("DROP", "-A FORWARD -j a", "-A FORWARD -j a", "-A a "+src+" -j ACCEPT"), []string{accepts}},
		"a set whose entry makes another rule refuse": {filter("DROP", "-A FORWARD "+src+" -j DROP", "-A FORWARD "+src+" -j ACCEPT"), []string{"no lacks 10.244.2.20: accepts, else denied"}},
		"the rule that asks for more comes first":     {filter("DROP", "-A FORWARD "+src+" -j ACCEPT", "-A FORWARD -p tcp "+dst+" -j ACCEPT"), []string{"no lacks 10.244.1.10: accepts, else allowed", accepts}},
		"a refusal of what a set lacks":               {filter("ACCEPT", "-A FORWARD -m set ! --match-set no src -j REJECT"), []string{"matched: no lacks 10.244.2.20: rejects, else allowed"}},
		"a refusal of what a set has":                 {filter("ACCEPT", "-A FORWARD -m set --match-set yes src -j DROP"), []string{"matched: yes has 10.244.2.20: drops, else allowed"}},
		"the first of two refusals":                   {filter("DROP", "-A FORWARD -m set ! --match-set no src -j REJECT"), []string{"matched: no lacks 10.244.2.20: rejects, else denied"}},
		"a return before an accept":                   {filter("DROP", "-A FORWARD -j a", "-A a -m set --match-set yes src -j RETURN", "-A a -j ACCEPT"), []string{"matched: yes has 10.244.2.20: returns, else allowed"}},
		"a return that changes nothing":               {filter("DROP", "-A FORWARD -j a", "-A a -m set --match-set yes src -j RETURN"), nil},
		"an accept for what a set has":                {filter("DROP", "-A FORWARD -m set --match-set yes src -j ACCEPT"), []string{"matched: yes has 10.244.2.20: accepts, else denied"}},
		"an accept for what a set lacks":              {filter("DROP", "-A FORWARD -m set ! --match-set no dst -j ACCEPT"), []string{"matched: no lacks 10.244.1.10: accepts, else denied"}},
		"an accept without which it passes, too":      {filter("ACCEPT", "-A FORWARD -m set --match-set yes src -j ACCEPT"), nil},
		"a mark for what two sets have":               {filter("DROP", "-A FORWARD -m set --match-set yes src -m set --match-set yes dst -j MARK --set-xmark 0x1/0x1", "-A FORWARD -m mark --mark 0x1 -j ACCEPT"), []string{"matched: yes has 10.244.2.20: sets mark 0x1/0x1, else denied", "matched: yes has 10.244.1.10: sets mark 0x1/0x1, else denied"}},
		"what decides where nothing is decided":       {filter("DROP", "-A FORWARD "+src+" -j ACCEPT", "-A FORWARD "+coin+" -j ACCEPT"), []string{accepts}},
	} {
		t.Run(title, func(t *testing.T) {
			_, _, misses := trace.Explain(parse(t, ruleset.NFT, c.rules), forward, asked, namedSets{})
			if diff := cmp.Diff(c.want, allInShort(misses)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestANearMissSaysWhereTheRuleIs(t *testing.T) {
	rules := filter("DROP", "-A FORWARD -j a", "-A a -m set --match-set no src -j ACCEPT")
	_, _, got := trace.Explain(parse(t, ruleset.NFT, rules), forward, asked, namedSets{})
	want := []trace.NearMiss{{
		Hook: ruleset.Forward, Base: "nft ip filter/FORWARD", Chain: "a", Rule: "-A a -m set --match-set no src -j ACCEPT",
		Set: "no", Element: "10.244.2.20", Effect: "accepts", Otherwise: flow.Allowed,
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestNearMissesOfNativeSets(t *testing.T) {
	accept := ruleset.Target{Kind: ruleset.Accept}
	set := func(name string) *ruleset.NativeSet { return &ruleset.NativeSet{Table: "t", Name: name} }
	src, dst := field(ruleset.SrcAddr, 4), field(ruleset.DstAddr, 4)
	pair := joined(src, field(ruleset.DstPort, 2), pad)
	// A rule of nf_tables that marks and returns.
	steps := &ruleset.Chain{Name: "pod", Rules: []ruleset.Rule{sets(1, 1), does(ruleset.Target{Kind: ruleset.Return})}}
	pod := &ruleset.Chain{Name: "pod", Rules: []ruleset.Rule{does(ruleset.Target{Kind: ruleset.Goto, Chain: steps, Name: "the rest of the rule"}, ruleset.Lookup{Set: set("s"), Key: src})}}
	destination := elements{of: map[string]ruleset.Element{"\x0a\xf4\x01\x0a": {In: true}}}
	for title, c := range map[string]struct {
		rules []ruleset.Rule
		sets  elements
		want  []string
	}{
		"an address":                        {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("s"), Key: src})}, want: []string{"s lacks 10.244.2.20: accepts, else allowed"}},
		"an address and a port":             {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("s"), Key: pair})}, want: []string{"s lacks 10.244.2.20 . 3306: accepts, else allowed"}},
		"beside a set that holds it":        {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("s"), Key: src}, ruleset.Lookup{Set: set("s"), Key: dst})}, sets: destination, want: []string{"s lacks 10.244.2.20: accepts, else allowed"}},
		"a set that holds it, negated":      {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("s"), Key: dst, Not: true})}, sets: destination, want: []string{"s has 10.244.1.10: accepts, else allowed"}},
		"a set without a name":              {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("__set0"), Key: src})}, want: []string{"ip saddr {...} lacks 10.244.2.20: accepts, else allowed"}},
		"a set with a name goes before":     {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("__set0"), Key: src}, ruleset.Proto{Number: 6}), does(accept, ruleset.Lookup{Set: set("s"), Key: dst})}, want: []string{"s lacks 10.244.1.10: accepts, else allowed", "ip saddr {...} lacks 10.244.2.20: accepts, else allowed"}},
		"a set of states":                   {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("s"), Key: field(ruleset.ConnState, 4)})}},
		"a map of verdicts":                 {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: &ruleset.NativeSet{Name: "m", Verdicts: true}, Key: src})}},
		"a key that is not known":           {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("s"), Key: field(ruleset.SrcPort, 2)}, ruleset.Lookup{Set: set("s"), Key: src})}, want: []string{"s lacks 10.244.2.20: accepts, else inconclusive"}},
		"a rule that marks and returns":     {rules: []ruleset.Rule{jump(pod), does(accept, ruleset.Mark{Value: 1, Mask: 1})}, want: []string{"s lacks 10.244.2.20: sets mark 0x1/0x1, returns, else allowed"}},
		"a refusal of what it lacks":        {rules: []ruleset.Rule{drop(ruleset.Lookup{Set: set("s"), Key: src, Not: true}), does(accept)}, want: []string{"matched: s lacks 10.244.2.20: drops, else allowed"}},
		"another set with the same key":     {rules: []ruleset.Rule{does(accept, ruleset.Lookup{Set: set("s"), Key: src}), drop(ruleset.Lookup{Set: set("other"), Key: src, Not: true})}, want: []string{"s lacks 10.244.2.20: accepts, else allowed"}},
		"the same set asked by a rule more": {rules: []ruleset.Rule{drop(ruleset.Lookup{Set: set("s"), Key: src}), does(accept, ruleset.Lookup{Set: set("s"), Key: src})}, want: []string{"s lacks 10.244.2.20: accepts, else denied"}},
	} {
		t.Run(title, func(t *testing.T) {
			_, _, misses := trace.Explain(at(ruleset.Forward, 0, append(c.rules, drop())...), forward, asked, c.sets)
			if diff := cmp.Diff(c.want, allInShort(misses)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestAKeyThatTheKernelCannotReadIsNoNearMiss(t *testing.T) {
	key := joined(field(ruleset.SrcAddr, 4), field(ruleset.ConnMark, 4))
	rules := []ruleset.Rule{does(ruleset.Target{Kind: ruleset.Accept}, ruleset.Lookup{Set: &ruleset.NativeSet{Name: "s"}, Key: key}), drop()}
	// Before conntrack there is no mark of a connection.
	_, _, misses := trace.Explain(at(ruleset.Prerouting, -300, rules...), forward, asked, elements{})
	if len(misses) > 0 {
		t.Errorf("got %v", allInShort(misses))
	}
}

// empty has any set, without elements.
type empty struct{ namedSets }

func (empty) Member(string, []ruleset.Direction, trace.Packet) (trace.Ternary, string) {
	return trace.No, ""
}

func TestNearMissesAreBounded(t *testing.T) {
	const rules = 5_000
	lines := make([]string, rules)
	for i := range lines {
		lines[i] = fmt.Sprintf("-A FORWARD -m set --match-set s%d src -j MARK --set-xmark 0x1/0x1", i)
	}
	lines[700] = "-A FORWARD -p tcp -m set --match-set best src -j MARK --set-xmark 0x1/0x1"
	lines = append(lines, "-A FORWARD -m mark --mark 0x1/0x1 -j ACCEPT")
	_, _, misses := trace.Explain(parse(t, ruleset.NFT, filter("DROP", lines...)), forward, asked, empty{})
	// For each of them the packet was walked again, through all rules.
	if most := trace.MostAgain/rules + 1; len(misses) == 0 || len(misses) > most || misses[0].Set != "best" || misses[1].Set != "s0" {
		t.Errorf("%d near misses of %d rules: want at most %d, the first of the sets best and s0", len(misses), rules, most)
	}
}

// setOf returns the set that the rule with this comment, and for this flow's
// port, asks for the source or the destination.
func setOf(t *testing.T, tables []ruleset.Table, comment string, f flow.Flow, dir ruleset.Direction) string {
	t.Helper()
	for _, table := range tables {
		for _, c := range table.Chains {
			for _, r := range c.Rules {
				name, fits := "", r.Comment == comment && (table.Family == ruleset.IPv4) == f.Dst.Is4()
				for _, m := range r.Matches {
					switch m := m.(type) {
					case ruleset.Proto:
						fits = fits && m.Number == uint8(f.Protocol)
					case ruleset.Ports:
						fits = fits && m.Ranges[0].From == f.Port
					case ruleset.Set:
						if m.Dims[0] == dir {
							name = m.Name
						}
					}
				}
				if fits && name != "" {
					return name
				}
			}
		}
	}
	t.Fatalf("no rule with the comment %q for %s", comment, f)
	return ""
}

func TestTheNearMissNamesThePolicyThatShouldAdmit(t *testing.T) {
	const unresolved = "db/np-unresolved ingress pods"
	for title, c := range map[string]struct {
		src, dst [2]string
		proto    flow.Protocol
		port     uint16
		// dir is the end that the sets lack, and want are the rules' comments.
		dir  ruleset.Direction
		want []string
		// taken: the first set had the address, and has it no more.
		taken bool
	}{
		"a job's address was taken out":           {jobB, mysql0, flow.TCP, 3306, ruleset.Src, []string{"db/allow-jobs ingress pods", unresolved}, true},
		"that of a job on the same node":          {jobA, mysql0, flow.TCP, 3306, ruleset.Src, []string{"db/allow-jobs ingress pods", unresolved}, true},
		"that of monitoring":                      {prom, mysql0, flow.TCP, 9104, ruleset.Src, []string{"db/allow-metrics ingress pods np", unresolved}, true},
		"that of the name server":                 {jobA, dns, flow.UDP, 53, ruleset.Dst, []string{"batch/jobs-egress egress pods"}, true},
		"a stranger never was in":                 {unused, mysql0, flow.TCP, 3306, ruleset.Src, []string{"db/allow-jobs ingress pods", unresolved}, false},
		"a peer of another port":                  {prom, mysql0, flow.TCP, 3306, ruleset.Src, []string{"db/allow-jobs ingress pods", unresolved}, false},
		"another server for names":                {jobA, prom, flow.UDP, 53, ruleset.Dst, []string{"batch/jobs-egress egress pods"}, false},
		"a way that no policy has":                {jobA, outside, flow.TCP, 443, ruleset.Dst, nil, false},
		"a Pod that no policy lets anybody in to": {outside, v4only, flow.TCP, 80, ruleset.Src, nil, false},
	} {
		for _, capture := range []string{"iptables-nft", "iptables-legacy", "iptables-nft-defaultdeny"} {
			for i, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
				if c.src[i] == "" || c.dst[i] == "" {
					continue
				}
				t.Run(title+"/"+capture+"/"+family.String(), func(t *testing.T) {
					tables, sets := loadCapture(t, capture)
					f := flow.Flow{Protocol: c.proto, Src: netip.MustParseAddr(c.src[i]), Dst: netip.MustParseAddr(c.dst[i]), Port: c.port}
					lacks := f.Src
					if c.dir == ruleset.Dst {
						lacks = f.Dst
					}
					if c.taken {
						if v := trace.Trace(tables, pathOf(c.src, c.dst), f, sets); v.Answer != flow.Allowed {
							t.Fatalf("before: %s", v)
						}
						delete(sets[setOf(t, tables, c.want[0], f, c.dir)].prefixes, netip.PrefixFrom(lacks, lacks.BitLen()))
					}
					var want, got []string
					for _, comment := range c.want {
						want = append(want, fmt.Sprintf("%s lacks %s: sets mark 0x10000/0x10000, else allowed: %s", setOf(t, tables, comment, f, c.dir), lacks, comment))
					}
					verdict, _, misses := trace.Explain(tables, pathOf(c.src, c.dst), f, sets)
					for _, m := range misses {
						_, comment, _ := strings.Cut(m.Rule, `--comment "`)
						comment, _, _ = strings.Cut(comment, `"`)
						got = append(got, inShort(m)+": "+comment)
					}
					if diff := cmp.Diff(want, got); diff != "" || verdict.Answer != flow.Denied {
						t.Errorf("%s, -want +got:\n%s", verdict, diff)
					}
				})
			}
		}
	}
}

func TestTheNearMissNamesWhatTheDefaultDenyLacks(t *testing.T) {
	tables, sets := loadCapture(t, "iptables-nft-defaultdeny")
	f := flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(unused[0]), Dst: netip.MustParseAddr(ghost[0]), Port: 80}
	_, _, misses := trace.Explain(tables, pathOf(unused, ghost), f, sets)
	want := []string{"matched: kube-router-local-pods lacks 10.244.1.99: rejects, else denied"}
	if diff := cmp.Diff(want, allInShort(misses)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestTheNearMissNamesTheSetsThatAdmit(t *testing.T) {
	for _, capture := range []string{"iptables-nft", "iptables-legacy"} {
		tables, sets := loadCapture(t, capture)
		f := flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(jobB[0]), Dst: netip.MustParseAddr(mysql0[0]), Port: 3306}
		_, _, misses := trace.Explain(tables, pathOf(jobB, mysql0), f, sets)
		want := []string{
			"matched: KUBE-SRC-HVTWR3KS3XZQRFEB has 10.244.2.20: sets mark 0x10000/0x10000, else denied",
			"matched: KUBE-DST-U3CTYXY4JLCJX44P has 10.244.1.10: sets mark 0x10000/0x10000, else denied",
		}
		if diff := cmp.Diff(want, allInShort(misses)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", capture, diff)
		}
	}
}
