// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"errors"
	"fmt"
	"time"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Acknowledger is a Dataplane of a node with OVN. What such a node's looks show
// of a policy is a sample; what it has acknowledged is all of the policy, if the
// northbound database had it.
type Acknowledger interface {
	// Acknowledged returns the NB_Global.nb_cfg up to which the node's
	// ovn-controller says that it has installed everything. The error says why
	// that cannot be told; ErrNoOVN that OVN enforces nothing on this node, where
	// no acknowledgement is awaited. It is called with each look, concurrently
	// with none.
	Acknowledged(ctx context.Context) (uint64, error)
}

// ErrNoOVN is what an Acknowledger says of a node without OVN.
var ErrNoOVN = errors.New("the node has no OVN")

// Coverer counts OVN's northbound database up, so that nodes can acknowledge
// what is in it.
type Coverer interface {
	// Cover returns an NB_Global.nb_cfg that covers all that looks at the
	// database have seen before the call. It may take as long as the counting is
	// put off for others', and returns an error if ctx ends before.
	Cover(ctx context.Context) (int64, error)
}

// recoverAfter is how long after a failure the database is counted up again.
const recoverAfter = time.Second

// unacknowledged returns why the dataplane has not acknowledged what an
// assignment demands, or "".
func (c *Confirmer) unacknowledged(ctx context.Context, config uint64) string {
	acknowledger, ok := c.dataplane.(Acknowledger)
	if !ok {
		return ""
	}
	at, err := acknowledger.Acknowledged(ctx)
	switch {
	case errors.Is(err, ErrNoOVN):
		return ""
	case err != nil:
		return printable(fmt.Sprintf("%s: %v", hubv1.ReasonUnacknowledged, err))
	case at < config:
		return fmt.Sprintf("%s: nb_cfg is %d, want %d", hubv1.ReasonUnacknowledged, at, config)
	}
	return ""
}

// cover has the database counted up behind the confirmation of e, if it is one
// that nothing covers yet, and forgets what covered one that is over.
func (c *Confirmer) cover(e *evaluation) {
	switch {
	case c.coverer == nil || !e.content.policy:
		return
	case !e.answer.confirmed:
		e.uncovered, e.covered = false, 0
		delete(c.covering, e)
		return
	case e.uncovered || e.covered > 0:
		return
	}
	e.uncovered = true
	c.covering[e] = struct{}{}
	select {
	case c.coverWake <- struct{}{}:
	default:
	}
}

// runCover counts the database up for those that wait for it, until ctx ends.
// Those that come while it does wait for the next time: what they have seen may
// not be covered.
func (c *Confirmer) runCover(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.coverWake:
		}
		waiting := c.takeCovering()
		if len(waiting) == 0 {
			continue
		}
		config, err := c.coverer.Cover(ctx)
		if err == nil && config <= 0 {
			err = fmt.Errorf("nb_cfg is %d: want it positive", config)
		}
		if err == nil {
			c.covered(waiting, uint64(config)) //nolint:gosec // positive
			continue
		}
		if ctx.Err() != nil {
			return
		}
		c.log.Error(err, "The northbound database cannot be counted up: policies are not confirmed")
		c.putOff(ctx, waiting)
	}
}

// takeCovering takes those that wait for the database to be counted up.
func (c *Confirmer) takeCovering() map[*evaluation]struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	waiting := c.covering
	c.covering = map[*evaluation]struct{}{}
	return waiting
}

// covered tells the confirmations that config covers. One that was taken back
// meanwhile waits again, if it was made again.
func (c *Confirmer) covered(waiting map[*evaluation]struct{}, config uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range waiting {
		if _, again := c.covering[e]; again || !e.current() || !e.uncovered {
			continue
		}
		e.uncovered, e.covered = false, config
		c.publish(e)
	}
	c.wakeUp()
}

// putOff has those that wait go on to, behind a pause.
func (c *Confirmer) putOff(ctx context.Context, waiting map[*evaluation]struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-c.clock.After(recoverAfter):
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range waiting {
		if e.current() && e.uncovered {
			e.uncovered = false
			c.cover(e)
		}
	}
}
