// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func (a agent) tell(s *hubv1.State) {
	a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_State{State: s}})
}

func TestAPolicysAssignmentSaysSo(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	of := assign("p", 1)
	of.Policy = true
	f.Assign("n1", of, Description{})
	a := f.connect(t, "token-of-n1")
	var got *hubv1.Assign
	for got == nil {
		m, err := a.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got = m.GetAssign()
	}
	if !got.GetPolicy() {
		t.Errorf("sent %v, want that it is a policy's", got)
	}
	a.expect("synced")
	a.report(&hubv1.Report{Uid: "p", Generation: got.GetGeneration(), Confirmed: true})
	f.sink.await(t, `n1 connected boot=b unsupported=""`, "n1 reported p generation=1 confirmed=true")
	f.Withdraw("n1", "p")
	a.expect("withdraw p")
}

func TestWhatAnAgentTellsOfItsNodeIsPassedOnAndKept(t *testing.T) {
	start := time.Unix(1000, 0)
	clk := clocktesting.NewFakeClock(start)
	f := serve(t, clk, reviews{})
	f.Assign("n0", assign("a", 1), Description{})
	a := f.dial(t, "token-of-n1")
	first := &hubv1.State{Dataplanes: []string{"iptables-nft", "ipset"}}
	a.send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{Version: "v1", BootId: "b", State: first}}})
	a.expect("synced")
	a.tell(first) // no news
	a.tell(&hubv1.State{Unsupported: "XDP", Remarks: []*hubv1.Remark{{Kind: hubv1.RemarkIPVS, Text: "t"}}})
	events := []string{`n1 connected boot=b unsupported=""`}
	// The one without news was a State, too: the other has to wait.
	for deadline := time.Now().Add(10 * time.Second); !f.sink.heard(2); clk.Step(statePause / 10) {
		if time.Now().After(deadline) {
			t.Fatal("nothing is passed on")
		}
		time.Sleep(time.Millisecond)
	}
	events = append(events, `n1 changed unsupported="XDP" dataplanes=[] remarks=[{IPVS t}]`)
	f.sink.await(t, events...)
	want := []Session{
		{Node: "n0"},
		{Node: "n1", Since: start, Version: "v1", State: State{Unsupported: "XDP", Remarks: []Remark{{Kind: hubv1.RemarkIPVS, Text: "t"}}}},
	}
	if diff := cmp.Diff(want, f.Sessions()); diff != "" {
		t.Errorf("sessions (-want +got):\n%s", diff)
	}

	if err := a.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	f.sink.await(t, append(events, "n1 disconnected")...)
	want[1].Since = time.Time{}
	if diff := cmp.Diff(want, f.Sessions()); diff != "" {
		t.Errorf("sessions after the agent went (-want +got):\n%s", diff)
	}
}

func TestAMalformedStateEndsTheSession(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	a := f.connect(t, "token-of-n1")
	a.expect("synced")
	a.tell(&hubv1.State{Dataplanes: []string{""}})
	if got := a.end(); got.Code() != codes.InvalidArgument || got.Message() != "state: dataplanes[0] is empty" {
		t.Errorf("ended with %v, want InvalidArgument and that a dataplane is empty", got)
	}
}

// step is what becomes of a state that comes at a time, in milliseconds.
type step struct {
	at   int
	text string
	// passed is what was passed on by then, in the order in which it was.
	passed string
}

func TestStatesArePassedOnOnceASecond(t *testing.T) {
	for name, steps := range map[string][]step{
		"the first at once":              {{at: 0, text: "a", passed: "a"}},
		"one after a second at once":     {{at: 0, text: "a", passed: "a"}, {at: 1000, text: "b", passed: "ab"}},
		"one within a second later":      {{at: 0, text: "a", passed: "a"}, {at: 300, text: "b", passed: "a"}, {at: 999, passed: "a"}, {at: 1000, passed: "ab"}},
		"of several the newest":          {{at: 0, text: "a", passed: "a"}, {at: 1, text: "b", passed: "a"}, {at: 2, text: "c", passed: "a"}, {at: 1000, passed: "ac"}},
		"one behind one that had waited": {{at: 0, text: "a", passed: "a"}, {at: 500, text: "b", passed: "a"}, {at: 1000, passed: "ab"}, {at: 1500, text: "c", passed: "ab"}, {at: 2000, passed: "abc"}},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Unix(1000, 0)
			clk := clocktesting.NewFakeClock(start)
			s, passed := states{clock: clk}, ""
			defer s.stop()
			for _, step := range steps {
				clk.SetTime(start.Add(time.Duration(step.at) * time.Millisecond))
				select {
				case <-s.due():
					passed += s.take().Unsupported
				default:
				}
				if step.text != "" {
					if due := s.put(State{Unsupported: step.text}); due != nil {
						passed += due.Unsupported
					}
				}
				if passed != step.passed {
					t.Errorf("after %d ms %q were passed on, want %q", step.at, passed, step.passed)
				}
			}
		})
	}
}

// metric returns the value of a metric; of a counter, for its only label.
func (f *fixture) metric(t testing.TB, name, label string) float64 {
	t.Helper()
	all, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range all {
		for _, m := range family.GetMetric() {
			switch {
			case family.GetName() != name:
			case label == "":
				return m.GetGauge().GetValue()
			case m.GetLabel()[0].GetValue() == label:
				return m.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s of %q", name, label)
	return 0
}

func TestSessionsAreCounted(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	await := func(when, reason string, sessions, ended float64) {
		t.Helper()
		var got, gone float64
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			got, gone = f.metric(t, "policygate_hub_sessions", ""), f.metric(t, "policygate_hub_sessions_ended_total", reason)
			if got == sessions && gone == ended {
				return
			}
		}
		t.Errorf("%s: %v sessions and %v %s, want %v and %v", when, got, gone, reason, sessions, ended)
	}
	await("at first", "closed", 0, 0)
	older, other := f.connect(t, "token-of-n1"), f.connect(t, "token-of-n2")
	older.expect("synced")
	other.expect("synced")
	await("with two agents", "closed", 2, 0)
	newer := f.connect(t, "token-of-n1")
	newer.expect("synced")
	older.end()
	await("after one came again", "replaced", 2, 1)
	other.report(&hubv1.Report{})
	other.end()
	await("after one did not keep to the contract", "refused", 1, 1)
	if err := newer.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	await("after the last has gone", "closed", 0, 1)
	f.dial(t, "forged").end()
	await("after one that proves nothing", "refused", 0, 1)
}

func TestWhyASessionEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want end
		// told: the agent is sent the error.
		told bool
	}{
		"the agent has closed it":     {err: io.EOF, want: endClosed},
		"the agent has cancelled it":  {err: status.Error(codes.Canceled, "x"), want: endClosed, told: true},
		"a message is too large":      {err: status.Error(codes.ResourceExhausted, "x"), want: endFailed, told: true},
		"something that gRPC has not": {err: errors.New("x"), want: endFailed, told: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ending(tc.err)
			if got != tc.want || (err != nil) != tc.told {
				t.Errorf("ended as %s with %v, want %s, and an error %v", got, err, tc.want, tc.told)
			}
		})
	}
}
