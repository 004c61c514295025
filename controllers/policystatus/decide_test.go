// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
)

// t0 is when a test begins. The API keeps whole seconds.
var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// told renders what a status says, without what it counts.
func told(s *v1alpha1.PolicyStatusStatus) string {
	if s == nil || len(s.Conditions) == 0 {
		return "nothing"
	}
	var out []string
	for _, which := range []string{v1alpha1.PolicyProgrammed, v1alpha1.PolicyDegraded} {
		c := meta.FindStatusCondition(s.Conditions, which)
		out = append(out, fmt.Sprintf("%s=%s/%s", which, c.Status, c.Reason))
	}
	if s.Nodes.Summary != "" {
		out = append(out, s.Nodes.Summary)
	}
	out = append(out, fmt.Sprintf("gen=%d", *s.ObservedGeneration))
	for _, l := range s.LaggingNodes {
		out = append(out, fmt.Sprintf("%s:%s since %s", l.Name, l.Reason, l.Since.Sub(t0)))
	}
	if s.LaggingNodesLeftOut != nil {
		out = append(out, fmt.Sprintf("+%d", *s.LaggingNodesLeftOut))
	}
	for _, d := range s.Deviations {
		out = append(out, "deviates: "+spell(d))
	}
	if last := s.LastProgrammed; last.Generation != nil {
		out = append(out, fmt.Sprintf("last: gen=%d at %s took %q", *last.Generation, last.Time.Sub(t0), last.Took))
	}
	return strings.Join(out, " | ")
}

// said returns a status that says what a policy of nodes n1 to n3 of that
// generation was decided to say.
func said(t *testing.T, generation int64, nodes ...node) v1alpha1.PolicyStatusStatus {
	t.Helper()
	d := decide(state{generation: generation, understood: true, nodes: nodes}, t0)
	if d.status == nil {
		t.Fatal("nothing is said")
	}
	return *d.status
}

// Nodes in the states that the tests are about, since that time.
func confirmed(name string) node {
	return node{name: name, connected: true, since: t0, answer: answer{given: true, confirmed: true}, had: true}
}

func silent(name string, since time.Time) node {
	return node{name: name, connected: true, since: since}
}

func unmet(name, lag string, since time.Time) node {
	return node{name: name, connected: true, since: since, answer: answer{given: true, lag: lag, text: lag + " in words"}}
}

func with(n node, change func(*node)) node {
	change(&n)
	return n
}

