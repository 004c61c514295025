// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"

	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/test/bench/world"
)

// dataplane is a node's kernel as package confirm consumes it.
type dataplane struct {
	world *world.World
	node  string
	clock clock.PassiveClock
}

// Look implements confirm.Dataplane.
func (d *dataplane) Look(context.Context) (confirm.Look, error) {
	return &look{dataplane: d, now: d.world.Look(d.node, d.clock.Now())}, nil
}

// Audit implements confirm.Dataplane.
func (d *dataplane) Audit(context.Context) string { return "" }

// look is one of its looks.
type look struct {
	dataplane *dataplane
	now       world.Look
}

// Together implements confirm.Look: every answer is of the moment of the call.
func (l *look) Together(_ context.Context, questions []confirm.Question) ([]confirm.Answer, error) {
	l.now = l.dataplane.world.Look(l.dataplane.node, l.dataplane.clock.Now())
	answers := make([]confirm.Answer, len(questions))
	for i, q := range questions {
		answers[i] = confirm.Answer{Verdict: l.now.Verdict(q.Flow), Routed: true, Traced: true}
	}
	return answers, nil
}

// Rewrites implements confirm.Look.
func (l *look) Rewrites() uint64 { return l.now.Rewrites() }
