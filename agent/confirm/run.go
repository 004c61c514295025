// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/policygate/policygate/api/flow"
)

// Run takes looks while anything is assigned, until ctx ends; then it returns
// nil.
func (c *Confirmer) Run(ctx context.Context) error {
	if c.coverer != nil {
		covers := make(chan struct{})
		go func() { defer close(covers); c.runCover(ctx) }()
		defer func() { <-covers }()
	}
	unwatch := func() {}
	watching := false
	defer func() { unwatch() }()
	for {
		next := c.plan()
		switch {
		case next.pending && !watching:
			unwatch = c.watch(ctx)
		case !next.pending && watching:
			unwatch()
			unwatch = func() {}
		}
		watching = next.pending
		var fire <-chan time.Time
		stop := func() {}
		if !next.due.IsZero() {
			timer := c.clock.NewTimer(next.due.Sub(c.clock.Now()))
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

// watch takes notices until what it returns is called.
func (c *Confirmer) watch(ctx context.Context) (unwatch func()) {
	if c.notices == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.notices.Watch(ctx, c.notice)
	}()
	return func() {
		cancel()
		<-done
	}
}

// notice takes in that the rules may have changed.
func (c *Confirmer) notice(source string) {
	c.metrics.noticed(source)
	c.mu.Lock()
	if c.noticed.IsZero() {
		c.noticed = c.clock.Now()
	}
	c.mu.Unlock()
	c.wakeUp()
}

// look takes one look and reports what changed.
func (c *Confirmer) look(ctx context.Context) {
	audit := c.audit(ctx)
	// Before the look: one that was assigned later must not count it.
	evaluations := c.chosen(audit)
	policies := c.chosenPolicies()
	if len(evaluations) == 0 && !policies.any() {
		return
	}
	seen := c.see(ctx)
	j := c.judge(ctx, evaluations, seen, turn)
	if ctx.Err() != nil {
		return
	}
	c.take(evaluations, j)
	c.lookAside(ctx, seen, policies, len(evaluations) > 0)
	if seen.err == nil {
		c.metrics.took(c.clock.Since(seen.began))
	}
}

// take takes in what a look says of Pods.
func (c *Confirmer) take(evaluations []*evaluation, j *judgement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(j)
	if len(evaluations) > 0 {
		c.newest = taken{began: j.seen.began, ended: j.ended}
	}
	c.observeAll(evaluations, j)
}

// observeAll takes in what was judged of evaluations.
func (c *Confirmer) observeAll(evaluations []*evaluation, j *judgement) {
	c.learn(evaluations, j)
	for _, e := range evaluations {
		if _, judged := j.each[e]; judged && e.current() {
			c.observe(e, j)
		}
	}
}

// audit does what is due every now and then before a look, and reports whether
// it was. What was noticed so far is covered by the look.
func (c *Confirmer) audit(ctx context.Context) bool {
	now := c.clock.Now()
	c.mu.Lock()
	c.noticed, c.planned = time.Time{}, nil
	due := !now.Before(c.audited.Add(auditEvery))
	if due {
		c.audited = now
	}
	c.mu.Unlock()
	if due {
		c.examine(ctx)
	}
	return due
}

// held counts the evaluations that are confirmed, or those that are not. Those
// that are malformed are neither.
func (c *Confirmer) held(confirmed bool) float64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	if confirmed {
		n = c.resting.Len() + c.policies.resting.Len()
	}
	for _, pending := range []map[*evaluation]struct{}{c.pending, c.policies.pending} {
		for e := range pending {
			if e.answer.confirmed == confirmed {
				n++
			}
		}
	}
	return float64(n)
}

// judgement is what one look says about evaluations.
type judgement struct {
	seen *sight
	each map[*evaluation]judged
	// denied are the families of which a witness was denied.
	denied [families]bool
	// ended is when the last verdict was known: sets may be read for it.
	ended time.Time
}

// judged is what a look says about one evaluation. There are no findings with
// an err, nor if it is idle.
type judged struct {
	findings findings
	changes  uint64
	err      error
	// idle: what was unmet still is, and nothing else was asked.
	idle bool
	// withheld says why nothing was asked as it would count for nothing, or "".
	withheld string
	// resourced is how the source of a packet between Pods may be rewritten, or
	// "".
	resourced string
}

// endless is the turn of a look that has to answer for all.
const endless time.Duration = math.MaxInt64

// judge holds the evaluations' expectations against the look, in their order,
// and asks the witnesses again. The expectations of one evaluation are judged
// as of one moment, so that an Allowed and its controls belong together. It
// leaves out what is malformed, and what it does not come to within most, or
// within as much time as the look took before; it comes to one at least.
func (c *Confirmer) judge(ctx context.Context, evaluations []*evaluation, seen *sight, most time.Duration) *judgement {
	most = max(most, c.clock.Since(seen.began))
	j := c.ask(ctx, evaluations, seen, func() time.Duration { return most })
	if seen.err == nil {
		for f, witnesses := range c.witnesses() {
			j.denied[f] = anyDenied(ctx, seen, witnesses)
		}
	}
	j.ended = c.clock.Now()
	return j
}

// ask holds evaluations against the look as judge does. It asks each time
// whether the most is over.
func (c *Confirmer) ask(ctx context.Context, evaluations []*evaluation, seen *sight, most func() time.Duration) *judgement {
	j := &judgement{seen: seen, each: make(map[*evaluation]judged, len(evaluations))}
	began := c.clock.Now()
	var space []Question
	withheld := map[uint64]string{} // what is not acknowledged, and why
	for _, e := range evaluations {
		if e.content.malformed != nil {
			continue
		}
		if seen.err != nil {
			j.each[e] = judged{err: seen.err}
			continue
		}
		if len(j.each) > 0 && c.clock.Since(began) >= most() {
			break
		}
		if config := e.content.northboundConfig; config > 0 {
			why, known := withheld[config]
			if !known {
				why = c.unacknowledged(ctx, config)
				withheld[config] = why
			}
			if why != "" {
				j.each[e] = judged{withheld: why}
				continue
			}
		}
		j.each[e], space = e.judge(ctx, seen, c.lacking(e), space)
	}
	j.ended = c.clock.Now()
	return j
}

// lacking returns the expectations, by their index, that have to come to hold
// before it is worth while to ask for the others: the required ones that were
// named as unmet. There are none if all are to be asked, which is the case once
// in slow for the report and for what is learned of the engine, and once in
// slowest of a policy that has waited for long.
func (c *Confirmer) lacking(e *evaluation) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	thorough := slow
	if !e.alert(c.clock.Now()) {
		thorough = slowest
	}
	if !e.current() || !e.toldAll() || e.answer.confirmed || c.clock.Since(e.judgedAt) >= thorough {
		return nil
	}
	var all []int
	for _, u := range e.answer.unmet[:min(e.answer.required, len(e.answer.unmet))] {
		all = append(all, u.index)
	}
	return all
}

