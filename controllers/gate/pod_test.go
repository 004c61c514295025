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
	b.wantTold("AddressChanged: the Pod's addresses or its node's boot changed after the gate had opened: waiting for n1: its agent has not answered yet")
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
