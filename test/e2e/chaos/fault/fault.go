// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fault disturbs a testbed: it kills, freezes and cuts off its parts.
//
// It chooses nothing, neither when nor which kind, and judges nothing: the
// chaos test does.
package fault

import (
	"context"
	"math/rand/v2"

	"github.com/policygate/policygate/test/e2e/testbed"
)

// Kind is one way in which a part of a cluster can fail.
type Kind struct {
	// Name says what fails and how, such as "agent killed".
	Name string
	// Begin makes a part fail that random chooses, and returns at once. On an
	// error nothing is left disturbed.
	Begin func(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error)
}

// Fault is a disturbance that is in force.
type Fault struct {
	// Target names the part, such as the node of an agent.
	Target string
	// Severs says whether packets between Pods on two nodes cannot pass while
	// the fault is in force, whatever the rules are. nil: they can.
	Severs func(a, b string) bool
	// Rewrites says that the rules in the kernel of these nodes may change by
	// the fault or by its end, without a change of any object.
	Rewrites []string
	// End ends the fault and returns when the part runs again; it may take
	// longer until it has caught up.
	End func(ctx context.Context) error
}
