// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/policygate/policygate/test/bench/store"
)

// Load is what a scenario puts on its cluster.
type Load struct {
	// Rate is of gated Pods per second.
	Rate float64
	// Lasts is for how long they are created.
	Lasts time.Duration
}

// Sustained has gated Pods of one shape created at a steady rate.
func Sustained(ctx context.Context, o Options, s Shape, l Load) (_ *Outcome, err error) {
	c, err := start(ctx, o, func(c *cluster) { s.furnish(c, rand.New(rand.NewPCG(o.Seed, 0))) })
	if err != nil {
		return nil, err
	}
	defer func() { err = c.join(err) }()
	out, err := c.measured(ctx, func(ctx context.Context, _ *outcome) error {
		ctx, cancel := context.WithTimeout(ctx, l.Lasts)
		defer cancel()
		c.stream(ctx, s, l.Rate, o.Seed)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &out.Outcome, nil
}

// Killed is what came of a run in whose middle a replica was killed.
type Killed struct {
	Outcome
	// Undisturbed and Around are from the last report to the first release, of
	// Pods that were released well before the kill, and of those within 5 s of
	// it, or a sixth of the run if that is less.
	Undisturbed, Around Distribution
	// TotalUndisturbed and TotalAround are from address to open gate.
	TotalUndisturbed, TotalAround Distribution
	// Returned is how long it took until the new replica had a session with
	// every agent, and Most how many of these began within a tenth of that.
	Returned time.Duration
	Most     int
}

// greatestAround is how far from a kill Pods are counted as touched by it.
const greatestAround = 5 * time.Second

// Kill has one of two replicas, the leader if leader is set, killed in the
// middle of a run, and another started in its place a third later.
func Kill(ctx context.Context, o Options, s Shape, l Load, leader bool) (_ *Killed, err error) {
	o.Replicas = 2
	c, err := start(ctx, o, func(c *cluster) { s.furnish(c, rand.New(rand.NewPCG(o.Seed, 0))) })
	if err != nil {
		return nil, err
	}
	defer func() { err = c.join(err) }()
	victim := 1
	if leader {
		victim = 0
	}
	c.steady = 1 - victim
	out := &Killed{}
	var killed time.Time
	done, err := c.measured(ctx, func(ctx context.Context, run *outcome) error {
		streaming, cancel := context.WithTimeout(ctx, l.Lasts)
		defer cancel()
		failed := make(chan error, 1)
		go func() {
			failed <- func() error {
				if !sleep(streaming, l.Lasts/3) {
					return nil
				}
				if err := c.collect(ctx, run); err != nil {
					return err
				}
				killed = time.Now()
				c.kill(victim)
				go c.announceLater(streaming)
				if !sleep(streaming, l.Lasts/3) {
					return nil
				}
				return c.bringBack(ctx, run, out)
			}()
		}()
		c.stream(streaming, s, l.Rate, o.Seed)
		return <-failed
	})
	if err != nil {
		return nil, err
	}
	out.Outcome = done.Outcome
	out.compare(done, killed, min(greatestAround, l.Lasts/6))
	return out, nil
}

// leaseLasts is how long agents and replicas take to learn that a replica is
// gone for good: an EndpointSlice is changed, a Lease runs out.
const leaseLasts = 2 * time.Second

// announceLater tells agents, and the replica that is left, what is left.
func (c *cluster) announceLater(ctx context.Context) {
	if sleep(ctx, leaseLasts) {
		c.announce()
		c.lead(0)
	}
}

// bringBack starts a replica in the place of the one that was killed.
func (c *cluster) bringBack(ctx context.Context, run *outcome, out *Killed) error {
	began := time.Now()
	if err := c.addReplica(ctx); err != nil {
		return err
	}
	var connected []time.Time
	last := len(c.running()) - 1
	for sessions := 0; sessions < c.options.Nodes; {
		told, err := c.running()[last].Tell(ctx)
		if err != nil {
			return err
		}
		sessions = told.Sessions
		run.gates = append(run.gates, told.Gates...)
		connected = append(connected, told.Connected...)
		if !sleep(ctx, pollEvery) {
			return ctx.Err()
		}
	}
	out.Returned = time.Since(began)
	slices.SortFunc(connected, time.Time.Compare)
	out.Most = mostWithin(connected, out.Returned/10)
	return nil
}

// compare tells what was around the kill from what was before.
func (k *Killed) compare(o *outcome, killed time.Time, around time.Duration) {
	var undisturbed, near, totalUndisturbed, totalNear []time.Duration
	for _, w := range o.waited {
		if o.behind[w.UID] {
			continue
		}
		switch after := w.Released.Sub(killed); {
		case after < -around:
			undisturbed = append(undisturbed, w.Released.Sub(w.Reported))
		case after < around:
			near = append(near, w.Released.Sub(w.Reported))
		}
	}
	for _, x := range o.passages {
		if x.opened.IsZero() {
			continue
		}
		switch after := x.opened.Sub(killed); {
		case after < -around:
			totalUndisturbed = append(totalUndisturbed, x.opened.Sub(x.addressed))
		case after < around:
			totalNear = append(totalNear, x.opened.Sub(x.addressed))
		}
	}
	k.Undisturbed, k.Around = distribution(undisturbed), distribution(near)
	k.TotalUndisturbed, k.TotalAround = distribution(totalUndisturbed), distribution(totalNear)
}

// Frozen has one replica hear of no NetworkPolicy for the middle half of a run
// while policies and Pods come and go. With o.Lies its barrier's LISTs tell it
// that there is none, and no other replica is there.
func Frozen(ctx context.Context, o Options, s Shape, l Load) (_ *Outcome, err error) {
	o.Replicas = 2
	if o.Lies {
		o.Replicas = 1
	}
	c, err := start(ctx, o, func(c *cluster) { s.furnish(c, rand.New(rand.NewPCG(o.Seed, 0))) })
	if err != nil {
		return nil, err
	}
	defer func() { err = c.join(err) }()
	out, err := c.measured(ctx, func(ctx context.Context, _ *outcome) error {
		ctx, cancel := context.WithTimeout(ctx, l.Lasts)
		defer cancel()
		thawed := make(chan struct{})
		go func() {
			defer close(thawed)
			if sleep(ctx, l.Lasts/4) {
				c.running()[0].Freeze(store.NetworkPolicies)
				sleep(ctx, l.Lasts/2)
				c.running()[0].Thaw(store.NetworkPolicies)
			}
		}()
		c.stream(ctx, s, l.Rate, o.Seed)
		<-thawed
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &out.Outcome, nil
}

// join ends the cluster and adds what goes wrong with that to err.
func (c *cluster) join(err error) error {
	if ended := c.end(); err == nil && ended != nil {
		return fmt.Errorf("end the cluster: %w", ended)
	}
	return err
}
