// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/queue"
)

const (
	// deafFirst and deafMost pace what wakes a kubelet that missed the
	// annotation. A hold sees it within 100 ms, and the kubelet notices and
	// tells its end within a second or so; by itself the kubelet looks again
	// after 60 to 90 s.
	deafFirst = 2 * time.Second
	deafMost  = 16 * time.Second
)

// entry is one gated Pod.
type entry struct {
	// timer is when the decision has to be made again for time alone, or when
	// the kubelet is to be woken if the hold of an open gate still runs then.
	queue.Timer

	pod pod
	// addressed is when the present addresses were first seen, zero without.
	addressed time.Time
	// known are the last addresses that were seen.
	known []string
	// outlived is the hold that a gate stood open before, and since when that
	// did.
	outlived struct{ held, opened time.Time }
	// started is when the hold that the Pod shows started, by the ledger's
	// clock; zero without one.
	started time.Time
	// former is when the hold of the former addresses or boot started: the
	// kubelet goes on to show it until the new one runs.
	former time.Time

	// assignment is what the nodes were told, nil if nothing. inquiries are
	// sorted by node, and lacking counts those that are awaited.
	assignment *Assignment
	inquiries  []*inquiry
	lacking    int
	// computed is true once a computation was made, whatever it gave.
	computed bool
	// current is true if assignment holds behind the barrier.
	current bool
	// listed is when the LISTs behind which it may be released were wanted, or,
	// for such as a release has waited for, when they had come. renewing is true
	// while one waits.
	listed   time.Time
	renewing bool
	// suspected is true once the coverage was told that a rule may not be
	// realized for anybody.
	suspected bool
	// stale is true if assignment has to be computed again, and touched if the
	// decision has to be made again. The others say in which lanes of which
	// queue the entry is.
	stale, touched     bool
	staleIn, touchedIn [queue.Lanes]bool

	// queued is when the entry was put into the queue of stale ones, zero if it
	// is not in there.
	queued time.Time
	// notes are the last computation's.
	notes []expect.Note
	// overdue is true once the timeout has run out and was counted.
	overdue bool

	// resend is when a release may be sent, after that many attempts since a
	// node last confirmed; released is true once one was sent.
	resend   time.Time
	attempts int
	released bool
	// releasedTo is when the hold had started that the release was sent for.
	releasedTo time.Time
	// wakes is how often the kubelet was woken.
	wakes uint32
}

// podChanged takes a gated Pod's new state.
func (l *Ledger) podChanged(p pod) {
	if p.ended {
		l.remove(p.uid)
		return
	}
	e, ok := l.entries[p.uid]
	if !ok {
		// Whether the first that is seen of it belongs to what it is now,
		// nobody knows.
		e = &entry{pod: p}
		l.entries[p.uid] = e
		l.names[types.NamespacedName{Namespace: p.namespace, Name: p.name}] = e
	}
	held := e.pod.held
	if !ok || !p.held.Equal(held) {
		e.started = holdStarted(&p, ok, l.clock.Now())
	}
	if before := e.pod.node; before != p.node || !ok {
		if n := l.nodes[before]; n != nil {
			delete(n.residents, p.uid)
		}
		l.node(p.node).residents[p.uid] = e
	}
	e.pod = p
	l.review(e, held)
}

// review sorts an entry into the shut ones or out of them. held is when the
// hold had started as far as was known before.
func (l *Ledger) review(e *entry, held time.Time) {
	now := l.clock.Now()
	uid := e.pod.uid
	ips := text(e.pod.ips)
	bootID := l.node(e.pod.node).bootID
	moved := len(ips) > 0 && !slices.Equal(ips, e.known)
	if e.open(bootID) {
		e.known = ips
		if _, shut := l.shut[uid]; shut {
			l.opened(e, now)
			l.close(e)
		}
		l.listen(e, now)
		return
	}
	if _, deaf := l.deaf[uid]; deaf {
		delete(l.deaf, uid)
		l.timers.Set(e, time.Time{})
	}
	switch _, shut := l.shut[uid]; {
	case !shut:
		l.shut[uid] = e
		e.addressed = time.Time{}
		if e.pod.moved(bootID) {
			e.former = held
		}
		l.ticket(e, now)
	case moved && len(e.known) > 0:
		// Whatever was listed was listed for the former addresses.
		l.ticket(e, now)
		e.current = false
		e.former = held
	case len(ips) > 0 && e.addressed.IsZero() && now.Sub(e.listed) > listedWithin/2:
		// The nodes are asked meanwhile.
		l.ticket(e, now)
	}
	switch {
	case len(ips) == 0:
		e.addressed, e.queued = time.Time{}, time.Time{}
		l.withdraw(e)
		l.teller.Hush(uid)
	case moved || e.addressed.IsZero():
		// A replica that has just started counts no timeout that was told.
		e.overdue = len(e.known) == 0 && e.pod.condition.Reason == v1alpha1.ReasonTimeout
		e.addressed = now
		e.known = ips
		e.computed, e.suspected = false, false
		e.resend, e.attempts, e.released = time.Time{}, 0, false
		for _, q := range e.inquiries {
			q.first = time.Time{}
		}
	}
	// What is stale may have an address by now, or a hold that runs.
	if e.stale || !l.stands(e) {
		l.outdated(e)
	}
	l.touch(e, queue.Usual)
}

