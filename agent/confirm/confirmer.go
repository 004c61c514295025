// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"container/list"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Source is a session with a replica of the manager. A report goes back into
// the session that its assignment came from, and into no later one: a replica
// that restarted counts its generations anew.
type Source struct {
	// Replica names the replica.
	Replica string
	// Session grows with each session of this process.
	Session uint64
}

// Reports takes what is to be told to the manager's replicas.
type Reports interface {
	// Send must not block and must not call back. A report replaces an
	// earlier one of the same uid that has not left yet; one for a session
	// that has ended is dropped.
	Send(to Source, report *hubv1.Report)
}

// Options are what a Confirmer is made of.
type Options struct {
	Dataplane Dataplane
	// Notices brings looks forward while something is pending. nil: looks are
	// taken by the clock alone.
	Notices Notices
	// Blind: nothing tells of changes of what the dataplane enforces, as with OVN,
	// so that looks for Pods are taken more often by the clock.
	Blind   bool
	Reports Reports
	// Surveyor and States: what the first says, and what looks and audits have
	// taught of the node as a whole, is told to the second. nil: it is not.
	Surveyor Surveyor
	States   States
	// Coverer is of the northbound database's agent alone: a policy that it has
	// confirmed is reported with what covers that. nil: with nothing.
	Coverer Coverer
	Clock   clock.Clock
	Log     logr.Logger
	// Registerer exposes the metrics. nil: they are counted for nobody.
	Registerer prometheus.Registerer
}

// Confirmer keeps the assignments of this node and answers them. It is made
// by New and safe for concurrent use.
type Confirmer struct {
	dataplane Dataplane
	notices   Notices
	blind     bool
	reports   Reports
	surveyor  Surveyor
	states    States
	coverer   Coverer
	clock     clock.Clock
	log       logr.Logger
	metrics   *metrics
	// wake tells Run that something may be due earlier than it believes.
	wake chan struct{}

	// looking and auditing have room for one each: whoever reads the dataplane,
	// and whoever examines it.
	looking, auditing chan struct{}
	sightMu           sync.Mutex // guards next
	next              *sight     // the look that later callers of see wait for

	mu       sync.Mutex // guards the following fields and all that they hold
	subjects map[string]*subject
	// pending are the evaluations of Pods that have to be answered soon, and
	// resting all others, looked at longest ago first. Malformed ones are in
	// neither. Those of policies are kept by themselves.
	pending  map[*evaluation]struct{}
	resting  *list.List
	policies policies
	// covering are the evaluations whose confirmation is told once the database
	// has been counted up, of which coverWake tells.
	covering  map[*evaluation]struct{}
	coverWake chan struct{}
	// planned is when the next look is but for notices; nil from the beginning
	// of a look until it is planned anew.
	planned *cadence
	newest  taken // what was judged last of Pods, or zero
	failing bool  // whether the last look failed
	// noticed is when the first change was noticed that no look has begun
	// after, or zero.
	noticed time.Time
	// audited is when the last audit began, and unsupported what it found.
	audited     time.Time
	unsupported string
	rewrites    rewrites
	// enforcement is what all looks taught.
	enforcement enforcement
	// node is what is known of the node as a whole.
	node node
}

// subject is all that is held for one uid.
type subject struct {
	uid string
	// namespace is what the newest assignment says.
	namespace string
	// began is when the uid was first assigned.
	began time.Time
	// version is what of the subject is to be confirmed: a Pod at its
	// addresses, or a generation of a policy. awaited is since when; zero once
	// it was.
	version string
	awaited time.Time
	// assignments has at most one of each replica.
	assignments []*assignment
}

// assignment is the newest one of a replica.
type assignment struct {
	source     Source
	generation uint64
	basis      *hubv1.Basis
	// evaluation is shared with replicas that assigned the same content.
	evaluation *evaluation
	// told: a report for this generation was sent.
	told bool
	// ended: the session is over, so nobody renews it nor hears of it.
	ended bool
}

