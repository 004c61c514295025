// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package scan is test support: an expect.World that answers every question by
// going through all objects with plain label matching. It interns nothing,
// keeps no order and counts nothing in advance, so it is slow and obviously
// right; expect.Cluster must answer the same. No product code imports it.
package scan

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// World holds the objects. Its fields may be changed at any time but during a
// computation. The zero value lacks the maps: see New.
type World struct {
	Pods        map[types.UID]*expect.Pod
	Policies    map[types.NamespacedName]*expect.Policy
	Namespaces  map[string]*expect.Namespace
	NodesByName map[string]*expect.Node
}

var _ expect.World = (*World)(nil)

// New returns a World without objects.
func New() *World {
	return &World{
		Pods:        map[types.UID]*expect.Pod{},
		Policies:    map[types.NamespacedName]*expect.Policy{},
		Namespaces:  map[string]*expect.Namespace{},
		NodesByName: map[string]*expect.Node{},
	}
}

// Sorted returns all policies, ordered by namespace and name.
func (w *World) Sorted() []*expect.Policy {
	return slices.SortedFunc(maps.Values(w.Policies), func(a, b *expect.Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
}

func older(a, b *expect.Pod) int {
	return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.UID, b.UID))
}

// matching returns the peers for which want reports true, oldest first.
func (w *World) matching(want func(*expect.Pod) bool) []*expect.Pod {
	var out []*expect.Pod
	for _, p := range w.Pods {
		if p.Peer() && want(p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, older)
	return out
}

// Selecting implements expect.World.
func (w *World) Selecting(p *expect.Pod) []*expect.Policy {
	var out []*expect.Policy
	for _, q := range w.Sorted() {
		if q.Selects(p) {
			out = append(out, q)
		}
	}
	return out
}

// Meaning implements expect.World.
func (w *World) Meaning(p *expect.Pod) []expect.RuleOf {
	var out []expect.RuleOf
	for _, q := range w.Sorted() {
		for _, d := range []expect.Direction{expect.Ingress, expect.Egress} {
			for i := range q.Rules[d] {
				r := expect.RuleOf{Policy: q, Direction: d, Index: i}
				if w.means(r, p) || w.opens(r, p) {
					out = append(out, r)
				}
			}
		}
	}
	return out
}

// means reports whether a selector of the rule means p.
func (w *World) means(r expect.RuleOf, p *expect.Pod) bool {
	return slices.ContainsFunc(r.Policy.Rules[r.Direction][r.Index].Peers, func(peer expect.Peer) bool {
		return w.peerMeans(r.Policy, peer, p)
	})
}

func (w *World) peerMeans(q *expect.Policy, peer expect.Peer, p *expect.Pod) bool {
	if peer.Block != nil || p.HostNetwork || !peer.Pods.Matches(p.Labels) {
		return false
	}
	if peer.Namespaces == nil {
		return p.Namespace == q.Namespace
	}
	ns, ok := w.Namespaces[p.Namespace]
	return ok && peer.Namespaces.Matches(ns.Labels)
}

// opens reports whether the rule is one for everyone that opens a named port
// of p, in the policy's own namespace.
func (w *World) opens(r expect.RuleOf, p *expect.Pod) bool {
	rule := r.Policy.Rules[r.Direction][r.Index]
	if r.Direction != expect.Egress || len(rule.Peers) > 0 || r.Policy.Namespace != p.Namespace {
		return false
	}
	return slices.ContainsFunc(rule.Ports, func(port expect.Port) bool {
		return port.Name != "" && has(p, expect.PortName{Name: port.Name, Protocol: port.Protocol})
	})
}

// has reports whether p has a port of that name; every Pod has the zero one.
func has(p *expect.Pod, name expect.PortName) bool {
	return name == (expect.PortName{}) || slices.ContainsFunc(p.Ports, func(port expect.ContainerPort) bool {
		return port.Name == name.Name && port.Protocol == name.Protocol
	})
}

// Sharing implements expect.World.
func (w *World) Sharing(q *expect.Policy) []*expect.Policy {
	var out []*expect.Policy
	for _, other := range w.Sorted() {
		if other.Namespace != q.Namespace && other.Namespace+other.Name == q.Namespace+q.Name {
			out = append(out, other)
		}
	}
	return out
}

// Unreadable implements expect.World.
func (w *World) Unreadable(namespace string) []*expect.Policy {
	var out []*expect.Policy
	for _, q := range w.Sorted() {
		if q.Namespace == namespace && q.Err != nil {
			out = append(out, q)
		}
	}
	return out
}

// Namespace implements expect.World.
func (w *World) Namespace(name string) *expect.Namespace { return w.Namespaces[name] }

// Nodes implements expect.World.
func (w *World) Nodes() *expect.Nodes {
	return expect.NewNodes(slices.Collect(maps.Values(w.NodesByName))...)
}

// Holding implements expect.World.
func (w *World) Holding(addr netip.Addr) []*expect.Pod {
	var out []*expect.Pod
	for _, p := range w.Pods {
		if !p.Finished && !p.HostNetwork && slices.Contains(p.IPs, addr) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, older)
	return out
}

// Peers implements expect.World.
func (w *World) Peers(choice expect.Choice, order expect.Order, after *expect.Pod) iter.Seq[*expect.Pod] {
	var list []*expect.Pod
	switch choice := choice.(type) {
	case expect.Within:
		return slices.Values(w.within(choice.Prefix))
	case expect.NamedElsewhere:
		list = w.matching(func(p *expect.Pod) bool { return p.Namespace != choice.Namespace && has(p, choice.Port) })
		slices.SortStableFunc(list, func(a, b *expect.Pod) int { return cmp.Compare(a.Namespace, b.Namespace) })
		return slices.Values(list)
	default:
		list = w.matching(w.chosen(choice))
	}
	if order == expect.NewestFirst {
		slices.Reverse(list)
	}
	if after != nil {
		list = slices.DeleteFunc(list, func(p *expect.Pod) bool {
			if order == expect.NewestFirst {
				return older(p, after) >= 0
			}
			return older(p, after) <= 0
		})
	}
	return slices.Values(list)
}

// chosen returns what a peer of the choice is told by.
func (w *World) chosen(choice expect.Choice) func(*expect.Pod) bool {
	switch choice := choice.(type) {
	case expect.MeantBy:
		return func(p *expect.Pod) bool { return w.means(choice.Rule, p) && has(p, choice.Declaring) }
	case expect.SelectedBy:
		return func(p *expect.Pod) bool { return choice.Policy.Selects(p) && has(p, choice.Declaring) }
	case expect.Named:
		return func(p *expect.Pod) bool { return p.Namespace == choice.Namespace && has(p, choice.Port) }
	case expect.On:
		return func(p *expect.Pod) bool { return p.Node == choice.Node }
	case expect.Anywhere:
		return func(p *expect.Pod) bool {
			return slices.ContainsFunc(p.IPs, func(ip netip.Addr) bool { return ip.Is6() == choice.V6 })
		}
	case expect.Giving:
		return func(p *expect.Pod) bool {
			return slices.ContainsFunc(p.Ports, func(port expect.ContainerPort) bool {
				return port.Name == choice.Port.Name && port.Protocol == choice.Port.Protocol && port.Number == choice.Number
			})
		}
	}
	panic(fmt.Sprintf("choice %T: want one that this world knows", choice))
}

func (w *World) within(prefix netip.Prefix) []*expect.Pod {
	type holder struct {
		addr netip.Addr
		pod  *expect.Pod
	}
	var list []holder
	for _, p := range w.matching(func(*expect.Pod) bool { return true }) {
		for _, ip := range p.IPs {
			if prefix.Contains(ip) {
				list = append(list, holder{ip, p})
			}
		}
	}
	slices.SortStableFunc(list, func(a, b holder) int { return a.addr.Compare(b.addr) })
	var out []*expect.Pod
	for _, h := range list {
		out = append(out, h.pod)
	}
	return out
}

// Population implements expect.World.
func (w *World) Population(choice expect.Choice) int {
	meant, ok := choice.(expect.MeantBy)
	if !ok {
		return len(w.matching(w.chosen(choice)))
	}
	n, seen := 0, map[string]bool{}
	for _, peer := range meant.Rule.Policy.Rules[meant.Rule.Direction][meant.Rule.Index].Peers {
		key := fmt.Sprint(peer.Namespaces == nil, peer.Namespaces, " ", peer.Pods)
		if peer.Block == nil && !seen[key] {
			seen[key] = true
			n += len(w.matching(func(p *expect.Pod) bool {
				return w.peerMeans(meant.Rule.Policy, peer, p) && has(p, meant.Declaring)
			}))
		}
	}
	return n
}

// LabelSet implements expect.World: it knows none.
func (w *World) LabelSet(*expect.Pod) *expect.LabelSet { return nil }
