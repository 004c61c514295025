// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

// Life is what the observer has seen of one Pod.
type Life struct {
	// Pod is the object as it was seen last. Not to be changed.
	Pod *corev1.Pod
	// Order counts the addresses that were seen before the Pod's present one.
	Order int
	// Seen, Addressed and Started are when the Pod, its present address and its
	// own container's running were first seen, Opened when its gate was seen to
	// open, Decided when it opened or timed out; zero if not.
	Seen, Addressed, Started, Opened, Decided time.Time
	// Conditioned says that the Pod has had its condition.
	Conditioned bool
	// Gone is when the Pod was first known to end: finished, being deleted, or
	// no more.
	Gone time.Time
	// Ended is when the workload was about to delete the Pod; zero if it was not.
	Ended time.Time

	// address is the one that Addressed is about, stale the condition of the
	// address before it.
	address string
	stale   *corev1.PodCondition
	// deleted says that the object is no more.
	deleted bool
}

// Labels of the workload's Pods beside their role's.
const (
	// runLabel is on all of them: what the observer watches.
	runLabel = "chaos"
	// unitLabel names what of the workload a Pod belongs to.
	unitLabel = "unit"
)

// RoleOf returns the Pod's role.
func (l Life) RoleOf() Role { return Role(l.Pod.Labels[roleLabel]) }

// IP returns the Pod's IPv4 address; the zero value if it has none yet.
func (l Life) IP() netip.Addr {
	addr, _ := netip.ParseAddr(l.Pod.Status.PodIP)
	return addr
}

// Party returns the Pod as one end of a flow.
func (l Life) Party() Party {
	return Party{
		Name: l.Pod.Namespace + "/" + l.Pod.Name, Node: l.Pod.Spec.NodeName,
		Role: l.RoleOf(), IP: l.IP(), Gone: l.going(),
	}
}

// going is when the Pod was first known to end, or about to be ended; zero if
// it lives on. An engine can hear of it before the observer does.
func (l Life) going() time.Time {
	return earliest(l.Gone, l.Ended, finished(l.Pod))
}

// finished is when a Pod's own container has ended, as its kubelet says; zero if
// it has not. What the kubelet says of it can come seconds later.
func finished(p *corev1.Pod) time.Time {
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Terminated != nil && p.Spec.RestartPolicy != corev1.RestartPolicyAlways {
			return s.State.Terminated.FinishedAt.Time
		}
	}
	return time.Time{}
}

// earliest returns the first of the times that are not zero, or zero.
func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}

// Open says whether the gate is open and was all the time since Opened.
func (l Life) Open() bool { return !l.Opened.IsZero() }

// Gated says whether the Pod has a gate.
func (l Life) Gated() bool {
	for _, g := range l.Pod.Spec.ReadinessGates {
		if g.ConditionType == v1alpha1.ConditionProgrammed {
			return true
		}
	}
	return false
}

// Condition returns the gate's condition, or nil.
func (l Life) Condition() *corev1.PodCondition {
	for i, c := range l.Pod.Status.Conditions {
		if c.Type == v1alpha1.ConditionProgrammed {
			return &l.Pod.Status.Conditions[i]
		}
	}
	return nil
}

// Timeout returns the Pod's own.
func (l Life) Timeout() time.Duration {
	if d, err := time.ParseDuration(l.Pod.Annotations[v1alpha1.KeyTimeout]); err == nil {
		return d
	}
	return v1alpha1.DefaultTimeout
}

// hold returns the status of the hold, or nil if the Pod has none.
func (l Life) hold() *corev1.ContainerStatus {
	for i, s := range l.Pod.Status.InitContainerStatuses {
		if s.Name == v1alpha1.HoldContainerName {
			return &l.Pod.Status.InitContainerStatuses[i]
		}
	}
	return nil
}

// holding says that the hold runs.
func (l Life) holding() bool {
	s := l.hold()
	return s != nil && s.State.Running != nil
}

// Running returns since when the Pod's own container runs; zero if it does not.
func (l Life) Running() time.Time {
	for _, s := range l.Pod.Status.ContainerStatuses {
		if s.State.Running != nil {
			return s.State.Running.StartedAt.Time
		}
	}
	return time.Time{}
}

// Done says whether the Pod's containers have ended.
func (l Life) Done() bool {
	return l.Pod.Status.Phase == corev1.PodSucceeded || l.Pod.Status.Phase == corev1.PodFailed
}

