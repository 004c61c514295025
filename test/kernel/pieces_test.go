// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A transaction of nf_tables is one message to the kernel, and a user's socket
// does not take one as large as root's does: nft and iptables-nft then fail
// with EMSGSIZE, from about 150 rules on. So rules are loaded in pieces of so
// many rules, or so many lines of elements.
const (
	rulesPerPiece    = 100
	elementsPerPiece = 2000
)

// restore loads what iptables-save or ip6tables-save printed of one table.
func (ns *namespace) restore(t testing.TB, tool, text string) {
	t.Helper()
	if strings.Contains(tool, "legacy") || strings.Count(text, "\n-A ") <= rulesPerPiece {
		ns.run(t, text, tool, "-w")
		return
	}
	var table string
	var piece []string
	rules := 0
	options := []string{"-w"}
	load := func() {
		ns.run(t, strings.Join(piece, "")+"COMMIT\n", tool, options...)
		piece, rules, options = []string{table}, 0, []string{"-w", "--noflush"}
	}
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "*"):
			if table != "" {
				t.Fatal("only a text of one table can be loaded in pieces")
			}
			table = line
		case strings.HasPrefix(line, "-A "):
			if rules++; rules > rulesPerPiece {
				load()
			}
		case !strings.HasPrefix(line, ":"):
			continue
		}
		piece = append(piece, line)
	}
	load()
}

// nftTable is a table as nft lists it.
type nftTable struct {
	name string // with the family in front
	// frame has the table's sets and chains without elements and rules.
	frame strings.Builder
	// rules and elements are of the chain or set with the family, the table's
	// and its own name in front.
	rules, elements []string
}

// parseNFT takes what nft printed apart.
func parseNFT(text string) []*nftTable {
	var tables []*nftTable
	var table *nftTable
	var block, name string
	inElements := false
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		line = strings.TrimSpace(line)
		switch {
		case len(words) == 0:
		case words[0] == "table":
			table = &nftTable{name: words[1] + " " + words[2]}
			tables = append(tables, table)
			table.frame.WriteString(line + "\n")
		case block == "" && (words[0] == "set" || words[0] == "map" || words[0] == "chain"):
			block, name = words[0], words[1]
			table.frame.WriteString(line + "\n")
		case line == "}":
			block = ""
			table.frame.WriteString("}\n")
		case inElements || strings.HasPrefix(line, "elements = {"):
			inElements = !strings.HasSuffix(line, "}")
			for element := range strings.SplitSeq(strings.Trim(strings.TrimPrefix(line, "elements = "), "{} "), ",") {
				if element = strings.TrimSpace(element); element != "" {
					table.elements = append(table.elements, table.name+" "+name+" "+element)
				}
			}
		case block == "chain" && words[0] != "comment" && words[0] != "type":
			table.rules = append(table.rules, table.name+" "+name+" "+line)
		default:
			table.frame.WriteString(line + "\n")
		}
	}
	return tables
}

// loadNFT loads what nft list ruleset printed, and demands that it lists the
// same again.
func (ns *namespace) loadNFT(t testing.TB, text string) {
	t.Helper()
	tables := parseNFT(text)
	for _, table := range tables {
		ns.run(t, table.frame.String(), "nft", "-f", "-")
	}
	// Rules first: as long as the sets are empty, nft has little to read for
	// each piece.
	for _, table := range tables {
		ns.addPieces(t, "rule", table.rules, rulesPerPiece)
	}
	for _, table := range tables {
		ns.addPieces(t, "element", table.elements, elementsPerPiece)
	}
	var listed []byte
	ns.do(t, func() (err error) {
		listed, err = exec.CommandContext(t.Context(), "nft", "list", "ruleset").Output()
		return err
	})
	if diff := cmp.Diff(plainTables(tables), plainTables(parseNFT(string(listed)))); diff != "" {
		t.Fatalf("(-captured +loaded):\n%s", diff)
	}
}

// counted is what packets change.
var counted = regexp.MustCompile(`packets \d+ bytes \d+`)

// plainTables returns what two listings of the same tables have in common:
// elements come in any order.
func plainTables(tables []*nftTable) map[string][]string {
	plain := map[string][]string{}
	for _, table := range tables {
		lines := []string{table.frame.String()}
		for _, rule := range table.rules {
			lines = append(lines, counted.ReplaceAllString(rule, ""))
		}
		plain[table.name] = append(lines, slices.Sorted(slices.Values(table.elements))...)
	}
	return plain
}

// addPieces adds rules or elements, some at once. Elements of one set are added
// by one command.
func (ns *namespace) addPieces(t testing.TB, kind string, lines []string, size int) {
	t.Helper()
	for len(lines) > 0 {
		piece := lines[:min(size, len(lines))]
		lines = lines[len(piece):]
		var b strings.Builder
		for i := 0; i < len(piece); i++ {
			if kind == "rule" {
				b.WriteString("add rule " + piece[i] + "\n")
				continue
			}
			words := strings.SplitN(piece[i], " ", 4)
			set := strings.Join(words[:3], " ")
			elements := []string{words[3]}
			for i+1 < len(piece) && strings.HasPrefix(piece[i+1], set+" ") {
				i++
				elements = append(elements, strings.TrimPrefix(piece[i], set+" "))
			}
			b.WriteString("add element " + set + " { " + strings.Join(elements, ", ") + " }\n")
		}
		ns.run(t, b.String(), "nft", "-f", "-")
	}
}
