// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/policygate/policygate/api/flow"
)

const northbound = "kube-ovn:northbound"

func withNorthbound() Options {
	o := DefaultOptions()
	o.Northbound = northbound
	return o
}

func TestWhatTheNorthboundDatabaseIsAsked(t *testing.T) {
	cases := map[string]struct {
		build func(w *world)
		limit int
		span  []string
		want  []string
	}{
		"what the nodes of the span are asked, each flow once": {
			build: func(w *world) { backup(w); admitBackup(w) },
			span:  []string{northbound, "n1", "n2"},
			want: []string{
				"allowed tcp 10.0.1.20 -> 10.0.2.10:61001",
				"allowed tcp 10.0.1.20 -> 10.0.2.20:3306",
				"allowed tcp 10.0.2.10 -> 10.0.1.20:61001",
				"denied tcp 10.0.1.10 -> 10.0.2.20:61001",
			},
		},
		"what the client is not allowed to send is not demanded of the server's side": {
			build: func(w *world) {
				backup(w)
				admitBackup(w)
				w.policy("db/out", "backup", spec{PolicyTypes: policyTypes("Egress")})
			},
			span: []string{northbound, "n1", "n2"},
			want: []string{
				"allowed tcp 10.0.2.10 -> 10.0.1.20:61001",
				"denied tcp 10.0.1.10 -> 10.0.2.20:61001",
				"denied tcp 10.0.1.20 -> 10.0.1.10:61001",
				"denied tcp 10.0.1.20 -> 10.0.2.10:61001",
			},
		},
		"nothing if nothing is asked of any node": {
			build: func(w *world) { w.pods, w.nodes = nil, w.nodes[:1]; backup(w) },
			span:  []string{"n1"},
			want:  nil,
		},
		"what only nodes beyond the limit are asked is left to them": {
			build: func(w *world) {
				w.namespace("infra", true)
				w.node("m1", "10.1.1.0/24")
				w.pod("infra/agent", "m1", "10.1.1.9", labelled("agent"))
				backup(w)
				w.policy("infra/in", "agent", spec{Ingress: []in{{From: from(everywhere()), Ports: tcp(9100)}}})
			},
			span: []string{northbound, "n1"},
			want: []string{
				"allowed tcp 10.0.1.20 -> 10.0.2.10:61001",
				"allowed tcp 10.0.2.10 -> 10.0.1.20:61001",
			},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			tc.build(w)
			o := withNorthbound()
			o.MaxForeignNodes = tc.limit
			r := w.expectWith("db/backup", o, nil)
			if diff := cmp.Diff(tc.span, r.Span); diff != "" {
				t.Errorf("span (-want +got):\n%s", diff)
			}
			got := lines(r.Nodes[northbound])
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got, cmp.Transformer("empty", func(l []string) []string { return append([]string{}, l...) })); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheNorthboundDatabaseIsNoForeignNode(t *testing.T) {
	w := shop(t)
	w.namespace("infra", true)
	w.node("m1", "10.1.1.0/24")
	w.pod("infra/agent", "m1", "10.1.1.9", labelled("agent"))
	backup(w)
	w.policy("infra/in", "agent", spec{Ingress: []in{{From: from(everywhere()), Ports: tcp(9100)}}})
	o := withNorthbound()
	o.MaxForeignNodes = 1
	r := w.expectWith("db/backup", o, nil)
	if want := []string{northbound, "m1", "n1"}; !cmp.Equal(r.Span, want) {
		t.Errorf("span %v, want %v", r.Span, want)
	}
	wantFlow(t, r, northbound, "tcp 10.0.1.20 -> 10.1.1.9:9100", flow.Allowed, false)
}

// TestTheNorthboundDatabaseIsAskedWhatHoldsAtBothEnds holds random small
// clusters against the slow evaluator and against what is asked without it.
func TestTheNorthboundDatabaseIsAskedWhatHoldsAtBothEnds(t *testing.T) {
	asked, allowed, left := 0, 0, 0
	for seed := range uint64(400) {
		w := randomWorld(t, rand.New(rand.NewPCG(seed, 2)))
		c := w.cluster()
		for _, p := range w.pods {
			if !NewPod(p).Peer() {
				continue
			}
			o := withNorthbound()
			o.MaxForeignNodes = int(seed % 3)
			s := Subject{Pod: c.Pod(p.UID), Witnesses: seed%2 == 0}
			with := c.Expect(s, o)
			o.Northbound = ""
			without := c.Expect(s, o)
			list := with.Nodes[northbound]
			if span := slices.DeleteFunc(slices.Clone(with.Span), func(n string) bool { return n == northbound }); !cmp.Equal(span, without.Span) ||
				slices.Contains(with.Span, northbound) != (len(list) > 0) {
				t.Errorf("seed %d, %s: span %v, without the database %v, of which %d flows are asked", seed, p.UID, with.Span, without.Span, len(list))
			}
			delete(with.Nodes, northbound)
			if diff := cmp.Diff(without.Nodes, with.Nodes, cmp.Comparer(func(a, b Expectation) bool { return a == b })); diff != "" {
				t.Fatalf("seed %d, %s: nodes are asked otherwise (-without +with):\n%s", seed, p.UID, diff)
			}
			a, d, l := checkTogether(t, w, fmt.Sprintf("seed %d, %s", seed, p.UID), without, list)
			asked, allowed, left = asked+a, allowed+d, left+l
		}
	}
	t.Logf("%d asked, %d of them allowed, %d left out", asked, allowed, left)
	if asked < 3000 || allowed < 1000 || left < 50 {
		t.Errorf("%d asked, %d of them allowed, %d left out: the worlds are too small to show anything", asked, allowed, left)
	}
}

func checkTogether(t *testing.T, w *world, of string, r Result, list []Expectation) (asked, allowed, left int) {
	t.Helper()
	at := map[flow.Flow]Expectation{}
	for _, e := range list {
		asked++
		if e.Want == flow.Allowed {
			allowed++
		}
		if _, twice := at[e.Flow]; twice {
			t.Errorf("%s: %s is asked twice", of, e.Flow)
		}
		at[e.Flow] = e
		if got := w.slowWhole(e.Flow); got != e.Want {
			t.Errorf("%s: %s (%s): want %s, semantics say %s", of, e.Flow, e.Why, e.Want, got)
		}
	}
	of1 := 0
	for _, node := range r.Span {
		for _, e := range r.Nodes[node] {
			got, ok := at[e.Flow]
			switch {
			case !ok && e.Want == flow.Denied:
				t.Errorf("%s: %s must be denied on %s and is not asked", of, e.Flow, node)
			case !ok:
				left++
			case e.Want == flow.Allowed && !e.Advisory && !e.Witness && got.Witness:
				t.Errorf("%s: %s is required on %s and a mere witness here", of, e.Flow, node)
			default:
				of1++
			}
		}
	}
	if of1 < len(list) {
		t.Errorf("%s: %d flows are asked that no node of the span is", of, len(list)-of1)
	}
	return asked, allowed, left
}

// slowWhole is what becomes of f if both of its ends are asked.
func (w *world) slowWhole(f flow.Flow) flow.Answer {
	if dst := w.slowPod(f.Dst); dst != nil && !w.slowAdmits(dst, networkingv1.PolicyTypeIngress, f) {
		return flow.Denied
	}
	if src := w.slowPod(f.Src); src != nil && !w.slowAdmits(src, networkingv1.PolicyTypeEgress, f) {
		return flow.Denied
	}
	return flow.Allowed
}

func TestWhatTheNorthboundDatabaseIsAskedOfAPolicy(t *testing.T) {
	w := shop(t)
	for n := range 100 {
		node := fmt.Sprintf("m%d", n)
		w.node(node, fmt.Sprintf("10.1.%d.0/24", n))
		for i := range 3 {
			w.pod(fmt.Sprintf("db/mysql-%d-%d", n, i), node, fmt.Sprintf("10.1.%d.%d", n, 10+i), labelled("mysql"))
		}
	}
	backup(w)
	admitBackup(w)
	ask := func(rotation uint64) PolicyResult {
		return w.expectPolicy(func(s *PolicySubject, o *Options) { s.Rotation, *o = rotation, withNorthbound() })
	}
	first := ask(1)
	list := first.Nodes[northbound]
	if len(list) > DefaultBudget || len(list) < DefaultBudget/2 {
		t.Fatalf("%d flows are asked of 101 nodes, want up to %d", len(list), DefaultBudget)
	}
	// Whole nodes: of each flow that is asked, all of its node's are.
	at := map[flow.Flow]bool{}
	for _, e := range list {
		at[e.Flow] = true
	}
	whole := 0
	for node, of := range first.Nodes {
		if node == northbound {
			continue
		}
		n := 0
		for _, e := range of {
			if at[e.Flow] {
				n++
			}
		}
		if n == len(of) {
			whole++
		}
	}
	if whole < 10 || whole == len(first.Nodes)-1 {
		t.Errorf("%d of %d nodes are asked about as a whole", whole, len(first.Nodes)-1)
	}
	if diff := cmp.Diff(list, ask(1).Nodes[northbound], cmp.Comparer(func(a, b Expectation) bool { return a == b })); diff != "" {
		t.Errorf("the same rotation asks otherwise:\n%s", diff)
	}
	if cmp.Equal(lines(list), lines(ask(2).Nodes[northbound])) {
		t.Error("another rotation asks the same")
	}
}
