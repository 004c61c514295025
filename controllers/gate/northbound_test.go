// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
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

// TestTheNorthboundDatabaseHoldsAGate runs index, ledger and hub together: both
// nodes have confirmed, and what kube-ovn-controller has yet to write holds the
// client.
func TestTheNorthboundDatabaseHoldsAGate(t *testing.T) {
	options := coverage.DefaultOptions()
	options.Expect.Northbound = hubv1.Northbound
	index := coverage.New(options)
	passing := &fakeBarrier{tickets: map[types.UID]bool{}, passed: map[types.UID]bool{}, quick: true}
	ledger := New(Options{
		Coverage: FromIndex(index), Barrier: passing, Teller: &quietTeller{}, Clock: clock.RealClock{}, Log: logr.Discard(),
		Metrics: NewMetrics(prometheus.NewRegistry()), ConditionType: v1alpha1.ConditionProgrammed,
	})
	certificate, roots := serverCertificate(t)
	sessions := hub.New(hub.Options{
		Reviewer: nodeTokens{}, Sink: ledger, Clock: clock.RealClock{}, Log: logr.Discard(), Address: "127.0.0.1:0",
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil },
	})
	ledger.SetHub(sessions)
	index.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", UID: "shop", ResourceVersion: "1"}})
	for _, name := range []string{"n1", "n2"} {
		index.SetNode(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "boot"}},
		})
		ledger.NodeChanged(name, "boot")
	}
	index.SetPolicy(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "allow", UID: "allow", ResourceVersion: "30", Generation: 1},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
				PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
			}}}},
		},
	})
	index.SetPod(runningPod("server", "n2", "10.0.2.1", "20"))
	client := runningPod("client", "n1", "10.0.1.1", "40")
	client.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
	index.SetPod(client)
	ledger.PodChanged(client)

	a, ok := index.Assignment("client")
	if want := []string{hubv1.Northbound, "n1", "n2"}; !ok || !cmp.Equal(a.Span, want) {
		t.Fatalf("span %v, want %v", a.Span, want)
	}
	start(t, ledger.Start, sessions.Start)
	for deadline := time.Now().Add(10 * time.Second); sessions.Listening() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hub does not listen")
		}
	}
	n1, n2, database := dial(t, sessions, roots, "n1"), dial(t, sessions, roots, "n2"), dial(t, sessions, roots, hubv1.Northbound)
	n1.confirm(n1.assigned())
	n2.confirm(n2.assigned())
	asked := database.assigned()
	if asked.GetOwnNode() || asked.GetSubject().GetUid() != "client" || asked.GetNorthboundConfig() != 0 {
		t.Errorf("the database is asked %v, want the client, not as its own node", asked)
	}
	database.report(&hubv1.Report{
		Uid: "client", Generation: asked.GetGeneration(), UnmetRequired: 1,
		Unmet: []*hubv1.Unmet{{Reason: "denied (to-lport: dropped by ACL shop/allow)"}},
	})
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		account, _, err := ledger.Account(t.Context(), types.NamespacedName{Namespace: "shop", Name: "client"})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(account.Nodes, func(n NodeAccount) bool { return n.Name == hubv1.Northbound })
		if i >= 0 && account.Nodes[i].Answered && account.Nodes[1].Confirmed && account.Nodes[2].Confirmed {
			if got := account.Nodes[i]; got.Confirmed || got.Own || got.Optional || len(got.Lacks) != 1 || got.Lacks[0].Flow.Validate() != nil {
				t.Errorf("%+v: want it not confirmed, with what it lacks", got)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the account stays %+v", account.Nodes)
		}
	}
	database.confirm(asked)
	released := n1.next(func(m *hubv1.HubMessage) bool { return m.GetRelease() != nil }).GetRelease()
	if !strings.HasPrefix(released.GetMessage(), "confirmed on 2/2 nodes and OVN's northbound database in ") {
		t.Errorf("released with %q", released.GetMessage())
	}
}

// quietTeller tells nobody.
type quietTeller struct{}

func (*quietTeller) Tell(Message)     {}
func (*quietTeller) Hush(types.UID)   {}
func (*quietTeller) Forget(types.UID) {}