// evaluation is what replicas with the same content share.
type evaluation struct {
	// The following three never change.
	subject *subject
	key     contentKey
	content content

	// place is where it is among the resting, or nil.
	place *list.Element
	// since is when it became pending last.
	since time.Time
	state state
	open  openSince
	// observed: there was a look, begun at seenAt, and answer is from the
	// newest.
	observed bool
	seenAt   time.Time
	answer   answer
	// judgedAt is when answer was made of all expectations; zero if they could
	// not be judged.
	judgedAt time.Time
	// confirmedSince is when the answer became confirmed, if it is.
	confirmedSince time.Time
	// uncovered: it is confirmed, which is not told before the northbound database
	// has been counted up. covered is to what, 0 if it was not.
	uncovered bool
	covered   uint64
	// told is the answer that was reported last, at toldAt.
	told   answer
	toldAt time.Time
}

// New returns a Confirmer without assignments. It takes no look before Run.
func New(o Options) *Confirmer {
	c := &Confirmer{
		dataplane: o.Dataplane,
		notices:   o.Notices,
		blind:     o.Blind,
		reports:   o.Reports,
		surveyor:  o.Surveyor,
		states:    o.States,
		coverer:   o.Coverer,
		clock:     o.Clock,
		log:       o.Log,
		wake:      make(chan struct{}, 1),
		looking:   make(chan struct{}, 1),
		auditing:  make(chan struct{}, 1),
		subjects:  make(map[string]*subject),
		pending:   make(map[*evaluation]struct{}),
		resting:   list.New(),
		policies:  newPolicies(),
		covering:  make(map[*evaluation]struct{}),
		coverWake: make(chan struct{}, 1),
	}
	c.metrics = newMetrics(o.Registerer, c.held)
	return c
}

// Assign takes in what a replica assigned, in place of its earlier assignment
// for the uid. It returns an error if a has no subject's uid, so that there is
// nothing to report on; anything else that is malformed is reported to the
// replica. d holds its expectations; nil if it names a description that was
// not sent, which is malformed. The message must not be changed afterwards.
func (c *Confirmer) Assign(from Source, a *hubv1.Assign, d *Description) error {
	uid := a.GetSubject().GetUid()
	if uid == "" {
		return errors.New("assignment without subject: want a subject with a uid")
	}
	key := keyOf(a, d)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.subjects[uid]
	if s == nil {
		s = &subject{uid: uid, began: c.clock.Now()}
		c.subjects[uid] = s
	}
	s.namespace = a.GetSubject().GetNamespace()
	if v := versionOf(a); v != s.version {
		s.version, s.awaited = v, c.clock.Now()
	}
	e := s.evaluation(key)
	if e == nil {
		e = s.evaluate(key, contentOf(a, d))
	}
	if e.answer.confirmed {
		// What was asked before is what is asked now: there is nothing to wait for.
		s.awaited = time.Time{}
	}
	c.unassign(s, from.Replica)
	s.assignments = append(s.assignments, &assignment{
		source: from, generation: a.GetGeneration(), basis: a.GetBasis(), evaluation: e,
	})
	if malformed := e.content.malformed; malformed != nil {
		c.log.Info("Assignment is malformed", "replica", from.Replica, "uid", uid, "reason", malformed.reason)
		c.publish(e)
		return nil
	}
	c.await(e)
	c.wakeUp()
	return nil
}

// versionOf returns what of its subject a asks to be confirmed. It is never "".
func versionOf(a *hubv1.Assign) string {
	if a.GetPolicy() {
		return fmt.Sprintf("generation %d", a.GetSubject().GetGeneration())
	}
	return fmt.Sprintf("addresses %v", slices.Sorted(slices.Values(a.GetSubject().GetIps())))
}

// evaluation returns that of the given key, or nil.
func (s *subject) evaluation(key contentKey) *evaluation {
	for _, a := range s.assignments {
		if a.evaluation.key == key {
			return a.evaluation
		}
	}
	return nil
}

