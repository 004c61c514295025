// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

func TestWhoseBusinessItIs(t *testing.T) {
	runFlowCases(t, map[string]flowCase{
		"the younger waits for the older": {
			subject: "db/mysql",
			build:   func(w *world) { backup(w); admitBackup(w) },
			check: func(t *testing.T, _ *world, r Result) {
				wantNoFlow(t, r, "n2", "10.0.1.20")
				wantFlow(t, r, "n2", "tcp 10.0.1.10 -> 10.0.2.20:61001", flow.Denied, false)
			},
		},
		"a policy of a namespace without the inject label asks nothing": {
			subject: "plain/job",
			build: func(w *world) {
				w.namespace("plain", false)
				w.pod("plain/api", "n2", "10.0.2.60")
				w.pod("plain/job", "n1", "10.0.1.60")
				w.pod("db/job", "n1", "10.0.1.61")
				w.policy("plain/in", "api", spec{Ingress: []in{{From: from(everywhere())}}})
				w.policy("db/in", "mysql", spec{Ingress: []in{{From: from(podsIn("plain", "job")), Ports: tcp(1)}}})
			},
			check: func(t *testing.T, w *world, r Result) {
				// Its own namespace's policies bind it, and so do those of a
				// namespace with the label.
				wantFlow(t, r, "n2", "tcp 10.0.1.60 -> 10.0.2.60:61001", flow.Allowed, false)
				wantFlow(t, r, "n2", "tcp 10.0.1.60 -> 10.0.2.20:1", flow.Allowed, false)
				other := w.expect("db/job")
				wantNoFlow(t, other, "n2", "10.0.2.60")
				if !cmp.Equal(other.Span, []string{"n1"}) {
					t.Errorf("span %v, want n1 only", other.Span)
				}
			},
		},
		"a node that is gone or out leaves the span, with its pods' flows": {
			build: func(w *world) {
				w.pod("db/lost", "n9", "10.0.9.1", labelled("mysql"))
				w.node("n3", "10.0.3.0/24").Out = true
				w.pod("db/third", "n3", "10.0.3.1", labelled("mysql"))
				backup(w)
				admitBackup(w)
			},
			check: func(t *testing.T, _ *world, r Result) {
				if !cmp.Equal(r.Span, []string{"n1", "n2"}) {
					t.Errorf("span %v, want n1 and n2", r.Span)
				}
			},
		},
		"the subject's own node stays in its span whatever its state": {
			build: func(w *world) { w.nodes[0].Out = true; backup(w) },
			check: func(t *testing.T, _ *world, r Result) {
				if !cmp.Equal(r.Span, []string{"n1"}) || len(r.Nodes["n1"]) == 0 {
					t.Errorf("span %v asks %v, want n1 and its flows", r.Span, r.Nodes)
				}
			},
		},
		"the policy of an expectation is named": {
			build: func(w *world) { backup(w); admitBackup(w) },
			check: func(t *testing.T, _ *world, r Result) {
				for _, e := range r.Nodes["n2"] {
					if e.Policy.String() != "db/allow" || e.Why == "" {
						t.Errorf("%s is of policy %q because %q, want db/allow and a reason", e.Flow, e.Policy, e.Why)
					}
				}
				e, _ := find(r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306")
				if e.Why != "db/allow ingress[0]" {
					t.Errorf("why %q, want the rule", e.Why)
				}
			},
		},
	})
}

func TestScopeLocalAsksTheOwnNodeOnly(t *testing.T) {
	w := shop(t)
	w.pod("db/mysql2", "n1", "10.0.1.21", labelled("mysql"))
	backup(w)
	admitBackup(w)
	r := w.expectWith("db/backup", DefaultOptions(), func(s *Subject) { s.LocalOnly = true })
	if !cmp.Equal(r.Span, []string{"n1"}) || len(r.Nodes) != 1 {
		t.Errorf("span %v, nodes %d: want n1 only", r.Span, len(r.Nodes))
	}
	wantFlow(t, r, "n1", "tcp 10.0.1.20 -> 10.0.1.21:3306", flow.Allowed, false)
}

func TestForeignNodesBeyondTheLimitAreAskedAndNotAwaited(t *testing.T) {
	w := shop(t)
	w.namespace("infra", true)
	for i := range 5 {
		node := fmt.Sprintf("m%d", i)
		w.node(node, fmt.Sprintf("10.1.%d.0/24", i))
		w.pod(fmt.Sprintf("infra/agent%d", i), node, fmt.Sprintf("10.1.%d.9", i), labelled("agent"))
	}
	backup(w)
	w.policy("infra/in", "agent", spec{Ingress: []in{{From: from(everywhere()), Ports: tcp(9100)}}})
	o := DefaultOptions()
	o.MaxForeignNodes = 2
	r := w.expectWith("db/backup", o, nil)
	if want := []string{"m3", "m4", "n1"}; !cmp.Equal(r.Span, want) {
		t.Errorf("span %v, want the own node and those of the newest peers, %v", r.Span, want)
	}
	wantFlow(t, r, "m4", "tcp 10.0.1.20 -> 10.1.4.9:9100", flow.Allowed, false)
	wantFlow(t, r, "m0", "tcp 10.0.1.20 -> 10.1.0.9:9100", flow.Allowed, true)
}

func TestTheBudgetTakesEachPortAndEachPeerOnceNewestFirst(t *testing.T) {
	w := shop(t)
	for i := range 40 {
		w.pod(fmt.Sprintf("db/s%d", i), "n2", fmt.Sprintf("10.0.2.%d", 100+i), labelled("server"))
	}
	backup(w)
	w.policy("db/out", "backup", spec{Egress: []out{{To: from(pods("server")), Ports: tcp(1, 2, 3)}}})
	o := DefaultOptions()
	o.Budget = 24
	r := w.expectWith("db/backup", o, nil)
	total, newest, ports := 0, 0, map[uint16]bool{}
	for _, list := range r.Nodes {
		total += len(list)
		for _, e := range list {
			if e.Want == flow.Allowed && e.Flow.Port <= 3 {
				ports[e.Flow.Port] = true
				if e.Flow.Dst.Compare(netip.MustParseAddr("10.0.2.119")) >= 0 {
					newest++
				}
			}
		}
	}
	if total != 24 {
		t.Errorf("%d flows, want the budget of 24", total)
	}
	if newest < 20 || len(ports) != 3 {
		t.Errorf("%d of the 21 newest servers asked on ports %v, want nearly all on all three", newest, ports)
	}
	if asked := newest; r.NotAsked != 120-asked {
		t.Errorf("%d flows are said not to be asked, want %d", r.NotAsked, 120-asked)
	}
	if full := w.expect("db/backup"); full.NotAsked != 0 {
		t.Errorf("%d flows not asked with the whole budget, want 0", full.NotAsked)
	}
}

func TestAnAllowedIsNeverAskedWithoutItsControlForLackOfBudget(t *testing.T) {
	w := shop(t)
	backup(w)
	admitBackup(w)
	// Two flows of the own node's, then one left: no room for flow and control.
	o := DefaultOptions()
	o.Budget = 3
	r := w.expectWith("db/backup", o, nil)
	if len(r.Nodes["n2"]) != 0 || r.NotAsked != 1 {
		t.Errorf("n2 is asked %v, not asked %d: want nothing and 1", lines(r.Nodes["n2"]), r.NotAsked)
	}
}

func TestTheDiagonalHasEachPairOnceAndEveryPortAndPeerFirst(t *testing.T) {
	for peers := range 6 {
		for ports := range 6 {
			g := group{peers: make([]candidate, peers), ports: make([]Port, ports)}
			for i := range g.peers {
				g.peers[i].Addr = netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			}
			for i := range g.ports {
				g.ports[i].First = uint16(i + 1)
			}
			seen := map[string]bool{}
			seenPeers, seenPorts := map[netip.Addr]bool{}, map[uint16]bool{}
			for i := range g.pairs() {
				peer, port := g.pair(i)
				seen[fmt.Sprint(peer.Addr, port.First)] = true
				if i < g.diagonal() {
					seenPeers[peer.Addr], seenPorts[port.First] = true, true
				}
			}
			if len(seen) != peers*ports {
				t.Errorf("%d peers, %d ports: %d different pairs, want all", peers, ports, len(seen))
			}
			if peers*ports > 0 && (len(seenPeers) != peers || len(seenPorts) != ports) {
				t.Errorf("%d peers, %d ports: the diagonal has %d and %d", peers, ports, len(seenPeers), len(seenPorts))
			}
		}
	}
}

func TestFamilies(t *testing.T) {
	for name, tc := range map[string]struct {
		families Families
		v4, v6   bool
	}{
		"auto asks both":           {FamiliesAuto, true, true},
		"what is empty means auto": {"", true, true},
		"both asks both":           {FamiliesBoth, true, true},
		"v4 asks IPv4 only":        {FamiliesV4, true, false},
		"v6 asks IPv6 only":        {FamiliesV6, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			w.pod("db/backup", "n1", "10.0.1.20 fd00:0:0:1::20")
			o := DefaultOptions()
			o.Families = tc.families
			r := w.expectWith("db/backup", o, nil)
			var v4, v6 bool
			for _, e := range r.Nodes["n1"] {
				v4, v6 = v4 || e.Flow.Src.Is4(), v6 || e.Flow.Src.Is6()
			}
			if v4 != tc.v4 || v6 != tc.v6 {
				t.Errorf("v4 %v, v6 %v: want %v, %v", v4, v6, tc.v4, tc.v6)
			}
		})
	}
}

