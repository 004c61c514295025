// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

// measured returns what the registry has that is not zero: the value of a
// counter or gauge, the count and sum of a histogram.
func (b *bench) measured() map[string]string {
	b.t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		b.t.Errorf("lint: %v, %v", problems, err)
	}
	out := map[string]string{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			h := m.GetHistogram()
			value := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			switch {
			case h.GetSampleCount() > 0:
				out[name] = fmt.Sprintf("%d in %gs", h.GetSampleCount(), h.GetSampleSum())
			case value != 0:
				out[name] = fmt.Sprint(value)
			}
		}
	}
	return out
}

// wantMeasured compares those metrics of measured that want names.
func (b *bench) wantMeasured(want map[string]string) {
	b.t.Helper()
	got := b.measured()
	for name := range got {
		if _, named := want[name]; !named {
			delete(got, name)
		}
	}
	for name, value := range want {
		if value == "" {
			delete(want, name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		b.t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

const (
	ownSeconds  = "policygate_programming_seconds role=own"
	peerSeconds = "policygate_programming_seconds role=peer"
	slowest     = "policygate_slowest_node_seconds"
	holdSeconds = "policygate_hold_seconds"
	timeouts    = "policygate_gate_timeouts_total"
	pending     = "policygate_expectations_pending"
	notAsked    = "policygate_flows_not_asked_total"
	queuedTime  = "policygate_coverage_queue_seconds"
	batchSize   = "policygate_coverage_batch_size"
)

// holding makes the Pod one whose hold has run since then.
func holding(since time.Time) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
			Name:  v1alpha1.HoldContainerName,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(since)}},
		}}
	}
}

func both(changes ...func(*corev1.Pod)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, change := range changes {
			change(p)
		}
	}
}

func TestHowLongNodesTakeIsMeasuredOnce(t *testing.T) {
	b := newBench(t)
	began := b.clock.Now()
	b.waiting()
	b.coverage.assignments["p"].NotAsked = 7
	b.clock.Step(time.Second)
	b.report("n1", true)
	b.settled()
	b.wantMeasured(map[string]string{ownSeconds: "1 in 1s", peerSeconds: "", slowest: ""})
	b.report("n1", false) // a retraction, and again
	b.report("n1", true)
	b.clock.Step(2 * time.Second)
	b.report("n7", false)
	b.report("n7", true)
	b.settled()
	b.clock.Step(time.Second)
	b.ledger.PodChanged(b.pod(both(holding(began), opened("10.0.0.1", "boot-1")), "10.0.0.1"))
	b.settled()
	b.wantMeasured(map[string]string{
		ownSeconds: "1 in 1s", peerSeconds: "1 in 3s", slowest: "1 in 3s", holdSeconds: "1 in 4s", notAsked: "7", timeouts: "",
		"policygate_gate_open_seconds reason=Confirmed": "1 in 4s",
	})
	// Other addresses are another measurement.
	b.demand("10.0.0.2", 6, 80, "n1")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.2"))
	b.settled()
	b.clock.Step(5 * time.Second)
	b.report("n1", true)
	b.settled()
	b.wantMeasured(map[string]string{ownSeconds: "2 in 6s", peerSeconds: "1 in 3s"})
}

func TestAnAnswerAboutFormerAddressesIsNotMeasured(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.clock.Step(time.Second)
	b.demand("10.0.0.2", 6, 80, "n1", "n7")
	b.ledger.PodChanged(b.pod(nil, "10.0.0.2"))
	b.report("n1", true)
	b.settled()
	b.wantMeasured(map[string]string{ownSeconds: ""})
	b.clock.Step(time.Second)
	b.report("n1", true)
	b.settled()
	b.wantMeasured(map[string]string{ownSeconds: "1 in 1s"})
}

func TestANodeThatIsAskedNothingIsNotMeasured(t *testing.T) {
	b := newBench(t)
	b.start("p", "shop", "10.0.0.1", map[string][]expect.Expectation{"n1": nil})
	b.clock.Step(time.Second)
	b.report("n1", true)
	b.settled()
	b.wantMeasured(map[string]string{ownSeconds: "", pending: ""})
}