// evaluate returns a new evaluation. It begins with what another one at the
// same addresses has noticed of the engine.
func (s *subject) evaluate(key contentKey, of content) *evaluation {
	e := &evaluation{subject: s, key: key, content: of, state: state{settle: of.settle}}
	if of.malformed != nil {
		e.observed = true
		e.answer = answer{unmet: []unmet{*of.malformed}, required: of.description.count}
		return e
	}
	for _, a := range s.assignments {
		known := a.evaluation
		if known.state.looked && slices.Equal(known.content.ips, of.ips) {
			e.state, e.open = known.state.successor(of.settle), known.open
			break
		}
	}
	return e
}

// evaluations returns each evaluation of s once.
func (s *subject) evaluations() []*evaluation {
	var all []*evaluation
	for _, a := range s.assignments {
		if !slices.Contains(all, a.evaluation) {
			all = append(all, a.evaluation)
		}
	}
	return all
}

// unassign ends what the replica assigned for s, if anything, and drops the
// evaluation if no other replica assigned the same.
func (c *Confirmer) unassign(s *subject, replica string) {
	i := slices.IndexFunc(s.assignments, func(a *assignment) bool { return a.source.Replica == replica })
	if i < 0 {
		return
	}
	e := s.assignments[i].evaluation
	s.assignments = slices.Delete(s.assignments, i, i+1)
	if e.current() {
		return
	}
	delete(c.pendingLike(e), e)
	delete(c.covering, e)
	c.unrest(e)
}

// Withdraw ends the replica's assignment of uid. One that is not held is no
// error.
func (c *Confirmer) Withdraw(from Source, uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.subjects[uid]; s != nil {
		c.unassign(s, from.Replica)
		c.tidy(s)
	}
}

// Forget ends whatever the replica assigned in sessions before the given one.
func (c *Confirmer) Forget(replica string, before uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.subjects {
		if slices.ContainsFunc(s.assignments, func(a *assignment) bool {
			return a.source.Replica == replica && a.source.Session < before
		}) {
			c.unassign(s, replica)
			c.tidy(s)
		}
	}
}

// Ended says that a session is over. What was assigned in it still keeps older
// releases of other replicas from being written; but it is not renewed any
// more, and what it asks may never hold again, so no release has to wait for it
// unless all sessions are over.
func (c *Confirmer) Ended(from Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.subjects {
		for _, a := range s.assignments {
			a.ended = a.ended || a.source == from
		}
	}
}

// tidy drops a subject that has no assignment any more.
func (c *Confirmer) tidy(s *subject) {
	if len(s.assignments) == 0 {
		delete(c.subjects, s.uid)
	}
}

func (c *Confirmer) wakeUp() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// current reports whether e still has an assignment.
func (e *evaluation) current() bool {
	return slices.ContainsFunc(e.subject.assignments, func(a *assignment) bool { return a.evaluation == e })
}

// live reports whether e was assigned in a session that is not over.
func (e *evaluation) live() bool {
	return slices.ContainsFunc(e.subject.assignments, func(a *assignment) bool { return a.evaluation == e && !a.ended })
}

// toldAll reports whether every replica that assigned e had an answer to it.
func (e *evaluation) toldAll() bool {
	return !slices.ContainsFunc(e.subject.assignments, func(a *assignment) bool { return a.evaluation == e && !a.told && !a.ended })
}

