// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

var update = flag.Bool("update", false, "write the golden files anew")

func noon() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

func nodeView(name string) explainv1.NodeView {
	return explainv1.NodeView{
		Name: name, Ready: true, Since: noon().Add(-time.Hour), Version: "v1.0.0", Dataplanes: []string{"iptables-nft", "ipset"},
	}
}

func replica(name string, nodes ...explainv1.NodeView) Replica {
	return Replica{Pod: name, Diagnosis: &explainv1.Diagnosis{
		Version: "v1.0.0", Time: noon(), Nodes: nodes, Ungated: &explainv1.Ungated{},
		Certificate: explainv1.Certificate{NotBefore: noon().Add(-24 * time.Hour), NotAfter: noon().Add(72 * time.Hour)},
	}}
}

// healthy are the facts of an installation in order; change may be nil.
func healthy(change func(*Facts)) *Facts {
	f := &Facts{
		Namespace: "policygate-system", Plugin: "v1.0.0", Now: noon(),
		Webhook:  Webhook{Found: true, Entries: []string{"namespace.inject.policygate.io", "pod.inject.policygate.io"}},
		Trial:    Trial{Namespace: "default", Injected: true},
		Manager:  Workload{Found: true, Desired: 2, Ready: 2, Current: 2},
		Agents:   Workload{Found: true, Desired: 3, Ready: 3, Current: 3},
		Replicas: []Replica{replica("m1", nodeView("n1"), nodeView("n2"), nodeView("n3")), replica("m2", nodeView("n1"), nodeView("n2"), nodeView("n3"))},
	}
	if change != nil {
		change(f)
	}
	return f
}

// everyNode changes a node in what all replicas see.
func everyNode(f *Facts, i int, change func(*explainv1.NodeView)) {
	for _, r := range f.Replicas {
		change(&r.Diagnosis.Nodes[i])
	}
}

// seeing has the replicas ask OVN's northbound database, and see this of it.
func seeing(f *Facts, views ...explainv1.NodeView) {
	for i := range views {
		f.Replicas[i].Diagnosis.Northbound = &views[i]
	}
}

func reports() map[string]*Facts {
	refused := func(grant string) *Unread { return &Unread{Why: "it is forbidden", Grant: grant} }
	return map[string]*Facts{
		"healthy": healthy(nil),
		"one-of-each": healthy(func(f *Facts) {
			f.Replicas = []Replica{replica("m1", nodeView("n1"))}
			f.Manager, f.Agents = Workload{Found: true, Desired: 1, Ready: 1, Current: 1}, Workload{Found: true, Desired: 1, Ready: 1, Current: 1}
		}),
		"nothing-there": {Namespace: "policygate-system", Trial: Trial{Namespace: "default"}, Unasked: &Unread{Why: "there is no Pod"}},
		"no-rights": healthy(func(f *Facts) {
			f.Webhook = Webhook{Unread: refused("ClusterRole c")}
			f.Trial = Trial{Namespace: "default", Unread: refused("create Pods")}
			f.Manager, f.Agents = Workload{Unread: refused("Role r")}, Workload{Unread: refused("Role r")}
			f.Replicas, f.Unasked = nil, &Unread{Why: "it is forbidden (the Role r allows it)"}
		}),
		"webhook": healthy(func(f *Facts) {
			f.Webhook.Bare = []string{"pod.inject.policygate.io"}
			f.Trial.Injected = false
		}),
		"webhook-empty": healthy(func(f *Facts) {
			f.Webhook.Entries = nil
			f.Trial = Trial{Namespace: "default", Unreached: `failed calling webhook "pod.inject.policygate.io": timeout`}
		}),
		"webhook-denies": healthy(func(f *Facts) { f.Trial = Trial{Namespace: "default", Denied: "denied the request: no"} }),
		"not-ready": healthy(func(f *Facts) {
			f.Manager.Ready, f.Agents.Ready = 0, 0
			f.Replicas, f.Unasked = nil, &Unread{Why: "none of the manager's 2 Pods is ready"}
		}),
		"rollout": healthy(func(f *Facts) {
			f.Manager.Current, f.Agents.Current = 1, 2
			f.Replicas[1].Diagnosis.Version = "v1.1.0"
			everyNode(f, 2, func(n *explainv1.NodeView) { n.Version = "v1.1.0" })
			f.Plugin = "v0.9.0"
		}),
		"partly-ready": healthy(func(f *Facts) {
			f.Manager.Ready, f.Agents.Ready = 1, 2
			f.Replicas[1] = Replica{Pod: "m2", Unread: &Unread{Why: "forward a port: down"}}
			everyNode(&Facts{Replicas: f.Replicas[:1]}, 1, func(n *explainv1.NodeView) { n.Since = time.Time{} })
		}),
		"certificates": healthy(func(f *Facts) {
			f.Replicas = append(f.Replicas, replica("m3", f.Replicas[0].Diagnosis.Nodes...), replica("m4", f.Replicas[0].Diagnosis.Nodes...))
			f.Replicas[0].Diagnosis.Certificate.NotAfter = noon().Add(-time.Minute)
			f.Replicas[1].Diagnosis.Certificate.NotAfter = noon().Add(time.Hour)
			f.Replicas[2].Diagnosis.Certificate.NotBefore = noon().Add(time.Minute)
			f.Replicas[3].Diagnosis.Certificate = explainv1.Certificate{Error: "not loaded"}
		}),
		"nodes": healthy(func(f *Facts) {
			everyNode(f, 0, func(n *explainv1.NodeView) { *n = explainv1.NodeView{Name: "n1", Ready: true} })
			everyNode(f, 1, func(n *explainv1.NodeView) { n.Ready, n.Since = false, time.Time{} })
			f.Replicas[1].Diagnosis.Nodes[2].Since = time.Time{}
		}),
		"dataplanes": healthy(func(f *Facts) {
			everyNode(f, 0, func(n *explainv1.NodeView) { n.Unsupported = "BPF programs judge packets on eth0" })
			everyNode(f, 1, func(n *explainv1.NodeView) { n.Dataplanes = nil })
			everyNode(f, 2, func(n *explainv1.NodeView) { n.Dataplanes = []string{"nftables"} })
		}),
		"northbound":        healthy(func(f *Facts) { seeing(f, nodeView(hubv1.Northbound), nodeView(hubv1.Northbound)) }),
		"northbound-away":   healthy(func(f *Facts) { seeing(f, explainv1.NodeView{}, explainv1.NodeView{}) }),
		"northbound-partly": healthy(func(f *Facts) { seeing(f, nodeView(hubv1.Northbound), explainv1.NodeView{}) }),
		"northbound-unread": healthy(func(f *Facts) {
			n := nodeView(hubv1.Northbound)
			n.Unsupported = "tcp:10.0.0.1:6641: connection refused"
			seeing(f, n, n)
		}),
		"remarks": healthy(func(f *Facts) {
			for i, kind := range []string{hubv1.RemarkTwoVariants, hubv1.RemarkSourceRewritten, hubv1.RemarkBridgeUnfiltered} {
				everyNode(f, i, func(n *explainv1.NodeView) {
					n.Remarks = []explainv1.Remark{{Kind: kind}, {Kind: hubv1.RemarkIPVS, Text: fmt.Sprint(i, " servers")}}
				})
			}
			everyNode(f, 0, func(n *explainv1.NodeView) {
				n.Remarks = append(n.Remarks, explainv1.Remark{Kind: hubv1.RemarkUnenforcedFamily, Text: "v6"}, explainv1.Remark{Kind: "Newer"})
			})
		}),
		"versions-unknown": healthy(func(f *Facts) {
			f.Replicas[0].Diagnosis.Version, f.Replicas[1].Diagnosis.Version, f.Plugin = "(devel)", "(devel)", "v1.0.0"
			for i := range 3 {
				everyNode(f, i, func(n *explainv1.NodeView) { n.Version = "(devel)" })
			}
		}),
		"ungated": healthy(func(f *Facts) {
			f.Replicas[0].Diagnosis.Ungated = &explainv1.Ungated{Total: 2, Pods: []string{"a/a", "a/b"}}
			f.Replicas[1].Diagnosis.Ungated = &explainv1.Ungated{Total: 40, Pods: []string{"a/a", "a/b", "a/c", "a/d", "a/e", "a/f"}}
		}),
		"ungated-one": healthy(func(f *Facts) {
			f.Replicas[0].Diagnosis.Ungated = &explainv1.Ungated{Total: 1, Pods: []string{"a/a"}}
			f.Replicas[1].Diagnosis.Ungated = nil
		}),
	}
}

