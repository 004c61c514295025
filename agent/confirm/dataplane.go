// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
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
}

// Look is one consistent snapshot. Its methods are never called concurrently,
// but may be called while the next look is being taken.
type Look interface {
	// Verdict returns what the node does with the first packet of f.
	// Whatever is not understood is Inconclusive.
	Verdict(f flow.Flow) flow.Verdict
	// Routed reports whether the node has a route for f, so that an external
	// expectation can be asked at all.
	Routed(f flow.Flow) bool
	// Rewrites counts the rewrites of the rules that the dataplane has
	// noticed since it was opened. It never falls.
	Rewrites() uint64
}

// lookTimeout bounds a look, so that a reader that hangs becomes a reason in
// a report. The largest rulesets that were measured read in about a second.
const lookTimeout = 15 * time.Second

// sight is a look that several callers may share. The fields below done are
// set before it is closed.
type sight struct {
	done     chan struct{}
	began    time.Time
	rewrites uint64
	err      error

	// mu guards the following: verdicts are computed on demand.
	mu       sync.Mutex
	look     Look
	verdicts map[flow.Flow]flow.Verdict
	routed   map[flow.Flow]bool
	count    func(flow.Answer)
}

// verdict returns the look's verdict on f, asked of the dataplane once.
func (s *sight) verdict(f flow.Flow) flow.Verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, known := s.verdicts[f]
	if !known {
		v = s.look.Verdict(f)
		s.verdicts[f] = v
		s.count(v.Answer)
	}
	return v
}

// hasRoute returns the look's answer for f, asked of the dataplane once.
func (s *sight) hasRoute(f flow.Flow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, known := s.routed[f]
	if !known {
		r = s.look.Routed(f)
		s.routed[f] = r
	}
	return r
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
	look, err := c.dataplane.Look(lookCtx)
	c.metrics.looked(c.clock.Since(next.began), err)
	if err != nil {
		next.err = err
		return next
	}
	next.look, next.rewrites = look, look.Rewrites()
	next.verdicts = make(map[flow.Flow]flow.Verdict)
	next.routed = make(map[flow.Flow]bool)
	next.count = c.metrics.judged
	return next
}