// observe takes into e what was judged on a look, and reports what changed. A
// look that began before the newest that e knows says nothing.
func (c *Confirmer) observe(e *evaluation, j *judgement) {
	seen, of := j.seen, j.each[e]
	if seen.began.Before(e.seenAt) {
		return
	}
	if of.idle {
		e.seenAt = seen.began
		return
	}
	before := e.answer.confirmed
	switch {
	case of.err != nil:
		reason := printable(hubv1.ReasonUnread + ": " + of.err.Error())
		e.answer = e.state.fail(reason, e.content.required())
		e.judgedAt = time.Time{}
	case of.withheld != "":
		e.answer = e.state.fail(of.withheld, e.content.required())
		e.judgedAt = time.Time{}
	default:
		var excused [families]bool
		if e.content.excuseFamilies {
			excused = c.enforcement.unenforced
		}
		m := moment{began: seen.began, ended: j.ended, rewrites: c.rewrites.observe(of.changes, j.ended)}
		e.answer = e.state.observe(m, of.findings.result(&e.content, excused))
		e.judgedAt = j.ended
	}
	e.observed, e.seenAt = true, seen.began
	rested := e.place != nil
	if rested {
		c.restingLike(e).MoveToBack(e.place)
	}
	if !e.answer.confirmed && rested {
		c.await(e)
	}
	switch {
	case e.answer.confirmed && !before:
		e.confirmedSince = j.ended
		c.programmed(e, j.ended)
	case !e.answer.confirmed && before && (e.content.policy && rested || j.ended.Sub(e.confirmedSince) >= settled):
		c.log.Info("What has long been confirmed no longer holds", "uid", e.subject.uid, "reason", e.answer.reason())
		c.metrics.drifted(driftVerdict)
	}
	c.cover(e)
	c.publish(e)
}

// programmed counts how long it took until e's subject was first confirmed, if
// that was not known.
func (c *Confirmer) programmed(e *evaluation, at time.Time) {
	s := e.subject
	if s.awaited.IsZero() {
		return
	}
	role := rolePeer
	switch {
	case e.content.policy:
		role = rolePolicy
	case e.content.ownNode:
		role = roleOwn
	}
	c.metrics.programmed(role, at.Sub(s.awaited))
	s.awaited = time.Time{}
}

// reportPause is the least time between two reports on a subject that differ
// only in what is unmet or realized, which may change with every look.
const reportPause = time.Second

// publish reports e's answer to each replica that was not told it yet.
func (c *Confirmer) publish(e *evaluation) {
	if !e.observed || e.state.wanting || e.uncovered {
		return
	}
	now := c.clock.Now()
	changed := !e.answer.equal(e.told) &&
		(e.answer.confirmed != e.told.confirmed || now.Sub(e.toldAt) >= reportPause)
	if changed {
		e.told, e.toldAt = e.answer, now
	}
	for _, a := range e.subject.assignments {
		if a.evaluation != e || (a.told && !changed) {
			continue
		}
		a.told = true
		c.log.V(1).Info("Report", "uid", e.subject.uid, "replica", a.source.Replica, "generation", a.generation,
			"confirmed", e.answer.confirmed, "unmetRequired", e.answer.required, "unmetAdvisory", e.answer.advisory)
		c.reports.Send(a.source, reportOf(e, a.generation))
	}
}

func reportOf(e *evaluation, generation uint64) *hubv1.Report {
	report := &hubv1.Report{
		Uid:            e.subject.uid,
		Generation:     generation,
		Confirmed:      e.answer.confirmed,
		UnmetRequired:  uint32(e.answer.required), //nolint:gosec // bounded by the message's size
		UnmetAdvisory:  uint32(e.answer.advisory), //nolint:gosec // bounded by the message's size
		Ipv4Unenforced: e.answer.without[ipv4],
		Ipv6Unenforced: e.answer.without[ipv6],
		Unrealized:     e.answer.outcome.unrealized,
		Realized:       e.answer.outcome.realized,
		Steady:         e.answer.steady,

		NorthboundConfig: e.covered,
	}
	for _, u := range e.answer.unmet {
		// A reason that concerns none, where there is none to hang it on.
		if u.index >= e.content.description.count {
			continue
		}
		report.Unmet = append(report.Unmet, &hubv1.Unmet{
			Expectation: uint32(u.index), //nolint:gosec // bounded by the message's size
			Reason:      u.reason,
		})
	}
	return report
}
