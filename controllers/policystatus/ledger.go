// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/controllers/queue"
)

const (
	// computeSoon is how long the computation of what a policy means waits for
	// more of what changes it, and computeBeside how far apart computations
	// are that only Pods beside those that are asked about gave rise to.
	computeSoon   = 100 * time.Millisecond
	computeBeside = 10 * time.Second
	// rotation is how often each policy is computed without any reason: the
	// Pods that are asked about are a sample, which moves on. It is spread over
	// rotationSpread.
	rotation       = time.Minute
	rotationSpread = 15 * time.Second
	// leisurePerSecond bounds the computations that nobody waits for: 5,000
	// policies take 84 of them a second for their rotation, and 25 s when a
	// replica is elected.
	leisurePerSecond = 200
	leisureBurst     = 20
	// computeBatch and computeSlice bound what is computed before what else
	// happened is looked at, and how long the index is kept busy in one go.
	computeBatch = 16
	computeSlice = 2 * time.Millisecond
	// decideBatch bounds the same for decisions, and decideInterval how often
	// one policy is decided about: each looks at all of its nodes.
	decideBatch    = 64
	decideInterval = 100 * time.Millisecond
	// orphanTime is how long an object without a policy is left to the garbage
	// collector, and orphanInterval how often they are looked through.
	orphanTime     = 30 * time.Second
	orphanInterval = 10 * time.Second
)

// Coverage says what must be confirmed, as coverage.Index does.
type Coverage interface {
	// Policies returns all policies.
	Policies() []types.NamespacedName
	// PolicyAssignment computes what must be confirmed for a policy; false if
	// there is none of that name.
	PolicyAssignment(policy types.NamespacedName) (coverage.PolicyAssignment, bool)
	// ChangedPolicies returns, once, the policies of which something may have
	// changed.
	ChangedPolicies() []coverage.PolicyChange
	// PolicyWake receives when ChangedPolicies has something to return.
	PolicyWake() <-chan struct{}
}

// Hub reaches the agents.
type Hub interface {
	Assign(node string, a *hubv1.Assign, d hub.Description)
	Withdraw(node, uid string)
}

// Options are what a Ledger needs; all fields but Log are required.
type Options struct {
	Coverage Coverage
	Statuses *Statuses
	Events   *Events
	Metrics  *Metrics
	Clock    clock.Clock
	// Elected is closed when this replica is elected.
	Elected <-chan struct{}
	Log     logr.Logger
}

// Ledger holds every NetworkPolicy and what its PolicyStatus is to say. Its
// exported methods may be called from any goroutine, before and after Start;
// events about one object must come in order.
type Ledger struct {
	coverage Coverage
	hub      Hub
	statuses *Statuses
	events   *Events
	metrics  *Metrics
	clock    clock.Clock
	elected  <-chan struct{}
	log      logr.Logger

	// inbox is what is to be done by the goroutine of Start.
	inbox *queue.Inbox

	// The following belong to the goroutine of Start.

	// leads is true once this replica was elected, which it was at led.
	leads bool
	led   time.Time
	nodes map[string]*agent
	// objects are those that there are, which nobody writes to.
	objects map[types.NamespacedName]*v1alpha1.PolicyStatus
	// orphans has the objects without a policy, by when they are removed.
	orphans map[types.NamespacedName]time.Time
	inspect time.Time

	// The following are empty as long as leads is not true.

	entries map[types.NamespacedName]*entry
	demands *demand.Table
	// stale has the entries to compute, leisurely those of which nobody waits
	// for it, touched those to decide about, and timers when the others are due.
	stale, leisurely, touched queue.Queue[*entry]
	timers                    queue.Timers[*entry]
	leisure                   *rate.Limiter
	// generation numbers assignments.
	generation uint64
}

var _ hub.Sink = (*Ledger)(nil)

