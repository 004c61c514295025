// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/hub"
)

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
	b.barrier.pass("p")
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
	older := &hubv1.Report{Uid: "p", Generation: b.hub.last["n7/p"], Confirmed: true}
	b.report("n1", true)
	b.step()
	b.demand("10.0.0.1", 6, 81, "n1", "n7")
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign p to n7 basis=6")
	b.ledger.Reported("n7", older)
	b.report("n1", true)
	b.step()
	b.wantSent()
	b.ledger.Reported("n9", &hubv1.Report{Uid: "p", Generation: b.hub.last["n7/p"], Confirmed: true}) // not asked
	b.ledger.Reported("n7", &hubv1.Report{Uid: "q", Generation: b.hub.last["n7/p"], Confirmed: true}) // another Pod
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
	b.wantTold("Waiting: waiting for n7: shop/allow (this namespace) does not admit 10.0.0.1 there yet")
	b.report("n7", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 3s")
	b.wantTold("")
}

func TestAFamilyThatANodeLeftOutIsTold(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	left := &hubv1.Report{Uid: "p", Generation: b.hub.last["n7/p"], Confirmed: true, Ipv6Unenforced: true}
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
	b.wantTold("Waiting: no agent is connected on n7")
	b.ledger.Connected("n7", hub.Hello{})
	b.step()
	b.wantSent()
	b.wantTold("Waiting: waiting for n7: its agent has not answered yet")
}

