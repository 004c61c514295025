// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"cmp"
	"context"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/gate/deviation"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/controllers/queue"
)

const (
	// computeBatch and computeSlice bound what is computed before what else
	// happened is looked at: the slice is what a release may be late for the
	// sake of others, the batch bounds it should the clock stand.
	computeBatch = 32
	computeSlice = 2 * time.Millisecond
	// decideBatch bounds the same for decisions, of which one takes a few
	// microseconds.
	decideBatch = 256
	// maxDeviations bounds what is remembered of engines: some 2 MB.
	maxDeviations = 10000
)

// Coverage says what must be confirmed.
type Coverage interface {
	// Affected returns, once, the Pods whose assignment may have changed.
	Affected() []types.UID
	// Wake receives when Affected has something to return.
	Wake() <-chan struct{}
	// Assignment computes the assignment of uid from all that is known at the
	// time of the call. It returns nil if there is nothing to confirm it at,
	// and an error for what cannot be asked.
	Assignment(uid types.UID) (*Assignment, error)
	// Standing returns the basis that the assignment of uid which was computed
	// last has by now, if it would come out the same; false if it has to be
	// computed again.
	Standing(uid types.UID) (*hubv1.Basis, bool)
	// Suspect has the assignments of uid ask of older Pods as well, from now
	// on, whether the rules that it waits for are realized for anybody.
	Suspect(uid types.UID)
	// Reach says whether a node's agent has a session.
	Reach(node string, reached bool)
}

// Barrier says whether all that existed before a Pod was seen is known.
type Barrier interface {
	Ticket(uid types.UID)
	Forget(uid types.UID)
	Passed(uid types.UID) bool
	// TakePassed returns, once, the Pods that have passed.
	TakePassed() []types.UID
	// Wake receives when TakePassed has something to return.
	Wake() <-chan struct{}
}

// Hub reaches the agents.
type Hub interface {
	Assign(node string, a *hubv1.Assign, d hub.Description)
	Withdraw(node, uid string)
	Release(node string, r *hubv1.Release) bool
}

// Teller is told what is awaited. It must not block.
type Teller interface {
	// Tell asks for m, in place of what was asked for the same Pod.
	Tell(m Message)
	// Hush takes back what was asked for a Pod.
	Hush(uid types.UID)
	// Forget says that the Pod's gate is open or the Pod is gone.
	Forget(uid types.UID)
}

// Options are what a Ledger needs; all fields but Log and Warnings are required.
type Options struct {
	Coverage Coverage
	Barrier  Barrier
	Teller   Teller
	Metrics  *Metrics
	Clock    clock.Clock
	Log      logr.Logger
	// Warnings are told of what a person should see. nil: nobody is.
	Warnings *Warnings
	// ConditionType is the type of the readiness gate.
	ConditionType corev1.PodConditionType
	// StalledAfter is how long a node may confirm nothing while Pods wait for
	// it until it binds only its own Pods: MinStalledAfter or more, or 0 for
	// DefaultStalledAfter.
	StalledAfter time.Duration
	// Northbound is what warnings of hubv1.Northbound are about, which is no Node
	// and so has no name that an Event could have. It has to be set if the
	// Coverage's spans have that.
	Northbound corev1.ObjectReference
}

// Ledger holds every gated Pod and opens gates. Its exported methods may be
// called from any goroutine, before and after Start; events about one object
// must come in order, and after the coverage index has taken them.
type Ledger struct {
	coverage      Coverage
	barrier       Barrier
	hub           Hub
	teller        Teller
	metrics       *Metrics
	warnings      *Warnings
	clock         clock.Clock
	log           logr.Logger
	conditionType corev1.PodConditionType
	stalledAfter  time.Duration
	northbound    corev1.ObjectReference

	// inbox is what is to be done by the goroutine of Start.
	inbox *queue.Inbox

	// The following belong to the goroutine of Start.

	// entries holds every gated Pod that is not at its end, shut those whose
	// gate is to be opened, deaf those whose gate is open while their hold runs.
	entries, shut, deaf map[types.UID]*entry
	// names has the entries by their Pods' names.
	names map[types.NamespacedName]*entry
	nodes map[string]*node
	// stale has the entries to compute, touched those to decide about, and
	// timers when the others are due.
	stale, touched queue.Queue[*entry]
	timers         queue.Timers[*entry]
	// deviations is what was learned of engines.
	deviations *deviation.Table
	// excusing counts the nodes for which excuses is true.
	excusing int
	// pending counts the expectations that awaited nodes have not confirmed.
	pending int
	// generation numbers assignments.
	generation uint64
	// inspect is when nodes are next looked at for quarantine.
	inspect time.Time
}

