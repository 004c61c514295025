// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"testing"
	"time"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// BenchmarkVerdicts asks a node for twelve verdicts a time, six of them Denied,
// and reports how many traces one takes and for how long vswitchd is busy with
// them. The time of an operation has in it what the budget makes it wait.
func BenchmarkVerdicts(b *testing.B) {
	w := newWorld(b, fixture.Options{Nodes: 2})
	w.apply(fromFriend(), toServer("beside"))
	v := w.nodes["n1"]
	var flows []flow.Flow
	for _, d := range []dial{
		{"friend", "server", 80}, {"stranger", "server", 80}, {"friend", "server", 81}, {"beside", "server", 80}, {"beside", "friend", 80},
		{"beside", "stranger", 80}, {"server", "friend", 80}, {"server", "stranger", 80}, {"friend", "beside", 80}, {"stranger", "beside", 80},
		{"stranger", "server", 81}, {"stranger", "server", 82},
	} {
		flows = append(flows, w.flow(d))
	}
	// Once for what is learned, and for the budget to recover from it.
	v.settled(w, flows...)
	time.Sleep(5 * time.Second)
	traces, busy := v.cost(b)
	b.ResetTimer()
	for range b.N {
		if _, err := v.ask(b.Context(), flows...); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	after, busyAfter := v.cost(b)
	verdicts := float64(b.N * len(flows))
	b.ReportMetric((after-traces)/verdicts, "traces/verdict")
	b.ReportMetric(1000*(busyAfter-busy)/verdicts, "vswitchd-ms/verdict")
}

// cost returns how many traces there were, and how many seconds they took.
func (v *view) cost(b *testing.B) (traces, seconds float64) {
	families, err := v.registry.Gather()
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "policygate_agent_ovn_trace_seconds" {
			h := f.GetMetric()[0].GetHistogram()
			return float64(h.GetSampleCount()), h.GetSampleSum()
		}
	}
	b.Fatal("there is no metric of traces")
	return 0, 0
}