// Agents need not hear of a newer basis as long as it means the same: a replica
// that lags behind is right, too. The release carries the newest.
func TestUnchangedContentIsNotAssignedAgain(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n7", true)
	b.step()
	b.demand("10.0.0.1", 6, 80, "n1", "n7")
	b.step()
	b.wantSent()
	b.report("n1", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=6: Confirmed: confirmed on 2/2 nodes in 0s")
}

// The agent on the Pod's node must refuse the release of a replica that has
// not seen what changed the other node's part.
func TestThePodsOwnNodeIsToldOfWhatChangesElsewhere(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.report("n7", true)
	b.demandFor("p", "shop", "10.0.0.1", 6, map[string][]expect.Expectation{
		"n1": {allow(shopAllow, "10.0.0.1", 80)},
		"n7": {allow(shopAllow, "10.0.0.1", 81)},
	})
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign p to n7 basis=6")
}

func TestANodeWhosePartHasNotChangedIsNotAskedAgain(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n7", true)
	b.demand("10.0.0.1", 6, 80, "n1", "n7", "n8")
	b.step()
	b.wantSent("assign p to n1 own basis=6", "assign p to n8 basis=6")
	b.report("n1", true)
	b.report("n8", true)
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=6: Confirmed: confirmed on 3/3 nodes in 0s")
}

func TestNothingIsComputedBehindTheBarrierNorForAReleaseIfTheAssignmentStands(t *testing.T) {
	b := newBench(t)
	b.demand("10.0.0.1", 5, 80, "n1")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.step()
	b.report("n1", true)
	b.step()
	b.wantSent("assign p to n1 own basis=5")
	// The basis advances, and the content stands.
	b.coverage.assignments["p"].Basis = &hubv1.Basis{NetworkPolicies: 9}
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.barrier.pass("p")
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=9: Confirmed: confirmed on 1/1 node in 0s")
	if b.coverage.computed != 1 {
		t.Errorf("%d computations, want 1", b.coverage.computed)
	}
}

// It is to be computed again when the barrier passes, and then need not be.
func TestTheBarrierCountsForWhatTurnsOutToStand(t *testing.T) {
	b := newBench(t)
	b.demand("10.0.0.1", 5, 80, "n1")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.step()
	b.report("n1", true)
	b.step()
	b.wantSent("assign p to n1 own basis=5")
	b.coverage.affected = []types.UID{"p"}
	b.barrier.pass("p")
	b.step()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 1/1 node in 0s")
	if b.coverage.computed != 1 {
		t.Errorf("%d computations, want 1", b.coverage.computed)
	}
}

// A Pod that has waited for long is not released behind LISTs that are as old.
func TestAReleaseIsNotBehindOldLists(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.clock.Step(listedWithin + time.Second)
	b.report("n7", true)
	b.settled()
	b.wantSent()
	b.wantTold("")
	if !b.barrier.tickets["p"] || b.barrier.Passed("p") {
		t.Fatal("the barrier was not asked anew")
	}
	// The watch brings what those LISTs have and the first had not.
	b.demand("10.0.0.1", 6, 81, "n1", "n7")
	b.barrier.pass("p")
	b.settled()
	b.wantSent("assign p to n1 own basis=6", "assign p to n7 basis=6")
	b.report("n1", true)
	b.report("n7", true)
	b.settled()
	b.wantSent("release p at 10.0.0.1 on n1 basis=6: Confirmed: confirmed on 2/2 nodes in 6s")
}

// LISTs that take longer than they may be old do not have a Pod wait for ever.
func TestSlowListsAreNewWhenTheyCome(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.report("n7", true)
	b.clock.Step(listedWithin + time.Second)
	b.settled()
	b.wantSent()
	b.clock.Step(2 * listedWithin)
	b.settled()
	b.wantSent()
	b.barrier.pass("p")
	b.settled()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 16s")
	// Nor does a release that is sent again because the agent dropped it, soon
	// after.
	b.clock.Step(resendMost)
	b.settled()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 2/2 nodes in 21s")
}

// The address of a Pod comes late, as with a slow network plugin: the LISTs are
// wanted while its nodes are asked.
func TestALateAddressIsBehindListsOfItsTime(t *testing.T) {
	b := newBench(t)
	b.ledger.PodChanged(b.pod(nil))
	b.barrier.pass("p")
	b.settled()
	b.clock.Step(time.Minute)
	b.demand("10.0.0.1", 5, 80, "n1")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.1"))
	b.settled()
	b.wantSent("assign p to n1 own basis=5")
	if b.barrier.Passed("p") {
		t.Fatal("the LISTs are a minute old")
	}
	b.report("n1", true)
	b.settled()
	b.wantSent()
	b.barrier.pass("p")
	b.settled()
	b.wantSent("release p at 10.0.0.1 on n1 basis=5: Confirmed: confirmed on 1/1 node in 0s")
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

func TestWhatIsNotKnownYetIsComputedBeforeWhatHasChanged(t *testing.T) {
	b := newBench(t)
	const others = 100
	for i := range others {
		uid := fmt.Sprintf("old-%d", i)
		b.demandFor(uid, "shop", "10.1.1.1", 5, map[string][]expect.Expectation{"n1": nil})
		b.ledger.PodChanged(b.named(uid, "shop", "10.1.1.1"))
	}
	b.settled()
	for i := range others {
		b.demandFor(fmt.Sprintf("old-%d", i), "shop", "10.1.1.1", 6, map[string][]expect.Expectation{"n1": nil})
	}
	var order []types.UID
	b.coverage.compute = func(uid types.UID) { order = append(order, uid) }
	b.ledger.PodChanged(b.named("new", "shop", "10.1.1.2"))
	b.settled()
	if len(order) != others+1 || order[0] != "new" {
		t.Errorf("%d were computed, %s first; want all, the new one first", len(order), order[0])
	}
}

func TestANodeThatIsGoneIsForgotten(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.ledger.Disconnected("n7")
	b.ledger.NodeChanged("n7", "boot")
	b.ledger.NodeDeleted("n7")
	known := func() bool {
		b.clock.Step(inspectInterval)
		b.settled()
		_, known := b.ledger.nodes["n7"]
		return known
	}
	if !known() {
		t.Error("a node that a Pod waits for is forgotten")
	}
	b.ledger.PodDeleted("p")
	if known() {
		t.Error("a node that is gone and that nothing refers to is remembered")
	}
	if _, known := b.ledger.nodes["n1"]; !known {
		t.Error("a node that is there is forgotten")
	}
}

// Whatever happened, nothing is counted for a Pod that is gone.
func TestNothingIsLeftOfPodsThatAreGone(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n7", true)
	b.report("n7", false)
	b.ledger.Disconnected("n1")
	b.demand("10.0.0.1", 6, 80, "n1", "n7", "n8")
	b.settled()
	b.clock.Step(quiet)
	b.settled()
	b.ledger.PodDeleted("p")
	b.settled()
	l := b.ledger
	if len(l.entries)+len(l.shut)+len(l.deaf)+len(l.names)+l.pending > 0 || !l.stale.Empty() || !l.touched.Empty() || !l.timers.Next().IsZero() {
		t.Error("the ledger keeps a Pod that is gone")
	}
	for name, n := range l.nodes {
		if len(n.residents)+len(n.inquiries)+len(n.waits) > 0 {
			t.Errorf("node %s keeps a Pod that is gone", name)
		}
	}
}
