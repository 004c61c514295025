// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// PolicySubject is a NetworkPolicy at a generation.
type PolicySubject struct {
	UID             types.UID
	Namespace, Name string
	// Generation is the policy's metadata.generation.
	Generation int64
	// Since is when this process first saw the generation; zero if it was there
	// when the process started, nobody knows since when.
	Since time.Time
}

// PolicyPods counts the Pods that a policy selects and that can be peers.
type PolicyPods struct {
	// Gated are those of Selected that are gated, Pending those of Gated that
	// wait for their gate.
	Selected, Gated, Pending int
}

// PolicyAssignment is what must be confirmed for a policy to be in force.
type PolicyAssignment struct {
	Subject PolicySubject
	// PerNode has the expectations of every node that has to enforce the
	// policy: those that host a Pod which it selects, but for nodes that have
	// not been ready for long. nil: not computed, and Notes say why.
	PerNode map[string][]expect.Expectation
	Pods    PolicyPods
	Notes   []expect.Note
	// ExcuseFamilies is Assignment's.
	ExcuseFamilies bool
	Basis          Basis
	// Again is when time alone will have changed the above: a Pod that is too
	// young to be asked about will be old enough. Zero: only events do.
	Again time.Time
}

// PolicyChange says what may have changed of a policy.
type PolicyChange struct {
	Policy types.NamespacedName
	// Meaning is set if what it is made of has changed: the policy itself, a
	// namespace's labels, a node, or a Pod that was asked about. It should be
	// computed again soon. Else Pods came or went beside: their number has
	// changed, and at leisure the sample may.
	Meaning bool
}

// Policies returns all policies, sorted.
func (x *Index) Policies() []types.NamespacedName { return nil }

// PolicyAssignment computes what must be confirmed for a policy from all that
// the index holds at the time of the call. It returns false if there is no such
// policy.
func (x *Index) PolicyAssignment(types.NamespacedName) (PolicyAssignment, bool) {
	return PolicyAssignment{}, false
}

// PolicyPods counts the Pods of a policy, for less than PolicyAssignment costs.
// It returns false if there is no such policy.
func (x *Index) PolicyPods(types.NamespacedName) (PolicyPods, bool) { return PolicyPods{}, false }

// ChangedPolicies returns, once and sorted, the policies of which something may
// have changed since the last call, those that are gone included.
func (x *Index) ChangedPolicies() []PolicyChange { return nil }

// PolicyWake receives after ChangedPolicies has got something to return. It
// holds one element: there is one receiver.
func (x *Index) PolicyWake() <-chan struct{} { return nil }
