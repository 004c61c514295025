// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// DefaultBudget bounds the flows of one subject on all nodes together.
const DefaultBudget = 256

// DefaultPolicyBudget bounds the flows of one policy on one node: enough for two
// Pods' strangers and a few rules, and little beside what gates ask there.
const DefaultPolicyBudget = 16

// DefaultMaxForeignNodes bounds the nodes that policies of other namespaces
// can make a Pod wait for.
const DefaultMaxForeignNodes = 32

// Expectation is a flow and what one node must do with it.
type Expectation struct {
	Flow flow.Flow
	// Want is Allowed or Denied.
	Want flow.Answer
	// Advisory is set for an Allowed that the engine is known never to
	// realize: it is asked and named, and not awaited for ever.
	Advisory bool
	// External is set for a flow from or to an address outside the cluster: it
	// is asked only of a node that has a route for it.
	External bool
	// Why names the rule, for administrators: it holds names of objects of any
	// namespace.
	Why string
	// Policy is the policy that demands it: of several that isolate a Pod, one
	// of them. It is zero if none does.
	Policy types.NamespacedName
	// Generation is that policy's metadata.generation.
	Generation int64
	// Witness is set for an Allowed that does not concern the subject: see
	// Subject.Witnesses. It is never awaited.
	Witness bool
}

// Families says which address families are asked.
type Families string

// The values of Families.
const (
	// FamiliesAuto asks both. Who asks may leave out a family on a node whose
	// engine turns out not to enforce it.
	FamiliesAuto Families = "auto"
	FamiliesV4   Families = "v4"
	FamiliesV6   Families = "v6"
	// FamiliesBoth asks both and leaves out none.
	FamiliesBoth Families = "both"
)

// asks reports whether IPv6, if v6 is set, or IPv4 is asked.
func (f Families) asks(v6 bool) bool {
	switch f {
	case FamiliesV4:
		return !v6
	case FamiliesV6:
		return v6
	case FamiliesAuto, FamiliesBoth:
	}
	return true
}

// Options are what a cluster's administrator chose. The zero value asks
// nothing: see DefaultOptions.
type Options struct {
	// Families is FamiliesAuto if empty.
	Families Families
	// MaxForeignNodes are the nodes that only policies of other namespaces ask
	// about and that are still awaited. 0: none is.
	MaxForeignNodes int
	// Budget is the most flows of one Pod. 0: none.
	Budget int
	// PolicyBudget is the most flows of one policy on one node. 0: none.
	PolicyBudget int
	// Northbound, if not empty, is the name under which what nodes of the span are
	// asked is asked once more, of OVN's northbound database. It is no node's
	// name. See Result.Nodes.
	Northbound string
	// Avoid are prefixes that no representative of an ipBlock is taken from,
	// beside pod CIDRs and node addresses: the Services' ranges.
	Avoid []netip.Prefix
}

// DefaultOptions returns the defaults of every option.
func DefaultOptions() Options {
	return Options{
		Families:        FamiliesAuto,
		MaxForeignNodes: DefaultMaxForeignNodes,
		Budget:          DefaultBudget,
		PolicyBudget:    DefaultPolicyBudget,
	}
}

// Subject is a gated Pod at its present addresses.
type Subject struct {
	// Pod need not be in the Cluster. If it is not, its Seq is no higher than
	// that of any Pod that was there.
	Pod *Pod
	// Predecessors are the Pods that an address of Pod belonged to a short
	// while ago, as they were then.
	Predecessors map[netip.Addr][]*Pod
	// LocalOnly asks the Pod's own node only.
	LocalOnly bool
	// Witnesses asks beside each rule's flows one between older Pods that the
	// same rule allows: if that is not realized either, the rule is not.
	Witnesses bool
}

// NoteKind says what a Note is about.
type NoteKind string

// The kinds of notes.
const (
	// EngineConflict: kube-router cannot tell two policies apart.
	EngineConflict NoteKind = "EngineConflict"
	// EngineOverAllows: a named port that nobody has opens every port to the
	// peers of its rule.
	EngineOverAllows NoteKind = "EngineOverAllows"
	// EngineLimit: a rule means more Pods than the engine's sets hold.
	EngineLimit NoteKind = "EngineLimit"
	// DuplicatePodIP: an address that two live Pods have was skipped.
	DuplicatePodIP NoteKind = "DuplicatePodIP"
	// PolicyNotUnderstood: a policy that may bind the subject could not be
	// read, so nothing was computed.
	PolicyNotUnderstood NoteKind = "PolicyNotUnderstood"
)

// Note is something a person should know about a subject's expectations. Text
// is for administrators: it holds names of objects of any namespace.
type Note struct {
	Kind NoteKind
	Text string
}

// Result is what must be confirmed for a subject.
type Result struct {
	// Span are the nodes that must confirm, sorted. nil: not computed, and
	// Notes say why; nothing may be released.
	Span []string
	// Nodes has the expectations of every node of the span, an empty list
	// included, and of nodes that are asked and not awaited. Under
	// Options.Northbound, which is in the span as well then, it has those of the
	// nodes of the span together, unless there are none: each flow once, as it
	// fares at both of its ends. A node judges only the ends that are on it, so an
	// Allowed that the other end's policies may refuse is not among them. Nor is
	// what is asked of nodes that are not awaited.
	Nodes map[string][]Expectation
	// NotAsked counts flows that were left out because of the budget: those of
	// all Pods that the rules mean, known later than the subject or not, but
	// for those that were asked about or found to be of no use. So it is no
	// more exact than that, and changes with Pods that nobody looked at.
	NotAsked int
	// Settle is set if an address was another Pod's a short while ago: what
	// the engine does is believed only after it had time to notice.
	Settle bool
	// Notes are sorted and without duplicates.
	Notes []Note
	// Policies are those that select the subject or name it as a peer, whether
	// or not anything is asked because of them, sorted.
	Policies []types.NamespacedName
	// Footprint is what all this was computed from.
	Footprint Footprint
}
