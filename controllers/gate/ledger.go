// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/hub"
)

// computeBatch is how many assignments are computed before what else happened
// is looked at: a burst of events must not delay the release of a Pod that it
// does not touch.
const computeBatch = 32

// Coverage says what must be confirmed.
type Coverage interface {
	// Affected returns, once, the Pods whose assignment may have changed.
	Affected() []types.UID
	// Wake receives when Affected has something to return.
	Wake() <-chan struct{}
	// Assignment computes the assignment of uid from all that is known at the
	// time of the call. It returns nil if there is nothing to confirm it at.
	Assignment(uid types.UID) *Assignment
	// Standing returns the basis that the assignment of uid which was computed
	// last has by now, if it would come out the same; false if it has to be
	// computed again.
	Standing(uid types.UID) (*hubv1.Basis, bool)
	// Suspect has the assignments of uid ask of older Pods as well, from now
	// on, whether the rules that it waits for are realized for anybody.
	Suspect(uid types.UID)
}

// Barrier says whether all that existed before a Pod was seen is known.
type Barrier interface {
	Ticket(uid types.UID)
	Forget(uid types.UID)
	Passed(uid types.UID) bool
	// Wake receives after Pods have passed.
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

// Options are what a Ledger needs; all fields but Log are required.
type Options struct {
	Coverage Coverage
	Barrier  Barrier
	Teller   Teller
	Metrics  *Metrics
	Clock    clock.Clock
	Log      logr.Logger
	// ConditionType is the type of the readiness gate.
	ConditionType corev1.PodConditionType
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
	clock         clock.Clock
	log           logr.Logger
	conditionType corev1.PodConditionType

	// mu guards inbox: what is to be done by the goroutine of Start, in order.
	mu     sync.Mutex
	inbox  []func()
	posted chan struct{}

	// The following belong to the goroutine of Start.

	// entries holds every gated Pod that is not at its end, shut those whose
	// gate is to be opened, deaf those whose gate is open while their hold runs.
	entries, shut, deaf map[types.UID]*entry
	nodes               map[string]*node
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
		clock:         o.Clock,
		log:           o.Log,
		conditionType: o.ConditionType,
		posted:        make(chan struct{}, 1),
		entries:       map[types.UID]*entry{},
		shut:          map[types.UID]*entry{},
		deaf:          map[types.UID]*entry{},
		nodes:         map[string]*node{},
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
	l.post(func() { l.podChanged(view) })
}

// PodDeleted takes a Pod that is gone.
func (l *Ledger) PodDeleted(uid types.UID) {
	l.post(func() { l.remove(uid) })
}

// NodeChanged takes a node's boot id, as its Node says.
func (l *Ledger) NodeChanged(name, bootID string) {
	l.post(func() { l.nodeBooted(name, bootID) })
}

// Connected implements hub.Sink.
func (l *Ledger) Connected(name string, hello hub.Hello) {
	l.post(func() {
		n := l.node(name)
		n.connected, n.unseen = true, hello.Unsupported != ""
		l.forgetAnswers(name)
	})
}

// Disconnected implements hub.Sink. A node that cannot retract confirms
// nothing, so what it confirmed counts no more.
func (l *Ledger) Disconnected(name string) {
	l.post(func() {
		l.node(name).connected = false
		l.forgetAnswers(name)
	})
}

// Reported implements hub.Sink.
func (l *Ledger) Reported(name string, r *hubv1.Report) {
	l.post(func() { l.reported(name, r) })
}

// NeedLeaderElection reports false: every replica opens gates.
func (l *Ledger) NeedLeaderElection() bool { return false }

// Start opens gates until ctx ends; it returns nil then. The first sync of
// the caches must be complete before.
func (l *Ledger) Start(ctx context.Context) error {
	for {
		next := l.step()
		timer := l.clock.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-l.posted:
		case <-l.coverage.Wake():
		case <-l.barrier.Wake():
		case <-timer.C():
		}
		timer.Stop()
	}
}

// step does what there is to do and returns when to be called again at the
// latest.
func (l *Ledger) step() time.Duration {
	l.mu.Lock()
	inbox := l.inbox
	l.inbox = nil
	l.mu.Unlock()
	for _, do := range inbox {
		do()
	}
	for _, uid := range l.coverage.Affected() {
		if e, ok := l.shut[uid]; ok {
			e.stale = true
		}
	}
	now := l.clock.Now()
	more := l.compute()
	if !now.Before(l.inspect) {
		l.quarantine(now)
		l.inspect = now.Add(inspectInterval)
	}
	next := l.inspect
	for _, e := range l.shut {
		if !e.stale && (e.touched || !e.next.IsZero() && !now.Before(e.next)) {
			l.settle(e, now)
		}
		if !e.next.IsZero() {
			next = earlier(next, e.next)
		}
	}
	for _, e := range l.deaf {
		if !now.Before(e.wake) {
			l.wakeKubelet(e, now)
		}
		next = earlier(next, e.wake)
	}
	if more {
		return 0
	}
	return max(next.Sub(now), 0)
}

// compute brings stale entries up to date, a batch at a time, and reports
// whether there are more.
func (l *Ledger) compute() bool {
	computed := 0
	for _, e := range l.shut {
		if e.early && l.barrier.Passed(e.pod.uid) {
			e.stale = true
		}
		if !e.stale || len(e.pod.ips) == 0 {
			continue
		}
		if computed == computeBatch {
			return true
		}
		computed++
		l.recompute(e, true)
	}
	return false
}

// post queues do for the goroutine of Start.
func (l *Ledger) post(do func()) {
	l.mu.Lock()
	l.inbox = append(l.inbox, do)
	l.mu.Unlock()
	select {
	case l.posted <- struct{}{}:
	default:
	}
}
