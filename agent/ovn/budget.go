// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/utils/clock"
)

const (
	// share is the part of vswitchd's time that traces may take: they run in
	// the loop that installs the flows that are waited for.
	share = 0.05
	// burst is what may be taken at once, after a rest.
	burst = 250 * time.Millisecond
	// mostOwed bounds what a single trace that took long may cost: 5 s of rest.
	mostOwed = 250 * time.Millisecond
)

// budget is the time that traces may take. It is safe for concurrent use.
type budget struct {
	clock clock.WithTicker

	mu   sync.Mutex // guards the following fields
	left time.Duration
	at   time.Time
}

func newBudget(c clock.WithTicker) *budget {
	return &budget{clock: c, left: burst, at: c.Now()}
}

// wait waits until there is something left. The error says so if ctx ends
// first.
func (b *budget) wait(ctx context.Context) error {
	for {
		short := b.short()
		if short <= 0 {
			return ctx.Err()
		}
		timer := b.clock.NewTimer(short)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("traces have used up their %d %% of ovs-vswitchd's time: %w", int(100*share), ctx.Err())
		}
	}
}

// short returns for how long there is nothing left.
func (b *budget) short() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.clock.Now()
	b.left = min(burst, b.left+time.Duration(share*float64(now.Sub(b.at))))
	b.at = now
	if b.left > 0 {
		return 0
	}
	// A little more, or the rest is a rounding error.
	return time.Duration(float64(-b.left)/share) + time.Millisecond
}

// charge takes what a trace took.
func (b *budget) charge(took time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = max(-mostOwed, b.left-took)
}
