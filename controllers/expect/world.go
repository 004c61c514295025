// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"iter"
	"net/netip"

	"k8s.io/apimachinery/pkg/types"
)

// World is what a computation reads of a cluster. Cluster is the one in use;
// package scan has one that is slow and obviously right. Nothing that its
// methods return may be changed.
type World interface {
	// Selecting returns the policies that select p, which need not be one of
	// its Pods, ordered by name.
	Selecting(p *Pod) []*Policy
	// Meaning returns the rules that mean p as a peer, ordered by namespace,
	// name, direction and index: by a selector, or, in an egress rule for
	// everyone, by a port name that p resolves in the policy's namespace.
	Meaning(p *Pod) []RuleOf
	// Sharing returns the policies that kube-router cannot tell from q.
	Sharing(q *Policy) []*Policy
	// Unreadable returns the policies of a namespace that were not understood.
	Unreadable(namespace string) []*Policy
	// Namespace returns the namespace of that name, or nil.
	Namespace(name string) *Namespace
	// Nodes returns all nodes.
	Nodes() *Nodes
	// Holding returns the Pods whose address it is, oldest first, those that
	// are being deleted included.
	Holding(addr netip.Addr) []*Pod
	// Peers returns the peers of a choice, each once, in the order given. If
	// after is not nil, those that come after it in that order.
	Peers(choice Choice, order Order, after *Pod) iter.Seq[*Pod]
	// Population returns the number of peers of a choice. A Pod that several
	// different peers of a rule mean counts for each of them.
	Population(choice Choice) int
	// LabelSet returns the set that p belongs to, or the one that stands for
	// Pods that are no peers in this world; nil if the world knows no sets.
	LabelSet(p *Pod) *LabelSet
}

// RuleOf is one rule of a policy.
type RuleOf struct {
	Policy    *Policy
	Direction Direction
	Index     int
}

func (r RuleOf) rule() *Rule { return &r.Policy.Rules[r.Direction][r.Index] }

// String returns "namespace/name direction[index]".
func (r RuleOf) String() string { return ruleWhy(r.Policy, r.Direction, r.Index) }

// Order is the order in which peers are enumerated.
type Order uint8

// The orders of peers.
const (
	OldestFirst Order = iota
	NewestFirst
	// AnyOrder is for SelectedBy without a port, from the start only.
	AnyOrder
)

// Choice says which of all peers are meant: one of the types below.
type Choice interface{ choice() }

// MeantBy are the peers that the selectors of a rule mean: those, if Declaring
// is not zero, that have such a port.
type MeantBy struct {
	Rule      RuleOf
	Declaring PortName
}

// SelectedBy are the peers that a policy selects: those, if Declaring is not
// zero, that have such a port.
type SelectedBy struct {
	Policy    *Policy
	Declaring PortName
}

// Named are the peers of a namespace that have a port of that name.
type Named struct {
	Port      PortName
	Namespace string
}

// NamedElsewhere are the peers of other namespaces that have a port of that
// name, ordered by namespace first. They can be enumerated from the start only.
type NamedElsewhere struct {
	Port      PortName
	Namespace string
}

// Giving are the peers that give the name that number. They can be counted only.
type Giving struct {
	Port   PortName
	Number uint16
}

// On are the peers on a node.
type On struct{ Node string }

// Anywhere are all peers with an address of one family.
type Anywhere struct{ V6 bool }

// Within are the peers with an address in a prefix, ordered by address, and
// from the start only. A Pod comes once for each such address.
type Within struct{ Prefix netip.Prefix }

func (MeantBy) choice()        {}
func (SelectedBy) choice()     {}
func (Named) choice()          {}
func (NamedElsewhere) choice() {}
func (Giving) choice()         {}
func (On) choice()             {}
func (Anywhere) choice()       {}
func (Within) choice()         {}

// looks is a World as one computation sees it, which notes what it was asked
// of. Pods that became known after the horizon, and the subject if it is a Pod,
// are not among the peers: it does not wait for them.
type looks struct {
	World
	horizon uint64
	// subject is empty if it is no Pod.
	subject types.UID

	footprint Footprint
	sets      map[*LabelSet]struct{}
	pods      map[types.UID]struct{}
	addresses map[netip.Addr]struct{}
	nodes     map[string]struct{}
	ports     map[PortName]struct{}
}

func newLooks(w World, horizon uint64) *looks {
	return &looks{
		World: w, horizon: horizon,
		sets:      map[*LabelSet]struct{}{},
		pods:      map[types.UID]struct{}{},
		addresses: map[netip.Addr]struct{}{},
		nodes:     map[string]struct{}{},
		ports:     map[PortName]struct{}{},
	}
}

// pod notes a Pod.
func (l *looks) pod(p *Pod) { note(l.pods, &l.footprint.Pods, p.UID) }

// note appends v to list unless it is in seen.
func note[T comparable](seen map[T]struct{}, list *[]T, v T) {
	if _, ok := seen[v]; !ok {
		seen[v] = struct{}{}
		*list = append(*list, v)
	}
}

func (l *looks) set(p *Pod) {
	if set := l.LabelSet(p); set != nil {
		note(l.sets, &l.footprint.Sets, set)
	}
}

func (l *looks) Selecting(p *Pod) []*Policy {
	l.set(p)
	return l.World.Selecting(p)
}

func (l *looks) Meaning(p *Pod) []RuleOf {
	l.set(p)
	return l.World.Meaning(p)
}

func (l *looks) Holding(addr netip.Addr) []*Pod {
	note(l.addresses, &l.footprint.Addresses, addr)
	return l.World.Holding(addr)
}

func (l *looks) Peers(choice Choice, order Order, after *Pod) iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		for p := range l.World.Peers(choice, order, after) {
			if p.UID == l.subject || p.Seq > l.horizon {
				continue
			}
			l.pod(p)
			if !yield(p) {
				return
			}
		}
	}
}

func (l *looks) Population(choice Choice) int {
	var port PortName
	switch choice := choice.(type) {
	case Giving:
		port = choice.Port
	case MeantBy:
		port = choice.Declaring
	case SelectedBy:
		port = choice.Declaring
	}
	if port.Name != "" {
		note(l.ports, &l.footprint.Ports, port)
	}
	return l.World.Population(choice)
}

// node returns the node of that name, or nil.
func (l *looks) node(name string) *Node {
	note(l.nodes, &l.footprint.Nodes, name)
	return l.Nodes().Node(name)
}

// ranges returns the nodes, of which it is looked at which addresses are theirs.
func (l *looks) ranges() *Nodes {
	l.footprint.Ranges = true
	return l.Nodes()
}
