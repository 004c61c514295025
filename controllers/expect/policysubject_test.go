// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// expectPolicy computes db/allow when all Pods count.
func (w *world) expectPolicy(change func(*PolicySubject, *Options)) PolicyResult {
	w.t.Helper()
	c := w.cluster()
	s := PolicySubject{Policy: c.Policy("db", "allow"), Horizon: uint64(len(w.pods))}
	o := DefaultOptions()
	if change != nil {
		change(&s, &o)
	}
	return c.ExpectPolicy(s, o)
}

// told renders what each node is asked: "n1: allowed ...".
func (r PolicyResult) told() []string {
	out := []string{}
	for node, list := range r.Nodes {
		for _, line := range lines(list) {
			out = append(out, node+": "+line)
		}
		if len(list) == 0 {
			out = append(out, node+": nothing")
		}
	}
	slices.Sort(out)
	return out
}

func TestExpectPolicy(t *testing.T) {
	for name, tc := range map[string]struct {
		build  func(w *world)
		change func(*PolicySubject, *Options)
		want   []string
	}{
		"what a rule allows is asked of the pod's own node, beside its strangers on each path": {
			build: func(w *world) { backup(w); admitBackup(w) },
			want: []string{
				"n2: allowed tcp 10.0.1.20 -> 10.0.2.20:3306",
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
			},
		},
		"without a rule there are the strangers alone, in the directions that are isolated": {
			build: func(w *world) { w.policy("db/allow", "mysql", spec{PolicyTypes: policyTypes("Ingress", "Egress")}) },
			want: []string{
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.20 -> 10.0.1.10:61001",
				"n2: denied tcp 10.0.2.20 -> 10.0.2.10:61001",
			},
		},
		"what another policy of the pod isolates and allows is not asked": {
			build: func(w *world) {
				backup(w)
				w.policy("db/allow", "mysql", spec{PolicyTypes: policyTypes("Ingress")})
				w.policy("db/out", "mysql", spec{Egress: []out{{To: from(pods("backup"))}}})
			},
			want: []string{
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
			},
		},
		"whom another policy admits is no stranger": {
			build: func(w *world) {
				w.policy("db/allow", "mysql", spec{PolicyTypes: policyTypes("Ingress")})
				w.policy("db/all", "mysql", spec{Ingress: []in{{}}})
			},
			want: []string{"n2: nothing"},
		},
		"if both ends are on the node, both must let it through": {
			build: func(w *world) {
				w.pod("db/backup", "n2", "10.0.2.30")
				admitBackup(w)
				w.policy("db/shut", "backup", spec{PolicyTypes: policyTypes("Egress")})
			},
			want: []string{
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.30 -> 10.0.2.20:3306",
			},
		},
		"an allowed flow brings along the control of the other end on the node": {
			build: func(w *world) {
				w.pod("db/backup", "n2", "10.0.2.30")
				admitBackup(w)
				w.policy("db/out", "backup", spec{Egress: []out{{To: from(pods("mysql"))}}})
			},
			want: []string{
				"n2: allowed tcp 10.0.2.30 -> 10.0.2.20:3306",
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.30 -> 10.0.2.10:61001",
			},
		},
		"what no engine is known to realize is advisory": {
			build: func(w *world) {
				backup(w)
				admitBackup(w)
				w.policy("d/ballow", "x", spec{})
			},
			want: []string{
				"n2: allowed tcp 10.0.1.20 -> 10.0.2.20:3306 advisory",
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
			},
		},
		"a block has an address outside, and a stranger there": {
			build: func(w *world) {
				w.policy("db/allow", "mysql", spec{Ingress: []in{{From: from(block("198.18.0.0/15")), Ports: tcp(3306)}}})
			},
			want: []string{
				"n2: allowed tcp 198.18.0.1 -> 10.0.2.20:3306 external",
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
				"n2: denied tcp 203.0.113.77 -> 10.0.2.20:61001 external",
			},
		},
		"a rule for everyone is asked of somebody elsewhere and on the node, never of the pod itself": {
			build: func(w *world) { w.policy("db/allow", "mysql", spec{Ingress: []in{{Ports: tcp(3306)}}}) },
			want: []string{
				"n2: allowed tcp 10.0.1.10 -> 10.0.2.20:3306",
				"n2: allowed tcp 10.0.2.10 -> 10.0.2.20:3306",
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
				"n2: denied tcp 203.0.113.77 -> 10.0.2.20:61001 external",
			},
		},
		"a family that is not asked is left out": {
			build: func(w *world) {
				w.pod("db/backup", "n1", "10.0.1.20 fd00:0:0:1::20")
				w.pod("db/mysql2", "n1", "10.0.1.21 fd00:0:0:1::21", labelled("mysql"))
				admitBackup(w)
			},
			change: func(_ *PolicySubject, o *Options) { o.Families = FamiliesV6 },
			want: []string{
				"n1: allowed tcp fd00:0:0:1::20 -> [fd00:0:0:1::21]:3306",
				"n1: denied tcp fd00:0:0:1::20 -> [fd00:0:0:1::21]:61001",
				"n1: denied tcp fd00::2:ffff:ffff:ffff:fffe -> [fd00:0:0:1::21]:61001",
				"n2: nothing",
			},
		},
		"neither selected pods nor peers beyond the horizon count": {
			build: func(w *world) {
				backup(w)
				w.pod("db/young", "n1", "10.0.1.21", labelled("backup"))
				w.pod("db/mysql2", "n1", "10.0.1.22", labelled("mysql"))
				admitBackup(w)
			},
			change: func(s *PolicySubject, _ *Options) { s.Horizon = 4 },
			want: []string{
				"n2: allowed tcp 10.0.1.20 -> 10.0.2.20:3306",
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
			},
		},
		"a node that is out, or not known, need not enforce it": {
			build: func(w *world) {
				w.nodes[1].Out = true
				w.pod("db/mysql2", "n7", "10.0.7.22", labelled("mysql"))
				admitBackup(w)
			},
			want: []string{},
		},
		"a node of which no pod has an address of its own is asked nothing": {
			build: func(w *world) {
				w.pod("other/twin", "n1", "10.0.2.20")
				admitBackup(w)
			},
			want: []string{"n2: nothing"},
		},
		"what was granted before is denied now, unless it is allowed, or not as it was": {
			build: func(w *world) {
				backup(w)
				w.pod("db/other", "n1", "10.0.1.21")
				w.pod("db/young", "n1", "10.0.1.22")
				w.policy("db/allow", "mysql", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp(3306)}}})
			},
			change: func(s *PolicySubject, _ *Options) {
				s.Horizon = 5
				s.Former = map[string][]Granted{"n2": {
					granted("10.0.1.20", "10.0.2.20", false), // allowed still
					granted("10.0.1.21", "10.0.2.20", false),
					granted("198.18.0.1", "10.0.2.20", true),
					granted("198.18.0.2", "10.0.2.20", false), // a Pod that is gone
					granted("10.0.1.22", "10.0.2.20", false),  // another's by now
					granted("10.0.1.21", "10.0.2.10", false),  // not the policy's
					granted("10.0.2.20", "10.0.1.21", false),  // not isolated
				}}
			},
			want: []string{
				"n2: allowed tcp 10.0.1.20 -> 10.0.2.20:3306",
				"n2: denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"n2: denied tcp 10.0.1.21 -> 10.0.2.20:3306",
				"n2: denied tcp 10.0.2.10 -> 10.0.2.20:61001",
				"n2: denied tcp 198.18.0.1 -> 10.0.2.20:3306 external",
			},
		},
		"a policy that selects nobody asks nobody": {
			build: func(w *world) { w.policy("db/allow", "nobody", spec{}) },
			want:  []string{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			tc.build(w)
			r := w.expectPolicy(tc.change)
			if r.Nodes == nil {
				t.Fatalf("nothing is computed: %v", r.Notes)
			}
			if diff := cmp.Diff(tc.want, r.told()); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

func granted(src, dst string, external bool) Granted {
	return Granted{flow.Flow{
		Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Port: 3306,
	}, external}
}

func TestExpectPolicyNotes(t *testing.T) {
	for name, tc := range map[string]struct {
		build func(w *world)
		want  NoteKind
	}{
		"another policy with the same concatenation": {
			func(w *world) { admitBackup(w); w.policy("d/ballow", "x", spec{}) }, EngineConflict,
		},
		"one that selects nobody, too": {
			func(w *world) { w.policy("db/allow", "nobody", spec{}); w.policy("d/ballow", "x", spec{}) }, EngineConflict,
		},
		"a port name that nobody has": {
			func(w *world) {
				backup(w)
				w.policy("db/allow", "mysql", spec{Ingress: []in{{From: from(pods("backup")), Ports: tcp("none")}}})
			}, EngineOverAllows,
		},
		"an address that two pods have": {
			func(w *world) { admitBackup(w); w.pod("other/twin", "n1", "10.0.2.20") }, DuplicatePodIP,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			tc.build(w)
			r := w.expectPolicy(nil)
			if !hasNote(Result{Notes: r.Notes}, tc.want) || r.Nodes == nil {
				t.Errorf("notes %v and nodes %v, want %s and what there is to ask", r.Notes, r.told(), tc.want)
			}
		})
	}
}

func TestAnExpectationNamesThePolicyThatIsTheSubject(t *testing.T) {
	w := shop(t)
	w.pod("db/backup", "n2", "10.0.2.30")
	admitBackup(w)
	w.policies[0].Generation = 7
	w.policy("db/aaa", "mysql", spec{}).Generation = 8
	w.policy("db/out", "backup", spec{Egress: []out{{To: from(pods("mysql"))}}}).Generation = 9
	for _, e := range w.expectPolicy(nil).Nodes["n2"] {
		want, generation := "allow", int64(7)
		if e.Flow.Src.String() == "10.0.2.30" && e.Want == flow.Denied {
			want, generation = "out", 9 // the other end's control
		}
		if e.Policy != (types.NamespacedName{Namespace: "db", Name: want}) || e.Generation != generation {
			t.Errorf("%s %s names %s at %d, want %s at %d", e.Want, e.Flow, e.Policy, e.Generation, want, generation)
		}
	}
}

// TestThePolicyBudgetLeavesRoomForRules: with both directions, both families,
// two Pods and strangers on three paths.
func TestThePolicyBudgetLeavesRoomForRules(t *testing.T) {
	w := shop(t)
	w.pod("other/six", "n1", "fd00:0:0:1::10")
	for i := range 2 {
		w.pod(fmt.Sprintf("db/m%d", i), "n2", fmt.Sprintf("10.0.2.%d fd00:0:0:2::%d", 30+i, 30+i), labelled("m"))
	}
	w.pod("db/backup", "n1", "10.0.1.20 fd00:0:0:1::20")
	s := spec{PolicyTypes: policyTypes("Ingress", "Egress"), Egress: []out{{To: from(block("198.18.0.0/15"))}}}
	for i := range 8 {
		s.Ingress = append(s.Ingress, in{From: from(pods("backup")), Ports: tcp(100 + i)})
	}
	w.policy("db/allow", "m", s)
	r := w.expectPolicy(nil)
	rules, allowed := map[string]bool{}, map[string]int{}
	for _, e := range r.Nodes["n2"] {
		if e.Want == flow.Allowed {
			rules[e.Why] = true
			allowed[e.Flow.Dst.String()]++
		}
	}
	if len(r.Nodes["n2"]) != DefaultPolicyBudget || len(rules) < 8 || len(allowed) < 2 {
		t.Errorf("%d flows, allowed of %d rules at %v; want all %d, most rules and both pods",
			len(r.Nodes["n2"]), len(rules), allowed, DefaultPolicyBudget)
	}
}

func TestDrawnPodsStayWhenOthersComeOrGo(t *testing.T) {
	var all []*Pod
	for i := range 40 {
		all = append(all, &Pod{UID: types.UID(fmt.Sprintf("u%d", i)), Node: fmt.Sprintf("n%d", i%3), Seq: uint64(i)})
	}
	drawn := func(pods []*Pod, rotation uint64) map[string][]string {
		byNode, _ := draw(slices.Values(pods), PolicySubject{Horizon: 100, Rotation: rotation})
		out := map[string][]string{}
		for node, list := range byNode {
			for _, l := range list[:drawnPods] {
				out[node] = append(out[node], string(l.pod.UID))
			}
		}
		return out
	}
	want := drawn(all, 1)
	for i := range all {
		without := slices.Delete(slices.Clone(all), i, i+1)
		node, uid := all[i].Node, string(all[i].UID)
		got := drawn(without, 1)
		if !slices.Contains(want[node], uid) && !cmp.Equal(got, want) {
			t.Errorf("without %s, which was not drawn, %v are, want %v", uid, got, want)
		}
		if slices.Contains(got[node], uid) {
			t.Errorf("%s is drawn and not there", uid)
		}
	}
	if cmp.Equal(drawn(all, 2), want) {
		t.Error("another rotation draws the same")
	}
	if _, next := draw(slices.Values(all), PolicySubject{Horizon: 12}); next != 13 {
		t.Errorf("next is %d, want 13", next)
	}
}

// TestEveryExpectationOfAPolicyIsWhatNetworkPolicyDemandsOfItsNode holds random
// small clusters against the slow evaluator.
func TestEveryExpectationOfAPolicyIsWhatNetworkPolicyDemandsOfItsNode(t *testing.T) {
	asked, allowed := 0, 0
	for seed := range uint64(600) {
		w := randomWorld(t, rand.New(rand.NewPCG(seed, 1)))
		c := w.cluster()
		for _, np := range w.policies {
			q := c.Policy(np.Namespace, np.Name)
			r := c.ExpectPolicy(PolicySubject{Policy: q, Horizon: uint64(len(w.pods)), Rotation: seed}, DefaultOptions())
			for node, list := range r.Nodes {
				if !slices.ContainsFunc(c.PeersOn(node), q.Selects) {
					t.Errorf("seed %d: %s is asked of %s, where it selects nobody", seed, q, node)
				}
				for _, e := range list {
					asked++
					if e.Want == flow.Allowed {
						allowed++
						if e.Policy != q.key() || !strings.HasPrefix(e.Why, q.String()) {
							t.Errorf("seed %d: %s asks %s for %s (%s)", seed, q, e.Flow, e.Policy, e.Why)
						}
					}
					if got := w.slowVerdict(node, e.Flow); got != e.Want {
						t.Errorf("seed %d, policy %s, node %s: %s (%s): want %s, semantics say %s", seed, q, node, e.Flow, e.Why, e.Want, got)
					}
				}
			}
			for _, p := range c.PeersIn(q.Namespace) {
				if _, ok := r.Nodes[p.Node]; q.Selects(p) && !ok {
					t.Errorf("seed %d: %s does not ask %s, where it selects %s", seed, q, p.Node, p)
				}
			}
		}
	}
	if asked < 5000 || allowed < 1500 {
		t.Fatalf("only %d expectations, %d allowed: the worlds are too small to show anything", asked, allowed)
	}
}
