// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
)

// fakeCoverage answers what the test says.
type fakeCoverage struct {
	assignments map[types.UID]*Assignment
	affected    []types.UID
	// last is what was computed last: it stands until the test says otherwise.
	last     map[types.UID]*Assignment
	computed int
	// compute, if not nil, is called for each computation.
	compute   func(types.UID)
	suspected []types.UID
	reached   map[string]bool
}

func (c *fakeCoverage) Wake() <-chan struct{} { return nil }

func (c *fakeCoverage) Affected() []types.UID {
	a := c.affected
	c.affected = nil
	return a
}

func (c *fakeCoverage) Assignment(uid types.UID) (*Assignment, error) {
	c.computed++
	if c.compute != nil {
		c.compute(uid)
	}
	c.last[uid] = c.assignments[uid]
	return c.assignments[uid], nil
}

func (c *fakeCoverage) Standing(uid types.UID) (*hubv1.Basis, bool) {
	last, ok := c.last[uid]
	if !ok || last == nil || last != c.assignments[uid] {
		return nil, false
	}
	return last.Basis, true
}

func (c *fakeCoverage) Reach(node string, reached bool) {
	if c.reached == nil {
		c.reached = map[string]bool{}
	}
	c.reached[node] = reached
}

func (c *fakeCoverage) Suspect(uid types.UID) { c.suspected = append(c.suspected, uid) }

// fakeBarrier passes whom the test says, and everybody at once if it is quick.
type fakeBarrier struct {
	quick           bool
	tickets, passed map[types.UID]bool
	fresh           []types.UID
}

func (b *fakeBarrier) Ticket(uid types.UID) {
	b.tickets[uid] = true
	if b.quick {
		b.pass(uid)
	}
}

func (b *fakeBarrier) Forget(uid types.UID)      { delete(b.tickets, uid); delete(b.passed, uid) }
func (b *fakeBarrier) Passed(uid types.UID) bool { return b.tickets[uid] && b.passed[uid] }
func (b *fakeBarrier) Wake() <-chan struct{}     { return nil }

func (b *fakeBarrier) TakePassed() []types.UID {
	fresh := b.fresh
	b.fresh = nil
	return fresh
}

// pass passes the Pod.
func (b *fakeBarrier) pass(uid types.UID) {
	b.passed[uid] = true
	b.fresh = append(b.fresh, uid)
}

// fakeHub records what is sent.
type fakeHub struct {
	sent []string
	// last is the generation that each node was told last, by node and Pod.
	last map[string]uint64
}

func (h *fakeHub) Assign(node string, a *hubv1.Assign, _ hub.Description) {
	own, excused := "", ""
	if a.GetOwnNode() {
		own = " own"
	}
	if len(a.GetExcused()) > 0 {
		excused = fmt.Sprint(" excused=", a.GetExcused())
	}
	uid := a.GetSubject().GetUid()
	h.sent = append(h.sent, fmt.Sprintf("assign %s to %s%s basis=%d%s", uid, node, own, a.GetBasis().GetNetworkPolicies(), excused))
	h.last[node+"/"+uid] = a.GetGeneration()
}

func (h *fakeHub) Withdraw(node, uid string) {
	h.sent = append(h.sent, fmt.Sprintf("withdraw %s from %s", uid, node))
}

func (h *fakeHub) Release(node string, r *hubv1.Release) bool {
	what := fmt.Sprintf("basis=%d", r.GetBasis().GetNetworkPolicies())
	if r.GetAgain() > 0 {
		what = fmt.Sprintf("again %d", r.GetAgain())
	}
	h.sent = append(h.sent, fmt.Sprintf("release %s at %s on %s %s: %s: %s", r.GetSubject().GetUid(),
		strings.Join(r.GetSubject().GetIps(), ","), node, what, r.GetReason(), r.GetMessage()))
	return true
}

// fakeTeller remembers what is to be told.
type fakeTeller map[types.UID]string

func (t fakeTeller) Tell(m Message)       { t[m.UID] = m.Reason + ": " + m.Text }
func (t fakeTeller) Hush(uid types.UID)   { delete(t, uid) }
func (t fakeTeller) Forget(uid types.UID) { delete(t, uid) }

// bench is a ledger with a Pod "p" that runs on n1 and must be confirmed on n1
// and n7.
type bench struct {
	t        testing.TB
	ledger   *Ledger
	coverage *fakeCoverage
	barrier  *fakeBarrier
	hub      *fakeHub
	teller   fakeTeller
	clock    *clocktesting.FakeClock
	registry *prometheus.Registry
	demands  *demand.Table
	version  int
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{
		t:        t,
		coverage: &fakeCoverage{assignments: map[types.UID]*Assignment{}, last: map[types.UID]*Assignment{}},
		barrier:  &fakeBarrier{tickets: map[types.UID]bool{}, passed: map[types.UID]bool{}},
		hub:      &fakeHub{last: map[string]uint64{}},
		teller:   fakeTeller{},
		clock:    clocktesting.NewFakeClock(time.Unix(1000, 0)),
		registry: prometheus.NewRegistry(),
		demands:  demand.NewTable(),
		version:  100,
	}
	b.ledger = New(Options{
		Coverage: b.coverage, Barrier: b.barrier, Teller: b.teller, Clock: b.clock, Log: logr.Discard(),
		Metrics: NewMetrics(b.registry), ConditionType: v1alpha1.ConditionProgrammed,
	})
	b.ledger.SetHub(b.hub)
	b.ledger.NodeChanged("n1", "boot-1")
	for _, n := range []string{"n1", "n7"} {
		b.ledger.Connected(n, hub.Hello{})
	}
	b.step()
	return b
}

