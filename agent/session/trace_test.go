// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

var traced = flow.Flow{
	Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: 3306,
}

func traceOf(id uint64) *hubv1.HubMessage {
	return &hubv1.HubMessage{Message: &hubv1.HubMessage_Trace{Trace: &hubv1.Trace{Id: id, Flow: hubv1.FlowOf(traced)}}}
}

// desk answers a trace when the test tells it to.
type desk struct {
	asked chan flow.Flow
	tell  chan error
}

func (d *desk) Trace(ctx context.Context, f flow.Flow) ([]tracev1.Hop, error) {
	d.asked <- f
	select {
	case err := <-d.tell:
		return []tracev1.Hop{{Way: "forwarded", Routed: true, Verdict: tracev1.Allowed}}, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func resultIn(t *testing.T, s *hubSession) *hubv1.TraceResult {
	t.Helper()
	m, err := s.stream.Recv()
	must(t, err)
	if m.GetTraceResult() == nil {
		t.Fatalf("message %v, want a trace result", m)
	}
	return m.GetTraceResult()
}

func TestATraceIsAnsweredBesideEverythingElse(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	d := &desk{asked: make(chan flow.Flow), tell: make(chan error)}
	f := start(t, d)
	f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	f.SetRoots(ca.roots())
	s := h.next(t)

	for id := range uint64(maxTraces) {
		s.send(t, traceOf(id+1))
		if got := <-d.asked; got != traced {
			t.Errorf("asked for %v, want %v", got, traced)
		}
	}
	// None of them is answered, and assignments and reports go on.
	s.send(t, assignOf("u", 4))
	f.await(t, "a assign u 4")
	f.Send(f.last(), &hubv1.Report{Uid: "u", Generation: 4})
	if r := reportIn(t, s); r.GetUid() != "u" {
		t.Errorf("report %v", r)
	}
	s.send(t, traceOf(5))
	if r := resultIn(t, s); r.GetId() != 5 || !strings.Contains(r.GetError(), "busy with other traces") {
		t.Errorf("one too many is answered %v, want that the agent is busy", r)
	}
	seen := map[uint64]bool{}
	for range maxTraces {
		d.tell <- nil
		r := resultIn(t, s)
		seen[r.GetId()] = true
		want := tracev1.NewNode("n1", []tracev1.Hop{{Way: "forwarded", Routed: true, Verdict: tracev1.Allowed}})
		if diff := cmp.Diff(want, r.Node("n1")); diff != "" {
			t.Errorf("answer (-want +got):\n%s", diff)
		}
	}
	if len(seen) != maxTraces {
		t.Errorf("answered %v, want each of %d once", seen, maxTraces)
	}
	// There is room again.
	s.send(t, traceOf(6))
	<-d.asked
	d.tell <- errors.New("no rules")
	if r := resultIn(t, s); r.GetId() != 6 || !strings.Contains(r.GetError(), "could not be traced: no rules") {
		t.Errorf("answer %v, want the error", r)
	}
}

func TestATraceThatCannotBeAnsweredSaysWhy(t *testing.T) {
	malformed := traceOf(7)
	malformed.GetTrace().Flow.Src = []byte{1}
	for name, tc := range map[string]struct {
		traces Traces
		ask    *hubv1.HubMessage
		want   string
	}{
		"nobody answers traces": {ask: traceOf(7), want: "answers no traces"},
		"a malformed flow":      {traces: &desk{}, ask: malformed, want: "flow source has 1 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t)
			h := serve(t, "", ca.leaf(t, serverName))
			f := start(t, tc.traces)
			f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
			f.SetRoots(ca.roots())
			s := h.next(t)
			s.send(t, tc.ask)
			if r := resultIn(t, s); r.GetId() != 7 || !strings.Contains(r.GetError(), tc.want) {
				t.Errorf("answer %v, want one with %q", r, tc.want)
			}
		})
	}
}

func TestTheEndOfASessionEndsItsTraces(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	d := &desk{asked: make(chan flow.Flow), tell: make(chan error)}
	f := start(t, d)
	f.SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	f.SetRoots(ca.roots())
	s := h.next(t)
	s.send(t, traceOf(1))
	<-d.asked
	close(s.end)
	// The next session does not wait for what nobody awaits.
	s = h.next(t)
	s.send(t, traceOf(1))
	<-d.asked
	d.tell <- nil
	if r := resultIn(t, s); r.GetId() != 1 || r.GetError() != "" {
		t.Errorf("answer %v, want that of this session", r)
	}
}

func TestTheOutboxSendsAnswersLastAndInBoundedNumber(t *testing.T) {
	o := &outbox{ready: make(chan struct{}, 1)}
	o.begin(1)
	for id := range uint64(maxResults + 1) {
		o.answer(1, &hubv1.TraceResult{Id: id})
	}
	o.answer(2, &hubv1.TraceResult{Id: 99})
	o.put(1, &hubv1.Report{Uid: "u"})
	if m := o.take(1); m.GetReport().GetUid() != "u" {
		t.Errorf("took %v first, want the report", m)
	}
	taken := 0
	for m := o.take(1); m != nil; m = o.take(1) {
		if m.GetTraceResult().GetId() != uint64(taken) {
			t.Errorf("took %v, want answer %d", m, taken)
		}
		taken++
	}
	if taken != maxResults {
		t.Errorf("took %d answers, want %d", taken, maxResults)
	}
}
