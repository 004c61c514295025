// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
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
	"github.com/policygate/policygate/controllers/hub"
)

// fakeCoverage answers what the test says.
type fakeCoverage struct {
	assignments map[types.UID]*Assignment
	affected    []types.UID
	computed    int
	// standing has the present bases of assignments that still stand.
	standing  map[types.UID]*hubv1.Basis
	suspected []types.UID
}

func (c *fakeCoverage) Wake() <-chan struct{} { return nil }

func (c *fakeCoverage) Affected() []types.UID {
	a := c.affected
	c.affected = nil
	return a
}

func (c *fakeCoverage) Assignment(uid types.UID) *Assignment {
	c.computed++
	return c.assignments[uid]
}

func (c *fakeCoverage) Standing(uid types.UID) (*hubv1.Basis, bool) {
	b, ok := c.standing[uid]
	return b, ok
}

func (c *fakeCoverage) Suspect(uid types.UID) { c.suspected = append(c.suspected, uid) }

// fakeBarrier passes whom the test says.
type fakeBarrier struct {
	tickets, passed map[types.UID]bool
}

func (b *fakeBarrier) Ticket(uid types.UID)      { b.tickets[uid] = true }
func (b *fakeBarrier) Forget(uid types.UID)      { delete(b.tickets, uid); delete(b.passed, uid) }
func (b *fakeBarrier) Passed(uid types.UID) bool { return b.tickets[uid] && b.passed[uid] }
func (b *fakeBarrier) Wake() <-chan struct{}     { return nil }

// fakeHub records what is sent.
type fakeHub struct {
	sent []string
	// last is the generation that each node was told last.
	last map[string]uint64
}

func (h *fakeHub) Assign(node string, a *hubv1.Assign, _ hub.Description) {
	own := ""
	if a.GetOwnNode() {
		own = " own"
	}
	h.sent = append(h.sent, fmt.Sprintf("assign %s to %s%s basis=%d", a.GetSubject().GetUid(), node, own, a.GetBasis().GetNetworkPolicies()))
	h.last[node] = a.GetGeneration()
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
	t        *testing.T
	ledger   *Ledger
	coverage *fakeCoverage
	barrier  *fakeBarrier
	hub      *fakeHub
	teller   fakeTeller
	clock    *clocktesting.FakeClock
	version  int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		t:        t,
		coverage: &fakeCoverage{assignments: map[types.UID]*Assignment{}},
		barrier:  &fakeBarrier{tickets: map[types.UID]bool{}, passed: map[types.UID]bool{}},
		hub:      &fakeHub{last: map[string]uint64{}},
		teller:   fakeTeller{},
		clock:    clocktesting.NewFakeClock(time.Unix(1000, 0)),
		version:  100,
	}
	b.ledger = New(Options{
		Coverage: b.coverage, Barrier: b.barrier, Teller: b.teller, Clock: b.clock, Log: logr.Discard(),
		Metrics: NewMetrics(prometheus.NewRegistry()), ConditionType: v1alpha1.ConditionProgrammed,
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
		})
	}
}

// demand says what the Pod at that address needs of nodes.
func (b *bench) demand(ip string, basis uint64, port uint16, nodes ...string) {
	a := &Assignment{
		Subject: &hubv1.Subject{Uid: "p", Namespace: "shop", Name: "job", Ips: []string{ip}},
		Basis:   &hubv1.Basis{NetworkPolicies: basis},
		Span:    nodes,
		Demands: map[string]Demand{},
	}
	for _, n := range nodes {
		a.Demands[n] = Demand{
			Expectations: []*hubv1.Expectation{{
				Flow: hubv1.FlowOf(flow.Flow{
					Protocol: flow.TCP, Src: netip.MustParseAddr(ip), Dst: netip.MustParseAddr("10.9.9.9"), Port: port,
				}),
				Want: hubv1.Answer_ANSWER_ALLOWED,
			}},
			Whys:     []string{"shop/allow ingress[0]"},
			Policies: []types.NamespacedName{{Namespace: "shop", Name: "allow"}},
		}
	}
	b.coverage.assignments["p"] = a
	b.coverage.affected = append(b.coverage.affected, "p")
}

func (b *bench) step() { b.ledger.step() }

