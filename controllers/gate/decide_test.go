// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/v1alpha1"
)

func TestDecide(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	own := spanNode{name: "n1", own: true, connected: true, confirmed: true}
	ownWaits := spanNode{name: "n1", own: true, connected: true, awaits: "db/allow-jobs (this namespace) does not admit 10.1.2.3 there yet"}
	far := spanNode{name: "n7", connected: true, confirmed: true}
	farWaits := spanNode{name: "n7", connected: true, awaits: "db/allow-jobs (this namespace) does not admit 10.1.2.3 there yet"}
	absent := spanNode{name: "n7"}
	with := func(n spanNode, change func(*spanNode)) spanNode { change(&n); return n }
	pod := func(span ...spanNode) state {
		return state{
			addressed: t0, timeout: time.Minute, onTimeout: v1alpha1.OnTimeoutStart,
			current: true, span: span,
		}
	}
	but := func(s state, change func(*state)) state { change(&s); return s }
	const half = 30 * time.Second
	const waiting = "waiting for n7: db/allow-jobs (this namespace) does not admit 10.1.2.3 there yet"

	cases := map[string]struct {
		state state
		after time.Duration
		want  decision
	}{
		"a Pod without an address waits in silence": {
			state: but(pod(own), func(s *state) { s.addressed = time.Time{} }),
			after: time.Hour,
		},
		"the gate opens when every node has confirmed": {
			state: pod(own, far),
			after: 412 * time.Millisecond,
			want:  decision{open: &outcome{v1alpha1.ReasonConfirmed, "confirmed on 2/2 nodes in 412ms"}},
		},
		"nothing opens before the barrier": {
			state: but(pod(own, far), func(s *state) { s.current = false }),
			after: time.Second,
			want:  decision{next: t0.Add(quiet)},
		},
		"nothing opens before the barrier, not at the timeout either": {
			state: but(pod(own, absent), func(s *state) { s.current = false }),
			after: time.Minute,
			want: decision{urgent: true, shut: &outcome{v1alpha1.ReasonTimeout,
				"not confirmed within 1m0s: no agent is connected on n7"}},
		},
		"an empty span confirms nothing": {
			state: pod(),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting, "what must be confirmed is not known yet"},
				next: t0.Add(half),
			},
		},
		"a span without the Pod's own node confirms nothing": {
			state: pod(far),
			after: time.Minute,
			want: decision{urgent: true, shut: &outcome{v1alpha1.ReasonTimeout,
				"not confirmed within 1m0s: the Pod's own node is not among those that could confirm it"}},
		},
		"nothing is written in the first three seconds": {
			state: pod(own, farWaits),
			after: 2999 * time.Millisecond,
			want:  decision{next: t0.Add(quiet)},
		},
		"after three seconds the message names the node and what it lacks": {
			state: pod(own, farWaits),
			after: 3 * time.Second,
			want:  decision{shut: &outcome{v1alpha1.ReasonWaiting, waiting}, next: t0.Add(half)},
		},
		"a node without an agent is awaited and named": {
			state: pod(own, absent),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting, "no agent is connected on n7"},
				next: t0.Add(half),
			},
		},
		"a node that has not answered is awaited": {
			state: pod(own, with(farWaits, func(n *spanNode) { n.awaits = "" })),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting, "waiting for n7: its agent has not answered yet"},
				next: t0.Add(half),
			},
		},
		"a node that has answered and lacks nothing looks again": {
			state: pod(own, with(farWaits, func(n *spanNode) { n.awaits, n.answered = "", true })),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting, "waiting for n7: its agent looks once more"},
				next: t0.Add(half),
			},
		},
		"a policy that is not understood is told": {
			state: but(pod(), func(s *state) { s.obscure = true }),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting,
					"a policy that may concern this Pod is not understood, so nobody knows what must be confirmed"},
				next: t0.Add(half),
			},
		},
		"the barrier is told": {
			state: but(pod(own, far), func(s *state) { s.current = false }),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting, "waiting for the API server to list policies and namespaces"},
				next: t0.Add(half),
			},
		},
		"a stalled node that is awaited is told": {
			state: pod(with(ownWaits, func(n *spanNode) { n.stalled = true }), far),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting, "waiting for n1: db/allow-jobs (this namespace) does not admit 10.1.2.3 there yet " +
					"(stalled: it has confirmed nothing for long)"},
				next: t0.Add(half),
			},
		},
		"a stalled node holds no Pod of another node": {
			state: pod(own, with(farWaits, func(n *spanNode) { n.stalled = true })),
			after: time.Second,
			want: decision{open: &outcome{v1alpha1.ReasonConfirmed,
				"confirmed on 1/2 nodes in 1s; not awaited: n7 (stalled)"}},
		},
		"a stalled node holds its own Pods": {
			state: pod(with(ownWaits, func(n *spanNode) { n.stalled = true }), far),
			after: time.Second,
			want:  decision{next: t0.Add(quiet)},
		},
		"a node that cannot be seen holds no Pod of another node": {
			state: pod(own, with(farWaits, func(n *spanNode) { n.unseen = true })),
			after: time.Second,
			want: decision{open: &outcome{v1alpha1.ReasonConfirmed,
				"confirmed on 1/2 nodes in 1s; not awaited: n7 (its dataplane cannot be seen)"}},
		},
		"a node beyond the limit of foreign nodes is asked and not awaited": {
			state: pod(own, with(farWaits, func(n *spanNode) { n.optional = true })),
			after: time.Second,
			want: decision{open: &outcome{v1alpha1.ReasonConfirmed,
				"confirmed on 1/2 nodes in 1s; not awaited: n7 (beyond the limit of foreign nodes)"}},
		},
		"a node that cannot be seen holds its own Pods and says so": {
			state: pod(with(ownWaits, func(n *spanNode) { n.unseen = true })),
			after: 3 * time.Second,
			want: decision{
				shut: &outcome{v1alpha1.ReasonWaiting, "the agent on n1 cannot see into that node's dataplane"},
				next: t0.Add(half),
			},
		},
		"unmet advisory expectations open the gate and are told": {
			state: pod(own, with(far, func(n *spanNode) { n.deviates = []string{"all that was asked"} })),
			after: 11 * time.Second,
			want: decision{open: &outcome{v1alpha1.ReasonEngineDeviates,
				"confirmed on 2/2 nodes in 11s; the policy engine does not realize all that was asked on n7"}},
		},
		"a family that is not enforced is told with its nodes": {
			state: pod(
				with(own, func(n *spanNode) { n.without = "v6" }), with(far, func(n *spanNode) { n.without = "v6" }),
				with(far, func(n *spanNode) { n.name, n.without = "n8", "v4" }),
			),
			after: 412 * time.Millisecond,
			want: decision{open: &outcome{v1alpha1.ReasonConfirmed,
				"confirmed on 3/3 nodes in 412ms; v4 not enforced on n8; v6 not enforced on n1, n7"}},
		},
		"a node that left out a family and has not confirmed is awaited": {
			state: pod(with(own, func(n *spanNode) { n.without = "v6" }), with(farWaits, func(n *spanNode) { n.without = "v6" })),
			after: time.Minute,
			want: decision{open: &outcome{v1alpha1.ReasonPartiallyConfirmed,
				"confirmed on 1/2 nodes within 1m0s; missing: n7; v6 not enforced on n1"}},
		},
		"flows that were not asked are counted": {
			state: but(pod(own), func(s *state) { s.notAsked = 40 }),
			after: time.Second,
			want: decision{open: &outcome{v1alpha1.ReasonConfirmed,
				"confirmed on 1/1 node in 1s; 40 flows beyond the limit were not asked"}},
		},
		"start: at the timeout the gate opens if only other nodes are missing": {
			state: pod(own, farWaits),
			after: time.Minute,
			want: decision{open: &outcome{v1alpha1.ReasonPartiallyConfirmed,
				"confirmed on 1/2 nodes within 1m0s; missing: n7"}},
		},
		"start: at the timeout the gate stays shut if the own node is missing": {
			state: pod(ownWaits, far),
			after: time.Minute,
			want: decision{urgent: true, shut: &outcome{v1alpha1.ReasonTimeout,
				"not confirmed within 1m0s: waiting for n1: db/allow-jobs (this namespace) does not admit 10.1.2.3 there yet"}},
		},
		"fail: at the timeout the gate stays shut whoever is missing": {
			state: but(pod(own, farWaits), func(s *state) { s.onTimeout = v1alpha1.OnTimeoutFail }),
			after: time.Minute,
			want: decision{urgent: true, shut: &outcome{v1alpha1.ReasonTimeout,
				"not confirmed within 1m0s: " + waiting}},
		},
		"after the timeout the gate still opens": {
			state: but(pod(own, far), func(s *state) { s.onTimeout = v1alpha1.OnTimeoutFail }),
			after: 90 * time.Second,
			want:  decision{open: &outcome{v1alpha1.ReasonConfirmed, "confirmed on 2/2 nodes in 1m30s"}},
		},
		"the timeout counts from the start of the hold": {
			state: but(pod(own, farWaits), func(s *state) { s.held = t0.Add(20 * time.Second) }),
			after: time.Minute,
			want:  decision{shut: &outcome{v1alpha1.ReasonWaiting, waiting}, next: t0.Add(80 * time.Second)},
		},
		"a changed address is told at once": {
			state: but(pod(own, farWaits), func(s *state) { s.moved = true }),
			want: decision{urgent: true, next: t0.Add(half), shut: &outcome{v1alpha1.ReasonAddressChanged,
				"the Pod's sandbox, its addresses or its node's boot changed after the gate had opened: " + waiting}},
		},
		"halfway to the timeout a rule is suspected, if a node has answered": {
			state: pod(own, with(farWaits, func(n *spanNode) { n.answered = true })),
			after: half,
			want:  decision{suspect: true, shut: &outcome{v1alpha1.ReasonWaiting, waiting}, next: t0.Add(time.Minute)},
		},
		"a rule is suspected once": {
			state: but(pod(own, with(farWaits, func(n *spanNode) { n.answered = true })), func(s *state) { s.suspected = true }),
			after: half,
			want:  decision{shut: &outcome{v1alpha1.ReasonWaiting, waiting}, next: t0.Add(time.Minute)},
		},
		"what is not realized is told, with its nodes": {
			state: pod(
				with(own, func(n *spanNode) { n.deviates = []string{"shop/allow"} }),
				with(far, func(n *spanNode) { n.deviates = []string{"a policy in another namespace", "shop/allow"} }),
			),
			want: decision{open: &outcome{v1alpha1.ReasonEngineDeviates,
				"confirmed on 2/2 nodes in 0s; the policy engine does not realize a policy in another namespace on n7; shop/allow on n1, n7"}},
		},
		"a changed address that is confirmed at once is not told": {
			state: but(pod(own), func(s *state) { s.moved = true }),
			want:  decision{open: &outcome{v1alpha1.ReasonConfirmed, "confirmed on 1/1 node in 0s"}},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got := decide(tc.state, t0.Add(tc.after))
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(decision{}, outcome{})); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMessagesNameABoundedNumberOfNodes(t *testing.T) {
	s := state{timeout: time.Minute, onTimeout: v1alpha1.OnTimeoutStart, addressed: time.Unix(0, 0)}
	for i := range 9 {
		s.span = append(s.span, spanNode{name: fmt.Sprintf("n%d", i), own: i == 0})
	}
	got := decide(s, time.Unix(5, 0)).shut.message
	want := "no agent is connected on n0; no agent is connected on n1; no agent is connected on n2; " +
		"no agent is connected on n3; no agent is connected on n4; and 4 more"
	if got != want {
		t.Errorf("message = %q, want %q", got, want)
	}
}