// pod returns the Pod at these addresses, in a new version.
func (b *bench) pod(change func(*corev1.Pod), ips ...string) *corev1.Pod {
	b.version++
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			UID: "p", Namespace: "shop", Name: "job", ResourceVersion: fmt.Sprint(b.version),
			Annotations: map[string]string{},
		},
		Spec: corev1.PodSpec{
			NodeName:       "n1",
			ReadinessGates: []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}},
		},
	}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	if change != nil {
		change(p)
	}
	return p
}

// opened makes the Pod one whose gate was opened at that address and boot.
func opened(ip, boot string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		id, err := programmed.New(string(p.UID), []string{ip}, boot)
		if err != nil {
			panic(err)
		}
		p.Annotations[v1alpha1.KeyProgrammed] = id.String()
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
			Type: v1alpha1.ConditionProgrammed, Status: corev1.ConditionTrue, Reason: v1alpha1.ReasonConfirmed,
			// After every hold began of which the tests tell.
			LastTransitionTime: metav1.NewTime(time.Unix(2000, 0)),
		})
	}
}

// allow is what a rule demands: that src reaches a Pod that is older.
func allow(policy types.NamespacedName, src string, port uint16) expect.Expectation {
	return expect.Expectation{
		Flow: flow.Flow{
			Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("10.9.9.9"), Port: port,
		},
		Want: flow.Allowed, Policy: policy, Generation: 1, Why: policy.String() + " ingress[0]",
	}
}

var shopAllow = types.NamespacedName{Namespace: "shop", Name: "allow"} //nolint:gochecknoglobals // a constant

// demand says what the Pod at that address needs of nodes.
func (b *bench) demand(ip string, basis uint64, port uint16, nodes ...string) {
	perNode := map[string][]expect.Expectation{}
	for _, n := range nodes {
		perNode[n] = []expect.Expectation{allow(shopAllow, ip, port)}
	}
	b.demandFor("p", "shop", ip, basis, perNode)
}

// demandFor says what a Pod at that address needs of nodes.
func (b *bench) demandFor(uid, namespace, ip string, basis uint64, perNode map[string][]expect.Expectation) {
	a := &Assignment{
		Subject: &hubv1.Subject{Uid: uid, Namespace: namespace, Name: uid, Ips: []string{ip}},
		Basis:   &hubv1.Basis{NetworkPolicies: basis},
		Span:    slices.Sorted(maps.Keys(perNode)),
		Demands: map[string]demand.Demand{},
	}
	for n, expectations := range perNode {
		d, err := b.demands.Of(expectations, []netip.Addr{netip.MustParseAddr(ip)})
		if err != nil {
			b.t.Fatal(err)
		}
		a.Demands[n] = d
	}
	b.coverage.assignments[types.UID(uid)] = a
	b.coverage.affected = append(b.coverage.affected, types.UID(uid))
}

func (b *bench) step() { b.ledger.step() }

// settled steps until there is nothing to do.
func (b *bench) settled() {
	for b.ledger.step() == 0 || len(b.barrier.fresh) > 0 {
	}
}

// report answers the assignment of p that the node was told last.
func (b *bench) report(node string, confirmed bool) {
	b.answer("p", node, func(r *hubv1.Report) {
		r.Confirmed = confirmed
		if !confirmed {
			r.UnmetRequired, r.Unmet = 1, []*hubv1.Unmet{{Reason: "denied (chain KUBE-POD-FW-X: no rule)"}}
		}
	})
}

// answer answers the assignment that the node was told last.
func (b *bench) answer(uid, node string, change func(*hubv1.Report)) {
	r := &hubv1.Report{Uid: uid, Generation: b.hub.last[node+"/"+uid]}
	change(r)
	b.ledger.Reported(node, r)
}

func confirms(r *hubv1.Report) { r.Confirmed = true }

// start brings a Pod of a namespace to where its nodes were asked, behind the
// barrier.
func (b *bench) start(uid, namespace, ip string, perNode map[string][]expect.Expectation) {
	b.t.Helper()
	b.demandFor(uid, namespace, ip, 5, perNode)
	b.ledger.PodChanged(b.named(uid, namespace, ip))
	b.ledger.step()
	b.barrier.pass(types.UID(uid))
	b.settled()
}

// named returns a Pod.
func (b *bench) named(uid, namespace, ip string) *corev1.Pod {
	return b.pod(func(p *corev1.Pod) { p.UID, p.Namespace, p.Name = types.UID(uid), namespace, uid }, ip)
}

// wantSent compares what was sent since the last call.
func (b *bench) wantSent(want ...string) {
	b.t.Helper()
	got := b.hub.sent
	b.hub.sent = nil
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Fatalf("sent (-want +got):\n%s", diff)
	}
}

func (b *bench) wantTold(want string) {
	b.t.Helper()
	if got := b.teller["p"]; got != want {
		b.t.Fatalf("told %q, want %q", got, want)
	}
}

// waiting brings the Pod to where both nodes were asked, behind the barrier.
func (b *bench) waiting() {
	b.t.Helper()
	b.ledger.PodChanged(b.pod(nil))
	b.step()
	b.barrier.pass("p")
	b.demand("10.0.0.1", 5, 80, "n1", "n7")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.step()
	b.wantSent("assign p to n1 own basis=5", "assign p to n7 basis=5")
}
