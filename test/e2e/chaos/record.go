// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
)

// record is what is known of the run: what was done to the cluster, what was
// seen of Pods, and what was found. All methods may be called concurrently.
type record struct {
	mu        sync.Mutex // guards what follows
	history   History
	intents   map[string]Intent
	lives     map[types.UID]*Life
	addresses int
	// ended are the units that the workload has deleted.
	ended  map[string]bool
	report Report
	// wrong are openings that were found wrong already.
	wrong map[string]bool
	// stuckPods were reported already.
	stuckPods map[types.UID]bool
}

func newRecord(report Report) *record {
	report.Faults, report.Failed, report.Openings = map[string]int{}, map[string]int{}, map[string]int{}
	report.Ungated, report.Void = map[string]int{}, map[string]int{}
	return &record{
		intents: map[string]Intent{}, lives: map[types.UID]*Life{}, ended: map[string]bool{},
		report: report, wrong: map[string]bool{}, stuckPods: map[types.UID]bool{},
	}
}

// change is what one event of a Pod was to the observer.
type change struct {
	life Life
	// addressed and opened say that the address and the opening are new, gone
	// that the Pod has begun to end.
	addressed, opened, gone bool
	// early says how the hold let the Pod go too early, if it did.
	early string
}

// see notes a Pod's present state; deleted says that it is no more.
func (r *record) see(pod *corev1.Pod, deleted bool, now time.Time) change {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.lives[pod.UID]
	if l == nil {
		l = &Life{Seen: now}
		r.lives[pod.UID] = l
		l.Pod = pod
		r.checkGate(*l)
	}
	var c change
	before := l.Condition()
	l.Pod = pod
	if pod.Status.PodIP != "" && l.address != pod.Status.PodIP {
		r.addresses++
		l.address, l.Addressed, l.Order = pod.Status.PodIP, now, r.addresses
		l.Opened, l.Decided, l.Started, l.stale = time.Time{}, time.Time{}, time.Time{}, before
		c.addressed = true
	}
	if l.Started.IsZero() && !l.Running().IsZero() {
		l.Started = now
	}
	c.opened = r.gate(l, now)
	if l.Gone.IsZero() && (deleted || pod.DeletionTimestamp != nil || l.Done()) {
		l.Gone, c.gone = now, true
	}
	l.deleted = deleted
	if deleted && !r.ended[pod.Labels[unitLabel]] && !r.replaced(pod) {
		r.report.Lost = append(r.report.Lost, fmt.Sprintf("Pod %s/%s vanished, and nobody has deleted it", pod.Namespace, pod.Name))
	}
	c.life, c.early = *l, l.Early()
	return c
}

// replaced says whether the unit of a Pod that is no more has another one: of a
// Job whose Pod's creation was not acknowledged its controller makes two, and
// takes one away.
func (r *record) replaced(pod *corev1.Pod) bool {
	for _, l := range r.lives {
		if l.Pod.Labels[unitLabel] == pod.Labels[unitLabel] && !l.deleted {
			return true
		}
	}
	return false
}

// gate notes what the condition says, and whether the gate has opened.
func (r *record) gate(l *Life, now time.Time) (opened bool) {
	condition := l.Condition()
	if condition == nil || l.stale != nil && *condition != *l.stale {
		l.stale = nil
	}
	switch {
	case condition == nil:
		// A hold whose own timeout is over has decided.
		if l.hold() != nil && l.Decided.IsZero() && !l.Started.IsZero() && l.Early() == "" {
			l.Decided = now
			r.report.TimedOut++
		}
		return false
	case l.stale != nil:
		return false // said of the address before
	case condition.Status == corev1.ConditionTrue:
		l.Conditioned = true
		if l.Open() {
			return false
		}
		l.Opened = now
		if l.Decided.IsZero() {
			l.Decided = now
		}
		r.report.Openings[condition.Reason]++
		if took := now.Sub(l.Addressed); r.history.Disturbed(l.Addressed, now) {
			r.report.Disturbed = append(r.report.Disturbed, took)
		} else {
			r.report.Calm = append(r.report.Calm, took)
		}
		return true
	}
	l.Conditioned, l.Opened = true, time.Time{}
	if l.Decided.IsZero() && condition.Reason == v1alpha1.ReasonTimeout {
		l.Decided = now
		r.report.TimedOut++
	}
	return false
}

