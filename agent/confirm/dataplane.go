// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/policygate/policygate/api/flow"
)

// Dataplane is this node's enforcement.
type Dataplane interface {
	// Look reads what is in force now. It returns a whole and consistent
	// snapshot or an error, and gives up when ctx ends. Looks are never taken
	// concurrently.
	Look(ctx context.Context) (Look, error)
	// Audit returns why the dataplane cannot be seen by looks, or "". It does
	// what is too dear for each look, and is called now and then.
	Audit(ctx context.Context) (unsupported string)
}

// Look is a consistent snapshot, or a newer one if that has passed when it is
// asked. Its methods are never called concurrently, but may be called while
// the next look is being taken.
type Look interface {
	// Together answers all the questions, in their order, from one moment, and
	// keeps none of them. It returns an error if there was none that lasted.
	Together(ctx context.Context, questions []Question) ([]Answer, error)
	// Rewrites counts the rewrites of the rules that the dataplane has
	// noticed between when it was opened and the moment of the last Together.
	// It never falls.
	Rewrites() uint64
}

// Question is a flow that is asked about.
type Question struct {
	Flow flow.Flow
	// External: an end of the flow is outside of the cluster.
	External bool
}

// Answer is what a look says about a flow.
type Answer struct {
	// Verdict is what the node does with the flow's first packet. Whatever is
	// not understood is Inconclusive.
	Verdict flow.Verdict
	// Routed is whether the node has a route for the flow, so that an external
	// expectation can be asked at all.
	Routed bool
	// Traced: the rules were walked for it, and not only found unchanged.
	Traced bool
}

// Notices tells when looks may find something new. Changes that it misses are
// found by the next look that is due anyway.
type Notices interface {
	// Watch calls noticed, with a short name of what told, each time that
	// something may have changed, until ctx ends; then it returns. noticed may
	// be called concurrently.
	Watch(ctx context.Context, noticed func(source string))
}

// lookTimeout bounds a look, so that a reader that hangs becomes a reason in
// a report. The largest rulesets that were measured read in about a second.
const lookTimeout = 15 * time.Second

// sight is a look that several callers may share. The fields below done are
// set before it is closed.
type sight struct {
	done  chan struct{}
	began time.Time
	err   error

	mu    sync.Mutex // guards look
	look  Look
	count func([]Answer)
}

// together asks the look, and returns with the answers how many rewrites
// preceded their moment.
func (s *sight) together(ctx context.Context, questions []Question) ([]Answer, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	answers, err := s.look.Together(ctx, questions)
	if err != nil {
		return nil, 0, err
	}
	if len(answers) != len(questions) {
		return nil, 0, fmt.Errorf("the dataplane gave %d answers to %d questions", len(answers), len(questions))
	}
	s.count(answers)
	return answers, s.look.Rewrites(), nil
}

// see takes a look that begins after the call. Callers that wait for one in
// flight share the next, so a burst of releases costs one look and not one
// each. The returned sight has an err if there is no look.
func (c *Confirmer) see(ctx context.Context) *sight {
	c.sightMu.Lock()
	next, leads := c.next, false
	if next == nil {
		next, leads = &sight{done: make(chan struct{})}, true
		c.next = next
	}
	c.sightMu.Unlock()
	if !leads {
		select {
		case <-next.done:
			return next
		case <-ctx.Done():
			return &sight{err: ctx.Err()}
		}
	}

	c.looking <- struct{}{}
	defer func() { <-c.looking }()
	c.sightMu.Lock()
	c.next = nil
	c.sightMu.Unlock()
	defer close(next.done)

	lookCtx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	next.began = c.clock.Now()
	if why := c.unseen(); why != "" {
		next.err = errors.New(why)
		return next
	}
	look, err := c.dataplane.Look(lookCtx)
	c.metrics.looked(err)
	if err != nil {
		next.err = err
		return next
	}
	next.look, next.count = look, c.metrics.judged
	return next
}

// unseen returns why looks say nothing, as the last audit found, or "".
func (c *Confirmer) unseen() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unsupported
}