// New returns a Ledger without policies. It needs SetHub before Start.
func New(o Options) *Ledger {
	return &Ledger{
		coverage: o.Coverage,
		statuses: o.Statuses,
		events:   o.Events,
		metrics:  o.Metrics,
		clock:    o.Clock,
		elected:  o.Elected,
		log:      o.Log,
		inbox:    queue.NewInbox(),
		nodes:    map[string]*agent{},
		objects:  map[types.NamespacedName]*v1alpha1.PolicyStatus{},
		orphans:  map[types.NamespacedName]time.Time{},
		entries:  map[types.NamespacedName]*entry{},
		demands:  demand.NewTable(),
		leisure:  rate.NewLimiter(leisurePerSecond, leisureBurst),
	}
}

// SetHub gives the ledger its hub. It comes apart from Options because a hub
// in turn needs the ledger as its sink.
func (l *Ledger) SetHub(h Hub) { l.hub = h }

// ObjectChanged takes a PolicyStatus that was added or changed. It keeps o,
// which must not be changed afterwards.
func (l *Ledger) ObjectChanged(o *v1alpha1.PolicyStatus) {
	l.inbox.Post(func() { l.objectChanged(o) })
}

// ObjectDeleted takes a PolicyStatus that is gone.
func (l *Ledger) ObjectDeleted(o *v1alpha1.PolicyStatus) {
	l.inbox.Post(func() { l.objectDeleted(o) })
}

// Connected implements hub.Sink.
func (l *Ledger) Connected(name string, hello hub.Hello) {
	l.inbox.Post(func() { l.connected(name, true, hello.State.Unsupported != "") })
}

// Disconnected implements hub.Sink.
func (l *Ledger) Disconnected(name string) {
	l.inbox.Post(func() { l.connected(name, false, false) })
}

// Changed implements hub.Sink.
func (l *Ledger) Changed(name string, state hub.State) {
	l.inbox.Post(func() { l.seen(name, state.Unsupported != "") })
}

// Reported implements hub.Sink.
func (l *Ledger) Reported(name string, r *hubv1.Report) {
	l.inbox.Post(func() { l.reported(name, r) })
}

// NeedLeaderElection reports false: every replica knows nodes and objects, so
// that the one that is elected begins with them.
func (l *Ledger) NeedLeaderElection() bool { return false }

// Start keeps the ledger until ctx ends, and asks, decides and writes from when
// this replica is elected; it returns nil then. The first sync of the caches
// must be complete before.
func (l *Ledger) Start(ctx context.Context) error {
	elected := l.elected
	for ctx.Err() == nil {
		next := l.step()
		if next == 0 {
			continue
		}
		timer := l.clock.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-elected:
			elected = nil
			l.lead()
		case <-l.inbox.Posted():
		case <-l.coverage.PolicyWake():
		case <-timer.C():
		}
		timer.Stop()
	}
	return nil
}

// step does a part of what there is to do and returns when to be called again
// at the latest. What it costs follows what has happened, not how many policies
// there are.
func (l *Ledger) step() time.Duration {
	l.inbox.Do()
	changes := l.coverage.ChangedPolicies()
	now := l.clock.Now()
	if !l.leads {
		return orphanInterval
	}
	for _, c := range changes {
		l.policyChanged(c, now)
	}
	for e, ok := l.timers.Pop(now); ok; e, ok = l.timers.Pop(now) {
		l.due(e, now)
	}
	if !now.Before(l.inspect) {
		l.removeOrphans(now)
		l.inspect = now.Add(orphanInterval)
	}
	l.computeStale(now)
	l.decideTouched(now)
	switch {
	case !l.stale.Empty() || !l.touched.Empty():
		return 0
	case !l.leisurely.Empty() && l.leisure.TokensAt(now) >= 1:
		return 0
	case !l.leisurely.Empty():
		return time.Second / leisurePerSecond
	}
	next := l.inspect
	if due := l.timers.Next(); !due.IsZero() && due.Before(next) {
		next = due
	}
	return max(next.Sub(now), 0)
}

