// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"strings"
)

// FilterRestore returns the input of "iptables-restore -T filter", without
// --noflush, that replaces the whole filter table by what saved holds of other
// tools and by the engine's own chains. Own jumps come first in the builtin
// chains. saved is the output of "iptables-save -t filter"; it is empty where
// the table does not exist yet.
//
// What another tool writes between the save and the restore is lost, as with
// kube-router.
func (t Table) FilterRestore(saved string) (string, error) {
	foreign, err := parseSaved(saved)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("*filter\n")
	for _, line := range foreign.chains {
		b.WriteString(line + "\n")
	}
	for _, c := range t.Chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c.Name)
	}
	writeChains(&b, t.Jumps)
	for _, line := range foreign.rules {
		b.WriteString(line + "\n")
	}
	writeChains(&b, t.Chains)
	b.WriteString("COMMIT\n")
	return b.String(), nil
}

func writeChains(b *strings.Builder, chains []Chain) {
	for _, c := range chains {
		for _, rule := range c.Rules {
			fmt.Fprintf(b, "-A %s %s\n", c.Name, rule)
		}
	}
}

// foreignTable is what other tools have in the filter table.
type foreignTable struct {
	chains, rules []string
}

func parseSaved(saved string) (foreignTable, error) {
	var result foreignTable
	builtin := map[string]bool{}
	inFilter := false
	for n, line := range strings.Split(saved, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			if line != "*filter" {
				return foreignTable{}, fmt.Errorf("saved rules, line %d: table %q, want only *filter", n+1, line)
			}
			inFilter = true
		case line == "COMMIT":
			inFilter = false
		case !inFilter:
			return foreignTable{}, fmt.Errorf("saved rules, line %d: %q outside of a table", n+1, line)
		case line[0] == ':':
			name, rest, ok := strings.Cut(line[1:], " ")
			if !ok {
				return foreignTable{}, fmt.Errorf("saved rules, line %d: chain %q without a policy", n+1, line)
			}
			if !strings.HasPrefix(rest, "-") {
				builtin[name] = true
			}
			if !ownsChain(name) {
				result.chains = append(result.chains, line)
			}
		case strings.HasPrefix(line, "-A "):
			if fields := strings.Fields(line); !ownsRule(fields) {
				result.rules = append(result.rules, line)
			}
		default:
			return foreignTable{}, fmt.Errorf("saved rules, line %d: %q is neither a chain nor a rule", n+1, line)
		}
	}
	if inFilter {
		return foreignTable{}, fmt.Errorf("saved rules end without COMMIT")
	}
	for _, name := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		if !builtin[name] {
			result.chains = append(result.chains, ":"+name+" ACCEPT [0:0]")
		}
	}
	return result, nil
}

// ownsRule tells whether a rule is in one of the engine's chains or jumps to
// one.
func ownsRule(fields []string) bool {
	if len(fields) > 1 && ownsChain(fields[1]) {
		return true
	}
	for i, f := range fields[:len(fields)-1] {
		if (f == "-j" || f == "-g") && ownsChain(fields[i+1]) {
			return true
		}
	}
	return false
}
