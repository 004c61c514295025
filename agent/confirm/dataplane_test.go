// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/policygate/policygate/api/flow"
)

// dataplane is a Dataplane whose answers the test changes between looks.
type dataplane struct {
	mu       sync.Mutex
	verdicts map[flow.Flow]flow.Answer
	unrouted map[flow.Flow]bool
	rewrites uint64
	err      error
	looks    int
	asked    map[flow.Flow]int
	// unsettled are flows that no batch with them is answered for, and batches
	// are all that were asked.
	unsettled map[flow.Flow]bool
	batches   [][]Question
	// unsupported is what audits find.
	unsupported string
	audits      int
	// cost is how long a look takes.
	cost time.Duration
	// block, if set, is received from by each look.
	block chan struct{}
}

func (d *dataplane) Audit(context.Context) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.audits++
	return d.unsupported
}

func (d *dataplane) Look(ctx context.Context) (Look, error) {
	d.mu.Lock()
	block, cost := d.block, d.cost
	d.mu.Unlock()
	if cost > 0 {
		<-time.After(cost)
	}
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	if d.err != nil {
		return nil, d.err
	}
	d.asked = map[flow.Flow]int{}
	return &answers{
		verdicts: maps.Clone(d.verdicts), unrouted: d.unrouted, rewrites: d.rewrites, asked: d.asked,
		unsettled: maps.Clone(d.unsettled), dataplane: d,
	}, nil
}

func (d *dataplane) set(change func(*dataplane)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *dataplane) taken() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks
}

// answers is a Look that gives fixed verdicts; flows that it lacks are
// Inconclusive.
type answers struct {
	verdicts map[flow.Flow]flow.Answer
	unrouted map[flow.Flow]bool
	rewrites uint64
	asked    map[flow.Flow]int
	// unsettled are flows that no batch with them is answered for.
	unsettled map[flow.Flow]bool
	// dataplane, if not nil, takes down what is asked of all its looks.
	dataplane *dataplane
}

func (a *answers) Together(_ context.Context, questions []Question) ([]Answer, error) {
	if a.dataplane != nil {
		a.dataplane.set(func(d *dataplane) { d.batches = append(d.batches, slices.Clone(questions)) })
	}
	all := make([]Answer, 0, len(questions))
	for _, q := range questions {
		if a.unsettled[q.Flow] {
			return nil, errors.New("kept changing")
		}
		if a.asked != nil {
			a.asked[q.Flow]++
		}
		all = append(all, Answer{Verdict: flow.Verdict{Answer: a.verdicts[q.Flow], Reason: "rule"}, Routed: !a.unrouted[q.Flow]})
	}
	return all, nil
}

func (a *answers) Rewrites() uint64 { return a.rewrites }
