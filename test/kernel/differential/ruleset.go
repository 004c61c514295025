// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Line is a line of what a tool reads.
type Line struct {
	Text string
	// Rule: the rest makes sense without it.
	Rule bool
}

func lines(rule bool, texts ...string) []Line {
	all := make([]Line, len(texts))
	for i, text := range texts {
		all[i] = Line{text, rule}
	}
	return all
}

// Load is what one tool loads in one run.
type Load struct {
	Tool  string
	Lines []Line
}

// Ruleset is all that is configured on a node for one try.
type Ruleset struct {
	// Calls4 and Calls6 are what bridge-nf-call-iptables and -ip6tables are.
	Calls4, Calls6 bool
	// Own is whether the bridge has both switches on for itself.
	Own bool
	// Loads come in the order in which they are loaded, the ipsets first.
	Loads []Load
}

// arguments are those that the tools need to read their input.
var arguments = map[string][]string{
	"nft": {"-f", "-"}, "ipset": {"-exist", "restore"},
}

func (l Load) text() string {
	var b strings.Builder
	for _, line := range l.Lines {
		b.WriteString(line.Text + "\n")
	}
	return b.String()
}

// String returns the ruleset as a person would load it, without tables and
// chains in which nothing happens.
func (r *Ruleset) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# bridge-nf-call-iptables=%t bridge-nf-call-ip6tables=%t, the bridge's own=%t\n", r.Calls4, r.Calls6, r.Own)
	for _, l := range r.Loads {
		var body, table strings.Builder
		matters := false
		for _, line := range l.Lines {
			if strings.HasPrefix(line.Text, "flush ") || l.idle(line) {
				continue
			}
			table.WriteString(line.Text + "\n")
			matters = matters || line.Rule || strings.HasSuffix(line.Text, " DROP") || strings.Contains(line.Text, "policy drop")
			if line.Text == "COMMIT" {
				if matters {
					body.WriteString(table.String())
				}
				table.Reset()
				matters = false
			}
		}
		if matters {
			body.WriteString(table.String())
		}
		if body.Len() > 0 {
			b.WriteString("# " + l.Tool + "\n" + body.String())
		}
	}
	return b.String()
}

// idle reports whether a line makes a chain, set or map that no rule names.
func (l Load) idle(line Line) bool {
	name := ""
	switch words := strings.Fields(line.Text); {
	case line.Rule:
	case strings.HasSuffix(line.Text, " -"):
		name = strings.TrimPrefix(words[0], ":")
	case len(words) > 4 && words[0] == "add" && words[1] != "table" && !strings.Contains(line.Text, "policy drop"):
		name = words[4]
	}
	return name != "" && !slices.ContainsFunc(l.Lines, func(other Line) bool {
		return other.Rule && regexp.MustCompile(`\b`+name+`\b`).MatchString(other.Text)
	})
}

// without returns a copy that leaves out the rules whose numbers, counted over
// all loads, are from first to just before end.
func (r *Ruleset) without(first, end int) *Ruleset {
	out := &Ruleset{Calls4: r.Calls4, Calls6: r.Calls6, Own: r.Own}
	number := 0
	for _, l := range r.Loads {
		kept := Load{Tool: l.Tool}
		for _, line := range l.Lines {
			if line.Rule {
				number++
				if first < number && number <= end {
					continue
				}
			}
			kept.Lines = append(kept.Lines, line)
		}
		out.Loads = append(out.Loads, kept)
	}
	return out
}

func (r *Ruleset) rules() int {
	count := 0
	for _, l := range r.Loads {
		for _, line := range l.Lines {
			if line.Rule {
				count++
			}
		}
	}
	return count
}

// empty is a legacy ruleset without a rule.
const empty = `*raw
:PREROUTING ACCEPT
:OUTPUT ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
COMMIT
*filter
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
*security
:INPUT ACCEPT
:FORWARD ACCEPT
:OUTPUT ACCEPT
COMMIT
`

func onOff(on bool) string {
	if on {
		return "1"
	}
	return "0"
}

// Load loads a ruleset in place of the one before, and leaves out of it the
// rules that the tools refuse.
func (n *Node) Load(ctx context.Context, r *Ruleset) error {
	if err := n.reset(ctx); err != nil {
		return err
	}
	if err := sysctl("bridge/bridge-nf-call-iptables", onOff(r.Calls4)); err != nil {
		return err
	}
	if err := sysctl("bridge/bridge-nf-call-ip6tables", onOff(r.Calls6)); err != nil {
		return err
	}
	if r.Own != n.own {
		on := onOff(r.Own)
		if err := run(ctx, nil, "link set "+bridge+" type bridge nf_call_iptables "+on+" nf_call_ip6tables "+on+"\n", "ip", "-batch", "-"); err != nil {
			return err
		}
		n.own = r.Own
	}
	for i := range r.Loads {
		l := &r.Loads[i]
		n.dirty = n.dirty || strings.Contains(l.Tool, "legacy")
		if len(l.Lines) == 0 {
			continue
		}
		for err := errors.New("not tried"); err != nil; {
			err = run(ctx, n.env, l.text(), l.Tool, arguments[l.Tool]...)
			if err != nil && !l.repair(err.Error()) {
				return err
			}
		}
	}
	return nil
}

// refused are the tools' ways to say which lines they do not take.
var refused = regexp.MustCompile(`(?m)^(?:/dev/stdin:|line |Error occurred at line: )(\d+)(?::|$)`)

// repair leaves out the rules that the tool refused. It returns false if what
// it said is not of any rule.
func (l *Load) repair(message string) bool {
	message, _, _ = strings.Cut(message, "\n\n")
	lines := map[int]bool{}
	for _, found := range refused.FindAllStringSubmatch(message, -1) {
		number, err := strconv.Atoi(found[1])
		if err == nil && number >= 1 && number <= len(l.Lines) && l.Lines[number-1].Rule {
			lines[number-1] = true
		}
	}
	var kept []Line
	for i, line := range l.Lines {
		if !lines[i] {
			kept = append(kept, line)
		}
	}
	l.Lines = kept
	return len(lines) > 0
}

func (n *Node) reset(ctx context.Context) error {
	if err := run(ctx, n.env, "flush ruleset\n", "nft", "-f", "-"); err != nil {
		return err
	}
	if !n.dirty {
		return nil
	}
	for _, tool := range []string{"iptables-legacy-restore", "ip6tables-legacy-restore"} {
		if err := run(ctx, n.env, empty, tool); err != nil {
			return err
		}
	}
	n.dirty = false
	return nil
}
