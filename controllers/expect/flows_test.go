// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/flow"
)

// shop is the case that everything started from: a database on n2 that admits
// app=backup on 3306, and a backup on n1 that starts after it. There is a
// bystander on each node.
func shop(t *testing.T) *world {
	t.Helper()
	w := &world{t: t}
	w.node("n1", "10.0.1.0/24", "fd00:0:0:1::/64")
	w.node("n2", "10.0.2.0/24", "fd00:0:0:2::/64")
	w.namespace("db", true)
	w.namespace("other", true)
	w.pod("other/idle1", "n1", "10.0.1.10")
	w.pod("other/idle2", "n2", "10.0.2.10")
	w.pod("db/mysql", "n2", "10.0.2.20", port("mysql", 3306))
	return w
}

func admitBackup(w *world) {
	w.policy("db/allow", "mysql", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp(3306)}}})
}

// flowCase is a cluster, a subject and what must be asked for it.
type flowCase struct {
	build   func(w *world)
	subject string
	check   func(t *testing.T, w *world, r Result)
}

func runFlowCases(t *testing.T, cases map[string]flowCase) {
	t.Helper()
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			tc.build(w)
			subject := tc.subject
			if subject == "" {
				subject = "db/backup"
			}
			tc.check(t, w, w.expect(subject))
		})
	}
}

func backup(w *world, options ...podOption) {
	w.pod("db/backup", "n1", "10.0.1.20", options...)
}

