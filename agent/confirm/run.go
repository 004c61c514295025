// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"time"

	"github.com/policygate/policygate/api/flow"
)

const (
	// shortest and longest bound the time between looks while a subject is
	// young. Within them a look may take a fifth of the time.
	shortest = 100 * time.Millisecond
	longest  = 250 * time.Millisecond
	// patience is the age from which a subject is looked after once in slow.
	patience = 30 * time.Second
	slow     = time.Second
)

// Run takes looks while anything is assigned, until ctx ends; then it returns
// nil.
func (c *Confirmer) Run(ctx context.Context) error {
	for {
		var fire <-chan time.Time
		stop := func() {}
		if due, pending := c.due(); pending {
			timer := c.clock.NewTimer(due.Sub(c.clock.Now()))
			fire, stop = timer.C(), func() { timer.Stop() }
		}
		select {
		case <-ctx.Done():
			stop()
			return nil
		case <-c.wake:
			stop()
		case <-fire:
			c.look(ctx)
		}
	}
}

// due returns when the next look is, and false if nothing needs one.
func (c *Confirmer) due() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.clock.Now()
	var first time.Time
	found := false
	for _, s := range c.subjects {
		for _, e := range s.evaluations {
			if e.malformed != nil {
				continue
			}
			if t := c.dueOf(s, e, now); !found || t.Before(first) {
				first, found = t, true
			}
		}
	}
	return first, found
}

// dueOf returns when e needs its next look.
func (c *Confirmer) dueOf(s *subject, e *evaluation, now time.Time) time.Time {
	if c.newest == nil {
		return now
	}
	ended := c.newest.ended
	if e.state.wanting {
		return e.state.allSince.Add(secondLook)
	}
	if !e.observed || !s.told() {
		// A burst of assignments shares a look.
		return ended.Add(secondLook)
	}
	return ended.Add(interval(now.Sub(s.began), ended.Sub(c.newest.seen.began)))
}

// told reports whether every replica had an answer to its newest assignment.
func (s *subject) told() bool {
	for _, a := range s.assignments {
		if !a.told {
			return false
		}
	}
	return true
}

// interval returns the time between looks for a subject of the given age, if
// a look takes cost.
func interval(age, cost time.Duration) time.Duration {
	if age >= patience {
		return slow
	}
	return min(max(4*cost, shortest), longest)
}

// look takes one look for all subjects and reports what changed.
func (c *Confirmer) look(ctx context.Context) {
	// Before the look: one that was assigned later must not count it.
	evaluations := c.watched()
	if len(evaluations) == 0 {
		return
	}
	j := c.judge(evaluations, c.see(ctx))
	if ctx.Err() != nil {
		return
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(j)
	c.learn(evaluations, j)
	confirmed := 0
	for _, e := range evaluations {
		if c.current(e) {
			c.observe(e, j)
		}
		if e.answer.confirmed {
			confirmed++
		}
	}
	c.metrics.held(confirmed, len(evaluations)-confirmed)
}

// judgement is what one look says about evaluations. There are no findings if
// it failed.
type judgement struct {
	seen     *sight
	findings map[*evaluation]findings
	// denied are the families of which a witness was denied.
	denied [families]bool
	// ended is when the last verdict was known: sets may be read for it.
	ended time.Time
}

// moment is the look's.
func (j *judgement) moment() moment {
	return moment{began: j.seen.began, ended: j.ended, rewrites: j.seen.rewrites}
}

// judge holds the evaluations' expectations against the look, and asks the
// witnesses again.
func (c *Confirmer) judge(evaluations []*evaluation, seen *sight) *judgement {
	j := &judgement{seen: seen, findings: make(map[*evaluation]findings, len(evaluations))}
	if seen.err == nil {
		for _, e := range evaluations {
			j.findings[e] = find(seen, e.expectations)
		}
		for f, witnesses := range c.witnesses() {
			for _, w := range witnesses {
				j.denied[f] = j.denied[f] || seen.verdict(w).Answer == flow.Denied
			}
		}
	}
	j.ended = c.clock.Now()
	return j
}

// witnesses returns the flows to ask beside those of the assignments.
func (c *Confirmer) witnesses() [families][]flow.Flow {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.enforcement.witnesses
}

// learn takes in what the look shows of the families that the engine
// enforces. It comes before observe, so that the same look is summed up by it.
func (c *Confirmer) learn(evaluations []*evaluation, j *judgement) {
	before := c.enforcement.unenforced
	for f := range families {
		denied := j.denied[f]
		for _, found := range j.findings {
			denied = denied || found[f].denied > 0
		}
		if denied {
			c.enforcement.denied(f)
		}
	}
	for _, e := range evaluations {
		switch {
		case j.seen.err != nil:
			e.open = openSince{}
		case !j.seen.began.Before(e.seenAt) && e.malformed == nil:
			e.open.observe(j.moment(), j.findings[e])
			c.enforcement.observe(j.moment(), e.open, j.findings[e])
		}
	}
	for f, unenforced := range c.enforcement.unenforced {
		switch {
		case unenforced && !before[f]:
			c.log.Info("The policy engine does not enforce an address family: left out where the manager allows it",
				"family", family(f).String())
		case !unenforced && before[f]:
			c.log.Info("The policy engine enforces an address family after all", "family", family(f).String())
		}
	}
}

// watched returns the evaluations that a look can answer.
func (c *Confirmer) watched() []*evaluation {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*evaluation
	for _, s := range c.subjects {
		for _, e := range s.evaluations {
			if e.malformed == nil {
				all = append(all, e)
			}
		}
	}
	if len(all) == 0 {
		c.metrics.held(0, 0)
	}
	return all
}

// note remembers what was judged last, and logs when looks begin to fail
// and when they succeed again.
func (c *Confirmer) note(j *judgement) {
	c.newest = j
	switch failing := j.seen.err != nil; {
	case failing && !c.failing:
		c.log.Error(j.seen.err, "The dataplane cannot be read: nothing is confirmed")
		c.failing = true
	case !failing && c.failing:
		c.log.Info("The dataplane can be read again")
		c.failing = false
	}
}