// report answers the assignment that the node was told last.
func (b *bench) report(node string, confirmed bool) {
	r := &hubv1.Report{Uid: "p", Generation: b.hub.last[node], Confirmed: confirmed}
	if !confirmed {
		r.UnmetRequired, r.Unmet = 1, []*hubv1.Unmet{{Reason: "chain KUBE-POD-FW-X: no rule"}}
	}
	b.ledger.Reported(node, r)
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
	b.barrier.passed["p"] = true
	b.demand("10.0.0.1", 5, 80, "n1", "n7")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.step()
	b.wantSent("assign p to n1 own basis=5", "assign p to n7 basis=5")
}

func TestAGateOpensWhenEveryNodeHasConfirmed(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.step()
	b.wantSent()
	b.clock.Step(412 * time.Millisecond)
	b.report("n7", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 412ms")
	b.ledger.PodChanged(b.pod(opened("10.0.0.1", "boot-1"), "10.0.0.1"))
	b.step()
	b.wantSent("withdraw p from n1", "withdraw p from n7")
	if b.barrier.tickets["p"] {
		t.Error("an open Pod still has a ticket")
	}
}

func TestTheBarrierBeginsBeforeThereIsAnAddress(t *testing.T) {
	b := newBench(t)
	b.ledger.PodChanged(b.pod(nil))
	b.step()
	if !b.barrier.tickets["p"] {
		t.Error("a gated Pod without an address has no ticket")
	}
	b.wantSent()
}

func TestExpectationsAreComputedAgainBehindTheBarrier(t *testing.T) {
	b := newBench(t)
	b.demand("10.0.0.1", 5, 80, "n1")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.step()
	b.wantSent("assign p to n1 own basis=5")
	b.report("n1", true)
	b.step()
	b.wantSent() // not before the barrier

	// A policy that the index lacked names n7, too.
	b.demand("10.0.0.1", 6, 80, "n1", "n7")
	b.coverage.affected = nil
	b.barrier.passed["p"] = true
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign p to n7 basis=6")
	b.report("n1", true)
	b.step()
	b.wantSent()
	b.report("n7", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=6: Confirmed: confirmed on 2/2 nodes in 0s")
}

func TestOnlyAnswersToTheLatestAssignmentCount(t *testing.T) {
	b := newBench(t)
	b.waiting()
	older := &hubv1.Report{Uid: "p", Generation: b.hub.last["n7"], Confirmed: true}
	b.report("n1", true)
	b.step()
	b.demand("10.0.0.1", 6, 81, "n1", "n7")
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign p to n7 basis=6")
	b.ledger.Reported("n7", older)
	b.report("n1", true)
	b.step()
	b.wantSent()
	b.ledger.Reported("n9", &hubv1.Report{Uid: "p", Generation: b.hub.last["n7"], Confirmed: true}) // not asked
	b.ledger.Reported("n7", &hubv1.Report{Uid: "q", Generation: b.hub.last["n7"], Confirmed: true}) // another Pod
	b.step()
	b.wantSent()
}

func TestARetractionCounts(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n7", true)
	b.step()
	b.report("n7", false)
	b.report("n1", true)
	b.step()
	b.wantSent()
	b.clock.Step(quiet)
	b.step()
	b.wantTold("Waiting: waiting for n7: shop/allow does not admit 10.0.0.1 there yet")
	b.report("n7", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 3s")
	b.wantTold("")
}

func TestAFamilyThatANodeLeftOutIsTold(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	left := &hubv1.Report{Uid: "p", Generation: b.hub.last["n7"], Confirmed: true, Ipv6Unenforced: true}
	b.ledger.Reported("n7", left)
	b.clock.Step(resendFirst)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 500ms; v6 not enforced on n7")
	// The family is enforced after all.
	b.report("n7", true)
	b.clock.Step(resendFirst)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 1s")
}

func TestANodeThatLostItsSessionConfirmsNothing(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n7", true)
	b.step()
	b.ledger.Disconnected("n7")
	b.report("n1", true)
	b.clock.Step(quiet)
	b.step()
	b.wantSent()
	b.wantTold("Waiting: no agent connected on n7")
	b.ledger.Connected("n7", hub.Hello{})
	b.step()
	b.wantSent()
	b.wantTold("Waiting: waiting for n7")
}

func TestUnchangedContentIsAssignedAgainOnlyForANewerBasis(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.demand("10.0.0.1", 5, 80, "n1", "n7")
	b.step()
	b.wantSent()
	b.demand("10.0.0.1", 6, 80, "n1", "n7")
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign p to n7 basis=6")
}

func TestANodeThatLeavesTheSpanIsNotAwaited(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.demand("10.0.0.1", 6, 80, "n1")
	b.step()
	b.wantSent("assign p to n1 own basis=6", "withdraw p from n7")
	b.report("n1", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=6: Confirmed: confirmed on 1/1 node in 0s")
}

func TestAReleaseThatThePodDoesNotShowIsSentAgainWithTheNewestBasis(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.report("n7", true)
	b.step()
	const release = "release p at 10.0.0.1 on n1 basis=%d: Confirmed: confirmed on 2/2 nodes in %s"
	b.wantSent(fmt.Sprintf(release, 5, "0s"))
	b.step()
	b.wantSent()
	b.demand("10.0.0.1", 9, 80, "n1", "n7")
	b.coverage.affected = nil
	b.clock.Step(resendFirst)
	b.step()
	b.wantSent(fmt.Sprintf(release, 9, "500ms"))
	// An agent retracts and confirms again: whatever it dropped the release
	// for may be over.
	b.report("n1", false)
	b.report("n1", true)
	b.step()
	b.wantSent(fmt.Sprintf(release, 9, "500ms"))
}

// The kubelet can miss that the annotation changed; the hold's status shows it.
func TestAKubeletThatMissedAnOpenGateIsWoken(t *testing.T) {
	b := newBench(t)
	b.ledger.NodeChanged("n1", "boot-1")
	holding := func(p *corev1.Pod) {
		opened("10.0.0.1", "boot-1")(p)
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
			Name:  v1alpha1.HoldContainerName,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		}}
	}
	b.ledger.PodChanged(b.pod(holding, "10.0.0.1"))
	b.step()
	b.clock.Step(deafFirst - time.Millisecond)
	b.step()
	b.wantSent()
	b.clock.Step(time.Millisecond)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 again 1: Confirmed: ")
	b.ledger.PodChanged(b.pod(holding, "10.0.0.1"))
	b.clock.Step(2*deafFirst - time.Millisecond)
	b.step()
	b.wantSent()
	b.clock.Step(time.Millisecond)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 again 2: Confirmed: ")
	// It has noticed.
	b.ledger.PodChanged(b.pod(opened("10.0.0.1", "boot-1"), "10.0.0.1"))
	b.clock.Step(time.Minute)
	b.step()
	b.wantSent()
}

func TestAnotherAddressShutsTheGate(t *testing.T) {
	b := newBench(t)
	b.ledger.PodChanged(b.pod(opened("10.0.0.1", "boot-1"), "10.0.0.1"))
	b.step()
	b.wantSent()
	if b.coverage.computed != 0 {
		t.Error("an open gate was computed")
	}

	b.demand("10.0.0.2", 6, 80, "n1")
	b.ledger.PodChanged(b.pod(opened("10.0.0.1", "boot-1"), "10.0.0.2"))
	b.step()
	b.wantSent("assign p to n1 own basis=6")
	b.wantTold("AddressChanged: the Pod's addresses or its node's boot changed after the gate had opened: waiting for n1")
	b.report("n1", true)
	b.step()
	b.wantSent() // not behind a barrier that is younger than the address
	b.barrier.passed["p"] = true
	b.step()
	b.wantSent("release p at 10.0.0.2 on n1 basis=6: Confirmed: confirmed on 1/1 node in 0s")
}

// The kubelet shows the new address before the new hold runs: counted from the
// former hold, the timeout would be over at once and open the gate in part.
func TestTheTimeoutDoesNotCountFromTheHoldOfAFormerAddress(t *testing.T) {
	b := newBench(t)
	long := metav1.NewTime(b.clock.Now().Add(-time.Hour))
	former := func(p *corev1.Pod) {
		opened("10.0.0.1", "boot-1")(p)
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
			Name:  v1alpha1.HoldContainerName,
			State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: long}},
		}}
	}
	b.ledger.PodChanged(b.pod(former, "10.0.0.1"))
	b.step()
	b.demand("10.0.0.2", 6, 80, "n1", "n7")
	b.ledger.PodChanged(b.pod(former, "10.0.0.2"))
	b.step()
	b.barrier.passed["p"] = true
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign p to n7 basis=6")
	b.report("n1", true)
	b.step()
	b.wantSent()

	// The new hold's start counts.
	b.clock.Step(10 * time.Second)
	started := metav1.NewTime(b.clock.Now())
	b.ledger.PodChanged(b.pod(func(p *corev1.Pod) {
		former(p)
		p.Status.InitContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}}
	}, "10.0.0.2"))
	b.step()
	b.clock.Step(v1alpha1.DefaultTimeout - time.Second)
	b.step()
	b.wantSent()
	b.clock.Step(time.Second)
	b.step()
	b.wantSent("release p at 10.0.0.2 on n1 basis=6: PartiallyConfirmed: confirmed on 1/2 nodes within 1m0s; missing: n7")
}

