// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// Explanation is what becomes of a flow on one of the ways that it may take
// through the node, and why.
type Explanation struct {
	// Path is the way. It is zero if Routed is false or if the way could not
	// be told, which the verdict then says.
	Path trace.Path
	// Verdict is that of this way alone: where several are possible, they
	// have to agree.
	Verdict flow.Verdict
	// Routed is false if the node has no route for the flow.
	Routed bool
	// Steps are the rules that the packet met, in the order of the walk.
	Steps []trace.Step
	// Depends names in words, as printable ASCII, what the verdict rests on
	// beside the path: the rules' stamps, and each question to a set with its
	// answer.
	Depends []string
}
