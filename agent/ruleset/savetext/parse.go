// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package savetext reads the text of iptables-save into the model: the second
// opinion that tests hold the native readers against. The agent does not use
// it: iptables-save needs more than CAP_NET_ADMIN for set names and prints
// rules that it did not write wrongly.
package savetext

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
)

// Parse reads the output of iptables-save or ip6tables-save, of either
// backend, with or without counters. Empty text has no tables.
//
// It returns an error that names the line if the text is malformed or cut
// short: a table without COMMIT, a rule for a chain that was not declared, a
// jump that leads nowhere. What it merely does not know becomes an Unknown
// match or target. Comment lines are ignored, also those with which
// iptables-nft-save says that it left a table out: a reader has to compare
// the result with the kernel's own list of base chains.
func Parse(family ruleset.Family, backend ruleset.Backend, save string) ([]ruleset.Table, error) {
	p := parser{family: family, backend: backend}
	for n, line := range strings.Split(save, "\n") {
		line = strings.TrimRight(line, " \t\r")
		if line == "" || line[0] == '#' {
			continue
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
	}
	if p.chains != nil {
		return nil, fmt.Errorf("table %q has no COMMIT: the text is cut short", p.table.Name)
	}
	return p.tables, nil
}

type parser struct {
	family  ruleset.Family
	backend ruleset.Backend
	tables  []ruleset.Table
	// table is being read; chains is nil between COMMIT and the next table.
	table  ruleset.Table
	chains map[string]*ruleset.Chain
	// jumps are the targets whose name must be a chain or a known target
	// once the table is complete: a chain may be declared after its use.
	jumps []pendingJump
}

type pendingJump struct {
	chain *ruleset.Chain
	rule  int
	name  string
	words []string
}

func (p *parser) line(line string) error {
	switch {
	case line[0] == '*':
		return p.begin(line[1:])
	case p.chains == nil:
		return fmt.Errorf("%q is outside of a table", clip(line))
	case line == "COMMIT":
		return p.commit()
	case line[0] == ':':
		return p.declare(line[1:])
	}
	return p.rule(line)
}

func (p *parser) begin(name string) error {
	if p.chains != nil {
		return fmt.Errorf("table %q begins before COMMIT of table %q", clip(name), p.table.Name)
	}
	if name == "" || strings.ContainsAny(name, " \t") {
		return fmt.Errorf("table name %q: want one word", clip(name))
	}
	for _, t := range p.tables {
		if t.Name == name {
			return fmt.Errorf("table %q appears twice", name)
		}
	}
	p.table = ruleset.Table{Family: p.family, Backend: p.backend, Name: name}
	p.chains = map[string]*ruleset.Chain{}
	p.jumps = nil
	return nil
}

// declare reads "NAME POLICY [packets:bytes]".
func (p *parser) declare(text string) error {
	words := strings.Fields(text)
	if len(words) < 2 || len(words) > 3 {
		return fmt.Errorf("chain %q: want a name, a policy and counters", clip(text))
	}
	name, policy := words[0], words[1]
	if p.chains[name] != nil {
		return fmt.Errorf("chain %q is declared twice", clip(name))
	}
	chain := &ruleset.Chain{Name: name}
	switch policy {
	case "-":
	case "ACCEPT", "DROP":
		base, ok := builtin(p.backend, p.table.Name, name)
		if !ok {
			return fmt.Errorf("chain %q of table %q has a policy, but no such base chain is known", clip(name), p.table.Name)
		}
		base.Drop = policy == "DROP"
		chain.Base = &base
	default:
		return fmt.Errorf("policy %q of chain %q: want ACCEPT, DROP or -", clip(policy), clip(name))
	}
	p.chains[name] = chain
	p.table.Chains = append(p.table.Chains, chain)
	return nil
}

func (p *parser) commit() error {
	for _, j := range p.jumps {
		rule := &j.chain.Rules[j.rule]
		if chain := p.chains[j.name]; chain != nil && chain.Base == nil && len(j.words) == 0 {
			rule.Target.Chain = chain
			continue
		}
		if rule.Target.Kind == ruleset.Goto || !extension(j.name) {
			return fmt.Errorf("rule %q leads to chain %q, which is not in table %q", clip(rule.Raw), clip(j.name), p.table.Name)
		}
		rule.Target = ruleset.Target{Kind: ruleset.UnknownTarget, Name: j.name}
	}
	p.tables = append(p.tables, p.table)
	p.chains = nil
	return nil
}

// rule reads "[packets:bytes] -A CHAIN ...".
func (p *parser) rule(line string) error {
	raw := line
	if line[0] == '[' {
		_, rest, ok := strings.Cut(line, "] ")
		if !ok {
			return fmt.Errorf("rule %q: counters have no end", clip(line))
		}
		raw = strings.TrimLeft(rest, " ")
	}
	words, err := split(raw)
	if err != nil {
		return fmt.Errorf("rule %q: %w", clip(raw), err)
	}
	if len(words) < 2 || words[0] != "-A" {
		return fmt.Errorf("%q: want a chain, a rule or COMMIT", clip(raw))
	}
	chain := p.chains[words[1]]
	if chain == nil {
		return fmt.Errorf("rule %q is for chain %q, which is not declared", clip(raw), clip(words[1]))
	}
	r := ruleParser{family: p.family, words: words[2:]}
	r.parse()
	rule := ruleset.Rule{Matches: r.matches, Target: r.target, Comment: r.comment, Raw: raw}
	// Sets cost a question to the kernel, so they come after what is free.
	slices.SortStableFunc(rule.Matches, func(a, b ruleset.Match) int { return cost(a) - cost(b) })
	chain.Rules = append(chain.Rules, rule)
	if r.target.Kind == ruleset.Jump || r.target.Kind == ruleset.Goto {
		p.jumps = append(p.jumps, pendingJump{chain: chain, rule: len(chain.Rules) - 1, name: r.target.Name, words: r.targetWords})
	}
	return nil
}

func cost(m ruleset.Match) int {
	if _, ok := m.(ruleset.Set); ok {
		return 1
	}
	return 0
}

// builtin returns the hook and the priority of a builtin chain of iptables.
// The two backends differ in one place: the kernel has the legacy chains of
// table security at 50, iptables-nft registers its own at 150 (seen with 1.8.9).
func builtin(backend ruleset.Backend, table, chain string) (ruleset.Base, bool) {
	hooks := map[string]ruleset.Hook{
		"PREROUTING": ruleset.Prerouting, "INPUT": ruleset.Input, "FORWARD": ruleset.Forward,
		"OUTPUT": ruleset.Output, "POSTROUTING": ruleset.Postrouting,
	}
	hook, ok := hooks[chain]
	if !ok {
		return ruleset.Base{}, false
	}
	switch table {
	case "raw":
		return ruleset.Base{Hook: hook, Priority: -300}, hook == ruleset.Prerouting || hook == ruleset.Output
	case "mangle":
		return ruleset.Base{Hook: hook, Priority: -150}, true
	case "nat":
		priority := -100
		if hook == ruleset.Input || hook == ruleset.Postrouting {
			priority = 100
		}
		return ruleset.Base{Hook: hook, Priority: priority, NAT: true}, hook != ruleset.Forward
	case "filter":
		return ruleset.Base{Hook: hook}, hook == ruleset.Input || hook == ruleset.Forward || hook == ruleset.Output
	case "security":
		priority := 50
		if backend == ruleset.NFT {
			priority = 150
		}
		return ruleset.Base{Hook: hook, Priority: priority}, hook == ruleset.Input || hook == ruleset.Forward || hook == ruleset.Output
	}
	return ruleset.Base{}, false
}

// extension reports whether a word can be the name of a target that this
// parser does not know rather than of a chain that is missing. The kernel
// names its targets in capitals and digits.
func extension(name string) bool {
	for _, c := range name {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

var errQuote = errors.New("a quote has no end")

// split cuts a rule into words the way iptables-save quotes them: within
// double quotes a backslash protects the next character.
func split(line string) ([]string, error) {
	var words []string
	for i := 0; i < len(line); {
		if line[i] == ' ' || line[i] == '\t' {
			i++
			continue
		}
		if line[i] != '"' {
			end := i
			for end < len(line) && line[end] != ' ' && line[end] != '\t' {
				end++
			}
			words = append(words, line[i:end])
			i = end
			continue
		}
		var word strings.Builder
		i++
		for ; i < len(line) && line[i] != '"'; i++ {
			if line[i] == '\\' && i+1 < len(line) {
				i++
			}
			word.WriteByte(line[i])
		}
		if i >= len(line) {
			return nil, errQuote
		}
		i++
		words = append(words, word.String())
	}
	return words, nil
}

// clip keeps an error message short whatever the text is.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