// open reports whether the gate is open for the Pod as it is now, its present
// hold included.
func (e *entry) open(bootID string) bool {
	if !e.pod.open(bootID) {
		return false
	}
	held, opened := e.pod.held, e.pod.condition.LastTransitionTime.Time
	switch {
	case !e.pod.outlived():
		return true
	case e.outlived.held.Equal(held):
		// It was opened since, whatever the clock says.
		return !e.outlived.opened.Equal(opened)
	case e.released && e.releasedTo.Equal(held):
		// For this hold, before which the clock was set back.
		return true
	}
	e.outlived.held, e.outlived.opened = held, opened
	return false
}

// renewed reports whether the gate stood open before the Pod's present hold.
func (e *entry) renewed() bool {
	return !e.pod.held.IsZero() && e.outlived.held.Equal(e.pod.held)
}

// opened counts a gate that is seen open, and warns of one that opened without
// some nodes.
func (l *Ledger) opened(e *entry, now time.Time) {
	reason := e.pod.condition.Reason
	l.metrics.opened(reason, now.Sub(e.addressed), e.released)
	if held := e.held(); e.pod.holding && !held.IsZero() {
		l.metrics.held.Observe(max(now.Sub(held), 0).Seconds())
	}
	if e.released && reason != v1alpha1.ReasonPartiallyConfirmed {
		if last, all := e.slowest(); all {
			l.metrics.slowest.Observe(last.Sub(e.addressed).Seconds())
		}
	}
	if reason == v1alpha1.ReasonPartiallyConfirmed {
		l.warnings.Warn(Warning{
			Object: podReference(e.pod.uid, e.pod.namespace, e.pod.name),
			Reason: reason, Note: cut(e.pod.condition.Message, maxMessage),
		})
	}
}

// slowest returns when the last of the awaited nodes first confirmed; false if
// some has not, or nobody is awaited.
func (e *entry) slowest() (last time.Time, all bool) {
	for _, q := range e.inquiries {
		switch {
		case q.optional:
		case q.first.IsZero():
			return time.Time{}, false
		case q.first.After(last):
			last = q.first
		}
	}
	return last, !last.IsZero()
}

// stands reports whether what was computed of the entry last is what would be
// computed now. Most changes of a Pod's status change nothing of it.
func (l *Ledger) stands(e *entry) bool {
	if !e.computed {
		return false
	}
	if e.assignment != nil && e.assignment.Subject.GetGeneration() != e.pod.generation {
		return false
	}
	_, stands := l.coverage.Standing(e.pod.uid)
	return stands
}

// remove forgets a Pod.
func (l *Ledger) remove(uid types.UID) {
	e, ok := l.entries[uid]
	if !ok {
		return
	}
	delete(l.entries, uid)
	if name := (types.NamespacedName{Namespace: e.pod.namespace, Name: e.pod.name}); l.names[name] == e {
		delete(l.names, name)
	}
	delete(l.deaf, uid)
	delete(l.node(e.pod.node).residents, uid)
	l.close(e)
}

// close ends the wait for an entry whose gate is open or whose Pod is gone.
func (l *Ledger) close(e *entry) {
	uid := e.pod.uid
	delete(l.shut, uid)
	l.withdraw(e)
	l.barrier.Forget(uid)
	l.teller.Forget(uid)
	e.computed, e.current, e.suspected, e.stale, e.touched, e.renewing = false, false, false, false, false, false
	e.queued, e.notes, e.overdue = time.Time{}, nil, false
	e.resend, e.attempts, e.released = time.Time{}, 0, false
	l.timers.Set(e, time.Time{})
}

// listen notes whether the hold of an open gate has noticed.
func (l *Ledger) listen(e *entry, now time.Time) {
	_, deaf := l.deaf[e.pod.uid]
	switch {
	case !e.pod.holding && deaf:
		delete(l.deaf, e.pod.uid)
		l.timers.Set(e, time.Time{})
	case e.pod.holding && !deaf:
		l.deaf[e.pod.uid] = e
		e.wakes = 0
		l.timers.Set(e, now.Add(deafFirst))
	}
}

// wakeKubelet has the annotation written once more. A kubelet that is writing
// a volume forgets what changes meanwhile (seen for one Pod in 30 with
// Kubernetes 1.36, when the change meets the sync after a container's start),
// and another change is the only thing that wakes it.
func (l *Ledger) wakeKubelet(e *entry, now time.Time) {
	e.wakes++
	l.timers.Set(e, now.Add(min(deafFirst<<min(e.wakes, 8), deafMost)))
	l.log.V(1).Info("hold has not noticed that its gate is open", "pod", e.pod.namespace+"/"+e.pod.name, "node", e.pod.node, "times", e.wakes)
	l.hub.Release(e.pod.node, &hubv1.Release{
		Subject: &hubv1.Subject{
			Uid: string(e.pod.uid), Namespace: e.pod.namespace, Name: e.pod.name,
			Ips: text(e.pod.ips), Generation: e.pod.generation,
		},
		Reason:  e.pod.condition.Reason,
		Message: e.pod.condition.Message,
		Again:   e.wakes,
	})
}
