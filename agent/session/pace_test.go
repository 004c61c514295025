// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"math"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestPause(t *testing.T) {
	for name, tc := range map[string]struct {
		failed int
		spread time.Duration
		alone  bool
		random float64
		want   time.Duration
	}{
		"the first is at once at the earliest":        {random: 0, want: 0},
		"the first is soon":                           {random: 0.5, want: 125 * time.Millisecond},
		"the third is later":                          {failed: 2, random: 0.5, want: 500 * time.Millisecond},
		"it stops to grow":                            {failed: 10, random: 0.5, want: 5 * time.Second},
		"it does not overflow":                        {failed: 1000, random: 0.5, want: 5 * time.Second},
		"one that another replica serves takes time":  {spread: 20 * time.Second, random: 0.5, want: 10 * time.Second},
		"one that is alone takes a quarter of it":     {spread: 20 * time.Second, alone: true, random: 0.5, want: 2500 * time.Millisecond},
		"a small cluster's agents come soon":          {spread: 20 * time.Millisecond, random: 0.5, want: 125 * time.Millisecond},
		"attempts that fail are not made more often":  {failed: 1000, spread: 20 * time.Second, random: 0.5, want: 10 * time.Second},
		"nor less often than without a spread":        {failed: 1000, spread: time.Second, random: 0.5, want: 5 * time.Second},
		"a spread that is out of all proportion ends": {spread: time.Hour, random: 0.5, want: 30 * time.Second},
		"a spread as long as a message can say":       {spread: math.MaxUint32 * time.Millisecond, alone: true, random: 0.5, want: 7500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			if got := pause(tc.failed, tc.spread, tc.alone, tc.random); got != tc.want {
				t.Errorf("pause(%d, %v, %v, %v) = %v, want %v", tc.failed, tc.spread, tc.alone, tc.random, got, tc.want)
			}
		})
	}
}

// until waits for what another goroutine does.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func syncedWithin(millis uint32) *hubv1.HubMessage {
	return &hubv1.HubMessage{Message: &hubv1.HubMessage_Synced{Synced: &hubv1.Synced{SpreadMillis: millis}}}
}

func TestAgentsThatLoseTheirReplicaAtOnceComeBackOneAfterTheOther(t *testing.T) {
	const agents = 200
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	roots := ca.roots()
	clients := make([]*fixture, agents)
	for i := range clients {
		clients[i] = startBy(t, nil, clk, func() float64 { return float64(i) / agents })
		clients[i].SetRoots(roots)
		clients[i].SetReplicas([]Replica{{Name: "a", Address: h.address, Ready: true}})
	}
	// One has nothing to wait for. Those that no replica was heard of by come
	// soon.
	until(t, "all wait", func() bool { return clk.Waiters() == agents-1 })
	clk.Step(firstDelay)
	var sessions []*hubSession
	for range agents {
		s := h.next(t)
		s.send(t, syncedWithin(20_000))
		sessions = append(sessions, s)
	}
	for _, c := range clients {
		until(t, "all are synced", c.Synced)
	}

	for _, s := range sessions {
		close(s.end)
	}
	// Nobody serves them: they come back within a quarter of the 20 s.
	back := 1 // the one that draws 0
	until(t, "the others wait", func() bool { return clk.Waiters() == agents-back })
	for _, percent := range []int{25, 50, 75, 100} {
		clk.Step(5 * time.Second / 4)
		due := min(agents*percent/100+1, agents)
		for ; back < due; back++ {
			h.next(t)
		}
		until(t, "the others wait", func() bool { return clk.Waiters() == agents-due })
	}
	h.next(t) // the one that drew 0
	if len(h.sessions) > 0 {
		t.Errorf("%d more sessions than agents", len(h.sessions))
	}
}

func TestAnAgentThatAnotherReplicaServesTakesItsTime(t *testing.T) {
	ca := newAuthority(t)
	a, b := serve(t, "", ca.leaf(t, serverName)), serve(t, "", ca.leaf(t, serverName))
	clk := clocktesting.NewFakeClock(time.Unix(1000, 0))
	f := startBy(t, nil, clk, func() float64 { return 0.5 })
	f.SetRoots(ca.roots())
	f.SetReplicas([]Replica{{Name: "a", Address: a.address, Ready: true}, {Name: "b", Address: b.address, Ready: true}})
	until(t, "both wait", func() bool { return clk.Waiters() == 2 })
	clk.Step(firstDelay / 2)
	sa, sb := a.next(t), b.next(t)
	sa.send(t, syncedWithin(20_000))
	until(t, "a is heard", func() bool { return f.spread() == 20*time.Second })
	sb.send(t, syncedWithin(40_000))
	until(t, "b is heard", func() bool { return f.spread() == 40*time.Second })

	// A new replica takes the place of one: the other serves meanwhile.
	c := serve(t, "", ca.leaf(t, serverName))
	f.SetReplicas([]Replica{{Name: "b", Address: b.address, Ready: true}, {Name: "c", Address: c.address}})
	f.SetReplicas([]Replica{{Name: "b", Address: b.address, Ready: true}, {Name: "c", Address: c.address, Ready: true}})
	until(t, "the new one waits", func() bool { return clk.Waiters() == 1 })
	clk.Step(20*time.Second - 1)
	until(t, "it waits longer", func() bool { return clk.Waiters() == 1 })
	if len(c.sessions) > 0 {
		t.Error("dialled before its time")
	}
	// What is heard of one that is ready already changes nothing.
	f.SetRoots(ca.roots())
	clk.Step(1)
	c.next(t)
}