// Opening returns the gate's present opening.
func (l Life) Opening() Opening {
	o := Opening{
		Namespace: l.Pod.Namespace, Pod: l.Pod.Name, UID: string(l.Pod.UID), Node: l.Pod.Spec.NodeName,
		Role: l.RoleOf(), IP: l.IP(), Created: l.Pod.CreationTimestamp.Time, Addressed: l.Addressed, At: l.Opened,
	}
	if c := l.Condition(); c != nil {
		// Whole seconds, rounded down: late rather than early.
		o.Reason, o.Message, o.Stamped = c.Reason, c.Message, c.LastTransitionTime.Add(time.Second)
	}
	return o
}

// graceStuck is what a Pod may take beyond its timeout, and a hold beyond its
// gate's opening: 20 s of leftovers of a fault and a machine that is busy.
const graceStuck = 30 * time.Second

// Stuck says how a Pod is stuck, or nothing.
func (h History) Stuck(l Life, now time.Time) string {
	if !l.Gated() || !l.Gone.IsZero() || l.Addressed.IsZero() {
		return ""
	}
	running := l.holding()
	if l.Open() {
		if calm := h.Calm(l.Opened, now); running && calm > graceStuck {
			return fmt.Sprintf("the hold still runs after %.0f s with the gate open", calm.Seconds())
		}
		return ""
	}
	calm := h.Calm(l.Addressed, now)
	late := calm > l.Timeout()+graceStuck
	switch {
	case late && !l.Conditioned:
		return fmt.Sprintf("no condition in %.0f s", calm.Seconds())
	case late && l.Decided.IsZero():
		return fmt.Sprintf("neither open nor timed out in %.0f s, with a timeout of %v", calm.Seconds(), l.Timeout())
	case late && running:
		return fmt.Sprintf("the hold still runs after %.0f s, with a timeout of %v", calm.Seconds(), l.Timeout())
	}
	return ""
}

// Early says that a Pod's own container started though its gate was shut and
// its timeout not over: the hold let it go.
func (l Life) Early() string {
	s := l.hold()
	if s == nil || !l.Decided.IsZero() || l.Started.IsZero() || s.State.Terminated == nil {
		return ""
	}
	ended := s.State.Terminated
	// Whole seconds, rounded down, at both ends.
	if took := ended.FinishedAt.Sub(ended.StartedAt.Time); took < l.Timeout()-2*time.Second && ended.ExitCode == 0 {
		return fmt.Sprintf("the hold ended after %v with the gate shut, with a timeout of %v", took, l.Timeout())
	}
	return ""
}

// heldOut says that the Pod's hold ran into its timeout: it let the Pod go
// whether the gate was open or not.
func (l Life) heldOut() bool {
	s := l.hold()
	if s == nil || s.State.Terminated == nil {
		return false
	}
	// Whole seconds, rounded down, at both ends.
	return s.State.Terminated.FinishedAt.Sub(s.State.Terminated.StartedAt.Time) >= l.Timeout()-time.Second
}

// Ungated says of a Pod that came without a gate why it may have: the fault
// that kept the webhook from being asked. excused is false if there was none.
func (h History) Ungated(l Life) (excuse string, excused bool) {
	// A creation time is in whole seconds, rounded down.
	created := l.Pod.CreationTimestamp.Time
	for _, w := range h.Faults {
		settle := settleFault
		if silent(w.Kind) {
			settle = settleSilence
		}
		if betweenWebhook(w.Kind) && w.meets(created, created.Add(time.Second), settle) {
			return w.Kind, true
		}
	}
	return "", false
}

// settleSilence is how long an API server may use a connection to a webhook of
// whose end it was not told: HTTP/2 pings it after 30 s without an answer, and
// gives up 15 s later (docs/limits.md).
const settleSilence = 45 * time.Second

// silent says whether a kind of fault ends a manager's connections without a
// word to whoever is at their other end.
func silent(kind string) bool {
	return strings.Contains(kind, "rebooted") || strings.Contains(kind, "cut off")
}

// betweenWebhook says whether a kind of fault can keep the API server from
// asking the webhook: it fails managers, the API server, a network or a node.
func betweenWebhook(kind string) bool {
	return slices.ContainsFunc([]string{"manager", "API server", "cut", "rebooted"}, func(part string) bool {
		return strings.Contains(kind, part)
	})
}
