// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hubv1

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

func TestWhatANodeTracedArrivesAsItWas(t *testing.T) {
	step := tracev1.Step{Hook: "forward", Base: "b", Chain: "c", Depth: 2, Rule: "r", Effect: "accepts", Maybe: "m"}
	misses := []tracev1.NearMiss{
		{Hook: "forward", Base: "b", Chain: "c", Rule: "r", Set: "s", Element: "10.0.0.1", Effect: "accepts", Verdict: tracev1.Allowed},
		{Hook: "input", Base: "b", Chain: "d", Rule: "q", Matched: true, Set: "s", Element: "10.0.0.1", Held: true, Effect: "drops", Verdict: tracev1.Inconclusive},
	}
	hop := func(v tracev1.Verdict) tracev1.Hop {
		return tracev1.Hop{Way: "forwarded", In: "i", Out: "o", Routed: true, Verdict: v, Reason: "why", Steps: []tracev1.Step{step}, LeftOut: 3, NearMisses: misses}
	}
	for name, tc := range map[string]struct {
		hops []tracev1.Hop
		err  error
		want tracev1.Node
	}{
		"allowed":      {hops: []tracev1.Hop{hop(tracev1.Allowed)}, want: tracev1.NewNode("n", []tracev1.Hop{hop(tracev1.Allowed)})},
		"denied":       {hops: []tracev1.Hop{hop(tracev1.Denied)}, want: tracev1.NewNode("n", []tracev1.Hop{hop(tracev1.Denied)})},
		"inconclusive": {hops: []tracev1.Hop{hop(tracev1.Inconclusive)}, want: tracev1.NewNode("n", []tracev1.Hop{hop(tracev1.Inconclusive)})},
		"a verdict that is none is inconclusive": {
			hops: []tracev1.Hop{hop("Sure")}, want: tracev1.NewNode("n", []tracev1.Hop{hop(tracev1.Inconclusive)}),
		},
		"an error": {err: errors.New("no rules"), want: tracev1.Unanswered("n", "no rules")},
		"more ways than fit are no answer": {
			hops: make([]tracev1.Hop, 5), want: tracev1.Unanswered("n", "the packet may take 5 ways through the node: more than 4"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			sent, err := proto.Marshal(TraceResultOf(7, tc.hops, tc.err))
			if err != nil {
				t.Fatal(err)
			}
			var got TraceResult
			if err := proto.Unmarshal(sent, &got); err != nil {
				t.Fatal(err)
			}
			if err := got.Validate(); err != nil || got.GetId() != 7 {
				t.Errorf("id %d, Validate: %v", got.GetId(), err)
			}
			if diff := cmp.Diff(tc.want, got.Node("n")); diff != "" {
				t.Errorf("node (-want +got):\n%s", diff)
			}
		})
	}
}

// The hub's limit for messages has room for the largest result.
func TestTheLargestResultIsWithinTwoMebibytes(t *testing.T) {
	text := strings.Repeat("x", 2*tracev1.MaxText)
	hop := tracev1.Hop{Way: text, In: text, Out: text, Reason: text}
	for range 2 * tracev1.MaxSteps {
		hop.Steps = append(hop.Steps, tracev1.Step{Hook: text, Base: text, Chain: text, Depth: 1 << 31, Rule: text, Effect: text, Maybe: text})
	}
	for range 2 * tracev1.MaxNearMisses {
		hop.NearMisses = append(hop.NearMisses, tracev1.NearMiss{Hook: text, Base: text, Chain: text, Rule: text, Matched: true, Set: text, Element: text, Held: true, Effect: text, Verdict: tracev1.Denied})
	}
	r := TraceResultOf(1<<63, []tracev1.Hop{hop, hop, hop, hop}, nil)
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	if size := proto.Size(r); size > 2<<20 {
		t.Errorf("it has %d bytes", size)
	}
}

func TestAResultBeyondTheLimitsIsRefused(t *testing.T) {
	miss := func(change func(*TraceNearMiss)) *TraceResult {
		m := &TraceNearMiss{Hook: "h", Base: "b", Chain: "c", Rule: "r", Set: "s", Element: "e", Effect: "f"}
		change(m)
		return &TraceResult{Hops: []*TraceHop{{NearMisses: []*TraceNearMiss{m}}}}
	}
	for name, r := range map[string]*TraceResult{
		"too many steps":       {Hops: []*TraceHop{{Steps: make([]*TraceStep, tracev1.MaxSteps+1)}}},
		"too many near misses": {Hops: []*TraceHop{{NearMisses: make([]*TraceNearMiss, tracev1.MaxNearMisses+1)}}},
		"a hook":               miss(func(m *TraceNearMiss) { m.Hook = "\x1b" }),
		"a base chain":         miss(func(m *TraceNearMiss) { m.Base = "\x1b" }),
		"a chain":              miss(func(m *TraceNearMiss) { m.Chain = "\x1b" }),
		"a rule":               miss(func(m *TraceNearMiss) { m.Rule = "\x1b" }),
		"a set":                miss(func(m *TraceNearMiss) { m.Set = strings.Repeat("x", tracev1.MaxText+1) }),
		"an element":           miss(func(m *TraceNearMiss) { m.Element = "\x1b" }),
		"an effect":            miss(func(m *TraceNearMiss) { m.Effect = "\x1b" }),
	} {
		if err := r.Validate(); err == nil {
			t.Errorf("%s: it is valid", name)
		}
	}
	if err := miss(func(*TraceNearMiss) {}).Validate(); err != nil {
		t.Error(err)
	}
}

// FuzzTraceResult: whatever an agent sends is refused or becomes an answer
// within the limits, and garbage is never a node that allows without a hop
// that does.
func FuzzTraceResult(f *testing.F) {
	seed, err := proto.Marshal(TraceResultOf(1, []tracev1.Hop{{Way: "sent", Verdict: tracev1.Allowed, Steps: []tracev1.Step{{Rule: "r"}}, NearMisses: []tracev1.NearMiss{{Set: "s"}}}}, nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var r TraceResult
		if proto.Unmarshal(data, &r) != nil || r.Validate() != nil {
			return
		}
		node := r.Node("n")
		if node.Verdict == tracev1.Allowed && (len(node.Hops) == 0 || node.Hops[0].Verdict != tracev1.Allowed) {
			t.Errorf("%+v", node)
		}
		for _, h := range node.Hops {
			if diff := cmp.Diff(h.Bound().Steps, append([]tracev1.Step{}, h.Steps...)); diff != "" {
				t.Errorf("beyond the limits: %s", diff)
			}
			if diff := cmp.Diff(h.Bound().NearMisses, h.NearMisses); diff != "" {
				t.Errorf("beyond the limits: %s", diff)
			}
		}
	})
}