func TestReports(t *testing.T) {
	for name, f := range reports() {
		t.Run(name, func(t *testing.T) {
			report := NewReport(f)
			var out bytes.Buffer
			if err := report.WriteText(&out); err != nil {
				t.Fatal(err)
			}
			got := out.String() + fmt.Sprintf("exit status %d\n", report.ExitStatus())
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// A finding that is not OK says what to do, or there is nothing to be done.
func TestOnlySomeFindingsHaveNothingToDo(t *testing.T) {
	for name, f := range reports() {
		for _, finding := range Findings(f) {
			if (finding.Severity == Fail) && finding.Do == "" || finding.Severity == OK && finding.Do != "" {
				t.Errorf("%s: %+v", name, finding)
			}
		}
	}
}

func TestReportsHaveWhatReplicasSaid(t *testing.T) {
	f := reports()["partly-ready"]
	report := NewReport(f)
	want := map[string]*explainv1.Diagnosis{"m1": f.Replicas[0].Diagnosis}
	if diff := cmp.Diff(want, report.Replicas); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestNodesCannotWriteToTheTerminal(t *testing.T) {
	f := healthy(func(f *Facts) {
		everyNode(f, 0, func(n *explainv1.NodeView) { n.Unsupported = "\x1b[1m\nOK    all" })
	})
	var out bytes.Buffer
	if err := NewReport(f).WriteText(&out); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.String(), "\x1b") || strings.Contains(out.String(), "\nOK    all") {
		t.Errorf("%q", out.String())
	}
}

// FuzzReport: whatever a replica answers becomes findings of printable ASCII.
func FuzzReport(f *testing.F) {
	for _, facts := range reports() {
		for _, r := range facts.Replicas {
			text, err := json.Marshal(r.Diagnosis)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		var d explainv1.Diagnosis
		if json.Unmarshal(answer, &d) != nil {
			return
		}
		facts := healthy(func(f *Facts) { f.Replicas[1].Diagnosis = &d })
		var got bytes.Buffer
		if err := NewReport(facts).WriteText(&got); err != nil {
			t.Fatal(err)
		}
		if i := bytes.IndexFunc(got.Bytes(), func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
			t.Errorf("%q is shown as %q", answer, got.String())
		}
	})
}
