// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
)

// gatedPod returns a Pod with a gate, a timeout of 20 s, and what change adds.
func gatedPod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "client", UID: types.UID("1"),
			Labels:            map[string]string{runLabel: "yes", roleLabel: string(Client), unitLabel: "u"},
			Annotations:       map[string]string{v1alpha1.KeyTimeout: "20s"},
			CreationTimestamp: metav1.NewTime(at(0)),
		},
		Spec: corev1.PodSpec{
			NodeName:       "n1",
			ReadinessGates: []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func address(ip string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.PodIP, p.Status.PodIPs = ip, []corev1.PodIP{{IP: ip}}
	}
}

func condition(status corev1.ConditionStatus, reason string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: v1alpha1.ConditionProgrammed, Status: status, Reason: reason}}
	}
}

func holdRuns(p *corev1.Pod) {
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
		Name: v1alpha1.HoldContainerName, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
	}}
}

// holdEnded is a hold that ran for some seconds, and the Pod's own container
// after it.
func holdEnded(after float64) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
			Name: v1alpha1.HoldContainerName, State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				StartedAt: metav1.NewTime(at(0)), FinishedAt: metav1.NewTime(at(after)),
			}},
		}}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{
			Name: containerName, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(at(after))}},
		}}
	}
}

func TestStuck(t *testing.T) {
	for name, tc := range map[string]struct {
		life   Life
		faults []Window
		now    time.Time
		want   string
	}{
		"a Pod that waits within its timeout is not": {
			life: Life{Pod: gatedPod(holdRuns), Addressed: at(0), Conditioned: true}, now: at(49),
		},
		"a Pod without a decision is": {
			life: Life{Pod: gatedPod(holdRuns), Addressed: at(0), Conditioned: true}, now: at(51), want: "neither open nor timed out",
		},
		"a Pod without a condition is": {
			life: Life{Pod: gatedPod(holdRuns), Addressed: at(0)}, now: at(51), want: "no condition",
		},
		"the time of faults does not count": {
			life:   Life{Pod: gatedPod(holdRuns), Addressed: at(0), Conditioned: true},
			faults: []Window{{Begin: at(10), End: at(20)}}, now: at(59),
		},
		"the time after them does": {
			life:   Life{Pod: gatedPod(holdRuns), Addressed: at(0), Conditioned: true},
			faults: []Window{{Begin: at(10), End: at(20)}}, now: at(61), want: "neither open nor timed out",
		},
		"a hold that outlives its open gate is": {
			life: Life{Pod: gatedPod(holdRuns), Addressed: at(0), Conditioned: true, Opened: at(1), Decided: at(1)}, now: at(32),
			want: "the hold still runs",
		},
		"a hold that has just been let go is not": {
			life: Life{Pod: gatedPod(holdRuns), Addressed: at(0), Conditioned: true, Opened: at(1), Decided: at(1)}, now: at(30),
		},
		"a hold that outlives its timeout is": {
			life: Life{Pod: gatedPod(holdRuns), Addressed: at(0), Conditioned: true, Decided: at(20)}, now: at(51),
			want: "the hold still runs",
		},
		"a Pod that timed out is not": {
			life: Life{Pod: gatedPod(), Addressed: at(0), Conditioned: true, Decided: at(20)}, now: at(300),
		},
		"a Pod that has gone is not": {
			life: Life{Pod: gatedPod(holdRuns), Addressed: at(0), Gone: at(3)}, now: at(300),
		},
		"a Pod without an address is its node's affair": {
			life: Life{Pod: gatedPod()}, now: at(300),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := History{Faults: tc.faults}.Stuck(tc.life, tc.now)
			if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
				t.Errorf("stuck: %q, want %q", got, tc.want)
			}
		})
	}
}

