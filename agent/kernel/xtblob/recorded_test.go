// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
)

// recording is a struct as a kernel handed it out, and the rule it is of.
type recording struct {
	kind, name string
	revision   uint8
	rule       string
	data       []byte
	family     ruleset.Family
}

func recordings(t testing.TB) []recording {
	t.Helper()
	all := recordingsOf(t, ruleset.IPv4, "testdata/recorded.txt")
	return append(all, recordingsOf(t, ruleset.IPv6, "testdata/recorded-ipv6.txt")...)
}

func recordingsOf(t testing.TB, family ruleset.Family, file string) []recording {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []recording
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 5 {
			t.Fatalf("line %q: want 5 fields", line)
		}
		revision, err := strconv.ParseUint(fields[2], 10, 8)
		if err != nil {
			t.Fatal(err)
		}
		data, err := hex.DecodeString(fields[4])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, recording{fields[0], fields[1], uint8(revision), fields[3], data, family})
	}
	return all
}

// twoSets are the sets of the recordings.
type twoSets struct{}

func (twoSets) SetName(index uint16) (string, error) {
	if index > 1 {
		return "", fmt.Errorf("set %d does not exist", index)
	}
	return []string{"four", "pair"}[index], nil
}

// read returns what the text parser makes of a rule, without -p.
func read(t *testing.T, family ruleset.Family, rule string) ruleset.Rule {
	t.Helper()
	tables, err := savetext.Parse(family, ruleset.Legacy, "*filter\n:FORWARD ACCEPT\n-A FORWARD "+rule+"\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	r := tables[0].Chains[0].Rules[0]
	if len(r.Matches) > 0 && strings.HasPrefix(rule, "-p ") {
		if _, ok := r.Matches[0].(ruleset.Proto); ok {
			r.Matches = r.Matches[1:]
		}
	}
	return r
}

// TestRecordedStructsReadAsTheirRules: what nobody understands is unknown both
// ways, whatever the words.
func TestRecordedStructsReadAsTheirRules(t *testing.T) {
	// Printed by iptables-save otherwise than they were written.
	printed := map[string]string{
		"-p icmp --icmp-type 8":  "-p icmp -m icmp --icmp-type 8",
		"-p tcp --dport 0:65535": "-p tcp -m tcp",
		"-m iprange ! --dst-range 10.0.0.1-10.0.0.9 --src-range 10.0.0.3": "-m iprange --src-range 10.0.0.3-10.0.0.3 ! --dst-range 10.0.0.1-10.0.0.9",
		"-m addrtype ! --dst-type LOCAL,BROADCAST --src-type UNICAST":     "-m addrtype --src-type UNICAST ! --dst-type LOCAL,BROADCAST",
		"-p sctp --dport 5 ! --sport 6:7":                                 "-p sctp -m sctp ! --sport 6:7 --dport 5",
		"-j CONNMARK --and-mark 3":                                        "-j CONNMARK --set-xmark 0x0/0xfffffffc",
		"-j CONNMARK --restore-mark --mask 0xf":                           "-j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf",
		"-m physdev --physdev-is-bridged --physdev-in veth0":              "-m physdev --physdev-in veth0 --physdev-is-bridged",
	}
	all := recordings(t)
	if len(all) < 150 {
		t.Fatalf("only %d recordings", len(all))
	}
	for _, r := range all {
		t.Run(r.rule, func(t *testing.T) {
			rule := r.rule
			if text := printed[rule]; text != "" {
				rule = text
			}
			if r.kind == "match" && r.name != "icmp" && strings.HasPrefix(rule, "-p ") && !strings.Contains(rule, "-m") {
				protocol := strings.Fields(rule)[1]
				rule = strings.Replace(rule, "-p "+protocol, "-p "+protocol+" -m "+protocol, 1)
			}
			want := read(t, r.family, rule)
			if r.kind == "target" {
				got := Target(r.family, r.name, r.revision, r.data)
				if diff := cmp.Diff(want.Target, got); diff != "" {
					t.Errorf("(-text +struct):\n%s", diff)
				}
				return
			}
			got, comment := Match(r.family, r.name, r.revision, r.data, twoSets{})
			wording := cmpopts.IgnoreFields(ruleset.Unknown{}, "Text")
			if diff := cmp.Diff(want.Matches, got, wording, cmpopts.EquateEmpty(), cmpopts.EquateComparable(ruleset.AddrRange{}, ruleset.Addr{})); diff != "" {
				t.Errorf("(-text +struct):\n%s", diff)
			}
			if comment != want.Comment {
				t.Errorf("comment %q, want %q", comment, want.Comment)
			}
		})
	}
}

// TestWhatIsNotAsRecordedIsUnknown changes each recording in ways that a
// decoder must notice.
func TestWhatIsNotAsRecordedIsUnknown(t *testing.T) {
	whole := func(r recording) bool { return len(r.data) > 0 }
	for _, r := range recordings(t) {
		for name, c := range map[string]recording{
			"another revision": {r.kind, r.name, r.revision + 100, r.rule, r.data, r.family},
			"nothing":          {r.kind, r.name, r.revision, r.rule, nil, r.family},
			"cut short":        {r.kind, r.name, r.revision, r.rule, r.data[:min(len(r.data)/2+1, len(r.data))], r.family},
			"too long":         {r.kind, r.name, r.revision, r.rule, slices.Concat(r.data, make([]byte, 8)), r.family},
			"another name":     {r.kind, r.name + "x", r.revision, r.rule, r.data, r.family},
		} {
			if r.kind == "target" {
				if got := Target(c.family, c.name, c.revision, c.data); got.Kind != ruleset.UnknownTarget && (whole(r) || name != "nothing" && name != "cut short") || got.Name == "" {
					t.Errorf("%s, %s: got %+v, want an unknown target", r.rule, name, got)
				}
				continue
			}
			got, comment := Match(c.family, c.name, c.revision, c.data, twoSets{})
			if !unknown(got) || comment != "" {
				t.Errorf("%s, %s: got %+v, want an unknown match", r.rule, name, got)
			}
		}
	}
}

func unknown(matches []ruleset.Match) bool {
	if len(matches) != 1 {
		return false
	}
	_, ok := matches[0].(ruleset.Unknown)
	return ok
}

func FuzzMatch(f *testing.F) {
	for _, r := range recordings(f) {
		f.Add(r.kind == "target", r.name, r.revision, r.data)
	}
	f.Fuzz(func(t *testing.T, target bool, name string, revision uint8, data []byte) {
		for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
			if target {
				if got := Target(family, name, revision, data); got.Chain != nil {
					t.Errorf("got a jump")
				}
				continue
			}
			matches, comment := Match(family, name, revision, data, twoSets{})
			if comment != "" && len(matches) > 0 {
				t.Errorf("both a comment %q and matches %v", comment, matches)
			}
		}
	})
}
