// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"strings"
	"testing"
	"time"

	"github.com/policygate/policygate/api/v1alpha1"
)

func TestWhenAHoldStarted(t *testing.T) {
	now := time.Unix(100_000, 0)
	const timeout = time.Minute
	tests := map[string]struct {
		dated  time.Duration // before now, by the kubelet's clock
		ended  bool
		known  bool
		wanted time.Duration // before now
	}{
		"just now":                      {known: true},
		"told a little late":            {dated: 3 * time.Second, known: true, wanted: 3 * time.Second},
		"dated before it can have been": {dated: 11 * time.Second, known: true},
		"dated an hour ago":             {dated: time.Hour, known: true},
		"dated in a moment":             {dated: -time.Second, known: true},
		"dated in an hour":              {dated: -time.Hour, known: true},
		"by a replica that starts, dated within the timeout": {dated: 50 * time.Second, wanted: 50 * time.Second},
		"by a replica that starts, at the end of the timeout": {
			dated: timeout + toldWithin, wanted: timeout + toldWithin,
		},
		"by a replica that starts, dated before it can have been": {dated: timeout + toldWithin + time.Second},
		"by a replica that starts, dated in an hour":              {dated: -time.Hour},
		"it has ended before a replica starts":                    {dated: time.Hour, ended: true, wanted: timeout},
		"it has ended before a replica starts, dated in an hour":  {dated: -time.Hour, ended: true, wanted: timeout},
		"it has ended since":                                      {dated: 3 * time.Second, ended: true, known: true, wanted: 3 * time.Second},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			p := &pod{held: now.Add(-tc.dated), holding: !tc.ended, settings: v1alpha1.Settings{Timeout: timeout}}
			if got := now.Sub(holdStarted(p, tc.known, now)); got != tc.wanted {
				t.Errorf("started %s ago, want %s", got, tc.wanted)
			}
		})
	}
	if got := holdStarted(&pod{}, true, now); !got.IsZero() {
		t.Errorf("a hold that has not started did so at %s", got)
	}
}

// The node's clock is not the manager's: neither lets a Pod go too early nor
// has the manager forget its timeout.
func TestATimeoutIsNotReadOffTheNodesClock(t *testing.T) {
	for name, skew := range map[string]time.Duration{
		"the node's clock is right": 0, "it is an hour ahead": time.Hour, "it is an hour behind": -time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.barrier.quick = true
			b.waiting()
			b.ledger.PodChanged(b.pod(holding(b.clock.Now().Add(skew)), "10.0.0.1"))
			b.report("n1", true)
			b.settled()
			b.clock.Step(v1alpha1.DefaultTimeout - time.Second)
			// Not the first that is heard of the same hold.
			b.ledger.PodChanged(b.pod(holding(b.clock.Now().Add(skew-v1alpha1.DefaultTimeout+time.Second)), "10.0.0.1"))
			b.settled()
			b.wantSent()
			b.clock.Step(time.Second)
			b.settled()
			if len(b.hub.sent) != 1 || !strings.Contains(b.hub.sent[0], v1alpha1.ReasonPartiallyConfirmed) {
				t.Errorf("sent %q at the timeout, want a partial release", b.hub.sent)
			}
		})
	}
}

// The clock of the manager's own machine is set while a Pod waits. What is
// measured by it is measured by its monotonic reading, so that here, where there
// is none, only what must hold for any clock is asked: nothing opens, nothing
// panics, and the Pod goes on once its nodes confirm.
func TestAClockThatIsSetOpensNoGate(t *testing.T) {
	b := newBench(t)
	b.waiting()
	b.ledger.PodChanged(b.pod(holding(b.clock.Now()), "10.0.0.1"))
	b.settled()
	start := b.clock.Now()
	for _, step := range []time.Duration{-time.Hour, time.Hour, -time.Hour, 0} {
		b.clock.SetTime(start.Add(step))
		b.settled()
		b.wantSent()
	}
	b.report("n1", true)
	b.report("n7", true)
	b.settled()
	if len(b.hub.sent) != 1 || !strings.HasPrefix(b.hub.sent[0], "release p") {
		t.Errorf("sent %q, want the release", b.hub.sent)
	}
}
