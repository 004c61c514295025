// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import "time"

const (
	// shortest and longest bound the time between looks while a subject is
	// young. Within them a look takes one percent of the time. Nothing tells of
	// a change of sets, or of legacy tables that are written with another lock.
	shortest = 100 * time.Millisecond
	longest  = 250 * time.Millisecond
	calm     = 100
	// shortestBlind and calmBlind are for Pods of a dataplane that tells of
	// nothing: a change is found within 50 ms, and looks may take a twentieth of
	// the time, which is what traces may take of ovs-vswitchd's.
	shortestBlind = 50 * time.Millisecond
	calmBlind     = 20
	// patience is the age from which a subject is looked after once in slow.
	patience = 30 * time.Second
	slow     = time.Second
	// share is how many times a look's length must pass before the next: it
	// may take a fifth of the time.
	share = 4
	// debounce is how long a notice waits for others. An engine writes
	// several tables, or one in several commits, in a row.
	debounce = 10 * time.Millisecond
	// settled is for how long something must have been confirmed, without
	// interruption, until it is no longer pending. A node that holds a subject
	// up for two minutes is Stalled and left out, so most subjects that were
	// confirmed so long ago are released or will be.
	settled = 2 * time.Minute
	// auditEvery is the time between audits, and idleAuditEvery that while
	// nothing is assigned: then only what is told of the node depends on them.
	auditEvery     = 15 * time.Second
	idleAuditEvery = time.Minute
	// auditFlows and besideFlows are how many flows of what is not pending are
	// asked in an audit, and in a look that is taken for what is. A flow takes
	// 2 to 20 microseconds.
	auditFlows  = 1024
	besideFlows = 256
)

// cadence is what decides when the next look is.
type cadence struct {
	// pending: there is something to answer soon, so that notices are taken.
	pending bool
	// due is when the next look is; zero for none, as nothing is assigned.
	due time.Time
}

// taken is when a look was taken.
type taken struct{ began, ended time.Time }

// cost is how long the look took.
func (t taken) cost() time.Duration { return t.ended.Sub(t.began) }

// hasten brings the next look forward.
func (p *cadence) hasten(due time.Time) {
	if p.due.IsZero() || due.Before(p.due) {
		p.due = due
	}
}

// plan returns when the next look is. It goes through what is pending once
// after each look: until the next one, assignments and notices can only bring
// that forward.
func (c *Confirmer) plan() cadence {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.planned == nil {
		c.planned = c.planAll()
	}
	p := *c.planned
	if p.pending && !c.noticed.IsZero() {
		due := c.noticed.Add(debounce)
		if !c.newest.ended.IsZero() {
			due = later(due, c.newest.ended.Add(share*c.newest.cost()))
		}
		if len(c.pending) == 0 {
			due = later(due, c.policies.next)
		}
		p.hasten(due)
	}
	return p
}

// planAll returns when the next look is but for notices.
func (c *Confirmer) planAll() *cadence {
	now := c.clock.Now()
	c.retire(now)
	p := &cadence{pending: len(c.pending) > 0}
	switch {
	case p.pending || c.resting.Len() > 0 || c.policies.any():
		p.hasten(c.audited.Add(auditEvery))
	case c.states != nil:
		p.hasten(c.audited.Add(idleAuditEvery))
	}
	for e := range c.pending {
		p.hasten(c.dueOf(e, now))
	}
	c.policies.plan(p, now)
	return p
}

// dueOf returns when e, which is pending, needs its next look.
func (c *Confirmer) dueOf(e *evaluation, now time.Time) time.Time {
	ended := c.newest.ended
	switch {
	case e.content.policy:
		return c.policies.due(e, now)
	case ended.IsZero():
		return now
	case e.state.wanting && e.seenAt.Before(c.newest.began):
		// The newest look did not come to it. With a pause, however many wait.
		return later(e.state.allSince, ended).Add(secondLook)
	case e.state.wanting:
		return e.state.allSince.Add(secondLook)
	case !e.observed || !e.toldAll():
		// A burst of assignments shares a look.
		return ended.Add(secondLook)
	}
	return ended.Add(interval(now.Sub(e.subject.began), c.newest.cost(), c.blind))
}

// interval returns the time between looks for a subject of the given age, if
// a look takes cost.
func interval(age, cost time.Duration, blind bool) time.Duration {
	if age >= patience {
		return max(share*cost, slow)
	}
	if blind {
		return max(share*cost, min(max(calmBlind*cost, shortestBlind), longest))
	}
	return max(share*cost, min(max(calm*cost, shortest), longest))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// burst is how long changes of the rules count as one rewrite. An engine makes
// many in one sync, and what is told of each would otherwise make the first
// two of a single sync count as two.
const burst = longest

// rewrites counts the engine's rewrites by the changes that looks have found.
// The zero value has seen none.
type rewrites struct {
	changes uint64
	number  uint64
	at      time.Time
}

// observe takes in the number of changes at a moment and returns that of the
// rewrites.
func (r *rewrites) observe(changes uint64, at time.Time) uint64 {
	if changes > r.changes && (r.number == 0 || at.Sub(r.at) >= burst) {
		r.changes, r.at = changes, at
		r.number++
	}
	return r.number
}