func TestAHoldThatLetsGoEarlyIsFound(t *testing.T) {
	r := newRecord(Report{})
	r.see(gatedPod(address("10.1.1.1"), holdRuns), false, at(1))
	if c := r.see(gatedPod(address("10.1.1.1"), holdEnded(5)), false, at(6)); c.early == "" {
		t.Error("a hold that ended after 5 of 20 s with the gate shut was not found")
	}
	r = newRecord(Report{})
	r.see(gatedPod(address("10.1.1.1"), holdRuns), false, at(1))
	if c := r.see(gatedPod(address("10.1.1.1"), holdEnded(20)), false, at(21)); c.early != "" {
		t.Errorf("a hold that timed out: %s", c.early)
	}
	if r.report.TimedOut != 1 {
		t.Errorf("%d timed out, want the one whose hold did", r.report.TimedOut)
	}
}

func TestAHoldThatRanIntoItsTimeoutIsTold(t *testing.T) {
	for name, tc := range map[string]struct {
		hold func(*corev1.Pod)
		want bool
	}{
		"none":                    {hold: func(*corev1.Pod) {}},
		"one that runs":           {hold: holdRuns},
		"one whose gate opened":   {hold: holdEnded(18)},
		"one whose timeout ended": {hold: holdEnded(20), want: true},
		"one in whole seconds":    {hold: holdEnded(19), want: true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (Life{Pod: gatedPod(tc.hold)}).heldOut(); got != tc.want {
				t.Errorf("heldOut is %t, want %t", got, tc.want)
			}
		})
	}
}

func TestAPodIsGoingFromWhenItIsAboutToBeDeleted(t *testing.T) {
	r := newRecord(Report{})
	r.see(gatedPod(address("10.1.1.1")), false, at(1))
	if gone := r.life("1").Party().Gone; !gone.IsZero() {
		t.Errorf("going since %v, want a Pod that lives", gone)
	}
	ended := gatedPod(address("10.1.1.1"), holdEnded(2))
	ended.Status.ContainerStatuses[0].State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(at(3))}}
	if gone := (Life{Pod: ended, Gone: at(7)}).Party().Gone; !gone.Equal(at(3)) {
		t.Errorf("going since %v, want when its container ended, %v", gone, at(3))
	}
	r.end("u", at(5))
	if gone := r.life("1").Party().Gone; !gone.Equal(at(5)) {
		t.Errorf("going since %v, want %v", gone, at(5))
	}
	r.see(gatedPod(address("10.1.1.1")), true, at(6))
	if gone := r.life("1").Party().Gone; !gone.Equal(at(5)) {
		t.Errorf("going since %v once it is gone, want %v", gone, at(5))
	}
}

func TestRecordTellsWhatIsNew(t *testing.T) {
	r := newRecord(Report{})
	open := condition(corev1.ConditionTrue, v1alpha1.ReasonConfirmed)
	shut := condition(corev1.ConditionFalse, v1alpha1.ReasonWaiting)
	steps := []struct {
		name                    string
		pod                     *corev1.Pod
		addressed, opened, gone bool
	}{
		{name: "created", pod: gatedPod()},
		{name: "addressed", pod: gatedPod(address("10.1.1.1")), addressed: true},
		{name: "waiting", pod: gatedPod(address("10.1.1.1"), shut)},
		{name: "open", pod: gatedPod(address("10.1.1.1"), open), opened: true},
		{name: "still open", pod: gatedPod(address("10.1.1.1"), open)},
		{name: "at another address, the condition is the old one's", pod: gatedPod(address("10.1.1.2"), open), addressed: true},
		{name: "and stays so", pod: gatedPod(address("10.1.1.2"), open)},
		{name: "shut for the new address", pod: gatedPod(address("10.1.1.2"), shut)},
		{name: "open for it", pod: gatedPod(address("10.1.1.2"), open), opened: true},
		{name: "done", pod: gatedPod(address("10.1.1.2"), open, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }), gone: true},
	}
	for i, s := range steps {
		c := r.see(s.pod, false, at(float64(i)))
		if c.addressed != s.addressed || c.opened != s.opened || c.gone != s.gone {
			t.Errorf("%s: addressed %t, opened %t, gone %t; want %t, %t, %t", s.name, c.addressed, c.opened, c.gone, s.addressed, s.opened, s.gone)
		}
	}
	if got := r.report.Openings[v1alpha1.ReasonConfirmed]; got != 2 {
		t.Errorf("%d openings, want 2", got)
	}
	if len(r.report.Lost) > 0 {
		t.Errorf("lost: %q", r.report.Lost)
	}
}

