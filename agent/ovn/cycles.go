// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// ErrSeveralDatapaths is what a Session's WaitRevalidators returns where
// vswitchd cannot tell when the flow caches of all its datapaths are fresh.
var ErrSeveralDatapaths = errors.New("vswitchd has several datapaths and can wait for none")

const (
	// cycleTakes is a cycle of vswitchd's revalidators at rest, 500 ms by
	// default (max-revalidator), with what timers and a busy machine change of
	// it. A wait of other length may have ended a dump of the cache that had
	// begun before.
	cycleTakesAtLeast = 400 * time.Millisecond
	cycleTakesAtMost  = 600 * time.Millisecond
	// severalTake is what is waited where vswitchd cannot tell: two cycles.
	severalTake = time.Second
	// mostWaited bounds a wait: at a million cached flows a cycle took less.
	mostWaited = 10 * time.Second
)

// cycles counts the cycles of the revalidators, which go through the flow cache
// and drop from it what the tables no longer say. It is safe for concurrent
// use.
type cycles struct {
	clock   clock.WithTicker
	ctx     context.Context // ends the waits
	metrics *metrics
	// told is called after each cycle.
	told func()

	mu sync.Mutex // guards the following fields
	// begun and done number the cycles that were waited for.
	begun, done uint64
	// wanted is the newest mark that somebody waits for.
	wanted  uint64
	session Session
	running bool
	idle    sync.WaitGroup
}

// mark returns the mark of now: what is so now, the cache says when a cycle has
// ended that began after it.
func (c *cycles) mark() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begun
}

// passed reports whether such a cycle has ended.
func (c *cycles) passed(mark uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done > mark
}

// want has the cycles waited for that the mark needs, in the background.
func (c *cycles) want(session Session, mark uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done > mark || c.ctx.Err() != nil {
		return
	}
	c.wanted, c.session = max(c.wanted, mark), session
	if !c.running {
		c.running = true
		c.idle.Go(c.run)
	}
}

// run waits for cycles until none is wanted or vswitchd does not answer: then
// the next look asks for one again.
func (c *cycles) run() {
	for {
		c.mu.Lock()
		if c.done > c.wanted || c.ctx.Err() != nil {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.begun++
		number, session := c.begun, c.session
		c.mu.Unlock()

		err := c.cycle(session)
		c.metrics.waited(err)
		c.mu.Lock()
		if err != nil {
			c.running = false
			c.mu.Unlock()
			return
		}
		c.done = number
		c.mu.Unlock()
		c.told()
	}
}

// cycle returns when a whole cycle has passed.
func (c *cycles) cycle(session Session) error {
	for range 2 {
		ctx, cancel := context.WithTimeout(c.ctx, mostWaited)
		began := c.clock.Now()
		err := session.WaitRevalidators(ctx)
		cancel()
		switch took := c.clock.Since(began); {
		case errors.Is(err, ErrSeveralDatapaths):
			return c.rest(severalTake)
		case err != nil:
			return fmt.Errorf("wait for the revalidators: %w", err)
		case took >= cycleTakesAtLeast && took <= cycleTakesAtMost:
			return nil
		}
	}
	return nil
}

// rest waits by the clock.
func (c *cycles) rest(d time.Duration) error {
	timer := c.clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return nil
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
}
