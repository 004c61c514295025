// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/queue"
)

// rereadInterval is how often the message of a Pod is made again for answers
// that cannot open its gate: each names the whole span.
const rereadInterval = time.Second

// inquiry is what one node was asked about one entry, and what it answered.
type inquiry struct {
	entry *entry
	name  string
	node  *node
	// optional is true if the node is asked and need not be awaited.
	optional bool
	demand   demand.Demand
	// excused are the rules that are not awaited, as Assign.excused has them.
	excused    []uint32
	generation uint64
	answer     answer
	// awaited is true while it counts in entry.lacking and in the node's waits,
	// and pending is what it counts in the ledger's.
	awaited bool
	pending int
	// first is when the node first confirmed the Pod's present addresses, zero
	// if it has not.
	first time.Time
}

// answer is what a node answered to the inquiry's generation; zero: nothing.
type answer struct {
	// given is true if there was a report.
	given, confirmed bool
	// without is the family that was left out, as "v6", or "".
	without string
	// unmet are the report's, of so many required and advisory ones.
	unmet                        []*hubv1.Unmet
	unmetRequired, unmetAdvisory uint32
	// unrealized and steady are the report's.
	unrealized []uint32
	steady     bool
}

// passed notes that the barrier has passed for the entry. What was computed
// before is what would be computed now if it stands.
func (l *Ledger) passed(e *entry) {
	passed := l.barrier.Passed(e.pod.uid)
	if passed && e.renewing {
		e.renewing, e.listed = false, l.clock.Now()
	}
	if e.stale || !e.computed {
		return // it is computed anyway, or has no address yet
	}
	if !l.stands(e) {
		l.outdated(e)
		return
	}
	if e.assignment != nil && passed {
		e.current = true
		l.touch(e, queue.Urgent)
	}
}

// refresh brings the entry's assignment up to date and hands it out. It
// reports false if that took no computation.
func (l *Ledger) refresh(e *entry) bool {
	uid := e.pod.uid
	// Asked first: what passes in between is not in what is computed. Whoever
	// waits for newer LISTs has had his first.
	passed := e.renewing || l.barrier.Passed(uid)
	if l.stands(e) {
		// It was computed after that which it was touched by.
		e.stale, e.current = false, passed && e.assignment != nil
		l.computed(e)
		return false
	}
	a, err := l.coverage.Assignment(uid)
	if err != nil {
		l.log.Error(err, "what must be confirmed cannot be asked, the gate stays shut", "pod", e.pod.namespace+"/"+e.pod.name)
		a = nil
	}
	e.stale, e.computed = false, true
	l.computed(e)
	e.notes = nil
	if a != nil {
		e.notes = a.Notes
	}
	if a == nil || a.Span == nil || !slices.Equal(a.Subject.GetIps(), text(e.pod.ips)) {
		// Not computed, or for addresses that the inbox does not know of yet.
		l.withdraw(e)
		e.current = false
		return true
	}
	e.current = passed
	l.handOut(e, a)
	return true
}

// computed notes that the entry has been brought up to date.
func (l *Ledger) computed(e *entry) {
	if !e.queued.IsZero() {
		l.metrics.queued.Observe(l.clock.Since(e.queued).Seconds())
		e.queued = time.Time{}
	}
}

// handOut makes a the entry's assignment and tells the nodes whose part of it
// has changed; the others have confirmed it if they have confirmed theirs.
//
// The Pod's own node is told of any change, of whatever node's part, for that
// is where releases arrive: holding a's basis, it refuses those of a replica
// that has not seen what a was computed from. That a basis alone has advanced
// nobody is told, and need not be. Say that this replica has seen a policy that
// another, whose watch hangs, has not. Either the policy changes what must be
// confirmed: then it has met the subject's footprint, a was computed behind it,
// and the own node was told. Or it changes nothing: then the other's release,
// though of an older basis, is right, and must not be refused. In between, while
// a is still to be computed, the other may release, as it might have had the
// policy come that much later.
func (l *Ledger) handOut(e *entry, a *Assignment) {
	before := e.assignment
	e.assignment = a
	uid := e.pod.uid
	same, sameFrame := a.sameContent(before), a.sameFrame(before)
	former := e.inquiries
	e.inquiries = make([]*inquiry, 0, len(a.Demands))
	for _, name := range slices.Sorted(maps.Keys(a.Demands)) {
		n := l.node(name)
		q, known := n.inquiries[uid]
		if !known {
			q = &inquiry{entry: e, name: name, node: n}
			n.inquiries[uid] = q
		}
		e.inquiries = append(e.inquiries, q)
		demand := a.Demands[name]
		excused := demand.Excused(l.deviations, name, e.pod.namespace)
		tell := !known || !sameFrame || !same && name == e.pod.node ||
			demand.Content() != q.demand.Content() || !slices.Equal(excused, q.excused)
		_, awaited := slices.BinarySearch(a.Span, name)
		q.optional, q.demand, q.excused = !awaited, demand, excused
		if tell {
			l.assign(q)
		} else {
			l.await(q)
		}
	}
	for _, q := range former {
		if _, stays := a.Demands[q.name]; !stays {
			l.drop(q)
		}
	}
}