func TestIntentAtATimeIsThatOfThen(t *testing.T) {
	r := newRecord(Report{})
	first, second, third := Intent{}, Intent{DenyAll: true}, Intent{DenyAll: true, AdmitClients: true}
	r.intents["shop"], r.intents["bank"] = first, third
	r.edit("shop", second)()
	r.edit("bank", first)()
	r.edit("shop", third)()
	edits := r.past().Edits
	for name, tc := range map[string]struct {
		namespace string
		at        time.Time
		want      Intent
	}{
		"before any edit":           {"shop", edits[0].Begin.Add(-time.Second), first},
		"between two":               {"shop", edits[1].Begin, second},
		"after the last":            {"shop", time.Now(), third},
		"of another namespace, too": {"bank", edits[0].Begin, third},
	} {
		if got := r.intentAt(tc.namespace, tc.at); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestLost(t *testing.T) {
	ungated := func(p *corev1.Pod) { p.Spec.ReadinessGates = nil }
	for name, tc := range map[string]struct {
		pod     *corev1.Pod
		faults  []Window
		ended   bool
		deleted bool
		lost    string
		ungated int
	}{
		"a Pod with a gate is not": {pod: gatedPod()},
		"a Pod without a gate is":  {pod: gatedPod(ungated), lost: "without a gate"},
		"a Pod without a gate while managers were dead is counted": {
			pod: gatedPod(ungated), faults: []Window{{Kind: "all managers killed", Begin: at(-1)}}, ungated: 1,
		},
		"a Pod without a gate right after is counted": {
			pod: gatedPod(ungated), faults: []Window{{Kind: "all managers killed", Begin: at(-9), End: at(-2)}}, ungated: 1,
		},
		"a Pod without a gate while connections to a dead node are kept is counted": {
			pod: gatedPod(ungated), faults: []Window{{Kind: "node rebooted", Begin: at(-40), End: at(-30)}}, ungated: 1,
		},
		"a Pod without a gate long after a node died is lost": {
			pod: gatedPod(ungated), faults: []Window{{Kind: "node rebooted", Begin: at(-60), End: at(-50)}}, lost: "without a gate",
		},
		"a Pod without a gate long after managers died is lost": {
			pod: gatedPod(ungated), faults: []Window{{Kind: "all managers killed", Begin: at(-40), End: at(-30)}}, lost: "without a gate",
		},
		"an engine is not between a Pod and its gate": {
			pod: gatedPod(ungated), faults: []Window{{Kind: "engine killed", Begin: at(-1)}}, lost: "without a gate",
		},
		"a stranger has none":           {pod: gatedPod(ungated, func(p *corev1.Pod) { p.Labels[roleLabel] = string(Stranger) })},
		"a Pod that vanished is":        {pod: gatedPod(), deleted: true, lost: "vanished"},
		"a Pod that was deleted is not": {pod: gatedPod(), deleted: true, ended: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecord(Report{})
			r.history.Faults = tc.faults
			if tc.ended {
				r.end("u", at(0))
			}
			r.see(tc.pod, tc.deleted, at(1))
			lost := strings.Join(r.report.Lost, "\n")
			if (lost == "") != (tc.lost == "") || !strings.Contains(lost, tc.lost) {
				t.Errorf("lost %q, want %q", lost, tc.lost)
			}
			sum := 0
			for _, n := range r.report.Ungated {
				sum += n
			}
			if sum != tc.ungated {
				t.Errorf("ungated %v, want %d", r.report.Ungated, tc.ungated)
			}
		})
	}
}
