// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// wide are more assignments than the flow-control windows hold, each with a
// description of its own.
const wide = 64

// burden assigns them to n1.
func (f *fixture) burden(t *testing.T) {
	t.Helper()
	for i := range wide {
		f.Assign("n1", assign(fmt.Sprintf("uid-%d", i), 1), describe(t, fmt.Sprint(i, strings.Repeat("x", 64<<10))))
	}
}

// waiting returns how many uids wait to be sent to n1.
func (f *fixture) waiting() int {
	n := f.node("n1")
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session == nil {
		return 0
	}
	return len(n.session.queue.items)
}

// blocked waits until nothing more is sent to n1, which reads nothing.
func (f *fixture) blocked(t *testing.T) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for before, same := 0, 0; same < 20; time.Sleep(5 * time.Millisecond) {
		now := f.waiting()
		if now > 0 && now == before {
			same++
		} else {
			same = 0
		}
		before = now
		if time.Now().After(deadline) {
			t.Fatal("an agent that does not read is sent everything")
		}
	}
}

// sync receives until all of want are held and synced was received.
func (m *mirror) sync(a agent, want int) {
	m.t.Helper()
	for synced := false; !synced || len(m.named) < want; {
		message, err := a.stream.Recv()
		if err != nil {
			m.t.Fatalf("after %d assignments: %v", len(m.named), err)
		}
		m.receive(message)
		synced = synced || message.GetSynced() != nil
	}
}

func TestChangesWhileAnAgentIsSlowCostOneMessage(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	f.burden(t)
	a := f.connect(t, "token-of-n1")
	f.sink.await(t, `n1 connected boot=b unsupported=""`)
	f.blocked(t)
	const changes = 5000
	for i := range changes {
		f.Assign("n1", assign("x", uint64(i)), describe(t, fmt.Sprint("of x ", i%100)))
		f.Assign("n1", assign(fmt.Sprint("gone-", i), 1), describe(t, "of many"))
		f.Withdraw("n1", fmt.Sprint("gone-", i))
	}
	if got := f.waiting(); got > wide+1 {
		t.Errorf("%d uids wait, want at most the %d that are assigned", got, wide+1)
	}
	agent := newMirror(t)
	agent.sync(a, wide+1)
	if got := agent.assigned["x"]; got != 1 {
		t.Errorf("%d changes of one uid were sent as %d assignments, want one", changes, got)
	}
	if got, want := agent.described[agent.named["x"]], describe(t, fmt.Sprint("of x ", (changes-1)%100)).value().content; got != want {
		t.Errorf("x is described as %q, want the last that was assigned", got)
	}
	if len(agent.described) != wide+1 {
		t.Errorf("%d descriptions were sent, want the %d that something is assigned with", len(agent.described), wide+1)
	}
}

func TestAnAgentThatDoesNotReadIsCutOffAndSyncedInFull(t *testing.T) {
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	f := serve(t, clk, reviews{})
	f.burden(t)
	f.connect(t, "token-of-n1")
	connected := `n1 connected boot=b unsupported=""`
	f.sink.await(t, connected)
	f.blocked(t)
	var stood time.Duration
	for deadline := time.Now().Add(10 * time.Second); !f.sink.heard(2); time.Sleep(5 * time.Millisecond) {
		clk.Step(watchInterval)
		stood += watchInterval
		if time.Now().After(deadline) {
			t.Fatal("the session of an agent that does not read goes on")
		}
	}
	if stood <= slowConsumer {
		t.Errorf("cut off after %v, want more than %v", stood, slowConsumer)
	}
	f.sink.await(t, connected, "n1 disconnected")
	if got := f.metric(t, "policygate_hub_sessions_ended_total", "slow"); got != 1 {
		t.Errorf("%v sessions are counted as slow, want one", got)
	}

	f.Withdraw("n1", "uid-0")
	f.Assign("n1", assign("new", 1), describe(t, "new"))
	again := f.connect(t, "token-of-n1")
	agent := newMirror(t)
	agent.sync(again, wide)
	if _, held := agent.named["uid-0"]; held || agent.named["new"] == 0 {
		t.Errorf("uid-0 is held: %v, new is described by id %d", held, agent.named["new"])
	}
	f.sink.await(t, connected, "n1 disconnected", connected)
}

func TestAReleaseOvertakesWhatASlowAgentHasNotRead(t *testing.T) {
	f := serve(t, clock.RealClock{}, reviews{})
	f.burden(t)
	a := f.connect(t, "token-of-n1")
	f.sink.await(t, `n1 connected boot=b unsupported=""`)
	f.blocked(t)
	left := f.waiting()
	f.Assign("n1", assign("x", 1), describe(t, "of x"))
	f.Release("n1", &hubv1.Release{Subject: &hubv1.Subject{Uid: "x"}})
	before := 0
	for {
		m, err := a.stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetRelease() != nil {
			break
		}
		if m.GetAssign() != nil {
			before++
		}
	}
	// Its own assignment, and what was on its way already.
	if want := wide - left + 1; before != want {
		t.Errorf("the release came behind %d assignments, want %d", before, want)
	}
}