func TestAnotherAddressWhileWaitingStartsAnew(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.report("n7", true)
	b.clock.Step(time.Second)
	b.demand("10.0.0.2", 6, 80, "n1")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.2"))
	b.step()
	b.wantSent("assign p to n1 own basis=6", "withdraw p from n7")
	b.report("n1", true)
	b.step()
	b.wantSent()
	b.barrier.passed["p"] = true
	b.step()
	b.wantSent("release p at 10.0.0.2 on n1 basis=6: Confirmed: confirmed on 1/1 node in 0s")
}

func TestAnAssignmentForOtherAddressesThanTheLedgerKnowsIsNotHandedOut(t *testing.T) {
	b := newBench(t)
	b.barrier.passed["p"] = true
	b.demand("10.0.0.2", 6, 80, "n1")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.step()
	b.wantSent()
}

func TestARebootShutsTheGate(t *testing.T) {
	b := newBench(t)
	b.ledger.PodChanged(b.pod(opened("10.0.0.1", "boot-1"), "10.0.0.1"))
	b.demand("10.0.0.1", 6, 80, "n1")
	b.step()
	b.wantSent()
	b.ledger.NodeChanged("n1", "boot-2")
	b.step()
	b.wantSent("assign p to n1 own basis=6")
	if !strings.HasPrefix(b.teller["p"], "AddressChanged: ") {
		t.Errorf("told %q, want AddressChanged", b.teller["p"])
	}
}