func TestDecide(t *testing.T) {
	const (
		admitting = v1alpha1.LagNotAdmitting
		isolating = v1alpha1.LagNotIsolating
		fine      = "Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 0s took \"\""
	)
	inForce := said(t, 1, confirmed("n1"), confirmed("n2"))
	lags := said(t, 1, confirmed("n1"), unmet("n2", admitting, t0.Add(-time.Hour)))
	tests := map[string]struct {
		state state
		// now is when, after t0.
		now time.Duration
		// want is what is said, and next when it is decided about again.
		want string
		next time.Duration
		took time.Duration
	}{
		"a policy that selects no Pod with an address is programmed": {
			state: state{},
			want:  "Programmed=True/NoPods | Degraded=False/AsExpected | 0/0 | gen=1",
		},
		"a policy whose nodes have all confirmed is in force, and it is said how long that took": {
			state: state{seen: t0, nodes: []node{confirmed("n1"), after(412 * time.Millisecond)}},
			now:   500 * time.Millisecond,
			want:  "Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 0s took \"412ms\"",
			took:  412 * time.Millisecond,
		},
		"it counts from the first Pod that the policy got": {
			state: state{seen: t0.Add(-time.Hour), occupied: t0, nodes: []node{after(63 * time.Second)}},
			now:   63 * time.Second,
			want:  "Programmed=True/InForce | Degraded=False/AsExpected | 1/1 | gen=1 | last: gen=1 at 1m3s took \"1m3s\"",
			took:  63 * time.Second,
		},
		"how long a generation took that was there before is not known": {
			state: state{nodes: []node{confirmed("n1"), confirmed("n2")}},
			want:  fine,
		},
		"of a new policy nothing is said while its nodes may be about to answer": {
			state: state{seen: t0, nodes: []node{silent("n1", t0)}},
			now:   900 * time.Millisecond,
			want:  "nothing",
			next:  time.Second,
		},
		"nodes that have not answered are unknown": {
			state: state{seen: t0, nodes: []node{confirmed("n1"), silent("n2", t0)}},
			now:   time.Second,
			want:  "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NoAnswer since 0s",
		},
		"a node that refuses makes it lag": {
			state: state{seen: t0, nodes: []node{confirmed("n1"), unmet("n2", admitting, t0), silent("n3", t0)}},
			now:   2 * time.Second,
			want:  "Programmed=False/Lagging | Degraded=False/AsExpected | 1/3 | gen=1 | n2:NotAdmitting since 0s | n3:NoAnswer since 0s",
		},
		"a node of which nothing can be told makes it unknown": {
			state: state{seen: t0, nodes: []node{unmet("n1", v1alpha1.LagInconclusive, t0)}},
			now:   2 * time.Second,
			want:  "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 0/1 | gen=1 | n1:Inconclusive since 0s",
		},
		"a dataplane that cannot be seen is degraded at once": {
			state: state{seen: t0, nodes: []node{with(silent("n1", t0), func(n *node) { n.unseen = true })}},
			now:   time.Second,
			want:  "Programmed=Unknown/Unknown | Degraded=True/Unseen | 0/1 | gen=1 | n1:Unsupported since 0s",
		},
		"a node without an agent has time to start one": {
			state: state{seen: t0, nodes: []node{{name: "n1", since: t0}}},
			now:   time.Second,
			want:  "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 0/1 | gen=1 | n1:NoAgent since 0s",
			next:  30 * time.Second,
		},
		"and is unseen then": {
			state: state{seen: t0, nodes: []node{{name: "n1", since: t0}}},
			now:   30 * time.Second,
			want:  "Programmed=Unknown/Unknown | Degraded=True/Unseen | 0/1 | gen=1 | n1:NoAgent since 0s",
		},
		"a policy that is not understood is unknown, and has no nodes": {
			state: state{former: inForce, pods: coverage.PolicyPods{}},
			want:  "not understood",
		},

		"an edit does not show before the nodes could answer": {
			state: state{generation: 2, seen: t0, former: inForce, nodes: []node{confirmed("n1"), silent("n2", t0)}},
			now:   999 * time.Millisecond,
			want:  fine,
			next:  time.Second,
		},
		"an edit whose answers come soon goes over from True to True": {
			state: state{generation: 2, seen: t0, former: inForce, nodes: []node{confirmed("n1"), after(300 * time.Millisecond)}},
			now:   300 * time.Millisecond,
			want:  "Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=2 | last: gen=2 at 0s took \"300ms\"",
			took:  300 * time.Millisecond,
		},
		"an edit whose answers do not come soon shows": {
			state: state{generation: 2, seen: t0, former: inForce, nodes: []node{confirmed("n1"), unmet("n2", admitting, t0)}},
			now:   time.Second,
			want:  "Programmed=False/Lagging | Degraded=False/AsExpected | 1/2 | gen=2 | n2:NotAdmitting since 0s | last: gen=1 at 0s took \"\"",
		},
		"an edit of a policy that lags shows at once": {
			state: state{generation: 2, seen: t0, former: lags, nodes: []node{silent("n1", t0), silent("n2", t0)}},
			want:  "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 0/2 | gen=2 | n1:NoAnswer since 0s | n2:NoAnswer since -1h0m0s",
			next:  time.Second,
		},
		"a node that lags goes on to lag since the same time": {
			state: state{former: lags, nodes: []node{confirmed("n1"), unmet("n2", isolating, t0)}},
			now:   5 * time.Second,
			want:  "Programmed=False/Lagging | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NotIsolating since -1h0m0s",
		},
		"a node that leaves is pruned": {
			state: state{former: lags, nodes: []node{confirmed("n1")}},
			want:  "Programmed=True/InForce | Degraded=False/AsExpected | 1/1 | gen=1 | last: gen=1 at 0s took \"\"",
		},
		"a node that confirmed other Pods of the generation counts on for a while": {
			state: state{former: inForce, nodes: []node{
				confirmed("n1"), with(silent("n2", t0), func(n *node) { n.vouched = true }),
			}},
			now:  14 * time.Second,
			want: fine,
			next: 15 * time.Second,
		},
		"but not longer": {
			state: state{former: inForce, nodes: []node{
				confirmed("n1"), with(silent("n2", t0), func(n *node) { n.vouched = true }),
			}},
			now:  15 * time.Second,
			want: "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NoAnswer since 0s | last: gen=1 at 0s took \"\"",
		},

		"within a sync of the engine what a node takes back does not show": {
			state: state{former: inForce, nodes: []node{confirmed("n1"), drifted("n2", admitting)}},
			now:   1999 * time.Millisecond,
			want:  fine,
			next:  2 * time.Second,
		},
		"drift shows behind it, and is degraded": {
			state: state{former: inForce, nodes: []node{confirmed("n1"), drifted("n2", isolating)}},
			now:   2 * time.Second,
			want:  "Programmed=False/Drifted | Degraded=True/Drifted | 1/2 | gen=1 | n2:NotIsolating since 0s | last: gen=1 at 0s took \"\"",
		},
		"a generation that is in force again has taken what it took": {
			state: state{former: with2(t, drifted("n2", isolating)), nodes: []node{confirmed("n1"), confirmed("n2")}},
			now:   20 * time.Second,
			want:  "Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 20s took \"3s\"",
		},
		"a node that cannot tell any more has not drifted": {
			state: state{former: inForce, nodes: []node{
				confirmed("n1"), with(unmet("n2", v1alpha1.LagInconclusive, t0), func(n *node) { n.had = true }),
			}},
			now:  2 * time.Second,
			want: "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 1/2 | gen=1 | n2:Inconclusive since 0s | last: gen=1 at 0s took \"\"",
		},

		"an agent that is away counts for what it said": {
			state: state{former: inForce, nodes: []node{confirmed("n1"), away(confirmed("n2"))}},
			now:   29 * time.Second,
			want:  fine,
			next:  30 * time.Second,
		},
		"for half a minute": {
			state: state{former: inForce, nodes: []node{confirmed("n1"), away(confirmed("n2"))}},
			now:   31 * time.Second,
			want:  "Programmed=Unknown/Unknown | Degraded=True/Unseen | 1/2 | gen=1 | n2:NoAgent since 0s | last: gen=1 at 0s took \"\"",
		},
		"an agent that is back has time to look": {
			state: state{former: inForce, nodes: []node{
				confirmed("n1"), with(away(confirmed("n2")), func(n *node) { n.connected = true }),
			}},
			now:  39 * time.Second,
			want: fine,
			next: 40 * time.Second,
		},

		"an elected replica keeps what it finds until the nodes could answer": {
			state: state{former: inForce, nodes: []node{confirmed("n1"), founding("n2")}},
			now:   29 * time.Second,
			want:  fine,
			next:  30 * time.Second,
		},
		"also that a policy lags": {
			state: state{former: lags, nodes: []node{founding("n1"), founding("n2")}},
			now:   3 * time.Second,
			want:  told(&lags),
			next:  30 * time.Second,
		},
		"and believes the nodes then": {
			state: state{former: inForce, nodes: []node{confirmed("n1"), founding("n2")}},
			now:   30 * time.Second,
			want:  "Programmed=Unknown/Unknown | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NoAnswer since 0s | last: gen=1 at 0s took \"\"",
		},
		"and before if all have answered": {
			state: state{former: inForce, nodes: []node{
				confirmed("n1"), with(unmet("n2", admitting, t0), func(n *node) { n.founding = true }),
			}},
			now:  time.Second,
			want: "Programmed=False/Lagging | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NotAdmitting since 0s | last: gen=1 at 0s took \"\"",
		},
		"it does not say when a generation that was in force came to be": {
			state: state{former: with2(t), nodes: []node{confirmed("n1"), confirmed("n2")}},
			now:   time.Minute,
			want:  "Programmed=True/InForce | Degraded=False/AsExpected | 2/2 | gen=1 | last: gen=1 at 3s took \"3s\"",
		},

		"a node that has confirmed but for what is advisory deviates": {
			state: state{former: inForce, nodes: []node{
				confirmed("n1"), with(confirmed("n2"), func(n *node) { n.deviates = []string{"ingress[1]"} }),
			}},
			want: "Programmed=True/InForce | Degraded=True/EngineDeviates | 2/2 | gen=1 | deviates: ingress[1] on n2 | last: gen=1 at 0s took \"\"",
		},
		"a node whose engine rests lags for a minute": {
			state: state{former: lags, nodes: []node{confirmed("n1"), resting("n2")}},
			now:   59 * time.Second,
			want:  "Programmed=False/Lagging | Degraded=False/AsExpected | 1/2 | gen=1 | n2:NotAdmitting since -1h0m0s",
			next:  time.Minute,
		},
		"and deviates behind it": {
			state: state{former: lags, nodes: []node{confirmed("n1"), resting("n2")}},
			now:   time.Minute,
			want:  "Programmed=True/InForce | Degraded=True/EngineDeviates | 2/2 | gen=1 | deviates: egress[0] on n2 | last: gen=1 at 1m0s took \"\"",
		},
		"a node that has drifted does not come to deviate": {
			state: state{former: inForce, nodes: []node{with(resting("n2"), func(n *node) { n.had, n.drifted = true, true })}},
			now:   time.Hour,
			want:  "Programmed=False/Drifted | Degraded=True/Drifted | 0/1 | gen=1 | n2:NotAdmitting since 0s | last: gen=1 at 0s took \"\"",
		},
		"what is known of the engine everywhere comes first, and names no node": {
			state: state{deviations: []string{"b", "a"}, former: inForce, nodes: []node{
				with(confirmed("n1"), func(n *node) { n.deviates = []string{"0"} }), confirmed("n2"),
			}},
			want: "Programmed=True/InForce | Degraded=True/EngineDeviates | 2/2 | gen=1 | deviates: a | deviates: b | deviates: 0 on n1 | last: gen=1 at 0s took \"\"",
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := tc.state
			if s.generation == 0 {
				s.generation = 1
			}
			s.understood = tc.want != "not understood"
			d := decide(s, t0.Add(tc.now))
			want := tc.want
			if !s.understood {
				want = "Programmed=Unknown/NotUnderstood | Degraded=True/NotUnderstood | gen=1 | last: gen=1 at 0s took \"\""
			}
			if diff := cmp.Diff(want, told(d.status)); diff != "" {
				t.Errorf("said (-want +got):\n%s", diff)
			}
			next := time.Time{}
			if tc.next > 0 {
				next = t0.Add(tc.next)
			}
			if !d.next.Equal(next) {
				t.Errorf("decided again %s after, want %s", d.next.Sub(t0), tc.next)
			}
			if d.took != tc.took {
				t.Errorf("took %s, want %s", d.took, tc.took)
			}
		})
	}
}

