// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/api/flow"
)

// readObjects reads the objects from which the real kube-router 2.11 made the
// rules that other packages are tested with.
func readObjects(t *testing.T, path string) *world {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t}
	hosts := map[string]string{}
	documents := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer func() {
		if err := documents.Close(); err != nil {
			t.Error(err)
		}
	}()
	for buffer := make([]byte, 1<<16); ; {
		n, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		w.read(hosts, buffer[:n])
	}
	return w
}

func (w *world) read(hosts map[string]string, text []byte) {
	w.t.Helper()
	var meta runtime.TypeMeta
	decode := func(into any) {
		if err := yaml.Unmarshal(text, into); err != nil {
			w.t.Fatal(err)
		}
	}
	decode(&meta)
	switch meta.Kind {
	case "Node":
		var n corev1.Node
		decode(&n)
		node := w.node(n.Name, n.Spec.PodCIDRs...)
		for _, a := range n.Status.Addresses {
			hosts[a.Address] = n.Name
			node.Addresses = append(node.Addresses, netip.MustParseAddr(a.Address))
		}
	case "Namespace":
		var ns corev1.Namespace
		decode(&ns)
		ns.Labels["policygate.io/inject"] = "enabled"
		w.namespaces = append(w.namespaces, &ns)
	case "Pod":
		var p corev1.Pod
		decode(&p)
		p.UID = types.UID(p.Namespace + "/" + p.Name)
		p.Spec.NodeName = hosts[p.Status.HostIP]
		w.pods = append(w.pods, &p)
	case "NetworkPolicy":
		var q networkingv1.NetworkPolicy
		decode(&q)
		w.policies = append(w.policies, &q)
	}
}

// last makes a Pod the youngest, so that all others are its peers.
func (w *world) last(name types.UID) {
	for i, p := range w.pods {
		if p.UID == name {
			w.pods = append(append(w.pods[:i:i], w.pods[i+1:]...), p)
			return
		}
	}
	w.t.Fatalf("no pod %s", name)
}

func TestTheObjectsOfTheCaptures(t *testing.T) {
	const path = "testdata/kube-router-v2.11-objects.yaml"
	for name, tc := range map[string]struct {
		subject types.UID
		check   func(t *testing.T, r Result)
	}{
		"a job is admitted on 3306 by both databases, each beside a stranger": {
			subject: "batch/job-b",
			check: func(t *testing.T, r Result) {
				wantFlow(t, r, "node1", "tcp 10.244.2.20 -> 10.244.1.10:3306", flow.Allowed, false)
				wantFlow(t, r, "node2", "tcp 10.244.2.20 -> 10.244.2.10:3306", flow.Allowed, false)
				wantFlow(t, r, "node1", "tcp fd00:10:244:2::20 -> [fd00:10:244:1::10]:3306", flow.Allowed, false)
				if denials(r.Nodes["node1"], "10.244.1.10") == 0 {
					t.Errorf("node1 is asked no control of mysql-0: %v", lines(r.Nodes["node1"]))
				}
			},
		},
		"a job's own egress: the databases, DNS over both protocols, strangers": {
			subject: "batch/job-a-init",
			check: func(t *testing.T, r Result) {
				wantFlow(t, r, "node1", "tcp 10.244.1.20 -> 10.244.2.10:3306", flow.Allowed, false)
				wantFlow(t, r, "node1", "udp 10.244.1.20 -> 10.244.2.53:53", flow.Allowed, false)
				wantFlow(t, r, "node1", "tcp 10.244.1.20 -> 10.244.2.53:53", flow.Allowed, false)
				if denials(r.Nodes["node1"], "10.244.1.20") == 0 {
					t.Errorf("no stranger of the job's egress in %v", lines(r.Nodes["node1"]))
				}
			},
		},
		"a database: the jobs, the metrics port by name, nothing for the name that nobody has": {
			subject: "db/mysql-0",
			check: func(t *testing.T, r Result) {
				wantFlow(t, r, "node1", "tcp 10.244.2.20 -> 10.244.1.10:3306", flow.Allowed, false)
				wantFlow(t, r, "node1", "tcp 10.244.2.40 -> 10.244.1.10:9104", flow.Allowed, false)
				wantFlow(t, r, "node1", "udp 10.244.2.10 -> 10.244.1.10:61001", flow.Allowed, false)
				wantNoFlow(t, r, "node1", "denied tcp 10.244.2.30 -> 10.244.1.10")
				if !hasNote(r, EngineOverAllows) {
					t.Errorf("notes %v, want EngineOverAllows for np-unresolved", r.Notes)
				}
			},
		},
		"a front end: its block outside the except, the range's ends, the pod without IPv6": {
			subject: "web/fe-0",
			check: func(t *testing.T, r Result) {
				wantFlow(t, r, "node1", "tcp 10.244.1.30 -> 203.0.113.1:443", flow.Allowed, false)
				wantFlow(t, r, "node1", "tcp 10.244.1.30 -> 203.0.113.129:443", flow.Denied, false)
				wantFlow(t, r, "node1", "tcp 1.0.0.1 -> 10.244.1.30:8080", flow.Allowed, false)
				wantFlow(t, r, "node1", "tcp 1.0.0.1 -> 10.244.1.30:8100", flow.Allowed, false)
				// v4only may not send: the default-deny of its namespace isolates it.
				wantFlow(t, r, "node1", "tcp 10.244.1.31 -> 10.244.1.30:61001", flow.Denied, false)
			},
		},
		"a denied pod has strangers of both families": {
			subject: "mon/prom-0",
			check: func(t *testing.T, r Result) {
				if denials(r.Nodes["node2"], "10.244.2.40") == 0 || denials(r.Nodes["node2"], "fd00:10:244:2::40") == 0 {
					t.Errorf("strangers of prom-0: %v", lines(r.Nodes["node2"]))
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := readObjects(t, path)
			w.last(tc.subject)
			r := w.expect(string(tc.subject))
			tc.check(t, r)
			for node, list := range r.Nodes {
				for _, e := range list {
					if got := w.slowVerdict(node, e.Flow); got != e.Want {
						t.Errorf("%s: %s: want %s, semantics say %s", node, e.Flow, e.Want, got)
					}
				}
			}
		})
	}
}

// denials returns how many flows with that end are to be denied.
func denials(list []Expectation, end string) int {
	n, addr := 0, netip.MustParseAddr(end)
	for _, e := range list {
		if e.Want == flow.Denied && (e.Flow.Src == addr || e.Flow.Dst == addr) {
			n++
		}
	}
	return n
}