func TestAPodThatIsGoneIsWithdrawn(t *testing.T) {
	cases := map[string]func(b *bench){
		"deleted": func(b *bench) { b.ledger.PodDeleted("p") },
		"finished": func(b *bench) {
			b.ledger.PodChanged(b.pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "10.0.0.1"))
		},
		"a resourceVersion that is no number": func(b *bench) {
			b.ledger.PodChanged(b.pod(func(p *corev1.Pod) { p.ResourceVersion = "x" }, "10.0.0.1"))
		},
	}
	for name, end := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.waiting()
			end(b)
			b.step()
			b.wantSent("withdraw p from n1", "withdraw p from n7")
			b.report("n1", true)
			b.report("n7", true)
			b.step()
			b.wantSent()
		})
	}
}

func TestAStalledNodeBindsOnlyItsOwnPods(t *testing.T) {
	b := newBench(t)
	b.waiting()
	annotated := b.pod(func(p *corev1.Pod) { p.Annotations[v1alpha1.KeyTimeout] = "10m" }, "10.0.0.1")
	b.ledger.PodChanged(annotated)
	b.report("n1", true)
	b.step()
	b.hub.sent = nil
	for range int(stallAfter/inspectInterval) + 2 {
		b.clock.Step(inspectInterval)
		b.report("n1", true)
		b.step()
	}
	if len(b.hub.sent) == 0 || !strings.Contains(b.hub.sent[0], "not awaited: n7 (stalled)") {
		t.Fatalf("sent %q, want a release that does not await n7", b.hub.sent)
	}
	b.report("n7", true)
	b.step()
	if b.ledger.nodes["n7"].stalled {
		t.Error("n7 is stalled though it has confirmed")
	}
}

func TestABurstDoesNotDelayAnUnrelatedPod(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.step()
	for i := range 5 * computeBatch {
		uid := types.UID(fmt.Sprintf("burst-%d", i))
		b.ledger.PodChanged(b.pod(func(p *corev1.Pod) { p.UID = uid }, "10.0.1.1"))
	}
	b.report("n7", true)
	before := b.coverage.computed
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 0s")
	if computed := b.coverage.computed - before; computed > computeBatch+1 {
		t.Errorf("%d assignments were computed before the release, want at most %d", computed, computeBatch+1)
	}
}

func TestUngatedPodsAreIgnored(t *testing.T) {
	b := newBench(t)
	b.demand("10.0.0.1", 5, 80, "n1")
	b.ledger.PodChanged(b.pod(func(p *corev1.Pod) { p.Spec.ReadinessGates = nil }, "10.0.0.1"))
	b.step()
	b.wantSent()
	if len(b.ledger.entries) != 0 || b.barrier.tickets["p"] {
		t.Error("an ungated Pod has an entry")
	}
}
