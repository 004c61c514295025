// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/policygate/policygate/agent/kernel/route"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// attempts bounds how often a batch is asked again because something changed
// under it. An engine may commit hundreds of times in a second, but a batch of
// one subject's flows takes a millisecond.
const attempts = 5

// ErrUnsettled means that the rules changed during every attempt.
var ErrUnsettled = errors.New("the rules kept changing while they were read")

// Look is the state of the node at one moment, or at a newer one if that has
// passed when it is asked. It is safe for concurrent use.
type Look struct {
	netfilter *Netfilter

	mu      sync.Mutex // guards reading
	reading *reading
}

// Question is a flow that is asked about.
type Question struct {
	Flow flow.Flow
	// External says that an end of the flow may be outside of the cluster.
	// What leaves the node is then judged by its source on another node only
	// if a route is for it; of a flow between Pods that is always believed.
	External bool
}

// Answer is what becomes of a flow.
type Answer struct {
	// Verdict is what the node does with the flow's first packet. It is
	// Inconclusive for one that is not valid or not carried.
	Verdict flow.Verdict
	// Routed is whether the node has routes for the flow, there and back. It
	// is false only if the kernel said so.
	Routed bool
	// Traced: the rules were walked; else nothing that the verdict rests on
	// had changed since they were.
	Traced bool
}

// Together answers a batch of questions, all of one moment and in their order.
// The error is why the node could not be read; ErrUnsettled, if the rules kept
// changing.
func (l *Look) Together(ctx context.Context, questions []Question) ([]Answer, error) {
	answers := make([]Answer, len(questions))
	err := l.atOnce(ctx, func(r *reading) {
		for i, q := range questions {
			answers[i] = l.netfilter.answer(r, q)
		}
	})
	if err != nil {
		return nil, err
	}
	return answers, nil
}

// atOnce calls ask with what is loaded, and again if that has changed
// meanwhile.
func (l *Look) atOnce(ctx context.Context, ask func(*reading)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.netfilter
	n.mu.Lock()
	defer n.mu.Unlock()
	for range attempts {
		if err := ctx.Err(); err != nil {
			return err
		}
		// Chains are read late and by the newest reading alone, which may be
		// another look's by now.
		if l.reading = n.newest; l.reading == nil {
			var err error
			if l.reading, err = n.read(ctx); err != nil {
				return err
			}
		}
		ask(l.reading)
		if holds, err := n.holds(ctx); holds || err != nil {
			return err
		}
	}
	return ErrUnsettled
}

func (l *Look) current() *reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reading
}

// Tables returns the rules as they were when the look was asked last, or taken.
// They are shared with other looks and must not be changed.
func (l *Look) Tables() []ruleset.Table { return l.current().tables }

// Rewrites counts the changes of the node's rules that were found between New
// and the moment that the look was asked last, or taken: per reading at most
// one for nf_tables, where each commit is a change whatever it did, and one for
// the legacy tables. It never shrinks.
func (l *Look) Rewrites() uint64 { return l.current().rewrites }

// Verdict returns what the node does with a flow whose ends may be outside of
// the cluster. It is a batch of one.
func (l *Look) Verdict(f flow.Flow) flow.Verdict { return l.one(f).Verdict }

// Routed reports whether the node has routes for the flow, there and back. It
// is false only if the kernel said so. It is a batch of one.
func (l *Look) Routed(f flow.Flow) bool { return l.one(f).Routed }

func (l *Look) one(f flow.Flow) Answer {
	answers, err := l.Together(context.Background(), []Question{{Flow: f, External: true}})
	if err != nil {
		return Answer{Verdict: inconclusive(err.Error()), Routed: true}
	}
	return answers[0]
}

// answer answers one question of a batch.
func (n *Netfilter) answer(r *reading, q Question) Answer {
	if err := q.Flow.Validate(); err != nil {
		return Answer{Verdict: inconclusive(err.Error()), Routed: true}
	}
	paths, err := r.topology.Paths(q.Flow, q.External)
	if err != nil {
		return Answer{Verdict: inconclusive(err.Error()), Routed: !errors.Is(err, route.ErrNoRoute)}
	}
	return n.along(r, q, paths)
}

// along answers a question whose flow takes one of the paths.
func (n *Netfilter) along(r *reading, q Question, paths []trace.Path) Answer {
	if v, ok := n.memory.recall(r, q, paths); ok {
		return Answer{Verdict: v, Routed: true}
	}
	w := n.memory.witness(r)
	v := agreed(paths, func(p trace.Path) flow.Verdict { return trace.Trace(r.tables, p, q.Flow, w) })
	n.memory.remember(q, paths, v, w)
	return Answer{Verdict: v, Routed: true, Traced: true}
}

// agreed returns the verdict that all paths have in common. There is at least
// one path.
func agreed(paths []trace.Path, verdict func(trace.Path) flow.Verdict) flow.Verdict {
	first := verdict(paths[0])
	for _, p := range paths[1:] {
		other := verdict(p)
		switch {
		case first.Answer == flow.Inconclusive:
			return first
		case other.Answer == flow.Inconclusive:
			return other
		case first.Answer != other.Answer:
			return inconclusive("it may go several ways: " + describe(paths[0]) + " " + first.String() + ", " + describe(p) + " " + other.String())
		}
	}
	return first
}

// describe returns a path in a few words.
func describe(p trace.Path) string {
	var b strings.Builder
	switch p.Way {
	case trace.Forwarded:
		b.WriteString("forwarded")
	case trace.Delivered:
		b.WriteString("delivered")
	case trace.Sent:
		b.WriteString("sent")
	}
	if p.In != "" {
		b.WriteString(" from " + p.In)
	}
	if p.Out != "" {
		b.WriteString(" to " + p.Out)
	}
	return b.String()
}

// Explain walks the flow anew and returns one explanation for each way that it
// may take through the node, all of one moment: mostly one, more if virtual
// servers or the packet's mark may have chosen the way. The error is why the
// node could not be read.
func (l *Look) Explain(ctx context.Context, f flow.Flow) ([]Explanation, error) {
	if err := f.Validate(); err != nil {
		return nil, fmt.Errorf("flow %s: %w", f, err)
	}
	var explanations []Explanation
	err := l.atOnce(ctx, func(r *reading) { explanations = l.netfilter.explain(r, f) })
	if err != nil {
		return nil, err
	}
	return explanations, nil
}

func (n *Netfilter) explain(r *reading, f flow.Flow) []Explanation {
	paths, err := r.topology.Paths(f, true)
	if err != nil {
		return []Explanation{{Verdict: inconclusive(err.Error()), Routed: !errors.Is(err, route.ErrNoRoute)}}
	}
	explanations := make([]Explanation, 0, len(paths))
	for _, p := range paths {
		explanations = append(explanations, n.explainAlong(r, p, f))
	}
	return explanations
}

func inconclusive(reason string) flow.Verdict {
	return flow.Verdict{Answer: flow.Inconclusive, Reason: trace.Clean(reason)}
}
