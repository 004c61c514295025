// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// kernelTraces answers what this node's kernel would do with a flow. It opens
// the kernel anew for each: a person's question must not make the looks that
// gates wait for wait for it.
type kernelTraces struct{}

var _ session.Traces = kernelTraces{}

// Trace implements session.Traces.
func (kernelTraces) Trace(ctx context.Context, f flow.Flow) (hops []tracev1.Hop, err error) {
	netfilter, err := kernel.New(kernel.Options{})
	if err != nil {
		return nil, readable(err)
	}
	defer func() { err = errors.Join(err, netfilter.Close()) }()
	look, err := netfilter.Look(ctx)
	if err != nil {
		return nil, readable(err)
	}
	explanations, err := look.Explain(ctx, f)
	if err != nil {
		return nil, readable(err)
	}
	return hopsOf(explanations), nil
}

// readable adds what is missing where the kernel says no more than that
// something is not permitted.
func readable(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: reading the kernel's rules needs root with CAP_NET_ADMIN", err)
	}
	return err
}

func hopsOf(explanations []kernel.Explanation) []tracev1.Hop {
	hops := make([]tracev1.Hop, 0, len(explanations))
	for _, e := range explanations {
		h := tracev1.Hop{
			Way: wayOf(e.Path.Way), In: e.Path.In, Out: e.Path.Out, Routed: e.Routed,
			Verdict: tracev1.VerdictOf(e.Verdict.Answer), Reason: e.Verdict.Reason,
		}
		for _, s := range e.Steps {
			h.Steps = append(h.Steps, tracev1.Step{
				Hook: s.Hook.String(), Base: s.Base, Chain: s.Chain,
				Depth: uint32(max(s.Depth, 0)), //nolint:gosec // bounded by the walk's own limit on jumps
				Rule:  s.Rule, Effect: s.Effect, Maybe: s.Maybe,
			})
		}
		for _, m := range e.NearMisses {
			h.NearMisses = append(h.NearMisses, tracev1.NearMiss{
				Hook: m.Hook.String(), Base: m.Base, Chain: m.Chain, Rule: m.Rule, Set: m.Set, Element: m.Element,
				Held: m.Held, Matched: m.Matched, Effect: m.Effect, Verdict: tracev1.VerdictOf(m.Otherwise),
			})
		}
		hops = append(hops, h.Bound())
	}
	return hops
}

func wayOf(w trace.Way) string {
	switch w {
	case trace.Forwarded:
		return "forwarded"
	case trace.Delivered:
		return "delivered"
	case trace.Sent:
		return "sent"
	}
	return ""
}