func TestAGateThatOpensWithoutSomeNodeHasNoSlowest(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.report("n1", true)
	b.settled()
	b.clock.Step(v1alpha1.DefaultTimeout)
	b.settled()
	b.settled()
	b.wantMeasured(map[string]string{timeouts: "1"})
	b.ledger.PodChanged(b.pod(both(opened("10.0.0.1", "boot-1"), func(p *corev1.Pod) {
		p.Status.Conditions[0].Reason = v1alpha1.ReasonPartiallyConfirmed
	}), "10.0.0.1"))
	b.settled()
	b.wantMeasured(map[string]string{
		timeouts: "1", slowest: "", holdSeconds: "",
		"policygate_gates_opened_total reason=PartiallyConfirmed": "1",
	})
}

func TestATimeoutIsCountedOnce(t *testing.T) {
	told := func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: v1alpha1.ConditionProgrammed, Status: corev1.ConditionFalse, Reason: v1alpha1.ReasonTimeout,
		}}
	}
	cases := map[string]struct {
		first, then func(*corev1.Pod)
		want        string
	}{
		"though its text changes":                      {nil, told, "1"},
		"not by a replica that began when it was told": {told, told, ""},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.demand("10.0.0.1", 5, 80, "n1", "n7")
			b.ledger.PodChanged(b.pod(tc.first, "10.0.0.1"))
			b.settled()
			b.clock.Step(v1alpha1.DefaultTimeout)
			b.settled()
			b.ledger.PodChanged(b.pod(tc.then, "10.0.0.1"))
			b.report("n7", false)
			b.settled()
			b.clock.Step(time.Hour)
			b.settled()
			b.wantMeasured(map[string]string{timeouts: tc.want})
		})
	}
}

func TestAReasonThatSomebodyMadeUpIsNoLabel(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.ledger.PodChanged(b.pod(both(opened("10.0.0.1", "boot-1"), func(p *corev1.Pod) {
		p.Status.Conditions[0].Reason = "MadeUp"
	}), "10.0.0.1"))
	b.settled()
	b.wantMeasured(map[string]string{
		"policygate_gates_opened_total reason=MadeUp": "", "policygate_gates_opened_total reason=Other": "1",
	})
}

func TestAHoldThatEndedBeforeItsGateOpenedIsNotMeasured(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.ledger.PodChanged(b.pod(both(opened("10.0.0.1", "boot-1"), func(p *corev1.Pod) {
		holding(b.clock.Now())(p)
		p.Status.InitContainerStatuses[0].State = corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{StartedAt: metav1.NewTime(b.clock.Now())},
		}
	}), "10.0.0.1"))
	b.settled()
	b.wantMeasured(map[string]string{holdSeconds: "", "policygate_gates_opened_total reason=Confirmed": "1"})
}

func TestExpectationsThatArePendingAreCounted(t *testing.T) {
	b := newBench(t)
	want := func(n string) {
		t.Helper()
		b.settled()
		b.clock.Step(inspectInterval)
		b.settled()
		b.wantMeasured(map[string]string{pending: n})
	}
	b.waiting()
	want("2")
	b.report("n7", true)
	want("1")
	b.demandFor("p", "shop", "10.0.0.1", 6, map[string][]expect.Expectation{
		"n1": {allow(shopAllow, "10.0.0.1", 80), allow(shopAllow, "10.0.0.1", 81)},
		"n7": {allow(shopAllow, "10.0.0.1", 80)},
	})
	want("2")
	b.ledger.PodDeleted("p")
	want("")
}

func TestHowLongWhatIsTouchedWaitsIsMeasured(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.wantMeasured(map[string]string{queuedTime: "1 in 0s", batchSize: "1 in 1s"})
	// Each computation takes a second, so the second waits for two.
	b.coverage.compute = func(types.UID) { b.clock.Step(time.Second) }
	b.demandFor("q", "shop", "10.0.0.2", 5, map[string][]expect.Expectation{"n1": nil})
	b.ledger.PodChanged(b.named("q", "shop", "10.0.0.2"))
	b.demand("10.0.0.1", 6, 81, "n1", "n7")
	b.settled()
	b.wantMeasured(map[string]string{queuedTime: "3 in 3s", batchSize: "2 in 3s"})
}