// A condition's message is an Event's note, too.
func TestMessagesAreShortHoweverLongNamesAre(t *testing.T) {
	const most = 253 // bytes of a node's or a policy's name
	policy := strings.Repeat("s", 63) + "/" + strings.Repeat("p", most) + " (this namespace)"
	for name, change := range map[string]func(*spanNode, int){
		"that wait": func(n *spanNode, _ int) {
			n.awaits = policy + " does not admit 2001:db8:1111:2222:3333:4444:5555:6666 there yet"
		},
		"without agents":   func(n *spanNode, _ int) { n.connected = false },
		"that are stalled": func(n *spanNode, i int) { n.confirmed, n.stalled = i == 0, true },
		"that deviate": func(n *spanNode, _ int) {
			n.confirmed, n.deviates = true, []string{policy, "a policy in another namespace"}
		},
		"without families": func(n *spanNode, i int) { n.confirmed, n.without = true, []string{"v4", "v6"}[i%2] },
		"with all of it": func(n *spanNode, i int) {
			n.confirmed, n.without, n.deviates = i < 3, "v6", []string{policy, policy + "2"}
			n.optional = i > 6
		},
		"that cannot be seen": func(n *spanNode, _ int) { n.unseen = true },
	} {
		for _, moved := range []bool{false, true} {
			for _, on := range []string{v1alpha1.OnTimeoutStart, v1alpha1.OnTimeoutFail} {
				for _, after := range []time.Duration{5 * time.Second, 10 * time.Minute} {
					t.Run(fmt.Sprintf("nodes %s, moved %v, %s, %s", name, moved, on, after), func(t *testing.T) {
						s := state{
							timeout: 10 * time.Minute, onTimeout: on, addressed: time.Unix(0, 0), moved: moved,
							current: true, notAsked: 1 << 31,
						}
						for i := range 300 {
							n := spanNode{name: strings.Repeat(fmt.Sprint(i%10), most), own: i == 0, connected: true}
							change(&n, i)
							s.span = append(s.span, n)
						}
						d := decide(s, time.Unix(0, 0).Add(after))
						for _, o := range []*outcome{d.open, d.shut} {
							if o != nil && len(o.message) > maxMessage {
								t.Errorf("%d bytes, want at most %d: %s", len(o.message), maxMessage, o.message)
							}
						}
						if d.open == nil && d.shut == nil {
							t.Error("there is no message")
						}
					})
				}
			}
		}
	}
}

func TestTextsAreJoinedAsFarAsTheyFit(t *testing.T) {
	cases := map[string]struct {
		texts []string
		most  int
		want  string
	}{
		"none":                              {nil, 10, ""},
		"all":                               {[]string{"one", "two"}, 8, "one, two"},
		"what fits, with the rest counted":  {[]string{"one", "two", "three", "four"}, 20, "one, two, and 2 more"},
		"one that does not fit":             {[]string{"a long one"}, 8, "a lon..."},
		"one that does not fit, and others": {[]string{"quite a long one", "two"}, 20, "quite..., and 1 more"},
		"not more than a few":               {[]string{"1", "2", "3", "4", "5", "6", "7"}, 100, "1, 2, 3, 4, 5, and 2 more"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := joined(tc.texts, ", ", tc.most); got != tc.want || len(got) > tc.most {
				t.Errorf("joined = %q, want %q", got, tc.want)
			}
		})
	}
}