// lead begins to ask, decide and write.
func (l *Ledger) lead() {
	l.leads, l.led = true, l.clock.Now()
	l.inspect = l.led
	for _, key := range l.coverage.Policies() {
		e := l.entry(key)
		l.computeLeisurely(e)
	}
	for key := range l.objects {
		if l.entries[key] == nil {
			l.orphans[key] = l.led.Add(orphanTime)
		}
	}
	l.log.Info("writing the status of policies", "policies", len(l.entries), "objects", len(l.objects))
}

// policyChanged has a policy computed again.
func (l *Ledger) policyChanged(c coverage.PolicyChange, now time.Time) {
	e, known := l.entries[c.Policy]
	if !known {
		e = l.entry(c.Policy)
	}
	at := now
	switch {
	case !known:
	case c.Meaning:
		at = now.Add(computeSoon)
		e.soon = true
	case e.computed.Add(computeBeside).After(now):
		at = e.computed.Add(computeBeside)
	}
	if at.After(now) {
		e.computeAt = sooner(e.computeAt, at)
		l.schedule(e)
		return
	}
	if known {
		l.computeLeisurely(e)
	} else {
		l.computeSoon(e)
	}
}

// due does what an entry's timer was set for.
func (l *Ledger) due(e *entry, now time.Time) {
	if !e.computeAt.IsZero() && !now.Before(e.computeAt) {
		e.computeAt = time.Time{}
		if e.soon {
			l.computeSoon(e)
		} else {
			l.computeLeisurely(e)
		}
	}
	if !e.decideAt.IsZero() && !now.Before(e.decideAt) {
		e.decideAt = time.Time{}
		l.touch(e)
	}
	l.schedule(e)
}

// schedule sets the entry's timer.
func (l *Ledger) schedule(e *entry) { l.timers.Set(e, sooner(e.computeAt, e.decideAt)) }

func (l *Ledger) computeSoon(e *entry) {
	e.stale = true
	if !e.inStale {
		e.inStale = true
		l.stale.Push(queue.Usual, e.key.Namespace, e)
	}
}

func (l *Ledger) computeLeisurely(e *entry) {
	e.stale = true
	if !e.inLeisurely {
		e.inLeisurely = true
		l.leisurely.Push(queue.Usual, e.key.Namespace, e)
	}
}

// touch has the entry decided about again, at once or when it was not a moment
// ago.
func (l *Ledger) touch(e *entry) {
	if again := e.decided.Add(decideInterval); again.After(l.clock.Now()) {
		e.decideAt = sooner(e.decideAt, again)
		l.schedule(e)
		return
	}
	if !e.inTouched {
		e.inTouched = true
		l.touched.Push(queue.Usual, e.key.Namespace, e)
	}
}

// computeStale computes entries until there is something in the inbox or its
// time is over.
func (l *Ledger) computeStale(began time.Time) {
	for computed := 0; computed < computeBatch; {
		e, _, ok := l.stale.Pop()
		switch {
		case ok:
			e.inStale = false
		case l.leisurely.Empty() || !l.leisure.AllowN(began, 1):
			return
		default:
			e, _, _ = l.leisurely.Pop()
			e.inLeisurely = false
		}
		if !e.stale || l.entries[e.key] != e {
			continue
		}
		l.compute(e)
		computed++
		if l.clock.Now().Sub(began) >= computeSlice || !l.inbox.Empty() {
			return
		}
	}
}

// decideTouched decides about touched entries, a batch at a time.
func (l *Ledger) decideTouched(now time.Time) {
	for range decideBatch {
		e, _, ok := l.touched.Pop()
		if !ok {
			return
		}
		e.inTouched = false
		if l.entries[e.key] == e && !e.computed.IsZero() {
			l.settle(e, now)
		}
	}
}
