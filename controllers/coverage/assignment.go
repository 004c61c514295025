// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

// Subject is a gated Pod at its present addresses.
type Subject struct {
	UID             types.UID
	Namespace, Name string
	// IPs are sorted.
	IPs []netip.Addr
	// Generation is the Pod's metadata.generation.
	Generation int64
	Node       string
	// BootID is the present boot of Node, empty if the Node is not known.
	BootID string
	// Since is when this process first saw the addresses.
	Since    time.Time
	Settings v1alpha1.Settings
	// HoldStartedAt is nil until the Pod's hold runs, and for a Pod without.
	HoldStartedAt *time.Time
	// AddressChanged is set if the gate was opened for other addresses or in
	// an earlier boot.
	AddressChanged bool
}

// Basis is the state of the API that an assignment was computed from: the
// highest resourceVersion applied of each kind, and that of the Pod's last
// change of anything that its assignment is made of.
type Basis struct {
	NetworkPolicies, Namespaces, Pod uint64
}

// Assignment is what must be confirmed for a subject.
type Assignment struct {
	Subject Subject
	// Span are the nodes that must confirm, sorted, and expect.Options.Northbound
	// if it is asked anything. nil: not computed, Notes say why, and nothing may
	// be released.
	Span []string
	// PerNode has the expectations of every node of the span, and of nodes
	// that may be asked and must not be awaited.
	PerNode  map[string][]expect.Expectation
	NotAsked int
	Notes    []expect.Note
	// Settle is set if what the engine does is believed only after it has
	// rested: an address was another Pod's a short while ago, or a Service made
	// the engine write the subject's policies anew.
	Settle bool
	// ExcuseFamilies is set if a node may leave out the expectations of a
	// family that its engine does not enforce.
	ExcuseFamilies bool
	Basis          Basis
}

// Assignment computes the assignment of a subject from all that the index holds
// at the time of the call. It returns false if the subject is not held.
func (x *Index) Assignment(uid types.UID) (Assignment, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.passTime()
	h := x.held[uid]
	if h == nil {
		return Assignment{}, false
	}
	a, madeOf := x.compute(h.pod, h.suspect, h.settle)
	x.unlink(h)
	h.computed, h.stands, h.epoch = true, true, x.epoch
	h.madeOf = madeOf
	x.links.add(&h.madeOf.footprint, h)
	x.dependents.add(h.madeOf.policies, h)
	x.succeed(h, madeOf.until)
	return a, true
}

// unlink has nothing lead to h any more.
func (x *Index) unlink(h *held) {
	x.links.remove(&h.madeOf.footprint, h)
	x.dependents.remove(h.madeOf.policies, h)
}

// madeOf is what a computation rests on beside the subject itself.
type madeOf struct {
	footprint expect.Footprint
	// policies are kept only if Services are watched.
	policies []types.NamespacedName
	// until is when the first of the predecessors is forgotten, zero if none
	// will be.
	until time.Time
}

// compute changes nothing.
func (x *Index) compute(p *pod, suspect, settle bool) (Assignment, madeOf) {
	former, until := x.predecessors(p)
	r := x.cluster.Expect(expect.Subject{
		Pod:          p.Pod,
		Predecessors: former,
		LocalOnly:    p.settings.Scope == v1alpha1.ScopeLocal,
		Witnesses:    suspect,
	}, x.options.Expect)
	rests := madeOf{footprint: r.Footprint, until: until}
	if x.options.Services {
		rests.policies = r.Policies
	}
	return Assignment{
		Subject:        x.subject(p),
		Span:           r.Span,
		PerNode:        r.Nodes,
		NotAsked:       r.NotAsked,
		Notes:          r.Notes,
		Settle:         r.Settle || settle,
		ExcuseFamilies: x.excuseFamilies(),
		Basis:          x.basis(p),
	}, rests
}

func (x *Index) excuseFamilies() bool {
	return x.options.Expect.Families == "" || x.options.Expect.Families == expect.FamiliesAuto
}

func (x *Index) subject(p *pod) Subject {
	s := Subject{
		UID: p.UID, Namespace: p.Namespace, Name: p.Name,
		IPs:            slices.Clone(p.IPs),
		Generation:     p.generation,
		Node:           p.Node,
		Since:          p.since,
		Settings:       p.settings,
		AddressChanged: (p.open || p.annotation != "") && !x.programmed(p),
	}
	if n := x.nodes[p.Node]; n != nil {
		s.BootID = n.bootID
	}
	if started := p.holdStarted; !started.IsZero() {
		s.HoldStartedAt = &started
	}
	return s
}
