// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	// eventsPerSecond and eventsBurst bound the Events in all: what is wrong
	// with many policies at once is told of a few, and PolicyStatus has the
	// rest.
	eventsPerSecond = 1
	eventsBurst     = 10
	// warnInterval is how far apart the warnings about one policy are.
	warnInterval = 10 * time.Minute
	// maxNote is the API's bound of an Event's note in bytes.
	maxNote = 1024
)

// Event is something that a person should see of a policy.
type Event struct {
	Policy Policy
	// Warning is true if something is wrong, false if it is no more.
	Warning bool
	// Reason is one of Degraded's, or of Programmed's if nothing is wrong.
	Reason, Note string
}

// Recorder writes Events. It must not block.
type Recorder interface {
	Record(e Event)
}

// Events tells when a policy that was in force drifts or turns out not to be
// carried out in full, and when that is over. It is of one goroutine.
type Events struct {
	recorder Recorder
	clock    clock.Clock
	limiter  *rate.Limiter
	// warned has the policies of which something is or was wrong a while ago.
	warned map[types.NamespacedName]*warned
}

// warned is when a policy was last warned about, and whether what is wrong now
// was told.
type warned struct {
	at   time.Time
	told bool
}

// NewEvents returns Events that are written by r.
func NewEvents(r Recorder, clk clock.Clock) *Events {
	return &Events{
		recorder: r,
		clock:    clk,
		limiter:  rate.NewLimiter(eventsPerSecond, eventsBurst),
		warned:   map[types.NamespacedName]*warned{},
	}
}

// Decided takes what is said of a policy from now on, and what was before.
func (v *Events) Decided(p Policy, before, after *v1alpha1.PolicyStatusStatus) {
	was, is := alarming(before), alarming(after)
	switch {
	case reasonOf(was) == reasonOf(is):
	case is != nil:
		v.warn(p, is)
	default:
		v.relieve(p, after)
	}
}

// warn tells what is wrong, unless that was told a short while ago.
func (v *Events) warn(p Policy, c *metav1.Condition) {
	now := v.clock.Now()
	w := v.warned[p.Name]
	if w == nil {
		w = &warned{}
		v.warned[p.Name] = w
	}
	w.told = (w.at.IsZero() || now.Sub(w.at) >= warnInterval) && v.limiter.AllowN(now, 1)
	if w.told {
		w.at = now
		v.record(Event{Policy: p, Warning: true, Reason: c.Reason, Note: c.Message})
	}
}

// relieve tells that nothing is wrong any more, if it was told what was, by
// whichever replica.
func (v *Events) relieve(p Policy, after *v1alpha1.PolicyStatusStatus) {
	if w := v.warned[p.Name]; w != nil && !w.told {
		return
	}
	c := meta.FindStatusCondition(after.Conditions, v1alpha1.PolicyProgrammed)
	if c != nil && v.limiter.AllowN(v.clock.Now(), 1) {
		v.record(Event{Policy: p, Reason: c.Reason, Note: c.Message})
	}
}

func (v *Events) record(e Event) {
	e.Note = e.Note[:min(len(e.Note), maxNote)]
	v.recorder.Record(e)
}

// Forget says that the policy is gone.
func (v *Events) Forget(policy types.NamespacedName) { delete(v.warned, policy) }

// alarming returns the condition Degraded if an Event is due to its reason.
// What nobody can see into is the cluster's business and told of its nodes.
func alarming(s *v1alpha1.PolicyStatusStatus) *metav1.Condition {
	c := meta.FindStatusCondition(s.Conditions, v1alpha1.PolicyDegraded)
	if c == nil || c.Status != metav1.ConditionTrue {
		return nil
	}
	if c.Reason != v1alpha1.PolicyReasonDrifted && c.Reason != v1alpha1.PolicyReasonEngineDeviates {
		return nil
	}
	return c
}

func reasonOf(c *metav1.Condition) string {
	if c == nil {
		return ""
	}
	return c.Reason
}
