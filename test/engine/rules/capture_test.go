// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules_test

import (
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/test/engine/rules"
	"github.com/policygate/policygate/test/engine/rules/capture"
)

const recordings = "testdata/kube-router-v2.11"

func recording(t *testing.T, elements ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(append([]string{recordings}, elements...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func recordedInput(t *testing.T) rules.Input {
	t.Helper()
	objects, err := capture.ParseObjects([]byte(recording(t, "objects.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	return rules.Input{
		NodeAddresses: objects.NodeAddresses("node1"),
		Pods:          objects.Pods,
		Namespaces:    objects.Namespaces,
		Policies:      objects.Policies,
	}
}

func recordedOptions() rules.Options {
	return rules.Options{
		Families:           []rules.Family{rules.IPv4, rules.IPv6},
		ClusterIPRanges:    []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		ExternalIPRanges:   []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
		LoadBalancerRanges: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28")},
	}
}

func compile(t *testing.T, input rules.Input) rules.Program {
	t.Helper()
	program, err := rules.Compile(1, recordedOptions(), input)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// setsOf writes a table's sets in the form of capture.Sets.
func setsOf(t *testing.T, table rules.Table) map[string][]string {
	t.Helper()
	family := map[rules.Family]string{rules.IPv4: "inet", rules.IPv6: "inet6"}[table.Family]
	var save strings.Builder
	for _, s := range table.Sets {
		save.WriteString("create " + s.Name + " " + string(s.Type) + " family " + family + "\n")
		for _, m := range s.Members {
			save.WriteString("add " + s.Name + " " + m.Entry)
			if m.NoMatch {
				save.WriteString(" nomatch")
			}
			save.WriteString("\n")
		}
	}
	sets, err := capture.Sets(save.String())
	if err != nil {
		t.Fatal(err)
	}
	return sets
}

// The recordings hold 8080 in the first and 9090 in the second set of the
// named port of web/fe-both, in both families and variants. kube-router draws
// that order anew at every sync; without a Shuffle it is ascending here, so
// that these recordings can be compared name by name.
func TestCompileAgreesWithRecordings(t *testing.T) {
	program := compile(t, recordedInput(t))
	for _, variant := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(variant, func(t *testing.T) {
			got := map[string][]string{}
			for _, table := range program.Tables {
				maps.Copy(got, setsOf(t, table))
			}
			want, err := capture.Sets(recording(t, variant, "ipset-save.txt"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("sets (-recorded +computed):\n%s", diff)
			}
			for i, file := range []string{"iptables-save.txt", "ip6tables-save.txt"} {
				restore, err := program.Tables[i].FilterRestore("")
				if err != nil {
					t.Fatal(err)
				}
				got, err := capture.Filter(restore)
				if err != nil {
					t.Fatal(err)
				}
				want, err := capture.Filter(recording(t, variant, file))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-recorded +computed):\n%s", file, diff)
				}
			}
		})
	}
}