func TestWhatAnAddressesFormerPodHadAndTheSubjectMustNotHaveIsDenied(t *testing.T) {
	w := shop(t)
	w.pod("db/other", "n2", "10.0.2.70", labelled("queue"))
	w.pod("db/web", "n1", "10.0.1.20")
	w.policy("db/allow", "mysql", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp(3306)}}})
	w.policy("db/queue", "queue", spec{Ingress: []in{{From: from(pods("backup"), pods("web")), Ports: tcp(5672)}}})
	w.policy("db/former", "backup", spec{Ingress: []in{{From: from(pods("mysql")), Ports: tcp(9)}}})
	w.policy("db/web", "web", spec{})
	former := &Pod{UID: "former", Namespace: "db", Name: "backup", Labels: map[string]string{"app": "backup"}, Node: "n1"}
	r := w.expectWith("db/web", DefaultOptions(), func(s *Subject) {
		s.Predecessors = map[netip.Addr][]*Pod{netip.MustParseAddr("10.0.1.20"): {former}}
	})
	if !r.Settle || !slices.Contains(r.Span, "n2") {
		t.Errorf("settle %v, span %v: want true, with n2", r.Settle, r.Span)
	}
	wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Denied, false)
	wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.70:5672", flow.Allowed, false)
	wantFlow(t, r, "n1", "tcp 10.0.2.20 -> 10.0.1.20:9", flow.Denied, false)
	if w.expect("db/web").Settle {
		t.Error("settle without a former pod, want false")
	}
}

