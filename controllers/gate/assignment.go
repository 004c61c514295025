// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"bytes"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Assignment is what must be confirmed of one Pod at its present addresses.
type Assignment struct {
	Subject *hubv1.Subject
	// Basis is the state that it was computed from.
	Basis *hubv1.Basis
	// Span are the nodes that must confirm. Nil: not computed, and nothing is
	// released.
	Span []string
	// Demands has every node of the span, and nodes that are asked and not
	// awaited.
	Demands map[string]Demand
	// Settle is hub.proto's Assign.settle.
	Settle bool
	// ExcuseFamilies is hub.proto's Assign.excuse_families.
	ExcuseFamilies bool
	// NotAsked counts the flows beyond the limit.
	NotAsked int
}

// Demand is what one node must confirm. It must not be changed.
type Demand struct {
	Expectations []*hubv1.Expectation
	// Whys is what the expectations' why indexes: texts for administrators.
	Whys []string
	// Policies has, for each of Whys, the policy that demands it; zero where
	// none does.
	Policies []types.NamespacedName
}

// sameContent reports whether nodes that confirmed a have confirmed b: only
// the bases may differ.
func (a *Assignment) sameContent(b *Assignment) bool {
	if a == nil || b == nil {
		return a == b
	}
	if !sameSubject(a.Subject, b.Subject) || a.Settle != b.Settle ||
		a.ExcuseFamilies != b.ExcuseFamilies || !slices.Equal(a.Span, b.Span) || len(a.Demands) != len(b.Demands) {
		return false
	}
	for node, demand := range a.Demands {
		other, ok := b.Demands[node]
		if !ok || !slices.Equal(demand.Whys, other.Whys) || !slices.Equal(demand.Policies, other.Policies) ||
			!slices.EqualFunc(demand.Expectations, other.Expectations, sameExpectation) {
			return false
		}
	}
	return true
}

func sameSubject(a, b *hubv1.Subject) bool {
	return a.GetUid() == b.GetUid() && a.GetNamespace() == b.GetNamespace() && a.GetName() == b.GetName() &&
		a.GetGeneration() == b.GetGeneration() && slices.Equal(a.GetIps(), b.GetIps())
}

func sameExpectation(a, b *hubv1.Expectation) bool {
	f, g := a.GetFlow(), b.GetFlow()
	return f.GetProtocol() == g.GetProtocol() && f.GetPort() == g.GetPort() &&
		bytes.Equal(f.GetSrc(), g.GetSrc()) && bytes.Equal(f.GetDst(), g.GetDst()) &&
		a.GetWant() == b.GetWant() && a.GetAdvisory() == b.GetAdvisory() &&
		a.GetExternal() == b.GetExternal() && a.GetWhy() == b.GetWhy()
}

// sameBasis reports whether two bases are equal in every part.
func sameBasis(a, b *hubv1.Basis) bool { return !a.Older(b) && !b.Older(a) }

// awaits returns what the index-th expectation lacks, in words fit for the
// owner of a Pod in namespace: no other namespace's names, and no address but
// the Pod's own. It returns "" for an index that d does not have.
func (d Demand) awaits(index uint32, namespace string, ips []netip.Addr) string {
	if int64(index) >= int64(len(d.Expectations)) {
		return ""
	}
	e := d.Expectations[index]
	var policy types.NamespacedName
	if int64(e.GetWhy()) < int64(len(d.Policies)) {
		policy = d.Policies[e.GetWhy()]
	}
	src, ok := netip.AddrFromSlice(e.GetFlow().GetSrc())
	switch {
	case policy.Name == "":
		return "the rules there are not complete yet"
	case policy.Namespace != namespace:
		return "a policy in another namespace is not in force there yet"
	case e.GetWant() == hubv1.Answer_ANSWER_DENIED:
		return policy.String() + " does not isolate its Pods there yet"
	case ok && slices.Contains(ips, src):
		return policy.String() + " does not admit " + src.String() + " there yet"
	}
	return policy.String() + " is not in force there yet"
}
