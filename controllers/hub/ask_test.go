// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

var asked = flow.Flow{
	Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: 3306,
}

type reply struct {
	node tracev1.Node
	err  error
}

// ask asks n1 in the background.
func (f *fixture) ask(ctx context.Context) <-chan reply {
	replies := make(chan reply, 1)
	go func() {
		node, err := f.Ask(ctx, "n1", asked)
		replies <- reply{node, err}
	}()
	return replies
}

// trace receives the next message, which must be a Trace of what is asked.
func (a agent) trace() uint64 {
	a.t.Helper()
	m, err := a.stream.Recv()
	if err != nil {
		a.t.Fatal(err)
	}
	if got, err := m.GetTrace().GetFlow().Value(); err != nil || got != asked {
		a.t.Fatalf("message %v, want a trace of %v", m, asked)
	}
	return m.GetTrace().GetId()
}

func (a agent) answer(r *hubv1.TraceResult) {
	a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_TraceResult{TraceResult: r}})
}

func await(t *testing.T, replies <-chan reply) reply {
	t.Helper()
	select {
	case r := <-replies:
		return r
	case <-time.After(10 * time.Second):
		t.Fatal("no reply within 10 s")
		return reply{}
	}
}

func TestAskReturnsWhatTheAgentAnswers(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	a := f.connect(t, "token-of-n1")
	a.expect("synced")
	hops := []tracev1.Hop{{
		Way: "forwarded", In: "eth0", Out: "veth1", Routed: true, Verdict: tracev1.Denied, Reason: "drop",
		Steps: []tracev1.Step{{Hook: "forward", Base: "nft ip filter/FORWARD", Chain: "FORWARD", Depth: 1, Rule: "-j DROP", Effect: "drops", Maybe: "x"}},
	}}
	first := f.ask(t.Context())
	firstID := a.trace()
	second := f.ask(t.Context())
	secondID := a.trace()
	a.answer(&hubv1.TraceResult{Id: secondID + 100}) // nobody asked
	a.answer(hubv1.TraceResultOf(secondID, nil, errors.New("no permission")))
	a.answer(hubv1.TraceResultOf(firstID, hops, nil))
	want := reply{node: tracev1.Node{Name: "n1", Verdict: tracev1.Denied, Reason: "drop", Hops: hops}}
	if got := await(t, first); got.err != nil || !cmp.Equal(want.node, got.node) {
		t.Errorf("first: %v (-want +got):\n%s", got.err, cmp.Diff(want.node, got.node))
	}
	failed := tracev1.Node{Name: "n1", Verdict: tracev1.Inconclusive, Error: "no permission"}
	if got := await(t, second); got.err != nil || !cmp.Equal(failed, got.node) {
		t.Errorf("second: %v (-want +got):\n%s", got.err, cmp.Diff(failed, got.node))
	}
}

func TestAskOfANodeWithoutAnAgentSaysSo(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	if _, err := f.Ask(t.Context(), "n1", asked); err == nil || !strings.Contains(err.Error(), "no agent of this node is connected") {
		t.Errorf("error %v", err)
	}
}

func TestAskEndsWithItsContextAndWithTheSession(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	a := f.connect(t, "token-of-n1")
	a.expect("synced")
	ctx, cancel := context.WithCancel(t.Context())
	given := f.ask(ctx)
	id := a.trace()
	cancel()
	if got := await(t, given); !errors.Is(got.err, context.Canceled) {
		t.Errorf("error %v, want that of the context", got.err)
	}
	a.answer(&hubv1.TraceResult{Id: id}) // too late, and no fault

	waiting := f.ask(t.Context())
	a.trace()
	newer := f.connect(t, "token-of-n1")
	newer.expect("synced")
	if got := await(t, waiting); got.err == nil || !strings.Contains(got.err.Error(), "session ended") {
		t.Errorf("error %v, want that the session ended", got.err)
	}
	a.end()
	again := f.ask(t.Context())
	newer.trace()
	if err := newer.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if got := await(t, again); got.err == nil || !strings.Contains(got.err.Error(), "session ended") {
		t.Errorf("error %v, want that the session ended", got.err)
	}
}

func TestAnAgentIsAskedInBoundedNumber(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	a := f.connect(t, "token-of-n1")
	a.expect("synced")
	var waiting []<-chan reply
	for range maxQuestions {
		waiting = append(waiting, f.ask(t.Context()))
		a.trace()
	}
	if _, err := f.Ask(t.Context(), "n1", asked); err == nil || !strings.Contains(err.Error(), "8 other questions") {
		t.Errorf("error %v, want one that says how many others there are", err)
	}
	a.answer(&hubv1.TraceResult{Id: 1})
	await(t, waiting[0])
	replies := f.ask(t.Context())
	a.answer(&hubv1.TraceResult{Id: a.trace()})
	if got := await(t, replies); got.err != nil {
		t.Errorf("after an answer there is room for one more: %v", got.err)
	}
}

func TestAMalformedTraceResultEndsTheSession(t *testing.T) {
	for name, tc := range map[string]struct {
		result *hubv1.TraceResult
		want   string
	}{
		"text that is not printable": {&hubv1.TraceResult{Error: "\x1b[31m"}, "printable ASCII"},
		"more hops than agreed":      {&hubv1.TraceResult{Hops: make([]*hubv1.TraceHop, 5)}, "hops are 5"},
		"more steps than agreed":     {&hubv1.TraceResult{Hops: []*hubv1.TraceHop{{Steps: make([]*hubv1.TraceStep, 129)}}}, "steps are 129"},
		"an error beside an answer":  {&hubv1.TraceResult{Error: "x", Hops: []*hubv1.TraceHop{{}}}, "beside hops"},
		"a text that is too long":    {&hubv1.TraceResult{Hops: []*hubv1.TraceHop{{Reason: strings.Repeat("x", 513)}}}, "at most 512 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, clock.RealClock{}, reviews{})
			a := f.connect(t, "token-of-n1")
			a.expect("synced")
			a.answer(tc.result)
			got := a.end()
			if got.Code() != codes.InvalidArgument || !strings.Contains(got.Message(), tc.want) {
				t.Errorf("ended with %v, want InvalidArgument and %q", got, tc.want)
			}
		})
	}
}