// checkGate notes a Pod that came without a gate.
func (r *record) checkGate(l Life) {
	if l.Gated() || l.RoleOf() == Stranger {
		return
	}
	if kind, excused := r.history.Ungated(l); excused {
		r.report.Ungated[kind]++
		return
	}
	r.report.Lost = append(r.report.Lost, fmt.Sprintf("Pod %s/%s came without a gate at %s, with nothing between it and the webhook",
		l.Pod.Namespace, l.Pod.Name, l.Pod.CreationTimestamp.Format(time.TimeOnly)))
}

// known returns the Pods that are not known to be no more.
func (r *record) known() map[types.UID]*corev1.Pod {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[types.UID]*corev1.Pod{}
	for uid, l := range r.lives {
		if !l.deleted {
			all[uid] = l.Pod
		}
	}
	return all
}

// life returns what is known by now of a Pod that was seen.
func (r *record) life(uid types.UID) Life {
	r.mu.Lock()
	defer r.mu.Unlock()
	return *r.lives[uid]
}

// pods returns the Pods that keep says yes to, the oldest address first.
func (r *record) pods(keep func(Life) bool) []Life {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Life
	for _, l := range r.lives {
		if keep(*l) {
			all = append(all, *l)
		}
	}
	slices.SortFunc(all, func(a, b Life) int { return a.Order - b.Order })
	return all
}

// end notes that the workload deletes a unit.
func (r *record) end(unit string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended[unit] = true
	for _, l := range r.lives {
		if l.Pod.Labels[unitLabel] == unit && l.Ended.IsZero() {
			l.Ended = now
		}
	}
}

// lost notes what is lost.
func (r *record) lost(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Lost = append(r.report.Lost, fmt.Sprintf(format, args...))
}

// intent returns a namespace's intent; settled is false while it is changed.
func (r *record) intent(namespace string) (i Intent, settled bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.history.Edits {
		if e.Namespace == namespace && e.End.IsZero() {
			return r.intents[namespace], false
		}
	}
	return r.intents[namespace], true
}

// intentAt returns the intent that a namespace had at a time.
func (r *record) intentAt(namespace string, at time.Time) Intent {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.history.Edits {
		if e.Namespace == namespace && e.Begin.After(at) {
			return e.Before
		}
	}
	return r.intents[namespace]
}

// edit notes that a namespace's policies are about to be changed, and returns
// what notes that they are.
func (r *record) edit(namespace string, after Intent) (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := len(r.history.Edits)
	r.history.Edits = append(r.history.Edits, Edit{Namespace: namespace, Begin: time.Now(), Before: r.intents[namespace], After: after})
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.history.Edits[at].End = time.Now()
		r.intents[namespace] = after
		r.report.Edits++
	}
}

// begin notes that a fault is about to begin, and returns what notes how it
// went on: that it is in force, that it is over, or that it did not come about.
func (r *record) begin(kind string) (w func(change func(*Window))) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := len(r.history.Faults)
	r.history.Faults = append(r.history.Faults, Window{Kind: kind, Begin: time.Now()})
	return func(change func(*Window)) {
		r.mu.Lock()
		defer r.mu.Unlock()
		change(&r.history.Faults[at])
	}
}

// tell changes the report.
func (r *record) tell(change func(*Report)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.report)
}

// past returns a copy of what happened so far.
func (r *record) past() History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return History{Faults: slices.Clone(r.history.Faults), Edits: slices.Clone(r.history.Edits)}
}

// over says whether an opening's observation has ended.
func (r *record) over(o Opening, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.history.Ended(o, now)
}
