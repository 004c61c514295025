// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"context"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// BumpEvery is the least time between two increments of nb_cfg. Each makes every
// node's ovn-controller write to the southbound database.
const BumpEvery = 10 * time.Second

// Bumper increments NB_Global.nb_cfg, by which nodes acknowledge: one that has
// told a number has taken in all that was in the northbound database when it was
// written. All who ask within BumpEvery share one increment. It is made by
// NewBumper and safe for concurrent use.
type Bumper struct {
	increment func(context.Context) (int64, error)
	clock     clock.Clock
	asked     chan struct{}

	mu   sync.Mutex // guards next
	next *bump      // the increment that callers wait for, nil if nobody asked
}

// bump is one increment. The fields below done are set before it is closed.
type bump struct {
	done   chan struct{}
	number int64
	err    error
}

// NewBumper returns a Bumper that does nothing until Run is called.
func NewBumper(increment func(context.Context) (int64, error), c clock.Clock) *Bumper {
	return &Bumper{increment: increment, clock: c, asked: make(chan struct{}, 1)}
}

// Cover returns the number to await for what the caller has seen in the database
// so far: that of an increment which begins after the call. It may take BumpEvery
// and a moment. The error is why the increment failed, or why ctx ended.
func (b *Bumper) Cover(ctx context.Context) (int64, error) {
	n := b.ask()
	select {
	case <-n.done:
		return n.number, n.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (b *Bumper) ask() *bump {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next == nil {
		b.next = &bump{done: make(chan struct{})}
	}
	select {
	case b.asked <- struct{}{}:
	default:
	}
	return b.next
}

// take returns the increment that was asked for, or nil: who asks from now on gets
// another.
func (b *Bumper) take() *bump {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.next
	b.next = nil
	return n
}

// Run makes the increments until ctx ends, and returns nil then.
func (b *Bumper) Run(ctx context.Context) error {
	defer func() {
		if n := b.take(); n != nil {
			n.err = context.Cause(ctx)
			close(n.done)
		}
	}()
	for {
		select {
		case <-b.asked:
		case <-ctx.Done():
			return nil
		}
		n := b.take()
		if n == nil {
			continue
		}
		began := b.clock.Now()
		n.number, n.err = b.increment(ctx)
		close(n.done)
		select {
		case <-b.clock.After(BumpEvery - b.clock.Since(began)):
		case <-ctx.Done():
			return nil
		}
	}
}
