// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
)

func TestWordsAboutTheNorthboundDatabase(t *testing.T) {
	t0 := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	own := spanNode{name: "n1", own: true, connected: true, confirmed: true}
	far := spanNode{name: "n7", connected: true, confirmed: true}
	database := spanNode{name: hubv1.Northbound, connected: true}
	with := func(n spanNode, change func(*spanNode)) spanNode { change(&n); return n }
	const lacks = "db/allow-jobs (this namespace) does not admit 10.1.2.3 there yet"
	cases := map[string]struct {
		span  []spanNode
		after time.Duration
		// open is true if the gate is to be opened with what is wanted.
		open bool
		want outcome
	}{
		"confirmed by all, it is named beside the nodes": {
			span: []spanNode{with(database, func(n *spanNode) { n.confirmed = true }), own, far}, after: 412 * time.Millisecond,
			open: true, want: outcome{v1alpha1.ReasonConfirmed, "confirmed on 2/2 nodes and OVN's northbound database in 412ms"},
		},
		"it is awaited, and what it lacks is said": {
			span: []spanNode{with(database, func(n *spanNode) { n.answered, n.awaits = true, lacks }), own}, after: 3 * time.Second,
			want: outcome{v1alpha1.ReasonWaiting, "waiting for OVN's northbound database (kube-ovn:northbound): " + lacks},
		},
		"it has not answered": {
			span: []spanNode{database, own}, after: 3 * time.Second,
			want: outcome{v1alpha1.ReasonWaiting, "waiting for OVN's northbound database (kube-ovn:northbound): its agent has not answered yet"},
		},
		"its agent is not connected": {
			span: []spanNode{with(database, func(n *spanNode) { n.connected = false }), own}, after: 3 * time.Second,
			want: outcome{v1alpha1.ReasonWaiting, "no agent is connected that sees OVN's northbound database (kube-ovn:northbound)"},
		},
		"missing at the timeout, the gate opens without it": {
			span: []spanNode{with(database, func(n *spanNode) { n.connected = false }), own}, after: time.Minute,
			open: true, want: outcome{v1alpha1.ReasonPartiallyConfirmed, "confirmed on 1/1 node within 1m0s; missing: kube-ovn:northbound"},
		},
		"it is no own node: without that nothing opens": {
			span: []spanNode{
				with(database, func(n *spanNode) { n.confirmed = true }),
				with(own, func(n *spanNode) { n.confirmed, n.connected = false, false }),
			},
			after: time.Minute,
			want:  outcome{v1alpha1.ReasonTimeout, "not confirmed within 1m0s: no agent is connected on n1"},
		},
		"it cannot be read: nobody waits, and it is said": {
			span: []spanNode{with(database, func(n *spanNode) { n.unseen = true }), own}, after: time.Second,
			open: true, want: outcome{v1alpha1.ReasonConfirmed, "confirmed on 1/1 node in 1s; not awaited: kube-ovn:northbound (it cannot be read)"},
		},
		"it is in quarantine: nobody waits, and it is said": {
			span: []spanNode{with(database, func(n *spanNode) { n.stalled = true }), own}, after: time.Second,
			open: true, want: outcome{v1alpha1.ReasonConfirmed, "confirmed on 1/1 node in 1s; not awaited: kube-ovn:northbound (stalled)"},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			d := decide(state{
				addressed: t0, timeout: time.Minute, onTimeout: v1alpha1.OnTimeoutStart, current: true, span: tc.span,
			}, t0.Add(tc.after))
			got := d.shut
			if tc.open {
				got = d.open
			}
			if diff := cmp.Diff(&tc.want, got, cmp.AllowUnexported(outcome{})); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAPodWaitsForTheNorthboundDatabaseAsForAForeignNode(t *testing.T) {
	b := newBench(t)
	b.ledger.Connected(hubv1.Northbound, hub.Hello{})
	b.demand("10.0.0.1", 5, 80, "n1", hubv1.Northbound)
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.step()
	b.barrier.pass("p")
	b.settled()
	b.wantSent("assign p to "+hubv1.Northbound+" basis=5", "assign p to n1 own basis=5")

	b.report("n1", true)
	b.report(hubv1.Northbound, false)
	b.settled()
	b.wantSent()
	b.clock.Step(quiet)
	b.settled()
	b.wantTold(v1alpha1.ReasonWaiting + ": waiting for OVN's northbound database (kube-ovn:northbound): " +
		"shop/allow (this namespace) does not admit 10.0.0.1 there yet")

	b.report(hubv1.Northbound, true)
	b.settled()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 1/1 node and OVN's northbound database in 3s")

	// What it confirmed counts no more when it goes.
	b.ledger.Disconnected(hubv1.Northbound)
	b.clock.Step(resendMost)
	b.settled()
	b.wantTold(v1alpha1.ReasonWaiting + ": no agent is connected that sees OVN's northbound database (kube-ovn:northbound)")
}

func TestTheNorthboundDatabaseStallsAsANodeDoes(t *testing.T) {
	b := newBench(t)
	recorder := &fakeRecorder{}
	b.ledger.warnings = NewWarnings(recorder, b.clock)
	b.ledger.warnings.lead(true)
	b.ledger.northbound = corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Namespace: "policygate-system", Name: "policygate-northbound"}
	b.ledger.Connected(hubv1.Northbound, hub.Hello{})
	needs := func(ip string) map[string][]expect.Expectation {
		one := []expect.Expectation{allow(shopAllow, ip, 80)}
		return map[string][]expect.Expectation{"n1": one, hubv1.Northbound: one}
	}
	b.start("p", "shop", "10.0.0.1", needs("10.0.0.1"))
	b.start("q", "other", "10.0.0.2", needs("10.0.0.2"))
	for _, uid := range []string{"p", "q"} {
		b.answer(uid, "n1", confirms)
	}
	b.settled()
	for range DefaultStalledAfter/inspectInterval + 1 {
		b.clock.Step(inspectInterval)
		b.settled()
	}
	if n := b.ledger.nodes[hubv1.Northbound]; !n.stalled {
		t.Fatal("it confirmed nothing for long and is not in quarantine")
	}
	w, _ := b.ledger.warnings.next(b.clock.Now())
	want := Warning{
		Object: b.ledger.northbound, Reason: ReasonStalled,
		Note: "OVN's northbound database has confirmed nothing for 2m0s although Pods waited for it: until it confirms one, Pods may start without it",
	}
	if diff := cmp.Diff(&want, w); diff != "" {
		t.Errorf("warning (-want +got):\n%s", diff)
	}
	// A third Pod does not wait for it, and its first confirmation ends that.
	b.hub.sent = nil
	b.start("r", "third", "10.0.0.3", needs("10.0.0.3"))
	b.answer("r", "n1", confirms)
	b.settled()
	b.wantSent("assign r to "+hubv1.Northbound+" basis=5", "assign r to n1 own basis=5",
		"release r at 10.0.0.3 on n1 basis=5: Confirmed: confirmed on 1/1 node in 0s; not awaited: kube-ovn:northbound (stalled)")
	b.answer("q", hubv1.Northbound, confirms)
	b.settled()
	if n := b.ledger.nodes[hubv1.Northbound]; n.stalls() {
		t.Error("it has confirmed and is in quarantine")
	}

	b.ledger.Changed(hubv1.Northbound, hub.State{Unsupported: "connection refused"})
	b.settled()
	b.clock.Step(time.Second)
	w, _ = b.ledger.warnings.next(b.clock.Now())
	want = Warning{
		Object: b.ledger.northbound, Reason: ReasonUnsupported,
		Note: "the agent of OVN's northbound database cannot read it, so nothing is confirmed of it: connection refused",
	}
	if diff := cmp.Diff(&want, w); diff != "" {
		t.Errorf("warning (-want +got):\n%s", diff)
	}
}