// after is the node n2 that has confirmed since that long after t0.
func after(d time.Duration) node {
	return with(confirmed("n2"), func(n *node) { n.since = t0.Add(d) })
}

// drifted is a node that had confirmed, and at t0 ceased to.
func drifted(name, lag string) node {
	return with(unmet(name, lag, t0), func(n *node) { n.had, n.drifted = true, true })
}

// away is a node whose agent went at t0.
func away(n node) node {
	n.connected, n.lost = false, t0
	return n
}

// founding is a node that was asked at t0 by a replica that had been elected.
func founding(name string) node {
	return with(silent(name, t0), func(n *node) { n.founding = true })
}

// resting is a node whose engine rests since t0 on not carrying out a rule.
func resting(name string) node {
	return with(unmet(name, v1alpha1.LagNotAdmitting, t0), func(n *node) { n.steady, n.deviates = t0, []string{"egress[0]"} })
}

// with2 is the status of a policy that was in force on n1 and n2 three seconds
// after it was seen, as it is with other nodes since.
func with2(t *testing.T, since ...node) v1alpha1.PolicyStatusStatus {
	t.Helper()
	s := state{generation: 1, understood: true, seen: t0, nodes: []node{confirmed("n1"), after(3 * time.Second)}}
	d := decide(s, t0.Add(3*time.Second))
	if len(since) > 0 {
		s.former, s.nodes = *d.status, append(s.nodes[:1:1], since...)
		d = decide(s, t0.Add(10*time.Second))
	}
	return *d.status
}

