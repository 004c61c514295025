// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/northbound"
	"github.com/policygate/policygate/api/flow"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

func TestHopOf(t *testing.T) {
	t.Parallel()
	step := northbound.Step{Direction: "to-lport", Switch: "ovn-default", Group: "np.db", Rule: "priority 2000: ip", Effect: "drops"}
	loose := step
	loose.Group, loose.Maybe = "", "ct.new"
	got := hopOf(northbound.Explanation{
		Verdict: flow.Verdict{Answer: flow.Denied, Reason: "dropped"}, In: "a.db", Out: "b.db",
		Steps:      []northbound.Step{step, loose},
		NearMisses: []northbound.NearMiss{{Step: step, Set: "s", Address: "10.0.0.5", Otherwise: flow.Allowed}},
	})
	want := tracev1.Hop{
		Way: "switched", In: "a.db", Out: "b.db", Routed: true, Verdict: tracev1.Denied, Reason: "dropped",
		Steps: []tracev1.Step{
			{Hook: "to-lport", Base: "logical switch ovn-default", Chain: "port group np.db", Rule: "priority 2000: ip", Effect: "drops"},
			{Hook: "to-lport", Base: "logical switch ovn-default", Chain: "all ports", Rule: "priority 2000: ip", Effect: "drops", Maybe: "ct.new"},
		},
		NearMisses: []tracev1.NearMiss{{
			Hook: "to-lport", Base: "logical switch ovn-default", Chain: "port group np.db", Rule: "priority 2000: ip",
			Set: "s", Element: "10.0.0.5", Effect: "drops", Verdict: tracev1.Allowed,
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTraceSaysWhyThereIsNone(t *testing.T) {
	t.Parallel()
	lost := errors.New("not connected")
	database := northbound.New(func() (northbound.View, error) { return nil, lost })
	if _, err := (traces{database}).Trace(t.Context(), flow.Flow{}); !errors.Is(err, lost) {
		t.Error(err)
	}
}
