// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/policygate/policygate/api/flow"
)

// flowsPerRuleset is how many packets each ruleset is tried with: loading
// takes about as long as sending them.
const flowsPerRuleset = 150

// Options say how long to go on.
type Options struct {
	// Packets is how many are sent at least; each ruleset is tried whole.
	Packets int
	// Seed is that of the first ruleset; the next ones have the numbers after
	// it.
	Seed uint64
	// Nodes is how many are tried at the same time, 0 for one per processor.
	Nodes int
	// Failed is told of what does not agree, by one node at a time.
	Failed func(Disagreement)
}

// Disagreement is a verdict that the kernel did not bear out.
type Disagreement struct {
	Outcome
	// Seed makes the ruleset and its flows again.
	Seed uint64
	// Ruleset is as small as it could be made.
	Ruleset *Ruleset
	// Steps explain the verdict.
	Steps string
}

// String returns everything that is needed to see it again.
func (d Disagreement) String() string {
	return fmt.Sprintf("SEED=%d: %s: %s\nverdict: %s\narrived: %t, from %s\n%s\n%s", d.Seed, d.Flow, d.Wrong, d.Verdict, d.Fate.Arrived, d.Fate.Source, d.Steps, d.Ruleset)
}

// Report counts what came of it.
type Report struct {
	Packets, Rulesets, Allowed, Denied, Disagreements int
	// Rules is how many were written, elements of sets included, and Refused
	// how many of these the tools did not take.
	Rules, Refused int
	// Inconclusive counts by reason, Constructs by name.
	Inconclusive, Constructs map[string]int
	Took                     time.Duration
}

// String ends with the line that says whether all agreed.
func (r Report) String() string {
	total := 0
	for _, count := range r.Inconclusive {
		total += count
	}
	byCount := slices.SortedFunc(maps.Keys(r.Inconclusive), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Inconclusive[b], r.Inconclusive[a]), cmp.Compare(a, b))
	})
	words := make([]string, len(byCount))
	for i, reason := range byCount {
		words[i] = fmt.Sprintf("%s %d", reason, r.Inconclusive[reason])
	}
	return fmt.Sprintf("packets=%d rulesets=%d rules=%d refused=%d allowed=%d denied=%d constructs=%d seconds=%.0f packets/s=%.0f\ndisagreements=%d inconclusive=%d (by reason: %s)",
		r.Packets, r.Rulesets, r.Rules, r.Refused, r.Allowed, r.Denied, len(r.Constructs), r.Took.Seconds(), float64(r.Packets)/r.Took.Seconds(),
		r.Disagreements, total, strings.Join(words, ", "))
}

// Run tries rulesets until enough packets were sent or ctx is done. An error
// means that a ruleset could not be tried, which says nothing of verdicts.
func Run(ctx context.Context, options Options) (Report, error) {
	nodes := options.Nodes
	if nodes == 0 {
		nodes = runtime.NumCPU()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &fuzz{options: options, next: options.Seed, report: Report{Inconclusive: map[string]int{}, Constructs: map[string]int{}}}
	began := time.Now()
	errs := make([]error, nodes)
	var running sync.WaitGroup
	for i := range nodes {
		running.Go(func() {
			// Never unlocked: the thread is in another namespace and ends.
			runtime.LockOSThread()
			if errs[i] = f.node(ctx, i); errs[i] != nil {
				cancel()
			}
		})
	}
	running.Wait()
	f.report.Took = time.Since(began)
	return f.report, errors.Join(errs...)
}

type fuzz struct {
	options Options

	mu     sync.Mutex // guards the following fields
	next   uint64
	report Report
}

// seed returns the next one, false if enough packets were sent.
func (f *fuzz) seed() (uint64, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.report.Packets >= f.options.Packets && f.next > f.options.Seed {
		return 0, false
	}
	f.next++
	// Counted beforehand, or all nodes would begin another one at the end.
	f.report.Packets += flowsPerRuleset
	return f.next - 1, true
}

func (f *fuzz) node(ctx context.Context, number int) (err error) {
	n, err := NewNode(ctx, number)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	for ctx.Err() == nil {
		seed, more := f.seed()
		if !more {
			break
		}
		if err := f.try(ctx, n, seed); err != nil && ctx.Err() == nil {
			return fmt.Errorf("SEED=%d: %w", seed, err)
		}
	}
	return nil
}

func (f *fuzz) try(ctx context.Context, n *Node, seed uint64) error {
	g := newGenerator(seed, n.sets)
	r := g.ruleset()
	rules := r.rules()
	outcomes, err := n.Try(ctx, r, g.flows(n, flowsPerRuleset))
	if err != nil {
		return err
	}
	f.count(g, outcomes, rules, rules-r.rules())
	for _, o := range outcomes {
		if o.Wrong == "" {
			continue
		}
		d := Disagreement{Seed: seed}
		d.Ruleset, d.Outcome = n.Shrink(ctx, r, o)
		if d.Steps, err = n.Explain(ctx, d.Ruleset, o.Flow); err != nil {
			return err
		}
		f.mu.Lock()
		f.options.Failed(d)
		f.mu.Unlock()
		// The others of this ruleset are most likely the same.
		break
	}
	return nil
}

func (f *fuzz) count(g *generator, outcomes []Outcome, rules, refused int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report.Packets += len(outcomes) - flowsPerRuleset
	f.report.Rulesets++
	f.report.Rules += rules
	f.report.Refused += refused
	for construct, count := range g.used {
		f.report.Constructs[construct] += count
	}
	for _, o := range outcomes {
		switch o.Verdict.Answer {
		case flow.Allowed:
			f.report.Allowed++
		case flow.Denied:
			f.report.Denied++
		case flow.Inconclusive:
			f.report.Inconclusive[class(o.Verdict.Reason)]++
		}
		if o.Wrong != "" {
			f.report.Disagreements++
		}
	}
}