func TestMorePodsThanAnEnginesSetHoldsAreAdvisory(t *testing.T) {
	w := shop(t)
	backup(w)
	admitBackup(w)
	c := w.cluster()
	var changed Footprint
	for i := range maxSetMembers {
		if changed.Everything {
			t.Fatalf("%d pods more change everything, want so many that no set holds them", i)
		}
		changed = c.SetPod(&Pod{
			UID: types.UID(strconv.Itoa(i)), Namespace: "db", Node: "n1", Labels: map[string]string{"app": "backup"},
			IPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})}, Seq: uint64(1000 + i),
		})
	}
	if !changed.Everything {
		t.Error("the pod that is one too many does not change everything")
	}
	r := c.Expect(Subject{Pod: c.Pod("db/backup")}, DefaultOptions())
	wantFlow(t, r, "n2", "tcp 10.0.1.20 -> 10.0.2.20:3306", flow.Allowed, true)
	if !hasNote(r, EngineLimit) {
		t.Errorf("notes %v, want EngineLimit", r.Notes)
	}
	if !c.DeletePod("7").Everything {
		t.Error("the end of the pod that was one too many does not change everything")
	}
}

func TestAPolicyThatIsNotUnderstoodKeepsItsNamespaceUncomputed(t *testing.T) {
	w := shop(t)
	backup(w)
	w.pod("other/job", "n1", "10.0.1.90")
	c := w.cluster()
	bad, err := NewPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "bad"},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}},
		}},
	})
	if err == nil || bad.Err == nil {
		t.Fatal("no error for an unknown operator")
	}
	c.SetPolicy(bad)
	r := c.Expect(Subject{Pod: c.Pod("db/backup")}, DefaultOptions())
	if r.Span != nil || !hasNote(r, PolicyNotUnderstood) {
		t.Errorf("span %v, notes %v: want none and PolicyNotUnderstood", r.Span, r.Notes)
	}
	if r := c.Expect(Subject{Pod: c.Pod("other/job")}, DefaultOptions()); r.Span == nil {
		t.Error("a pod of another namespace is not computed")
	}
}

