// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"cmp"
	"container/list"
	"slices"
	"time"
)

// turn is how long a look goes on to ask for one evaluation after the other,
// if reading the rules has not taken longer. What it does not come to is first
// in the next. Without it one tenant's 300 subjects of 256 flows make a look
// take 0.4 to 1.2 s (measured with the rules of 110 Pods), and as looks may take
// a fifth of the time only, a subject of somebody else waits for five times as
// long. While each lacks something, such a look takes 8 to 70 ms.
const turn = 50 * time.Millisecond

// pendingAt reports whether e is to be answered soon: it is not confirmed, or
// was a short while ago only and may have to be retracted before the subject is
// released, or some replica was not told yet. Nobody awaits what was assigned
// in sessions that are over.
// A policy is never released, so it is done with once all were told.
func (e *evaluation) pendingAt(now time.Time) bool {
	young := !e.content.policy && now.Sub(e.confirmedSince) < settled
	return e.live() && (!e.answer.confirmed || young || !e.toldAll())
}

// await makes e pending, and brings the next look forward for it.
func (c *Confirmer) await(e *evaluation) {
	c.unrest(e)
	now := c.clock.Now()
	if _, already := c.pendingLike(e)[e]; !already {
		c.pendingLike(e)[e], e.since = struct{}{}, now
	}
	if c.planned != nil {
		c.planned.pending = c.planned.pending || e.alert(now)
		c.planned.hasten(c.dueOf(e, now))
	}
}

// pendingLike and restingLike return where e is kept while it is pending, and
// while it rests.
func (c *Confirmer) pendingLike(e *evaluation) map[*evaluation]struct{} {
	if e.content.policy {
		return c.policies.pending
	}
	return c.pending
}

func (c *Confirmer) restingLike(e *evaluation) *list.List {
	if e.content.policy {
		return c.policies.resting
	}
	return c.resting
}

// unrest takes e out of the resting ones.
func (c *Confirmer) unrest(e *evaluation) {
	if e.place != nil {
		c.restingLike(e).Remove(e.place)
		e.place = nil
	}
}

// retire has those rest that are no longer pending.
func (c *Confirmer) retire(now time.Time) {
	for _, pending := range []map[*evaluation]struct{}{c.pending, c.policies.pending} {
		for e := range pending {
			if !e.pendingAt(now) {
				delete(pending, e)
				c.rest(e)
			}
		}
	}
}

// rest puts e among the resting ones, behind those that were looked at before.
// Only what a look or a release has come to since is behind e.
func (c *Confirmer) rest(e *evaluation) {
	resting := c.restingLike(e)
	for place := resting.Back(); place != nil; place = place.Prev() {
		if other, ok := place.Value.(*evaluation); ok && !other.seenAt.After(e.seenAt) {
			e.place = resting.InsertAfter(e, place)
			return
		}
	}
	e.place = resting.PushFront(e)
}

// chosen returns the evaluations of Pods that the next look answers, in the
// order in which it comes to them: all that are pending, and of the others those
// that were looked at longest ago, as many as their flows allow but at least one.
// Unless it is an audit's, there are none if none are pending: then the look is
// taken for policies.
func (c *Confirmer) chosen(audit bool) []*evaluation {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retire(c.clock.Now())
	flows := besideFlows
	switch {
	case audit:
		flows = auditFlows
	case len(c.pending) == 0:
		return nil
	}
	all := make([]*evaluation, 0, len(c.pending)+1)
	for e := range c.pending {
		all = append(all, e)
	}
	for place := c.resting.Front(); place != nil; place = place.Next() {
		e, ok := place.Value.(*evaluation)
		if !ok {
			continue
		}
		if flows -= e.content.description.count; flows < 0 && place != c.resting.Front() {
			break
		}
		all = append(all, e)
	}
	inTurn(all)
	return all
}

// inTurn sorts evaluations into the order in which a look comes to them: the
// namespaces in turn, and those that rest in one turn together, as if they were
// a namespace. Within each of them those come first that are new or need but a
// second look, then those that were looked at longest ago, the younger first.
func inTurn(all []*evaluation) {
	type group struct {
		resting   bool
		namespace string
	}
	type queued struct {
		evaluation *evaluation
		urgent     bool
		rank       int
	}
	queue := make([]queued, len(all))
	for i, e := range all {
		queue[i] = queued{evaluation: e, urgent: e.urgent()}
	}
	slices.SortFunc(queue, func(x, y queued) int {
		if x.urgent != y.urgent {
			if x.urgent {
				return -1
			}
			return 1
		}
		a, b := x.evaluation, y.evaluation
		return cmp.Or(a.seenAt.Compare(b.seenAt), b.subject.began.Compare(a.subject.began))
	})
	sizes := make(map[group]int)
	for i, q := range queue {
		g := group{namespace: q.evaluation.subject.namespace}
		if q.evaluation.place != nil {
			g = group{resting: true}
		}
		queue[i].rank = sizes[g]
		sizes[g]++
	}
	slices.SortStableFunc(queue, func(x, y queued) int { return cmp.Compare(x.rank, y.rank) })
	for i, q := range queue {
		all[i] = q.evaluation
	}
}

// urgent reports whether e comes first: some replica was told nothing yet, or
// nothing but a second look is missing.
func (e *evaluation) urgent() bool { return !e.observed || e.state.wanting || !e.toldAll() }
