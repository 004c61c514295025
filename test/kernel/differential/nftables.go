// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"fmt"
	"strings"
)

// nftTable is a table being written. Chains, sets and maps come before what
// refers to them.
type nftTable struct {
	*generator
	family, name string
	chains       []chain
	// sets and maps are the names by the type of their keys.
	sets, maps     map[string][]string
	define, rules  []Line
	elements, late []Line
}

// nftHooks has nft's names of the hooks.
var nftHooks = map[hooks]string{prerouting: "prerouting", input: "input", forward: "forward", output: "output", postrouting: "postrouting"}

// native returns tables in the language of nft.
func (g *generator) native() Load {
	l := Load{Tool: "nft"}
	if g.IntN(30) == 0 {
		// Other families see the packet, too.
		g.use("nft of another family")
		l.Lines = append(l.Lines, lines(false, "add table bridge other", "add chain bridge other c { type filter hook "+g.some("forward", "input", "prerouting")+" priority 0; policy accept; }")...)
		l.Lines = append(l.Lines, lines(true, "add rule bridge other c "+g.some("drop", "ip saddr 10.244.1.10 drop", "meta mark set 1", "counter"))...)
	}
	for i := range 1 + g.IntN(3) {
		t := &nftTable{generator: g, family: g.some("ip", "ip6", "inet", "inet"), name: fmt.Sprintf("t%d", i), sets: map[string][]string{}, maps: map[string][]string{}}
		g.use("nft " + t.family)
		t.write()
		l.Lines = append(append(append(append(l.Lines, t.define...), t.elements...), t.late...), t.rules...)
	}
	return l
}

func (t *nftTable) linef(to *[]Line, rule bool, format string, args ...any) {
	*to = append(*to, Line{fmt.Sprintf(format, args...), rule})
}

func (t *nftTable) write() {
	if t.IntN(80) == 0 {
		t.use("nft dormant")
		t.linef(&t.define, false, "add table %s %s { flags dormant; }", t.family, t.name)
	} else {
		t.linef(&t.define, false, "add table %s %s", t.family, t.name)
	}
	bases := 1 + t.IntN(4)
	for i := range bases {
		h := []hooks{forward, forward, forward, input, output, prerouting, postrouting}[t.IntN(7)]
		kind, priority := "filter", t.some("-400", "-300", "-200", "-151", "-150", "-7", "0", "0", "0", "1", "50", "100")
		if h != forward && t.IntN(6) == 0 {
			kind, priority = "nat", map[bool]string{true: "-100", false: "100"}[h == prerouting || h == output]
		}
		if h == output && kind == "filter" && t.IntN(8) == 0 {
			kind = "route"
		}
		c := chain{fmt.Sprintf("b%d", i), h, true}
		t.chains = append(t.chains, c)
		policy := t.some("accept", "accept", "accept", "accept", "drop")
		t.linef(&t.define, false, "add chain %s %s %s { type %s hook %s priority %s; policy %s; }", t.family, t.name, c.name, kind, nftHooks[h], priority, policy)
	}
	for i := range userChains {
		h := everywhere
		if i%2 == 0 {
			h = forward
		}
		c := chain{fmt.Sprintf("u%d", i), h, false}
		t.chains = append(t.chains, c)
		t.linef(&t.define, false, "add chain %s %s %s", t.family, t.name, c.name)
	}
	for _, s := range nftSets {
		if t.IntN(3) == 0 && (strings.Contains(s.families, t.family) && t.family != "ip" || t.family == "ip" && strings.Contains(s.families, "ip4")) {
			t.set(s)
		}
	}
	for i, c := range t.chains {
		for range 1 + t.IntN(5) {
			t.v6 = t.IntN(2) == 0
			if t.family != "inet" {
				t.v6 = t.family == "ip6"
			}
			kind := "filter"
			if strings.Contains(t.declared(c), "type nat") {
				kind = "nat"
			} else if !c.base {
				kind = "user"
			}
			t.linef(&t.rules, true, "add rule %s %s %s %s", t.family, t.name, c.name, t.rule(where{kind, c.hooks}, t.chains[i+1:]))
		}
	}
}

func (t *nftTable) declared(c chain) string {
	for _, l := range t.define {
		if strings.HasPrefix(l.Text, fmt.Sprintf("add chain %s %s %s ", t.family, t.name, c.name)) {
			return l.Text
		}
	}
	return ""
}

// verdicts returns a verdict for a rule or an element in chains of these
// hooks.
func (t *nftTable) verdict(w where, later []chain) string {
	if c := t.reachable(w, later); len(c) > 0 && t.IntN(3) == 0 {
		t.use("nft jump")
		return t.some("jump ", "jump ", "goto ") + t.some(c...)
	}
	return t.some("accept", "accept", "drop", "drop", "return", "continue")
}

func (t *nftTable) reachable(w where, later []chain) []string {
	var able []string
	for _, c := range later {
		// Chains of type nat lead nowhere: what may stand there is special.
		if !c.base && w.hooks&^c.hooks == 0 && w.table != "nat" {
			able = append(able, c.name)
		}
	}
	return able
}

// rule returns a rule's conditions and statements.
func (t *nftTable) rule(w where, later []chain) string {
	var words []string
	for range 1 + t.IntN(3) {
		if c := t.condition(w); c != "" {
			words = append(words, c)
		}
	}
	// A statement that ends nothing, and seldom conditions after it.
	if t.IntN(2) == 0 {
		words = append(words, t.one(nftStatements, w).write(t.generator))
		if t.IntN(4) == 0 {
			if c := t.condition(w); c != "" {
				words = append(words, c)
			}
		}
	}
	if vmap := t.vmap(w); vmap != "" && t.IntN(4) == 0 {
		return strings.Join(append(words, vmap), " ")
	}
	switch t.IntN(8) {
	case 0:
		if len(words) == 0 {
			words = append(words, "counter")
		}
	case 1:
		words = append(words, t.one(nftEnds, w).write(t.generator))
	default:
		words = append(words, t.verdict(w, later))
	}
	return strings.Join(words, " ")
}

func (t *nftTable) condition(w where) string {
	if t.IntN(3) == 0 {
		if s := t.lookup(w); s != "" {
			return s
		}
	}
	return t.one(nftMatches, w).write(t.generator)
}
