// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// Visits returns how many rules a walk visits, each in each state that gets
// there.
func Visits(tables []ruleset.Table, path Path, f flow.Flow, m Membership) int {
	w := walk{path: path, flow: f, sets: m}
	w.run(tables)
	return w.visits
}

// The bounds of a walk.
const (
	Budget    = budget
	MostSteps = mostSteps
	MostAgain = mostAgain
)

// Within is how a value with unknown bits is compared.
func Within(value, unknown, from, to []byte) Ternary { return within(value, unknown, from, to) }