// assign asks the node, in place of what it was asked before.
func (l *Ledger) assign(q *inquiry) {
	l.generation++
	q.generation = l.generation
	l.answered(q, answer{})
	a := q.entry.assignment
	l.hub.Assign(q.name, &hubv1.Assign{
		Subject:        a.Subject,
		Generation:     q.generation,
		Basis:          a.Basis,
		OwnNode:        q.name == q.entry.pod.node,
		Settle:         a.Settle,
		ExcuseFamilies: a.ExcuseFamilies,
		Excused:        q.excused,
	}, q.demand.Content())
}

// withdraw takes the entry's assignment back from all nodes.
func (l *Ledger) withdraw(e *entry) {
	for _, q := range e.inquiries {
		l.drop(q)
	}
	e.assignment, e.inquiries = nil, nil
}

// drop ends an inquiry.
func (l *Ledger) drop(q *inquiry) {
	uid := q.entry.pod.uid
	l.hub.Withdraw(q.name, string(uid))
	delete(q.node.inquiries, uid)
	q.optional = true // awaited no more
	l.await(q)
}

// answered makes a the inquiry's answer.
func (l *Ledger) answered(q *inquiry, a answer) {
	q.answer = a
	l.await(q)
}

// await counts an inquiry that is awaited, or counts it no more.
func (l *Ledger) await(q *inquiry) {
	awaited := !q.optional && !q.answer.confirmed
	pending := 0
	if awaited {
		pending = q.demand.Len()
	}
	l.pending += pending - q.pending
	q.pending = pending
	switch {
	case awaited == q.awaited:
	case awaited:
		q.entry.lacking++
		q.node.await(q.entry.pod.namespace, l.clock.Now())
	default:
		q.entry.lacking--
		q.node.over(q.entry.pod.namespace)
	}
	q.awaited = awaited
}

// reported takes a node's answer, if it answers what the node was told last.
func (l *Ledger) reported(name string, r *hubv1.Report) {
	n, ok := l.nodes[name]
	if !ok {
		return
	}
	q := n.inquiries[types.UID(r.GetUid())]
	if q == nil || r.GetGeneration() != q.generation {
		return
	}
	e, before := q.entry, q.answer
	l.answered(q, answerOf(r))
	if !q.answer.confirmed && len(q.answer.unmet) > 0 {
		l.log.V(1).Info("node has not confirmed", "pod", e.pod.namespace+"/"+e.pod.name, "node", name,
			"reason", r.GetUnmet()[0].GetReason(), "required", r.GetUnmetRequired(), "advisory", r.GetUnmetAdvisory())
	}
	now := l.clock.Now()
	if q.answer.confirmed {
		l.confirmedBy(name, n, now)
		// What it confirmed may still have been asked for the former addresses.
		if q.first.IsZero() && slices.Equal(e.assignment.Subject.GetIps(), e.known) {
			q.first = now
			if q.demand.Len() > 0 {
				l.metrics.confirmed(name == e.pod.node, now.Sub(e.addressed))
			}
		}
		if !before.confirmed {
			// What kept an agent from releasing may be over.
			e.resend, e.attempts = time.Time{}, 0
		}
	}
	l.unlearn(q, r.GetRealized())
	l.learnAdvisory(q)
	switch {
	case name == e.pod.node || before.confirmed != q.answer.confirmed && e.lacking <= l.excusing:
		l.touch(e, queue.Urgent)
	case before.confirmed:
		l.touch(e, queue.Usual) // it may have taken back what others rest on
	case now.Sub(e.addressed) >= quiet && !e.touched:
		if again := now.Add(rereadInterval); e.Due().IsZero() || again.Before(e.Due()) {
			l.timers.Set(e, again)
		}
	}
}

// answerOf returns what a report says.
func answerOf(r *hubv1.Report) answer {
	a := answer{
		given:         true,
		confirmed:     r.GetConfirmed(),
		unmet:         r.GetUnmet(),
		unmetRequired: r.GetUnmetRequired(),
		unmetAdvisory: r.GetUnmetAdvisory(),
		unrealized:    r.GetUnrealized(),
		steady:        r.GetSteady(),
	}
	switch {
	case r.GetIpv4Unenforced():
		a.without = "v4"
	case r.GetIpv6Unenforced():
		a.without = "v6"
	}
	return a
}

// advisory reports whether the node confirmed with unmet advisory
// expectations.
func (a *answer) advisory() bool { return a.confirmed && a.unmetAdvisory > 0 }

// forgetAnswers drops what a node answered.
func (l *Ledger) forgetAnswers(n *node) {
	for _, q := range n.inquiries {
		l.answered(q, answer{})
		l.touch(q.entry, queue.Usual)
	}
}
