// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"fmt"
	"slices"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Stale reports whether r must be dropped, and why: its basis is older in any
// part than that of an assignment that any replica holds for the uid, or it
// is for other addresses. A release of what is not assigned is not stale, but
// Holds refuses it.
func (c *Confirmer) Stale(r *hubv1.Release) (stale bool, reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.subjects[r.GetSubject().GetUid()]
	if s == nil {
		return false, ""
	}
	ips := slices.Sorted(slices.Values(r.GetSubject().GetIps()))
	for _, a := range s.assignments {
		if r.GetBasis().Older(a.basis) {
			return true, fmt.Sprintf("computed from an older state (%v) than replica %s assigned from (%v)",
				r.GetBasis(), a.source.Replica, a.basis)
		}
		if held := a.evaluation.content.ips; !slices.Equal(ips, held) {
			return true, fmt.Sprintf("for addresses %v, replica %s assigned %v", ips, a.source.Replica, held)
		}
	}
	return false, ""
}

// Holds takes one more look and reports whether this node, which must be the
// subject's own, confirms uid by the newest assignment of every replica. An
// assignment that was computed from an older state than another's is left
// out, and one of a session that is over, unless all are. If the answer is no, the reason says why and the replicas are told a
// retraction, so that they release anew once it is confirmed again.
func (c *Confirmer) Holds(ctx context.Context, uid string) (holds bool, reason string) {
	before := c.own(uid)
	if len(before) == 0 {
		return false, "not assigned as a subject of this node"
	}
	seen := c.see(ctx)
	j := c.judge(ctx, before, seen, endless)
	if seen.err == nil {
		c.metrics.took(j.ended.Sub(seen.began))
	}
	if seen.err != nil {
		reason = printable(hubv1.ReasonUnread + ": " + seen.err.Error())
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.learn(before, j)
	s := c.subjects[uid]
	if s == nil {
		return false, "withdrawn during the look"
	}
	for _, e := range before {
		if !e.current() {
			reason = hubv1.ReasonAssignedAnew
			continue
		}
		if _, judged := j.each[e]; judged {
			c.observe(e, j)
		}
		if !e.answer.confirmed && reason == "" {
			if reason = e.answer.reason(); reason == "" {
				reason = hubv1.ReasonNotConfirmed
			}
		}
	}
	if now := s.own(); reason == "" && !sameEvaluations(before, now) {
		reason = hubv1.ReasonAssignedAnew
	}
	if reason == "" {
		return true, ""
	}
	// Also to a replica whose own content still holds: it has released, and
	// would not again.
	for _, e := range s.evaluations() {
		if e.answer.confirmed {
			e.answer = e.state.recall(reason)
			c.publish(e)
		}
		if e.content.malformed == nil {
			c.await(e)
		}
	}
	c.wakeUp()
	return false, reason
}

// own returns the evaluations that the release of uid depends on.
func (c *Confirmer) own(uid string) []*evaluation {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.subjects[uid]; s != nil {
		return s.own()
	}
	return nil
}

// own returns the evaluations of s that belong to an assignment as the
// subject's own node, are not superseded by another replica's and, if there is
// any such, were assigned in a session that is not over.
func (s *subject) own() []*evaluation {
	all, live := s.newest(false), s.newest(true)
	if len(live) > 0 {
		return live
	}
	return all
}

// newest returns the evaluations of own, either of all sessions or of those
// that are not over.
func (s *subject) newest(live bool) []*evaluation {
	var own []*evaluation
	for _, a := range s.assignments {
		if live && a.ended {
			continue
		}
		superseded := false
		for _, b := range s.assignments {
			if (!live || !b.ended) && a.basis.Older(b.basis) && !b.basis.Older(a.basis) {
				superseded = true
			}
		}
		e := a.evaluation
		if e.content.ownNode && !superseded && !slices.Contains(own, e) {
			own = append(own, e)
		}
	}
	return own
}

func sameEvaluations(a, b []*evaluation) bool {
	if len(a) != len(b) {
		return false
	}
	for _, e := range a {
		if !slices.Contains(b, e) {
			return false
		}
	}
	return true
}
