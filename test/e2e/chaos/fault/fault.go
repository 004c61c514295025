// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fault disturbs a testbed: it kills, freezes and cuts off its parts.
//
// It chooses nothing but the part that fails, neither when nor which kind, and
// judges nothing: the chaos test does. Faults of different parts may overlap.
// that is of another kind.
package fault

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/policygate/policygate/test/e2e/testbed"
)

// Kind is one way in which a part of a cluster can fail.
type Kind struct {
	// Name says what fails and how, such as "agent killed".
	Name string
	// Least is how long the fault must be in force to be more than a blink to
	// those who watch the part.
	Least time.Duration
	// Begin makes a part fail that random chooses, and returns at once, but for
	// a kind that waits for its moment. On an error nothing is left disturbed.
	Begin Begin
}

// Begin makes a fault begin, see Kind.Begin.
type Begin func(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error)

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
	// longer until it has caught up. It is to be called once. If ctx has ended
	// it still mends, thaws and starts what it has to, but does not wait for
	// what starts by itself.
	End func(ctx context.Context) error
}

// mendTimeout bounds what End does beyond its context: ten times what a node's
// start takes.
const mendTimeout = 2 * time.Minute

// mending returns the context for what must be done even if ctx has ended.
func mending(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), mendTimeout)
}

// lookupTimeout bounds a look for a part while the API server may not answer.
const lookupTimeout = 10 * time.Second

// oneOf returns an element that random chooses. There must be one.
func oneOf[T any](random *rand.Rand, all []T) T {
	return all[random.IntN(len(all))]
}