func TestControlsAndStrangers(t *testing.T) {
	runFlowCases(t, map[string]flowCase{
		"an Allowed to an isolated pod stands beside a stranger's Denied on the same node": {
			build: func(w *world) { backup(w); admitBackup(w) },
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, false)
				wantFlow(t, r, "n2", "tcp 10.0.1.10 -> 10.0.2.20:61001", flow.Denied, false)
				if len(r.Nodes["n2"]) != 2 {
					t.Errorf("n2 is asked %v, want one flow and one control", lines(r.Nodes["n2"]))
				}
			},
		},
		"the stranger of another node's path is an unused address there if every pod there is admitted": {
			build: func(w *world) {
				backup(w)
				w.policy("db/allow", "mysql", spec{Ingress: []in{{From: from(everywhere())}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.1.254 -> 10.0.2.20:61001", flow.Denied, false)
			},
		},
		"no control is needed if the policies admit everyone on every port": {
			build: func(w *world) {
				backup(w)
				w.policy("db/allow", "mysql", spec{Ingress: []in{{}, {From: from(pods("backup")), Ports: tcp(3306)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, false)
				wantNoFlow(t, r, "n2", "denied")
			},
		},
		"a rule for all of TCP leaves UDP for the stranger": {
			build: func(w *world) {
				backup(w)
				w.policy("db/allow", "mysql", spec{Ingress: []in{{Ports: proto(corev1.ProtocolTCP)}, {From: from(pods("backup"))}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "udp 10.0.1.10 -> 10.0.2.20:61001", flow.Denied, false)
			},
		},
		"the stranger's port is none that a rule of that direction names, ranges and container ports included": {
			build: func(w *world) {
				backup(w)
				w.pods[2].Spec.Containers[0].Ports = append(w.pods[2].Spec.Containers[0].Ports,
					corev1.ContainerPort{ContainerPort: 61005})
				w.policy("db/allow", "mysql", spec{Ingress: []in{
					{From: from(pods("backup")), Ports: tcp(3306, [2]int32{61001, 61004})},
				}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.1.10 -> 10.0.2.20:61006", flow.Denied, false)
			},
		},
		"an isolated subject has a stranger on each path, and none outside without a block": {
			build: func(w *world) { backup(w); w.policy("db/deny", "backup", spec{}) },
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.2.10 -> 10.0.1.20:61001", flow.Denied, false)
				wantFlow(t, r, "n1", "tcp 10.0.1.10 -> 10.0.1.20:61001", flow.Denied, false)
				wantNoFlow(t, r, "n1", "external")
			},
		},
		"an isolated subject with a rule for everyone has an external stranger": {
			build: func(w *world) {
				backup(w)
				w.policy("db/some", "backup", spec{Ingress: []in{{Ports: tcp(80)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				e, ok := find(r, "n1", "tcp 203.0.113.77 -> 10.0.1.20:61001")
				if !ok || !e.External || e.Want != flow.Denied {
					t.Errorf("no external stranger in %v", lines(r.Nodes["n1"]))
				}
				wantFlow(t, r, "n1", "tcp 10.0.2.10 -> 10.0.1.20:80", flow.Allowed, false)
			},
		},
		"the same node's stranger has no egress isolation of its own": {
			build: func(w *world) {
				w.pod("other/free", "n1", "10.0.1.30")
				backup(w)
				w.policy("db/deny", "backup", spec{})
				w.policy("other/closed", "idle1", spec{PolicyTypes: policyTypes("Egress")})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantNoFlow(t, r, "n1", "10.0.1.10 ->")
				wantFlow(t, r, "n1", "tcp 10.0.1.30 -> 10.0.1.20:61001", flow.Denied, false)
			},
		},
		"a direction without isolation has one real pod elsewhere allowed": {
			build: func(w *world) { backup(w) },
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.2.10 -> 10.0.1.20:61001", flow.Allowed, false)
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.2.10:61001", flow.Allowed, false)
				if len(r.Nodes["n1"]) != 2 {
					t.Errorf("n1 is asked %v, want one flow in each direction", lines(r.Nodes["n1"]))
				}
			},
		},
		"without a real pod elsewhere an unused address of another node stands for it": {
			build: func(w *world) {
				w.pods = nil
				backup(w)
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.2.254 -> 10.0.1.20:61001", flow.Allowed, false)
			},
		},
		"with one node nobody is elsewhere": {
			build: func(w *world) {
				w.pods, w.nodes = nil, w.nodes[:1]
				backup(w)
			},
			check: func(t *testing.T, _ *world, r Result) {
				if len(r.Span) != 1 || len(r.Nodes["n1"]) != 0 {
					t.Errorf("span %v asks %v, want the own node and nothing to ask", r.Span, lines(r.Nodes["n1"]))
				}
			},
		},
		"on one node the verdict is the conjunction of both sides": {
			build: func(w *world) {
				w.pod("db/mysql2", "n1", "10.0.1.21", labelled("mysql"))
				backup(w)
				admitBackup(w)
				w.policy("db/closed", "backup", spec{PolicyTypes: policyTypes("Egress")})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.1.21:3306", flow.Denied, false)
				wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, false)
			},
		},
		"on one node the server's isolation is controlled too": {
			build: func(w *world) {
				w.pod("db/mysql2", "n1", "10.0.1.21", labelled("mysql"))
				backup(w)
				admitBackup(w)
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.1.21:3306", flow.Allowed, false)
				wantFlow(t, r, "n1", "tcp 10.0.1.10 -> 10.0.1.21:61001", flow.Denied, false)
			},
		},
		"with nobody else to be had the subject itself is the stranger, on a port that no rule names": {
			build: func(w *world) {
				w.pods, w.nodes = nil, w.nodes[:1]
				w.pod("db/mysql", "n1", "10.0.1.21")
				backup(w)
				admitBackup(w)
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.1.21:3306", flow.Allowed, false)
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.1.21:61001", flow.Denied, false)
			},
		},
		"the subject's node judges only its egress to a pod elsewhere": {
			build: func(w *world) {
				backup(w)
				w.policy("db/out", "backup", spec{Egress: []out{{To: from(pods("mysql")), Ports: tcp(3306)}}})
				w.policy("db/nobody", "mysql", spec{})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, false)
				if len(r.Nodes["n2"]) != 0 {
					t.Errorf("n2 is asked %v, though no policy there names the subject", lines(r.Nodes["n2"]))
				}
			},
		},
		"a node that hosts a source whose egress names the subject is asked, with that source's stranger": {
			build: func(w *world) {
				backup(w)
				w.policy("db/out", "mysql", spec{Egress: []out{{To: from(pods("backup")), Ports: tcp(22)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.2.20 -> 10.0.1.20:22", flow.Allowed, false)
				wantFlow(t, r, "n2", "tcp 10.0.2.20 -> 10.0.1.10:61001", flow.Denied, false)
			},
		},
	})
}

func TestRequiredAndAdvisory(t *testing.T) {
	runFlowCases(t, map[string]flowCase{
		"a named port that nobody has is not asked with selector peers, and reported": {
			build: func(w *world) {
				backup(w)
				w.policy("db/named", "mysql", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp("nosuch")}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantNoFlow(t, r, "n2", "10.0.1.20 -> 10.0.2.20")
				if !hasNote(r, EngineOverAllows) {
					t.Errorf("notes %v, want EngineOverAllows", r.Notes)
				}
			},
		},
		"nobody to whom an unresolved named port may open all ports is a stranger": {
			build: func(w *world) {
				w.pod("db/peer", "n2", "10.0.2.30")
				backup(w)
				w.policy("db/named", "backup", spec{Ingress: []in{{From: from(podsIn("other", "idle2"), pods("peer")), Ports: tcp("nosuch")}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantNoFlow(t, r, "n1", "10.0.2.10 -> 10.0.1.20")
				wantNoFlow(t, r, "n1", "10.0.2.30 -> 10.0.1.20")
				wantFlow(t, r, "n1", "tcp 10.0.2.20 -> 10.0.1.20:61001", flow.Denied, false)
			},
		},
		"everyone with an unresolved named port is not asked": {
			build: func(w *world) {
				backup(w)
				w.policy("db/named", "backup", spec{Ingress: []in{{Ports: tcp("nosuch")}}})
			},
			check: func(t *testing.T, _ *world, r Result) { wantNoFlow(t, r, "n1", "allowed tcp 10.0.2.10 ->") },
		},
		"an egress block with a named port is not asked": {
			build: func(w *world) {
				backup(w)
				w.policy("db/named", "backup", spec{Egress: []out{{To: from(block("10.0.2.0/24"), block("198.18.0.0/16")), Ports: tcp("mysql")}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantNoFlow(t, r, "n1", ":3306")
				wantNoFlow(t, r, "n1", "198.18")
			},
		},
		"an egress named port for everyone is required in the policy's namespace and advisory in others": {
			build: func(w *world) {
				w.pod("other/mysql", "n2", "10.0.2.40", port("mysql", 3307))
				backup(w)
				w.policy("db/named", "backup", spec{Egress: []out{{Ports: tcp("mysql")}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, false)
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.2.40:3307", flow.Allowed, true)
			},
		},
		"an egress named port for everyone names the subject that has it": {
			build: func(w *world) {
				backup(w, port("bk", 7000))
				w.policy("db/named", "mysql", spec{Egress: []out{{Ports: tcp("bk")}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.2.20 -> 10.0.1.20:7000", flow.Allowed, false)
			},
		},
		"a named port of a sidecar init container is advisory": {
			build: func(w *world) {
				backup(w, sidecarPort("proxy", 15001))
				w.policy("db/named", "backup", spec{Ingress: []in{{From: from(pods("mysql")), Ports: tcp("proxy")}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.2.20 -> 10.0.1.20:15001", flow.Allowed, true)
			},
		},
		"a named port of an ordinary container is required": {
			build: func(w *world) {
				backup(w)
				w.policy("db/named", "mysql", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp("mysql")}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, false)
			},
		},
		"an address that another block's except hides is advisory, the except itself Denied": {
			build: func(w *world) {
				backup(w)
				w.policy("db/blocks", "backup", spec{Egress: []out{{Ports: tcp(443), To: from(
					block("198.18.0.0/15", "198.18.1.0/24", "198.19.0.0/16"), block("198.18.1.0/24"),
				)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 198.18.0.1:443", flow.Allowed, false)
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 198.18.1.1:443", flow.Allowed, true)
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 198.19.0.1:443", flow.Denied, false)
			},
		},
		"a block's representative is no martian, pod or node address": {
			build: func(w *world) {
				backup(w)
				w.policy("db/all", "backup", spec{Egress: []out{{To: from(block("0.0.0.0/0")), Ports: tcp(443)}, {To: from(block("10.0.0.0/14")), Ports: tcp(444)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 1.0.0.1:443", flow.Allowed, false)
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.0.1:444", flow.Allowed, false)
			},
		},
		"a block within the pods' range is asked of a real pod": {
			build: func(w *world) {
				backup(w)
				w.policy("db/pods", "backup", spec{Egress: []out{{To: from(block("10.0.2.0/24")), Ports: tcp(443)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.2.10:443", flow.Allowed, false)
			},
		},
		"a block without any clean address is advisory": {
			build: func(w *world) {
				backup(w)
				w.policy("db/pods", "backup", spec{Egress: []out{{To: from(block("10.0.1.128/25")), Ports: tcp(443)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.1.129:443", flow.Allowed, true)
			},
		},
		"every IPv6 address is 2000::/3 and fd00::/8 only": {
			build: func(w *world) {
				w.pod("db/backup", "n1", "fd00:0:0:1::20")
				w.policy("db/all", "backup", spec{Egress: []out{{To: from(block("::/0")), Ports: tcp(443)}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n1", "tcp fd00:0:0:1::20 -> [2000::1]:443", flow.Allowed, false)
			},
		},
		"two policies whose names concatenate to the same are advisory and reported": {
			build: func(w *world) {
				backup(w)
				admitBackup(w)
				w.policy("d/ballow", "", spec{})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, true)
				wantFlow(t, r, "n2", "tcp 10.0.1.10 -> 10.0.2.20:61001", flow.Denied, false)
				if !hasNote(r, EngineConflict) || len(r.Notes) != 2 {
					t.Errorf("notes %v, want EngineConflict for both", r.Notes)
				}
			},
		},
		"another policy that grants the same makes a conflicting one required": {
			build: func(w *world) {
				backup(w)
				admitBackup(w)
				w.policy("d/ballow", "", spec{})
				w.policy("db/again", "mysql", spec{Ingress: []in{{From: from(pods("backup"))}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, false)
			},
		},
		"SCTP is asked only if a rule names it": {
			build: func(w *world) {
				backup(w)
				w.policy("db/sctp", "mysql", spec{Ingress: []in{
					{Ports: append(proto(corev1.ProtocolTCP), proto(corev1.ProtocolUDP)...)},
					{From: from(pods("backup")), Ports: proto(corev1.ProtocolSCTP, 38412)},
				}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantFlow(t, r, "n2", "sctp 10.0.1.20 -> 10.0.2.20:38412", flow.Allowed, false)
				wantFlow(t, r, "n2", "sctp 10.0.1.10 -> 10.0.2.20:61001", flow.Denied, false)
			},
		},
		"no stranger uses SCTP if no rule names it": {
			build: func(w *world) {
				backup(w)
				w.policy("db/both", "mysql", spec{Ingress: []in{
					{Ports: append(proto(corev1.ProtocolTCP), proto(corev1.ProtocolUDP)...)},
					{From: from(pods("backup")), Ports: tcp(3306)},
				}})
			},
			check: func(t *testing.T, _ *world, r Result) { wantNoFlow(t, r, "n2", "sctp") },
		},
		"hostNetwork, finished and terminating pods are asked of nobody": {
			build: func(w *world) {
				now := w.pods[0].CreationTimestamp
				w.pod("db/h", "n2", "10.0.2.50", labelled("mysql"), func(p *corev1.Pod) { p.Spec.HostNetwork = true })
				w.pod("db/f", "n2", "10.0.2.51", labelled("mysql"), func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
				w.pod("db/t", "n2", "10.0.2.52", labelled("mysql"), func(p *corev1.Pod) { p.DeletionTimestamp = &now })
				backup(w)
				admitBackup(w)
				w.policy("db/out", "backup", spec{Egress: []out{{To: from(pods("mysql"))}}})
			},
			check: func(t *testing.T, _ *world, r Result) {
				for _, node := range []string{"n1", "n2"} {
					wantNoFlow(t, r, node, "10.0.2.5")
				}
			},
		},
		"an address that two live pods have is skipped and reported": {
			build: func(w *world) {
				w.pod("other/twin", "n2", "10.0.1.20")
				w.pod("db/backup", "n1", "10.0.1.20 fd00:0:0:1::20")
				admitBackup(w)
			},
			check: func(t *testing.T, _ *world, r Result) {
				wantNoFlow(t, r, "n1", "10.0.1.20")
				wantNoFlow(t, r, "n2", "10.0.1.20")
				if !hasNote(r, DuplicatePodIP) || r.Span == nil {
					t.Errorf("span %v, notes %v, want DuplicatePodIP and the other address asked", r.Span, r.Notes)
				}
			},
		},
		"a subject whose only address is another pod's too is not computed": {
			build: func(w *world) {
				w.pod("other/twin", "n2", "10.0.1.20")
				backup(w)
			},
			check: func(t *testing.T, _ *world, r Result) {
				if r.Span != nil || !hasNote(r, DuplicatePodIP) {
					t.Errorf("span %v, notes %v, want none and DuplicatePodIP", r.Span, r.Notes)
				}
			},
		},
		"a peer's address that two live pods have is skipped": {
			build: func(w *world) {
				w.pod("other/twin", "n1", "10.0.2.20")
				backup(w)
				admitBackup(w)
			},
			check: func(t *testing.T, _ *world, r Result) { wantNoFlow(t, r, "n2", "10.0.2.20") },
		},
	})
}
