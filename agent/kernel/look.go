// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/route"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// Look is the state of the node at one moment. It is safe for concurrent use.
type Look struct {
	tables   []ruleset.Table
	topology *route.Topology
	sets     *ipset.Sets
	rewrites uint64
	stamps   []string

	mu       sync.Mutex // guards verdicts
	verdicts map[flow.Flow]answer
}

// questions answers a walk.
type questions struct{ *ipset.Sets }

var _ trace.Membership = questions{}

// Element implements trace.Membership.
func (questions) Element(set *ruleset.NativeSet, key []byte) (ruleset.Element, error) {
	return set.Get(key)
}

type answer struct {
	verdict flow.Verdict
	routed  bool
}

// Tables returns the rules of the look. They are shared with other looks and
// must not be changed.
func (l *Look) Tables() []ruleset.Table { return l.tables }

// Rewrites counts the changes of the node's rules that looks have found since
// New: per look at most one for nf_tables, where each commit is a change
// whatever it did, and one for the legacy tables. It never shrinks.
func (l *Look) Rewrites() uint64 { return l.rewrites }

// Verdict returns what the node does with the flow; a second time it returns
// the same. A flow that is not valid or not carried is Inconclusive.
func (l *Look) Verdict(f flow.Flow) flow.Verdict { return l.ask(f).verdict }

// Routed reports whether the node has routes for the flow, there and back. It
// is false only if the kernel said so.
func (l *Look) Routed(f flow.Flow) bool { return l.ask(f).routed }

func (l *Look) ask(f flow.Flow) answer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.verdicts[f]; ok {
		return a
	}
	a := l.decide(f)
	l.verdicts[f] = a
	return a
}

func (l *Look) decide(f flow.Flow) answer {
	if err := f.Validate(); err != nil {
		return answer{inconclusive(err.Error()), true}
	}
	paths, err := l.topology.Paths(f)
	if err != nil {
		return answer{inconclusive(err.Error()), !errors.Is(err, route.ErrNoRoute)}
	}
	verdict := trace.Trace(l.tables, paths[0], f, questions{l.sets})
	for _, p := range paths[1:] {
		other := trace.Trace(l.tables, p, f, questions{l.sets})
		if other.Answer == flow.Inconclusive {
			verdict = other
		}
		if verdict.Answer != other.Answer {
			verdict = inconclusive("virtual servers: forwarded " + verdict.String() + ", sent " + other.String())
		}
	}
	return answer{verdict, true}
}

// Explain walks the flow anew and returns one explanation for each way that
// it may take through the node: mostly one, two if virtual servers may have
// chosen the destination. The error is why the node could not be read.
func (l *Look) Explain(ctx context.Context, f flow.Flow) ([]Explanation, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := f.Validate(); err != nil {
		return nil, fmt.Errorf("flow %s: %w", f, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	paths, err := l.topology.Paths(f)
	if err != nil {
		return []Explanation{{Verdict: inconclusive(err.Error()), Routed: !errors.Is(err, route.ErrNoRoute)}}, nil
	}
	explanations := make([]Explanation, 0, len(paths))
	for _, p := range paths {
		verdict, steps := trace.Explain(l.tables, p, f, questions{l.sets})
		explanations = append(explanations, Explanation{
			Path: p, Verdict: verdict, Routed: true, Steps: steps, Depends: l.stamps,
		})
	}
	return explanations, nil
}

func inconclusive(reason string) flow.Verdict {
	return flow.Verdict{Answer: flow.Inconclusive, Reason: trace.Clean(reason)}
}
