// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hubv1

import (
	"errors"
	"fmt"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// TraceResultOf returns the message that answers the Trace of that id: with
// the error if there is one, else with the hops, within the limits.
func TraceResultOf(id uint64, hops []tracev1.Hop, err error) *TraceResult {
	if err != nil {
		return &TraceResult{Id: id, Error: tracev1.Clean(err.Error())}
	}
	if len(hops) > tracev1.MaxHops {
		// One that was left out could be the one that refuses.
		return &TraceResult{Id: id, Error: fmt.Sprintf("the packet may take %d ways through the node: more than %d",
			len(hops), tracev1.MaxHops)}
	}
	r := &TraceResult{Id: id}
	for _, h := range hops {
		h = h.Bound()
		m := &TraceHop{
			Way: h.Way, In: h.In, Out: h.Out, Routed: h.Routed,
			Answer: answerOf(h.Verdict), Reason: h.Reason, LeftOut: h.LeftOut,
		}
		for _, s := range h.Steps {
			m.Steps = append(m.Steps, &TraceStep{
				Hook: s.Hook, Base: s.Base, Chain: s.Chain, Depth: s.Depth,
				Rule: s.Rule, Effect: s.Effect, Maybe: s.Maybe,
			})
		}
		for _, n := range h.NearMisses {
			m.NearMisses = append(m.NearMisses, &TraceNearMiss{
				Hook: n.Hook, Base: n.Base, Chain: n.Chain, Rule: n.Rule, Set: n.Set, Element: n.Element,
				Held: n.Held, Matched: n.Matched, Effect: n.Effect, Answer: answerOf(n.Verdict),
			})
		}
		r.Hops = append(r.Hops, m)
	}
	return r
}

func answerOf(v tracev1.Verdict) Answer {
	switch v {
	case tracev1.Allowed:
		return Answer_ANSWER_ALLOWED
	case tracev1.Denied:
		return Answer_ANSWER_DENIED
	case tracev1.Inconclusive:
	}
	return Answer_ANSWER_UNSPECIFIED
}

// Validate returns an error that names what of r is beyond the limits or not
// printable ASCII, or nil.
func (r *TraceResult) Validate() error {
	texts := []string{r.GetError()}
	if len(r.GetHops()) > tracev1.MaxHops {
		return fmt.Errorf("hops are %d: want at most %d", len(r.GetHops()), tracev1.MaxHops)
	}
	if r.GetError() != "" && len(r.GetHops()) > 0 {
		return errors.New("error is set beside hops: want one of them")
	}
	for _, h := range r.GetHops() {
		if len(h.GetSteps()) > tracev1.MaxSteps {
			return fmt.Errorf("steps are %d: want at most %d", len(h.GetSteps()), tracev1.MaxSteps)
		}
		texts = append(texts, h.GetWay(), h.GetIn(), h.GetOut(), h.GetReason())
		for _, s := range h.GetSteps() {
			texts = append(texts, s.GetHook(), s.GetBase(), s.GetChain(), s.GetRule(), s.GetEffect(), s.GetMaybe())
		}
		if len(h.GetNearMisses()) > tracev1.MaxNearMisses {
			return fmt.Errorf("near misses are %d: want at most %d", len(h.GetNearMisses()), tracev1.MaxNearMisses)
		}
		for _, n := range h.GetNearMisses() {
			texts = append(texts, n.GetHook(), n.GetBase(), n.GetChain(), n.GetRule(), n.GetSet(), n.GetElement(), n.GetEffect())
		}
	}
	for _, t := range texts {
		if t != tracev1.Clean(t) {
			return fmt.Errorf("text %q: want printable ASCII of at most %d bytes", tracev1.Clean(t), tracev1.MaxText)
		}
	}
	return nil
}

// Node returns what the named node answers by r, which must be valid.
func (r *TraceResult) Node(name string) tracev1.Node {
	if r.GetError() != "" {
		return tracev1.Unanswered(name, r.GetError())
	}
	hops := make([]tracev1.Hop, 0, len(r.GetHops()))
	for _, m := range r.GetHops() {
		h := tracev1.Hop{
			Way: m.GetWay(), In: m.GetIn(), Out: m.GetOut(), Routed: m.GetRouted(),
			Verdict: verdictIn(m.GetAnswer()), Reason: m.GetReason(), LeftOut: m.GetLeftOut(),
		}
		for _, s := range m.GetSteps() {
			h.Steps = append(h.Steps, tracev1.Step{
				Hook: s.GetHook(), Base: s.GetBase(), Chain: s.GetChain(), Depth: s.GetDepth(),
				Rule: s.GetRule(), Effect: s.GetEffect(), Maybe: s.GetMaybe(),
			})
		}
		for _, n := range m.GetNearMisses() {
			h.NearMisses = append(h.NearMisses, tracev1.NearMiss{
				Hook: n.GetHook(), Base: n.GetBase(), Chain: n.GetChain(), Rule: n.GetRule(), Set: n.GetSet(), Element: n.GetElement(),
				Held: n.GetHeld(), Matched: n.GetMatched(), Effect: n.GetEffect(), Verdict: verdictIn(n.GetAnswer()),
			})
		}
		hops = append(hops, h)
	}
	return tracev1.NewNode(name, hops)
}

func verdictIn(a Answer) tracev1.Verdict {
	switch a {
	case Answer_ANSWER_ALLOWED:
		return tracev1.Allowed
	case Answer_ANSWER_DENIED:
		return tracev1.Denied
	case Answer_ANSWER_UNSPECIFIED:
	}
	return tracev1.Inconclusive
}
