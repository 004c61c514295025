// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package barrier answers whether a replica has surely seen every
// NetworkPolicy and Namespace that existed before it first saw a Pod.
//
// Watches of different kinds are not ordered: a Pod is now and then seen before
// a policy that was created ahead of it, and with a relist it is seconds. So a
// Pod gets a ticket when it is first seen, consistent LISTs of metadata are
// begun after that, and the ticket passes once they have returned and the
// index holds every listed object at that version or a newer one. What was made
// after those LISTs the ticket says nothing about: who waits for long is given
// another.
//
// One LIST of each kind at a time serves all tickets, at most one begins per
// second, and none while no ticket waits. A failed LIST passes nobody. The
// package does not look at what the objects say, and does not recompute
// anything: that is its caller's, after Passed.
package barrier

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

const (
	// listInterval bounds what waiting Pods cost the API server: a LIST of
	// 1,000 objects takes it some 8 ms.
	listInterval = time.Second
	// listTimeout ends a LIST that the API server does not answer, so that
	// the next attempt can begin.
	listTimeout = 15 * time.Second
	// pollInterval is how often listed objects that the index lacks are
	// looked up again. Only those few are, so a look costs microseconds.
	pollInterval = 20 * time.Millisecond
	// maxLook bounds what one look asks the index. A relist can leave it
	// without thousands of objects: they take turns.
	maxLook = 512
)

// Kind is a kind of object that the barrier lists.
type Kind string

// The kinds from which expectations are computed and which a Pod's own watch
// says nothing about.
const (
	NetworkPolicies Kind = "NetworkPolicy"
	Namespaces      Kind = "Namespace"
)

// Version is one listed object.
type Version struct {
	Kind            Kind
	UID             types.UID
	ResourceVersion uint64
}

// Lister lists all objects of one kind.
type Lister interface {
	// Kind is what it lists.
	Kind() Kind
	// List returns every object that existed when it was called, or an error.
	// It must not answer from a cache that may be older than the call.
	List(ctx context.Context) ([]Version, error)
}

// Index is what expectations are computed from.
type Index interface {
	// Holds reports whether the index has the object at this version or at a
	// newer one. It is called with no lock held and must be quick.
	Holds(v Version) bool
}

// Options are what a Barrier needs; all fields but the last two are required.
type Options struct {
	// Listers are one per kind, called at the same time.
	Listers []Lister
	Index   Index
	Clock   clock.Clock
	Log     logr.Logger
	// Registerer exposes the metrics. nil: they are counted for nobody.
	Registerer prometheus.Registerer
}

// Barrier hands out tickets and passes them. Its methods may be called at any
// time from any goroutine.
type Barrier struct {
	listers []Lister
	index   Index
	clock   clock.Clock
	log     logr.Logger
	metrics *metrics

	wanted chan struct{}
	wake   chan struct{}

	// mu guards rounds.
	mu     sync.Mutex
	rounds rounds
}

// New returns a Barrier that passes nobody until Start runs.
func New(o Options) *Barrier {
	return &Barrier{
		listers: o.Listers,
		index:   o.Index,
		clock:   o.Clock,
		log:     o.Log,
		metrics: newMetrics(o.Registerer),
		wanted:  make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		rounds:  newRounds(),
	}
}

// Ticket makes uid wait for LISTs that begin from now on. A uid that has a
// ticket keeps it; to make it wait anew, Forget it first.
func (b *Barrier) Ticket(uid types.UID) {
	b.mu.Lock()
	b.rounds.ticket(uid)
	b.mu.Unlock()
	notify(b.wanted)
}

// Passed reports whether uid has a ticket and it has passed. It stays true
// until Forget.
func (b *Barrier) Passed(uid types.UID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rounds.passed(uid)
}

// TakePassed returns, once, the uids that have passed since the last call, in
// no order. One that was forgotten meanwhile may be among them. It is for one
// caller.
func (b *Barrier) TakePassed() []types.UID {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rounds.takePassed()
}

// Forget drops the ticket of uid, if it has one.
func (b *Barrier) Forget(uid types.UID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rounds.forget(uid)
}

// Wake returns a channel that receives after TakePassed has got something to
// return. It is for one receiver and may receive once for many.
func (b *Barrier) Wake() <-chan struct{} { return b.wake }

// NeedLeaderElection reports false: every replica releases Pods, so each has
// a barrier of its own.
func (b *Barrier) NeedLeaderElection() bool { return false }

// Start lists while tickets wait, until ctx ends. It returns nil then.
func (b *Barrier) Start(ctx context.Context) error {
	var earliest time.Time
	results := make(chan result, 1)
	inFlight := false
	for {
		now := b.clock.Now()
		b.mu.Lock()
		want, pending := b.rounds.wantsRound(), b.rounds.pending()
		b.mu.Unlock()

		var timer clock.Timer
		var due <-chan time.Time
		switch {
		case want && !inFlight && !now.Before(earliest):
			earliest = now.Add(listInterval)
			inFlight = true
			b.mu.Lock()
			round := b.rounds.begin()
			b.mu.Unlock()
			go func() { results <- b.list(ctx, round) }()
			continue
		case pending:
			timer = b.clock.NewTimer(pollInterval)
		case want && !inFlight:
			timer = b.clock.NewTimer(earliest.Sub(now))
		}
		if timer != nil {
			due = timer.C()
		}
		select {
		case <-ctx.Done():
			stop(timer)
			return nil
		case r := <-results:
			inFlight = false
			if r.err != nil {
				if ctx.Err() == nil {
					b.log.Error(r.err, "listing for the barrier failed, nobody passes")
				}
				break
			}
			b.listed(r)
		case <-due:
			b.look()
		case <-b.wanted:
		}
		stop(timer)
	}
}

// listed takes a round's result. What the index holds of it already, which is
// nearly all of it, is not kept.
func (b *Barrier) listed(r result) {
	lacking := slices.DeleteFunc(r.versions, b.index.Holds)
	b.mu.Lock()
	passed := b.rounds.listed(r.round, lacking)
	b.mu.Unlock()
	if passed {
		notify(b.wake)
	}
}

// look asks the index for what the rounds miss, and wakes the receiver if a
// round is now complete.
func (b *Barrier) look() {
	b.mu.Lock()
	missing := b.rounds.missing(maxLook)
	b.mu.Unlock()
	held := slices.DeleteFunc(missing, func(v Version) bool { return !b.index.Holds(v) })
	b.mu.Lock()
	passed := b.rounds.held(held)
	b.mu.Unlock()
	if passed {
		notify(b.wake)
	}
}

// result is the outcome of one round's LISTs.
type result struct {
	round    uint64
	versions []Version
	err      error
}

// list calls every lister at once and joins what they return.
func (b *Barrier) list(ctx context.Context, round uint64) result {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	type answer struct {
		versions []Version
		err      error
	}
	answers := make(chan answer, len(b.listers))
	for _, l := range b.listers {
		go func() {
			versions, err := l.List(ctx)
			b.metrics.listed(l.Kind(), err)
			answers <- answer{versions, err}
		}()
	}
	r := result{round: round}
	var errs []error
	for range b.listers {
		a := <-answers
		r.versions = append(r.versions, a.versions...)
		errs = append(errs, a.err)
	}
	if err := errors.Join(errs...); err != nil {
		r.err = fmt.Errorf("round %d: %w", round, err)
	}
	return r
}

func stop(t clock.Timer) {
	if t != nil {
		t.Stop()
	}
}

func notify(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