func TestWhatIsSaidIsBounded(t *testing.T) {
	s := state{generation: 1, understood: true}
	for i := range 40 {
		n := unmet(fmt.Sprintf("n%02d", i), v1alpha1.LagNotAdmitting, t0.Add(-time.Hour))
		n.text = strings.Repeat("x", 400)
		s.nodes = append(s.nodes, n)
	}
	for i := range 20 {
		n := confirmed(fmt.Sprintf("o%02d", i))
		n.deviates = []string{"common", fmt.Sprintf("own %02d", i)}
		s.nodes = append(s.nodes, n)
	}
	got := decide(s, t0).status
	if len(got.LaggingNodes) != 10 || *got.LaggingNodesLeftOut != 30 || len(got.LaggingNodes[0].Message) != 256 {
		t.Errorf("%d lagging nodes, %d left out, a message of %d bytes; want 10, 30, 256",
			len(got.LaggingNodes), *got.LaggingNodesLeftOut, len(got.LaggingNodes[0].Message))
	}
	if len(got.Deviations) != 10 || len(got.Deviations[0].Nodes) != 5 || *got.Deviations[0].NodesLeftOut != 15 {
		t.Errorf("%d deviations, the first %q; want 10, the first on 5 nodes and 15 more", len(got.Deviations), spell(got.Deviations[0]))
	}
	c := meta.FindStatusCondition(got.Conditions, v1alpha1.PolicyProgrammed)
	if want := "not in force yet on n00 (NotAdmitting), n01 (NotAdmitting), n02 (NotAdmitting), n03 (NotAdmitting), n04 (NotAdmitting), and 35 more"; c.Message != want {
		t.Errorf("message %q, want %q", c.Message, want)
	}
}

func TestATransitionHasItsTimeAndNothingElseMovesIt(t *testing.T) {
	s := state{generation: 1, understood: true, nodes: []node{confirmed("n1")}}
	s.former = *decide(s, t0).status
	later := decide(s, t0.Add(time.Hour)).status
	for _, c := range later.Conditions {
		if !c.LastTransitionTime.Equal(&metav1.Time{Time: t0}) {
			t.Errorf("%s: transition at %s, want %s", c.Type, c.LastTransitionTime, t0)
		}
	}
	if k := difference(&s.former, later); k != "" {
		t.Errorf("a decision that is made again differs by %q", k)
	}
}