// judge holds e's expectations against the look: all of them, unless one that
// is lacking still does not hold. It returns space, where it puts questions.
func (e *evaluation) judge(ctx context.Context, seen *sight, lacking []int, space []Question) (judged, []Question) {
	if len(lacking) > 0 {
		space = e.content.questions(space[:0], lacking)
		answers, _, err := seen.together(ctx, space)
		if err == nil && e.content.lacks(lacking, answers) {
			return judged{idle: true, resourced: resourced(space, answers)}, space
		}
	}
	space = e.content.questions(space[:0], nil)
	answers, changes, err := seen.together(ctx, space)
	if err != nil {
		return judged{err: err}, space
	}
	return judged{findings: e.content.find(answers), changes: changes, resourced: resourced(space, answers)}, space
}

// anyDenied reports whether the look denies any of the flows.
func anyDenied(ctx context.Context, seen *sight, flows []flow.Flow) bool {
	if len(flows) == 0 {
		return false
	}
	questions := make([]Question, len(flows))
	for i, f := range flows {
		questions[i] = Question{Flow: f, External: true}
	}
	answers, _, err := seen.together(ctx, questions)
	return err == nil && slices.ContainsFunc(answers, func(a Answer) bool { return a.Verdict.Answer == flow.Denied })
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
		for _, of := range j.each {
			denied = denied || of.findings[f].denied > 0
		}
		if denied {
			c.enforcement.denied(f)
		}
	}
	for _, e := range evaluations {
		of, asked := j.each[e]
		if of.resourced != "" {
			c.node.resource(of.resourced, j.ended)
		}
		switch {
		case !asked, of.idle, of.withheld != "":
			// Nothing was learned, and nothing ends.
		case of.err != nil:
			e.open = openSince{}
		case !j.seen.began.Before(e.seenAt):
			m := moment{began: j.seen.began, ended: j.ended}
			e.open.observe(m, of.findings)
			c.enforcement.observe(m, e.open, of.findings)
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

// note logs when looks begin to fail and when they succeed again.
func (c *Confirmer) note(j *judgement) {
	switch failing := j.seen.err != nil; {
	case failing && !c.failing:
		c.log.Error(j.seen.err, "The dataplane cannot be read: nothing is confirmed")
		c.failing = true
	case !failing && c.failing:
		c.log.Info("The dataplane can be read again")
		c.failing = false
	}
}