func TestASubjectWithoutNodeOrAddressIsNotComputed(t *testing.T) {
	w := shop(t)
	w.pod("db/unscheduled", "", "")
	w.pod("db/unaddressed", "n1", "")
	for _, name := range []string{"db/unscheduled", "db/unaddressed"} {
		if r := w.expect(name); r.Span != nil {
			t.Errorf("%s has span %v, want none", name, r.Span)
		}
	}
}

func TestPolicyErrorsNameTheFieldAndTheValue(t *testing.T) {
	icmp := corev1.Protocol("ICMP")
	for name, tc := range map[string]struct {
		spec spec
		want string
	}{
		"a block that is no CIDR": {
			spec{Ingress: []in{{From: from(pods("a"), block("10.0.0.0"))}}},
			`network policy a/b: spec.ingress[0]: peer 1: ipBlock.cidr: "10.0.0.0": want a CIDR such as 10.0.0.0/8 or fd00::/8`,
		},
		"an except that is no CIDR": {
			spec{Egress: []out{{To: from(block("10.0.0.0/8", "x"))}}},
			`network policy a/b: spec.egress[0]: peer 0: ipBlock.except[0]: "x": want a CIDR such as 10.0.0.0/8 or fd00::/8`,
		},
		"a peer with nothing in it": {
			spec{Ingress: []in{{From: from(peer{})}}},
			`network policy a/b: spec.ingress[0]: peer 0: none of podSelector, namespaceSelector and ipBlock is set: want at least one`,
		},
		"a range that descends": {
			spec{Ingress: []in{{Ports: tcp([2]int32{90, 80})}}},
			`network policy a/b: spec.ingress[0]: port 0: ports 90 to 80: want 1 to 65535, ascending`,
		},
		"a port name that is empty": {
			spec{Ingress: []in{{Ports: tcp("")}}},
			`network policy a/b: spec.ingress[0]: port 0: port name is empty: want a container port's name`,
		},
		"a protocol that no policy can name": {
			spec{Ingress: []in{{Ports: []pport{{Protocol: &icmp}}}}},
			`network policy a/b: spec.ingress[0]: port 0: protocol "ICMP": want TCP, UDP or SCTP`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{t: t}
			_, err := NewPolicy(w.policy("a/b", "", tc.spec))
			if err == nil || err.Error() != tc.want {
				t.Errorf("got %v\nwant %s", err, tc.want)
			}
		})
	}
}

func FuzzParseCIDR(f *testing.F) {
	for _, text := range []string{"10.0.0.0/8", "010.0.0.1/24", "::/0", "::ffff:10.0.0.0/104", "fd00::1/64", "/", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := parseCIDR(text)
		if err != nil {
			return
		}
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			t.Errorf("%q became %v: want a valid, masked and unmapped prefix", text, p)
		}
		if addr, ok := pick(p, newRanges(martians(p.Addr().Is6())), nil); ok && !p.Contains(addr) {
			t.Errorf("%q: picked %v", text, addr)
		}
	})
}
