// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/expect"
)

// Assignment is what must be confirmed of one Pod at its present addresses.
type Assignment struct {
	Subject *hubv1.Subject
	// Basis is the state that it was computed from.
	Basis *hubv1.Basis
	// Span are the nodes that must confirm, sorted, hubv1.Northbound among them
	// if that must, too. Nil: not computed, and nothing is released.
	Span []string
	// Demands has every node of the span, and nodes that are asked and not
	// awaited.
	Demands map[string]demand.Demand
	// Settle is hub.proto's Assign.settle.
	Settle bool
	// ExcuseFamilies is hub.proto's Assign.excuse_families.
	ExcuseFamilies bool
	// NotAsked counts the flows beyond the limit.
	NotAsked int
	// Notes are for administrators.
	Notes []expect.Note
}

// sameFrame reports whether a and b differ in nothing but what each node is
// asked, who is awaited, and their bases.
func (a *Assignment) sameFrame(b *Assignment) bool {
	return b != nil && sameSubject(a.Subject, b.Subject) && a.Settle == b.Settle && a.ExcuseFamilies == b.ExcuseFamilies
}

// sameContent reports whether nodes that confirmed a have confirmed b: only
// the bases may differ, and the generations of policies whose change changed
// nothing that is asked.
func (a *Assignment) sameContent(b *Assignment) bool {
	if !a.sameFrame(b) || !slices.Equal(a.Span, b.Span) || len(a.Demands) != len(b.Demands) {
		return false
	}
	for node, demand := range a.Demands {
		other, ok := b.Demands[node]
		if !ok || demand.Content() != other.Content() {
			return false
		}
	}
	return true
}

func sameSubject(a, b *hubv1.Subject) bool {
	return a.GetUid() == b.GetUid() && a.GetNamespace() == b.GetNamespace() && a.GetName() == b.GetName() &&
		a.GetGeneration() == b.GetGeneration() && slices.Equal(a.GetIps(), b.GetIps())
}
