// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/hub"
)

const (
	// resendFirst and resendMost pace releases that the Pod does not show: an
	// agent drops one that is older than what it holds from another replica.
	resendFirst = 500 * time.Millisecond
	resendMost  = 5 * time.Second

	// deafFirst and deafMost pace what wakes a kubelet that missed the
	// annotation. A hold sees it within 100 ms, and the kubelet notices and
	// tells its end within a second or so; by itself the kubelet looks again
	// after 60 to 90 s.
	deafFirst = 2 * time.Second
	deafMost  = 16 * time.Second
)

// entry is one gated Pod.
type entry struct {
	pod pod
	// addressed is when the present addresses were first seen, zero without.
	addressed time.Time
	// known are the last addresses that were seen.
	known []string
	// former is when the hold of the former addresses or boot started: the
	// kubelet goes on to show it until the new one runs.
	former time.Time

	// assignment is what the nodes were told, nil if nothing; answers has
	// every node that was told, and what it answered to generation.
	assignment *Assignment
	generation uint64
	answers    map[string]*answer
	// current is true if assignment was computed after the barrier passed, and
	// early if the last computation, whatever it gave, was before.
	current, early bool
	// stale is true if assignment has to be computed again.
	stale bool
	// touched is true if the decision has to be made again, and next is when
	// it has to be for time alone.
	touched bool
	next    time.Time
	// resend is when a release may be sent, after that many attempts since a
	// node last confirmed; released is true once one was sent.
	resend   time.Time
	attempts int
	released bool

	// wake is when the kubelet is to be woken, for the wakes-th time, if the
	// hold of an open gate still runs then.
	wake  time.Time
	wakes uint32
}

// answer is what a node answered to the entry's generation; zero: nothing.
type answer struct {
	confirmed, deviates bool
	// without is the family that was left out, as "v6", or "".
	without string
	awaits  string
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
	}
	held := e.pod.held
	e.pod = p
	l.review(e, held)
}

// review sorts an entry into the shut ones or out of them. held is when the
// hold had started as far as was known before.
func (l *Ledger) review(e *entry, held time.Time) {
	now := l.clock.Now()
	uid := e.pod.uid
	ips := text(e.pod.ips)
	moved := len(ips) > 0 && !slices.Equal(ips, e.known)
	if e.pod.open(l.node(e.pod.node).bootID) {
		e.known = ips
		if _, shut := l.shut[uid]; shut {
			l.metrics.opened(e.pod.condition.Reason, now.Sub(e.addressed), e.released)
			l.close(e)
		}
		l.listen(e, now)
		return
	}
	delete(l.deaf, uid)
	switch _, shut := l.shut[uid]; {
	case !shut:
		l.shut[uid] = e
		e.addressed = time.Time{}
		if e.pod.moved(l.node(e.pod.node).bootID) {
			e.former = held
		}
		l.barrier.Ticket(uid)
	case moved && len(e.known) > 0:
		// Whatever was listed was listed for the former addresses.
		l.barrier.Forget(uid)
		l.barrier.Ticket(uid)
		e.current = false
		e.former = held
	}
	switch {
	case len(ips) == 0:
		e.addressed = time.Time{}
		l.withdraw(e)
		l.teller.Hush(uid)
	case moved || e.addressed.IsZero():
		e.addressed = now
		e.known = ips
		e.resend, e.attempts, e.released = time.Time{}, 0, false
	}
	e.stale, e.touched = true, true
}

// remove forgets a Pod.
func (l *Ledger) remove(uid types.UID) {
	e, ok := l.entries[uid]
	if !ok {
		return
	}
	delete(l.entries, uid)
	delete(l.deaf, uid)
	l.close(e)
}

// listen notes whether the hold of an open gate has noticed.
func (l *Ledger) listen(e *entry, now time.Time) {
	_, deaf := l.deaf[e.pod.uid]
	switch {
	case !e.pod.holding:
		delete(l.deaf, e.pod.uid)
	case !deaf:
		l.deaf[e.pod.uid] = e
		e.wake, e.wakes = now.Add(deafFirst), 0
	}
}

