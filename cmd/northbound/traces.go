// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/policygate/policygate/agent/northbound"
	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// traces answers what the northbound database has of a flow, to people.
type traces struct{ database *northbound.Dataplane }

var _ session.Traces = traces{}

// Trace implements session.Traces.
func (t traces) Trace(ctx context.Context, f flow.Flow) ([]tracev1.Hop, error) {
	e, err := t.database.Explain(ctx, f)
	if err != nil {
		return nil, err
	}
	return []tracev1.Hop{hopOf(e)}, nil
}

// hopOf returns an explanation as one way of a packet: through logical switches.
func hopOf(e northbound.Explanation) tracev1.Hop {
	h := tracev1.Hop{
		Way: "switched", In: e.In, Out: e.Out, Routed: true,
		Verdict: tracev1.VerdictOf(e.Verdict.Answer), Reason: e.Verdict.Reason,
	}
	for _, s := range e.Steps {
		h.Steps = append(h.Steps, tracev1.Step{
			Hook: s.Direction, Base: "logical switch " + s.Switch, Chain: chainOf(s), Rule: s.Rule, Effect: s.Effect, Maybe: s.Maybe,
		})
	}
	for _, m := range e.NearMisses {
		h.NearMisses = append(h.NearMisses, tracev1.NearMiss{
			Hook: m.Direction, Base: "logical switch " + m.Switch, Chain: chainOf(m.Step), Rule: m.Rule,
			Set: m.Set, Element: m.Address, Held: m.Held, Effect: m.Effect, Verdict: tracev1.VerdictOf(m.Otherwise),
		})
	}
	return h.Bound()
}

// chainOf names what has the ACL.
func chainOf(s northbound.Step) string {
	if s.Group == "" {
		return "all ports"
	}
	return "port group " + s.Group
}