var _ hub.Sink = (*Ledger)(nil)

// New returns a Ledger without Pods. It needs SetHub before Start.
func New(o Options) *Ledger {
	return &Ledger{
		coverage:      o.Coverage,
		barrier:       o.Barrier,
		teller:        o.Teller,
		metrics:       o.Metrics,
		warnings:      o.Warnings,
		clock:         o.Clock,
		log:           o.Log,
		conditionType: o.ConditionType,
		stalledAfter:  cmp.Or(o.StalledAfter, DefaultStalledAfter),
		northbound:    o.Northbound,
		inbox:         queue.NewInbox(),
		entries:       map[types.UID]*entry{},
		names:         map[types.NamespacedName]*entry{},
		shut:          map[types.UID]*entry{},
		deaf:          map[types.UID]*entry{},
		nodes:         map[string]*node{},
		deviations:    deviation.NewTable(maxDeviations),
	}
}

// SetHub gives the ledger its hub. It comes apart from Options because a hub
// in turn needs the ledger as its sink.
func (l *Ledger) SetHub(h Hub) { l.hub = h }

// PodChanged takes a Pod that was added or changed. Pods without the readiness
// gate are ignored. It keeps nothing of p.
func (l *Ledger) PodChanged(p *corev1.Pod) {
	if !Gated(p, l.conditionType) {
		return
	}
	view, err := newPod(p, l.conditionType)
	if err != nil {
		l.log.Error(err, "pod cannot be understood, its gate stays shut", "pod", p.Namespace+"/"+p.Name)
		l.PodDeleted(p.UID)
		return
	}
	l.inbox.Post(func() { l.podChanged(view) })
}

// PodDeleted takes a Pod that is gone.
func (l *Ledger) PodDeleted(uid types.UID) {
	l.inbox.Post(func() { l.remove(uid) })
}

// NodeChanged takes a node's boot id, as its Node says.
func (l *Ledger) NodeChanged(name, bootID string) {
	l.inbox.Post(func() { l.nodeBooted(name, bootID) })
}

// NodeDeleted takes a node that is gone.
func (l *Ledger) NodeDeleted(name string) {
	l.inbox.Post(func() { l.nodeDeleted(name) })
}

// PolicyDeleted takes a NetworkPolicy that is gone: what was learned of its
// rules is not true of another one of its name.
func (l *Ledger) PolicyDeleted(namespace, name string) {
	l.inbox.Post(func() {
		l.deviations.ForgetPolicy(types.NamespacedName{Namespace: namespace, Name: name})
	})
}

// Connected implements hub.Sink.
func (l *Ledger) Connected(name string, hello hub.Hello) {
	l.inbox.Post(func() {
		n := l.node(name)
		n.connected = true
		l.coverage.Reach(name, true)
		l.look(name, n, hello.State)
		l.forgetAnswers(n)
	})
}

// Disconnected implements hub.Sink. A node that cannot retract confirms
// nothing, so what it confirmed counts no more.
func (l *Ledger) Disconnected(name string) {
	l.inbox.Post(func() {
		n := l.node(name)
		n.connected = false
		l.coverage.Reach(name, false)
		l.reckon(n)
		l.forgetAnswers(n)
	})
}

// Changed implements hub.Sink.
func (l *Ledger) Changed(name string, state hub.State) {
	l.inbox.Post(func() {
		n := l.node(name)
		l.look(name, n, state)
	})
}