// wakeKubelet has the annotation written once more. A kubelet that is writing
// a volume forgets what changes meanwhile (seen for one Pod in 30 with
// Kubernetes 1.36, when the change meets the sync after a container's start),
// and another change is the only thing that wakes it.
func (l *Ledger) wakeKubelet(e *entry, now time.Time) {
	e.wakes++
	e.wake = now.Add(min(deafFirst<<min(e.wakes, 8), deafMost))
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

// close ends the wait for an entry whose gate is open or whose Pod is gone.
func (l *Ledger) close(e *entry) {
	uid := e.pod.uid
	delete(l.shut, uid)
	l.withdraw(e)
	l.barrier.Forget(uid)
	l.teller.Forget(uid)
	e.current, e.stale, e.touched = false, false, false
	e.next, e.resend, e.attempts, e.released = time.Time{}, time.Time{}, 0, false
}

// withdraw takes the entry's assignment back from all nodes.
func (l *Ledger) withdraw(e *entry) {
	for node := range e.answers {
		l.hub.Withdraw(node, string(e.pod.uid))
	}
	e.assignment, e.answers = nil, nil
}

// recompute brings the entry's assignment up to date and hands it out if its
// content changed. If only its basis advanced, it is handed out again if
// renew is true: agents hold it against releases of other replicas.
func (l *Ledger) recompute(e *entry, renew bool) {
	uid := e.pod.uid
	// Asked first: what passes in between is not in what is computed.
	passed := l.barrier.Passed(uid)
	a := l.coverage.Assignment(uid)
	e.stale, e.touched, e.early = false, true, !passed
	if a == nil || a.Span == nil || !slices.Equal(a.Subject.GetIps(), text(e.pod.ips)) {
		// Not computed, or for addresses that the inbox does not know of yet.
		l.withdraw(e)
		e.current = false
		return
	}
	e.current = passed
	if a.sameContent(e.assignment) && (!renew || sameBasis(a.Basis, e.assignment.Basis)) {
		e.assignment = a
		return
	}
	l.generation++
	e.generation = l.generation
	for node := range e.answers {
		if _, stays := a.Demands[node]; !stays {
			l.hub.Withdraw(node, string(uid))
		}
	}
	e.assignment = a
	e.answers = make(map[string]*answer, len(a.Demands))
	for node, demand := range a.Demands {
		e.answers[node] = &answer{}
		l.hub.Assign(node, &hubv1.Assign{
			Subject:        a.Subject,
			Generation:     e.generation,
			Basis:          a.Basis,
			Expectations:   demand.Expectations,
			Whys:           demand.Whys,
			OwnNode:        node == e.pod.node,
			Settle:         a.Settle,
			ExcuseFamilies: a.ExcuseFamilies,
		}, hub.Description{})
	}
}

// reported takes a node's answer, if it answers what the node was told last.
func (l *Ledger) reported(name string, r *hubv1.Report) {
	e, ok := l.shut[types.UID(r.GetUid())]
	if !ok || r.GetGeneration() != e.generation || e.answers[name] == nil {
		return
	}
	a := answer{confirmed: r.GetConfirmed(), deviates: r.GetConfirmed() && r.GetUnmetAdvisory() > 0}
	switch {
	case r.GetIpv4Unenforced():
		a.without = "v4"
	case r.GetIpv6Unenforced():
		a.without = "v6"
	}
	if !a.confirmed && len(r.GetUnmet()) > 0 {
		first := r.GetUnmet()[0]
		a.awaits = e.assignment.Demands[name].awaits(first.GetExpectation(), e.pod.namespace, e.pod.ips)
		l.log.V(1).Info("node has not confirmed", "pod", e.pod.namespace+"/"+e.pod.name, "node", name,
			"reason", first.GetReason(), "required", r.GetUnmetRequired(), "advisory", r.GetUnmetAdvisory())
	}
	if a.confirmed {
		l.node(name).confirmed(l.clock.Now())
		if !e.answers[name].confirmed {
			// What kept an agent from releasing may be over.
			e.resend, e.attempts = time.Time{}, 0
		}
	}
	*e.answers[name] = a
	e.touched = true
}

// settle decides about an entry and acts on it.
func (l *Ledger) settle(e *entry, now time.Time) {
	e.touched = false
	d := decide(l.state(e), now)
	if d.open != nil && !now.Before(e.resend) {
		// The release carries the newest basis, or an agent that holds a newer
		// one from another replica drops it.
		l.recompute(e, false)
		e.touched = false
		d = decide(l.state(e), now)
	}
	e.next = d.next
	switch {
	case d.open != nil:
		l.teller.Hush(e.pod.uid)
		l.release(e, *d.open, now)
		e.next = e.resend
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
}

// release sends the release to the Pod's node unless it was just sent.
func (l *Ledger) release(e *entry, o outcome, now time.Time) {
	if now.Before(e.resend) {
		return
	}
	sent := l.hub.Release(e.pod.node, &hubv1.Release{
		Subject: e.assignment.Subject,
		Basis:   e.assignment.Basis,
		Reason:  o.reason,
		Message: o.message,
	})
	e.resend = now.Add(min(resendFirst<<min(e.attempts, 8), resendMost))
	e.attempts++
	if sent {
		level := 0
		if e.released {
			level = 1
		}
		e.released = true
		l.log.V(level).Info("gate is released", "pod", e.pod.namespace+"/"+e.pod.name, "node", e.pod.node,
			"reason", o.reason, "message", o.message, "attempt", e.attempts)
	}
}

// state gathers what the decision about e is made of.
func (l *Ledger) state(e *entry) state {
	s := state{
		addressed: e.addressed,
		held:      e.pod.held,
		timeout:   e.pod.settings.Timeout,
		onTimeout: e.pod.settings.OnTimeout,
		current:   e.current && !e.stale,
		moved:     e.pod.moved(l.node(e.pod.node).bootID),
	}
	if s.held.Equal(e.former) {
		s.held = time.Time{}
	}
	if e.assignment == nil {
		return s
	}
	s.notAsked = e.assignment.NotAsked
	for _, name := range slices.Sorted(maps.Keys(e.answers)) {
		n, a := l.node(name), e.answers[name]
		s.span = append(s.span, spanNode{
			name: name, own: name == e.pod.node, optional: !slices.Contains(e.assignment.Span, name),
			connected: n.connected, unseen: n.connected && n.unseen, stalled: n.stalled,
			confirmed: a.confirmed, deviates: a.deviates, without: a.without, awaits: a.awaits,
		})
	}
	return s
}
