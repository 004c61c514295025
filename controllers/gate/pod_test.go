// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

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
	b.wantTold("AddressChanged: the Pod's sandbox, its addresses or its node's boot changed after the gate had opened: waiting for n1: its agent has not answered yet")
	b.report("n1", true)
	b.step()
	b.wantSent() // not behind a barrier that is younger than the address
	b.barrier.pass("p")
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
	b.barrier.pass("p")
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
	b.barrier.quick = true
	b.clock.Step(time.Second)
	b.settled()
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
	b.barrier.pass("p")
	b.step()
	b.wantSent("release p at 10.0.0.2 on n1 basis=6: Confirmed: confirmed on 1/1 node in 0s")
}

func TestAnAssignmentForOtherAddressesThanTheLedgerKnowsIsNotHandedOut(t *testing.T) {
	b := newBench(t)
	b.barrier.pass("p")
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

// openedAt makes the gate one that opened then, and by that again of its
// annotation.
func openedAt(at time.Time, again string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		opened("10.0.0.1", "boot-1")(p)
		p.Annotations[v1alpha1.KeyProgrammed] += again
		p.Status.Conditions[len(p.Status.Conditions)-1].LastTransitionTime = metav1.NewTime(at)
	}
}

// The sandbox is new and has the address of the former one, so the annotation
// still names the Pod as it is; the rules may be gone.
func TestANewHoldAtTheSameAddressShutsTheGate(t *testing.T) {
	t0 := time.Unix(1000, 0)
	const told = "AddressChanged: the Pod's sandbox, its addresses or its node's boot changed after the gate had opened: " +
		"waiting for n1: its agent has not answered yet"
	released := "release p at 10.0.0.1 on n1 basis=6: Confirmed: confirmed on 1/1 node in 0s"
	b := newBench(t)
	b.ledger.PodChanged(b.pod(both(holding(t0), openedAt(t0.Add(time.Second), "")), "10.0.0.1"))
	b.demand("10.0.0.1", 6, 80, "n1")
	b.step()
	b.wantSent()

	again := t0.Add(time.Minute)
	b.ledger.PodChanged(b.pod(both(holding(again), openedAt(t0.Add(time.Second), "")), "10.0.0.1"))
	b.step()
	b.wantSent("assign p to n1 own basis=6")
	b.wantTold(told)
	b.barrier.pass("p")
	b.report("n1", true)
	b.settled()
	b.wantSent(released)

	// The old opening still stands, in another version of the Pod.
	b.ledger.PodChanged(b.pod(both(holding(again), openedAt(t0.Add(time.Second), "")), "10.0.0.1"))
	b.clock.Step(resendFirst)
	b.settled()
	if len(b.hub.sent) != 1 || !strings.HasPrefix(b.hub.sent[0], "release p at 10.0.0.1 on n1") {
		t.Fatalf("sent %q, want another release", b.hub.sent)
	}
	b.hub.sent = nil

	// The node's clock was set back meanwhile.
	for name, at := range map[string]time.Time{"later": again.Add(time.Second), "earlier": t0.Add(-time.Hour)} {
		t.Run("opened "+name, func(t *testing.T) {
			b.ledger.PodChanged(b.pod(both(holding(again), openedAt(at, ";again=1")), "10.0.0.1"))
			b.settled()
			if _, shut := b.ledger.shut["p"]; shut {
				t.Error("the gate that was opened anew is taken for shut")
			}
		})
	}
}

// Nobody is held by it, and the Pod runs.
func TestAHoldThatEndedShutsNoGate(t *testing.T) {
	b := newBench(t)
	opening := time.Unix(1000, 0)
	ended := func(p *corev1.Pod) {
		holding(opening.Add(time.Minute))(p)
		state := &p.Status.InitContainerStatuses[0].State
		state.Terminated = &corev1.ContainerStateTerminated{StartedAt: state.Running.StartedAt}
		state.Running = nil
	}
	b.ledger.PodChanged(b.pod(both(ended, openedAt(opening, "")), "10.0.0.1"))
	b.demand("10.0.0.1", 6, 80, "n1")
	b.step()
	b.wantSent()
}

// The clock of the node was set back between the start of the hold and the
// opening of its gate.
func TestAClockThatWasSetBackShutsNoGate(t *testing.T) {
	b := newBench(t)
	started := time.Unix(1000, 0)
	b.demand("10.0.0.1", 6, 80, "n1")
	b.ledger.PodChanged(b.pod(holding(started), "10.0.0.1"))
	b.step()
	b.barrier.pass("p")
	b.report("n1", true)
	b.settled()
	b.ledger.PodChanged(b.pod(both(holding(started), openedAt(started.Add(-time.Hour), "")), "10.0.0.1"))
	b.settled()
	if _, shut := b.ledger.shut["p"]; shut {
		t.Error("the gate is taken for one that was open before")
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
