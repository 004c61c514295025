// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"
	"time"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/queue"
)

// resendFirst and resendMost pace releases that the Pod does not show: an
// agent drops one that is older than what it holds from another replica.
const (
	resendFirst = 500 * time.Millisecond
	resendMost  = 5 * time.Second
)

// settle decides about an entry that is not stale and acts on it.
func (l *Ledger) settle(e *entry, now time.Time) {
	e.touched = false
	s := l.state(e)
	if !s.addressed.IsZero() && !now.Before(s.deadline()) {
		l.learnOverdue(e)
		s = l.state(e)
	}
	d := decide(s, now)
	if d.overdue() && !e.overdue {
		e.overdue = true
		l.metrics.timeouts.Inc()
	}
	if d.suspect {
		e.suspected = true
		l.coverage.Suspect(e.pod.uid)
		l.outdated(e)
	}
	next := d.next
	switch {
	case d.open != nil:
		l.teller.Hush(e.pod.uid)
		if !l.release(e, *d.open, now) {
			return
		}
		if next = e.resend; e.renewing {
			next = time.Time{} // the barrier wakes it
		}
	case d.shut != nil:
		l.teller.Tell(Message{
			UID: e.pod.uid, Namespace: e.pod.namespace, Name: e.pod.name,
			ResourceVersion: e.pod.resourceVersion, Generation: e.pod.generation,
			Current: e.pod.condition,
			Reason:  d.shut.reason, Text: d.shut.message, Urgent: d.urgent,
		})
	default:
		l.teller.Hush(e.pod.uid)
	}
	l.timers.Set(e, next)
}

// listedWithin is how old the LISTs may be behind which a gate is opened. A Pod
// that waits for longer outlives them: of a policy that was made meanwhile, a
// replica whose watch was interrupted knows nothing (seen after an outage of the
// API server: a policy 4.5 s old, in a cluster of three nodes). Most Pods are
// confirmed within it, and need no LISTs but their first.
const listedWithin = 5 * time.Second

// ticket has the barrier list anew for the entry.
func (l *Ledger) ticket(e *entry, now time.Time) {
	l.barrier.Forget(e.pod.uid)
	l.barrier.Ticket(e.pod.uid)
	e.listed, e.renewing = now, false
}

// release sends the release to the Pod's node, unless it was just sent or has to
// wait for newer LISTs, whose coming touches the entry. It reports false if something has happened meanwhile that must be computed
// first.
func (l *Ledger) release(e *entry, o outcome, now time.Time) bool {
	if now.Before(e.resend) || e.renewing {
		return true
	}
	if now.Sub(e.listed) > listedWithin {
		l.ticket(e, now)
		e.renewing = true
		return true
	}
	// The release carries the newest basis, or an agent that holds a newer one
	// from another replica drops it.
	basis, stands := l.coverage.Standing(e.pod.uid)
	if !stands {
		l.outdatedIn(e, queue.Urgent)
		return false
	}
	sent := l.hub.Release(e.pod.node, &hubv1.Release{
		Subject: e.assignment.Subject,
		Basis:   basis,
		Reason:  o.reason,
		Message: o.message,
	})
	e.resend = now.Add(min(resendFirst<<min(e.attempts, 8), resendMost))
	e.attempts++
	if sent {
		level := 1
		if !e.released {
			level = 0
			l.metrics.notAsked.Add(float64(e.assignment.NotAsked))
		}
		e.released, e.releasedTo = true, e.pod.held
		l.log.V(level).Info("gate is released", "pod", e.pod.namespace+"/"+e.pod.name, "node", e.pod.node,
			"reason", o.reason, "message", o.message, "attempt", e.attempts)
	}
	return true
}

// held returns when the hold of the Pod's present sandbox started, by the
// ledger's clock; zero if it did not.
func (e *entry) held() time.Time {
	if e.pod.held.Equal(e.former) {
		return time.Time{}
	}
	return e.started
}

// state gathers what the decision about e is made of.
func (l *Ledger) state(e *entry) state {
	s := state{
		addressed: e.addressed,
		held:      e.held(),
		timeout:   e.pod.settings.Timeout,
		onTimeout: e.pod.settings.OnTimeout,
		current:   e.current && !e.stale,
		moved:     e.renewed() || e.pod.moved(l.node(e.pod.node).bootID),
		suspected: e.suspected,
		obscure: slices.ContainsFunc(e.notes, func(n expect.Note) bool {
			return n.Kind == expect.PolicyNotUnderstood
		}),
	}
	if e.assignment == nil {
		return s
	}
	s.notAsked = e.assignment.NotAsked
	s.span = make([]spanNode, len(e.inquiries))
	for i, q := range e.inquiries {
		n, a := q.node, &q.answer
		s.span[i] = spanNode{
			name: q.name, own: q.name == e.pod.node, optional: q.optional,
			connected: n.connected, unseen: n.unseen(), stalled: n.quarantined(e.pod.namespace),
			answered: a.given, confirmed: a.confirmed, without: a.without,
		}
		switch {
		case a.confirmed && len(a.unrealized) > 0:
			s.span[i].deviates = q.demand.Unrealized(a.unrealized, e.pod.namespace)
		case a.advisory():
			s.span[i].deviates = []string{"all that was asked"}
		case !a.confirmed && len(a.unmet) > 0:
			s.span[i].awaits = awaits(q.demand, a.unmet[0], e.pod.namespace, e.pod.ips)
		}
	}
	return s
}
