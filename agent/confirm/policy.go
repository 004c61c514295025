// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"container/list"
	"context"
	"slices"
	"time"
)

const (
	// aside is how long a look goes on to ask for policies, or to audit them,
	// while Pods are pending: they wait for the next look meanwhile. Without any
	// it may take a turn, which the first Pod that comes cuts off.
	aside = 5 * time.Millisecond
	// policyShare and auditShare are how many times what it took must pass
	// before pending policies, and those that rest or are hopeless, are asked
	// for again: they take a tenth, and a hundredth, of the time.
	policyShare = 9
	auditShare  = 99
	// hopeless is the age from which a policy that is not confirmed is looked
	// after once in slowest, and with those that rest.
	hopeless = 10 * time.Minute
	slowest  = 5 * time.Second
	// policyAuditEvery is when a policy that rests is looked at again. It is
	// less than auditEvery, so that all are within that if it takes several
	// looks. What is due within takeAlong is taken along.
	policyAuditEvery = 10 * time.Second
	takeAlong        = 3 * time.Second
)

// policies are the evaluations of policies. They are kept beside those of Pods,
// which none of them may delay.
type policies struct {
	// pending and resting are as those of Pods.
	pending map[*evaluation]struct{}
	resting *list.List
	// next and nextAudit are when those that are pending, and those that rest
	// or are hopeless, may be asked for again.
	next, nextAudit time.Time
	// asked is when any that was awaited was asked for last, and took how long
	// that took in all.
	asked time.Time
	took  time.Duration
}

func newPolicies() policies {
	return policies{pending: make(map[*evaluation]struct{}), resting: list.New()}
}

// any reports whether there are any.
func (p *policies) any() bool { return len(p.pending) > 0 || p.resting.Len() > 0 }

// alert reports whether e, which is pending, is worth a look whenever something
// is noticed.
func (e *evaluation) alert(now time.Time) bool {
	return !e.content.policy || now.Sub(e.since) < patience
}

// hopeless reports whether e, which is pending, has been for so long that it may
// never be confirmed.
func (e *evaluation) hopeless(now time.Time) bool {
	return now.Sub(e.since) >= hopeless && !e.urgent()
}

// due returns when e, which is pending, needs its next look.
func (p *policies) due(e *evaluation, now time.Time) time.Time {
	due := now
	switch {
	case e.hopeless(now):
		return later(e.seenAt.Add(slowest), p.nextAudit)
	case !e.observed:
	case e.state.wanting:
		due = e.state.allSince.Add(secondLook)
	case !e.toldAll() && !e.uncovered:
		due = e.seenAt.Add(secondLook)
	default:
		due = e.seenAt.Add(interval(now.Sub(e.since), p.took, false))
	}
	return later(due, p.next)
}

// plan brings the next look forward for the policies.
func (p *policies) plan(next *cadence, now time.Time) {
	for e := range p.pending {
		next.pending = next.pending || e.alert(now)
		next.hasten(p.due(e, now))
	}
	if oldest, ok := p.oldest(); ok {
		next.hasten(later(oldest.seenAt.Add(policyAuditEvery), p.nextAudit))
	}
}

// oldest returns that of those that rest which was looked at longest ago.
func (p *policies) oldest() (*evaluation, bool) {
	front := p.resting.Front()
	if front == nil {
		return nil, false
	}
	e, ok := front.Value.(*evaluation)
	return e, ok
}

// policyTurn are the policies that a look asks for, in its order: those that
// are awaited, and those that are audited.
type policyTurn struct{ awaited, audited []*evaluation }

// any reports whether there are any.
func (p policyTurn) any() bool { return len(p.awaited)+len(p.audited) > 0 }

// chosenPolicies returns those that the next look asks for, as far as it has
// the time: of those that are pending the young and those that are due, the
// namespaces in turn, and of those that rest or are hopeless the ones that were
// looked at longest ago.
func (c *Confirmer) chosenPolicies() policyTurn {
	c.mu.Lock()
	defer c.mu.Unlock()
	var chosen policyTurn
	now, p := c.clock.Now(), &c.policies
	for e := range p.pending {
		switch due := !now.Before(p.due(e, now)); {
		case e.hopeless(now):
			if due {
				chosen.audited = append(chosen.audited, e)
			}
		case due || e.alert(now) && !now.Before(p.next):
			chosen.awaited = append(chosen.awaited, e)
		}
	}
	inTurn(chosen.awaited)
	if now.Before(p.nextAudit) {
		return chosen
	}
	for place := p.resting.Front(); place != nil; place = place.Next() {
		e, ok := place.Value.(*evaluation)
		if !ok || now.Sub(e.seenAt) < policyAuditEvery-takeAlong {
			break
		}
		chosen.audited = append(chosen.audited, e)
	}
	slices.SortStableFunc(chosen.audited, func(a, b *evaluation) int { return a.seenAt.Compare(b.seenAt) })
	return chosen
}

// lookAside asks a look for the policies, once its answers for Pods are told.
// Those that are awaited get what is left of the look's turn, but some of them
// are asked for each second; the others get their share whatever is left.
// Reading the rules counts for them if the look was not taken for Pods.
func (c *Confirmer) lookAside(ctx context.Context, seen *sight, chosen policyTurn, pods bool) {
	began := seen.began
	if pods {
		began = c.clock.Now()
	}
	spent := c.clock.Since(seen.began)
	most := func() time.Duration { return c.allowance(pods, spent) }
	if len(chosen.awaited) > 0 {
		if !c.askAside(ctx, seen, chosen.awaited, began, turn-spent, most) {
			return
		}
		began = c.clock.Now()
	}
	if len(chosen.audited) == 0 {
		return
	}
	j := c.ask(ctx, chosen.audited, seen, most)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() == nil {
		c.policies.nextAudit = j.ended.Add(auditShare * j.ended.Sub(began))
		c.observeAll(chosen.audited, j)
	}
}

// askAside asks a look for policies that are awaited. It returns false if ctx
// has ended.
func (c *Confirmer) askAside(ctx context.Context, seen *sight, awaited []*evaluation,
	began time.Time, left time.Duration, most func() time.Duration,
) bool {
	if !c.mayAsk(seen, began, left) {
		return true
	}
	j := c.ask(ctx, awaited, seen, most)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ctx.Err() != nil {
		return false
	}
	p := &c.policies
	p.asked, p.took = j.ended, j.ended.Sub(began)
	p.next = j.ended.Add(policyShare * p.took)
	c.observeAll(awaited, j)
	return true
}

// mayAsk reports whether policies are asked for although so much is left of the
// look's turn. If not, they wait as long as Pods do for the next look.
func (c *Confirmer) mayAsk(seen *sight, now time.Time, left time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &c.policies
	if left > 0 || len(c.pending) == 0 || now.Sub(p.asked) >= slow {
		return true
	}
	p.next = now.Add(share * now.Sub(seen.began))
	return false
}

// allowance returns how long a look may go on to ask for policies: if it was not
// taken for Pods, as long as reading the rules took.
func (c *Confirmer) allowance(pods bool, spent time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case len(c.pending) > 0:
		return aside
	case pods:
		return turn
	}
	return max(turn, spent)
}
