// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"fmt"
	"strings"
)

// hooks is a set of hooks.
type hooks uint8

const (
	prerouting hooks = 1 << iota
	input
	forward
	output
	postrouting
	everywhere = prerouting | input | forward | output | postrouting
)

// builtin names iptables' chain of a hook.
var builtin = map[hooks]string{prerouting: "PREROUTING", input: "INPUT", forward: "FORWARD", output: "OUTPUT", postrouting: "POSTROUTING"}

// xtable is a table of iptables, and how many of its kind have any rules.
type xtable struct {
	name  string
	hooks hooks
	of    int
	// rules is how many rules a chain has at most.
	rules int
}

var xtablesTables = []xtable{
	{"raw", prerouting | output, 2, 5},
	{"mangle", everywhere, 2, 7},
	{"nat", prerouting | input | output | postrouting, 3, 4},
	{"filter", input | forward | output, 1, 9},
	{"security", input | forward | output, 5, 5},
}

// place of a rule: its table and the hooks from which it can be reached.
type where struct {
	table string
	hooks hooks
}

// construct is a condition or a target of a rule.
type construct struct {
	name   string
	weight int
	// hooks are those in which it may stand: all that lead to a rule have to
	// be among them.
	hooks hooks
	// tables are those in which it may stand, "" for all.
	tables string
	// families are those that it exists for, "" for both.
	families string
	write    func(g *generator) string
}

func (c construct) fits(g *generator, w where) bool {
	return w.hooks&^c.hooks == 0 && (c.tables == "" || strings.Contains(c.tables, w.table)) && (c.families == "" || strings.Contains(c.families, g.version()))
}

// one returns one of the constructs that fit, by weight.
func (g *generator) one(of []construct, w where) construct {
	total := 0
	for _, c := range of {
		if c.fits(g, w) {
			total += c.weight * g.favour(c)
		}
	}
	at := g.IntN(total)
	for _, c := range of {
		if c.fits(g, w) {
			if at -= c.weight * g.favour(c); at < 0 {
				g.use(c.name)
				return c
			}
		}
	}
	return construct{}
}

// common is the weight from which on a construct is in every ruleset.
const common = 6

// themes are parts of constructs' names: the constructs of a theme act on each
// other, which shows only where there are many of them.
var themes = []string{"mark", "mark", "ct", "set", "iface", "physdev", "nft", "dnat", "snat", "fib", "limit", ""}

// favour returns how much more often than others a construct is in this
// ruleset: rulesets that are rich in a few constructs show more of how they
// act on each other than those that have a little of everything.
func (g *generator) favour(c construct) int {
	factor, known := g.favours[c.name]
	if !known {
		factor = []int{0, 0, 1, 1, 4}[g.IntN(5)]
		if g.theme != "" && strings.Contains(strings.ToLower(c.name), g.theme) {
			factor = 8
		}
		if c.weight >= common {
			factor = max(1, factor)
		}
		g.favours[c.name] = factor
	}
	return factor
}

func fixed(texts ...string) func(*generator) string {
	return func(g *generator) string { return g.some(texts...) }
}

// negatable writes "-m module [!] condition".
func negatable(module string, conditions ...string) func(*generator) string {
	return func(g *generator) string { return "-m " + module + " " + g.not() + g.some(conditions...) }
}

// tables returns rules in the language of iptables-restore.
func (g *generator) tables(tool string) Load {
	g.v6 = strings.HasPrefix(tool, "ip6")
	l := Load{Tool: tool}
	for _, t := range xtablesTables {
		if g.IntN(t.of) == 0 {
			l.Lines = append(l.Lines, g.table(t)...)
		}
	}
	g.use(strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(tool, "ip6tables-"), "iptables-"), "-restore"))
	return l
}

// oneBit returns a bit of a mark, which shows at a chain's end what was done to
// it.
func (g *generator) oneBit() string {
	bit := g.some("0x1", "0x2", "0x4", "0x8")
	return g.some(bit, "0x0") + "/" + bit
}

// bits returns some of the bits that marks are made of.
func (g *generator) bits() string { return fmt.Sprintf("%#x", g.IntN(16)) }

// userChains is how many chains a table has beside the builtin ones.
const userChains = 4

func (g *generator) table(t xtable) []Line {
	lines := []Line{{"*" + t.name, false}}
	var chains []chain
	for h := prerouting; h <= postrouting; h <<= 1 {
		if t.hooks&h == 0 {
			continue
		}
		policy := "ACCEPT"
		if t.name == "filter" && g.IntN(6) == 0 || t.name != "nat" && g.IntN(40) == 0 {
			policy = "DROP"
		}
		lines = append(lines, Line{":" + builtin[h] + " " + policy, false})
		chains = append(chains, chain{builtin[h], h, true})
	}
	for i := range userChains {
		h := t.hooks
		if h&forward != 0 && i%2 == 0 {
			h = forward
		}
		lines = append(lines, Line{fmt.Sprintf(":R%d -", i), false})
		chains = append(chains, chain{fmt.Sprintf("R%d", i), h, false})
	}
	for i, c := range chains {
		count := g.IntN(t.rules)
		if c.hooks == forward && c.base {
			count += g.IntN(t.rules)
		}
		for range count {
			lines = append(lines, Line{"-A " + c.name + " " + g.rule(where{t.name, c.hooks}, chains[i+1:]), true})
		}
		if c.base && t.name != "nat" && g.IntN(3) == 0 {
			lines = append(lines, Line{"-A " + c.name + " -m " + g.some("mark", "connmark") + " " + g.not() + "--mark " + g.oneBit() + " -j DROP", true})
		}
	}
	return append(lines, Line{"COMMIT", false})
}

// chain is a chain and the hooks from which it may be reached.
type chain struct {
	name  string
	hooks hooks
	base  bool
}

// rule returns conditions and a target; later are the chains that it may
// lead to.
func (g *generator) rule(w where, later []chain) string {
	protocol := g.one(xtProtocols, w)
	words := []string{protocol.write(g)}
	// What refuses in a table that is not for that is to be rarer.
	most := 3
	if w.table != "filter" {
		most = 4
	}
	written := map[string]bool{}
	for range g.IntN(most) {
		// Options of the rule itself may be given once.
		if m := g.one(xtMatches, w); !written[m.name] {
			written[m.name] = true
			words = append(words, m.write(g))
		}
	}
	if len(words) == 1 && words[0] == "" {
		words = append(words, g.one(xtMatches, w).write(g))
	}
	text := strings.Join(words, " ")
	if target := g.jump(w, later); target != "" {
		return text + " " + target
	}
	for {
		target := g.one(xtTargets, w).write(g)
		// Some are for TCP alone.
		if strings.Contains(target, "tcp-reset") || strings.Contains(target, "TCP") || strings.Contains(target, "PROXY") {
			if !strings.HasPrefix(text, "-p tcp") {
				continue
			}
			if strings.Contains(target, "TCPMSS") {
				target = "-m tcp --tcp-flags SYN,RST SYN " + target
			}
		}
		if strings.Contains(target, "DROP") && w.table != "filter" && len(words) < 3 {
			continue
		}
		return text + " " + target
	}
}

func (g *generator) jump(w where, later []chain) string {
	var able []string
	for _, c := range later {
		if !c.base && w.hooks&^c.hooks == 0 {
			able = append(able, c.name)
		}
	}
	if len(able) == 0 || g.IntN(3) > 0 {
		return ""
	}
	g.use("jump")
	return g.some("-j ", "-j ", "-g ") + g.some(able...)
}
