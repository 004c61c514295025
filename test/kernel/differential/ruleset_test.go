// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestRulesAreLeftOutByTheirNumber(t *testing.T) {
	r := &Ruleset{Calls4: true, Loads: []Load{
		{"ipset", append(lines(false, "flush a"), lines(true, "add a 1", "add a 2")...)},
		{"nft", append(lines(true, "add rule 3"), lines(false, "add table")...)},
	}}
	if got := r.rules(); got != 3 {
		t.Errorf("got %d rules, want 3", got)
	}
	want := &Ruleset{Calls4: true, Loads: []Load{{"ipset", append(lines(false, "flush a"), lines(true, "add a 1")...)}, {"nft", lines(false, "add table")}}}
	if diff := cmp.Diff(want, r.without(1, 5)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := r.rules(); got != 3 {
		t.Errorf("the original has %d rules now", got)
	}
}

func TestWhatAToolRefusesIsLeftOut(t *testing.T) {
	for name, message := range map[string]string{
		"nft":             "nft -f -: exit status 1\n/dev/stdin:2:15-18: Error: syntax error\nadd rule\n    ^^^^\n\nadd table",
		"iptables-nft":    "iptables-nft-restore : exit status 4\niptables-nft-restore v1.8.9 (nf_tables): \nline 2: RULE_APPEND failed (Invalid argument): rule in chain R1\n\n*filter",
		"iptables-legacy": "iptables-legacy-restore : exit status 2\niptables-restore v1.8.9 (legacy): multiple -o flags not allowed\nError occurred at line: 2\nTry `iptables-restore -h'\n\n*filter",
	} {
		t.Run(name, func(t *testing.T) {
			l := Load{"tool", []Line{{"table", false}, {"refused", true}, {"taken", true}}}
			if !l.repair(message) {
				t.Error("nothing was left out")
			}
			if diff := cmp.Diff([]Line{{"table", false}, {"taken", true}}, l.Lines); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	l := Load{"tool", []Line{{"table", false}, {"taken", true}}}
	if l.repair("nft: exit status 1\n/dev/stdin:1:1-2: Error: no such table\n\nadd rule") {
		t.Error("a line that is not a rule was left out")
	}
}

func TestARulesetIsPrintedWithoutWhatDoesNothing(t *testing.T) {
	r := &Ruleset{Loads: []Load{
		{"ipset", append(lines(false, "flush a", "flush b"), lines(true, "add a 1")...)},
		{"iptables-legacy-restore", append(append(lines(false, "*raw", ":PREROUTING ACCEPT", "COMMIT", "*filter", ":FORWARD ACCEPT", ":R0 -", ":R1 -"),
			lines(true, "-A FORWARD -j R1", "-A R1 -j DROP")...), lines(false, "COMMIT")...)},
		{"nft", append(lines(false, "add table ip t", "add chain ip t b { type filter hook forward priority 0; policy accept; }", "add chain ip t u", "add chain ip t u1", "add set ip t s { type mark; }"),
			lines(true, "add rule ip t b jump u1")...)},
	}}
	want := `# bridge-nf-call-iptables=false bridge-nf-call-ip6tables=false, the bridge's own=false
# ipset
add a 1
# iptables-legacy-restore
*filter
:FORWARD ACCEPT
:R1 -
-A FORWARD -j R1
-A R1 -j DROP
COMMIT
# nft
add table ip t
add chain ip t b { type filter hook forward priority 0; policy accept; }
add chain ip t u1
add rule ip t b jump u1
`
	if diff := cmp.Diff(want, r.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestASeedMakesTheSameRulesetAgain(t *testing.T) {
	first, second := newGenerator(5, ipsets).ruleset(), newGenerator(5, ipsets).ruleset()
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("(-first +second):\n%s", diff)
	}
	if diff := cmp.Diff(first, newGenerator(6, ipsets).ruleset()); diff == "" {
		t.Error("another seed makes the same ruleset")
	}
}

func TestReasonsAreCountedByWhatTheyAreAbout(t *testing.T) {
	for reason, want := range map[string]string{
		"SourceRewritten: -A POSTROUTING -m set --match-set a src -j MASQUERADE":             "SourceRewritten",
		"-A R3 -p tcp -m length (revision 0: not understood) -m mark --mark 0x1 -j DROP":     "-m length",
		"-A b1 -m conntrack --ctstate NEW -p tcp -j expression tproxy":                       "expression tproxy",
		"-A POSTROUTING limit -j NFQUEUE":                                                    "-j NFQUEUE",
		"-A PREROUTING -m mark --mark 0x1 limit -j ACCEPT":                                   "limit",
		"the source port is any: -A R4 -m mark --mark 0x1 -p tcp --sport 80 -j DROP":         "--sport",
		"a kind of reason that is to come":                                                   "others",
		"-A b1 -m conntrack --ctstate NEW meta key 0 -j ACCEPT":                              "meta key 0",
		"the source port is any: -A R1 -p tcp -m multiport --ports 22 -m mark --mark 5 -j R": "--ports",
	} {
		if got := class(reason); got != want {
			t.Errorf("%s: got %q, want %q", reason, got, want)
		}
	}
}