// Reported implements hub.Sink.
func (l *Ledger) Reported(name string, r *hubv1.Report) {
	l.inbox.Post(func() { l.reported(name, r) })
}

// NeedLeaderElection reports false: every replica opens gates.
func (l *Ledger) NeedLeaderElection() bool { return false }

// Start opens gates until ctx ends; it returns nil then. The first sync of
// the caches must be complete before.
func (l *Ledger) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		next := l.step()
		if next == 0 {
			continue
		}
		timer := l.clock.NewTimer(next)
		select {
		case <-ctx.Done():
		case <-l.inbox.Posted():
		case <-l.coverage.Wake():
		case <-l.barrier.Wake():
		case <-timer.C():
		}
		timer.Stop()
	}
	return nil
}

// step does a part of what there is to do, what may open a gate first, and
// returns when to be called again at the latest. What it costs follows what
// has happened, never how many Pods wait.
func (l *Ledger) step() time.Duration {
	l.inbox.Do()
	affected := l.coverage.Affected()
	if len(affected) > 0 {
		l.metrics.batch.Observe(float64(len(affected)))
	}
	for _, uid := range affected {
		if e, ok := l.shut[uid]; ok {
			l.outdated(e)
		}
	}
	for _, uid := range l.barrier.TakePassed() {
		if e, ok := l.shut[uid]; ok {
			l.passed(e)
		}
	}
	now := l.clock.Now()
	for e, ok := l.timers.Pop(now); ok; e, ok = l.timers.Pop(now) {
		if l.deaf[e.pod.uid] == e {
			l.wakeKubelet(e, now)
		} else {
			l.touch(e, queue.Usual)
		}
	}
	if !now.Before(l.inspect) {
		l.quarantine(now)
		l.inspect = now.Add(inspectInterval)
	}
	l.decideTouched(now)
	l.computeStale(now)
	if !l.touched.Empty() || !l.stale.Empty() {
		return 0
	}
	next := l.inspect
	if due := l.timers.Next(); !due.IsZero() {
		next = earlier(next, due)
	}
	return max(next.Sub(now), 0)
}

// decideTouched decides about touched entries, a batch at a time.
func (l *Ledger) decideTouched(now time.Time) {
	for range decideBatch {
		e, in, ok := l.touched.Pop()
		if !ok {
			return
		}
		e.touchedIn[in] = false
		if e.touched && !e.stale && l.shut[e.pod.uid] == e {
			l.settle(e, now)
		}
	}
}

// computeStale brings stale entries up to date and decides about them, until
// there is something in the inbox or its time is over.
func (l *Ledger) computeStale(began time.Time) {
	for computed := 0; computed < computeBatch; {
		e, in, ok := l.stale.Pop()
		if !ok {
			return
		}
		e.staleIn[in] = false
		if !e.stale || len(e.pod.ips) == 0 || l.shut[e.pod.uid] != e {
			continue
		}
		if l.refresh(e) {
			computed++
		}
		now := l.clock.Now()
		l.settle(e, now)
		if now.Sub(began) >= computeSlice || !l.inbox.Empty() {
			return
		}
	}
}

// outdated has the entry computed again: first those of which nothing is
// known yet, and those whose containers wait.
func (l *Ledger) outdated(e *entry) {
	in := queue.Usual
	if !e.computed || e.pod.holding {
		in = queue.Urgent
	}
	l.outdatedIn(e, in)
}

func (l *Ledger) outdatedIn(e *entry, in queue.Lane) {
	e.stale = true
	if len(e.pod.ips) == 0 {
		return
	}
	if e.queued.IsZero() {
		e.queued = l.clock.Now()
	}
	if !e.staleIn[in] {
		e.staleIn[in] = true
		l.stale.Push(in, e.pod.namespace, e)
	}
}

// touch has the entry decided about again: at once, if urgent, as that may
// open its gate.
func (l *Ledger) touch(e *entry, in queue.Lane) {
	e.touched = true
	if !e.touchedIn[in] {
		e.touchedIn[in] = true
		l.touched.Push(in, e.pod.namespace, e)
	}
}
