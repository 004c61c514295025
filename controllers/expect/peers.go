// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"iter"
	"net/netip"
)

// Peers implements World.
func (c *Cluster) Peers(choice Choice, order Order, after *Pod) iter.Seq[*Pod] {
	switch choice := choice.(type) {
	case MeantBy:
		return merged(c.treesOf(choice.Rule), order, after)
	case SelectedBy:
		if order == AnyOrder {
			return c.selected(choice.Policy)
		}
		if b, ok := c.bound[choice.Policy]; ok && b.own != nil {
			return walk(b.own.ordered(), order, after)
		}
	case Named:
		if n, ok := c.named[choice.Port]; ok && n.pods[choice.Namespace] != nil {
			return walk(n.pods[choice.Namespace], order, after)
		}
	case NamedElsewhere:
		return c.namedElsewhere(choice, order)
	case On:
		return listed(c.byNode[choice.Node], order, after)
	case Anywhere:
		return walk(c.family[bit(choice.V6)], order, after)
	case Within:
		return c.within(choice.Prefix)
	}
	return func(func(*Pod) bool) {}
}

// selected enumerates the Pods that a policy selects, in no order.
func (c *Cluster) selected(q *Policy) iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		for l := range c.SetsSelected(q) {
			for _, e := range l.pods {
				if !yield(e.Pod) {
					return
				}
			}
		}
	}
}

func (c *Cluster) treesOf(r RuleOf) []*ages {
	m := c.meaningOf(r)
	if m == nil {
		return nil
	}
	var out []*ages
	for _, s := range m.selectors {
		out = append(out, s.ordered())
	}
	return out
}

// meaningOf returns nil for a rule of a policy that is not in the Cluster.
func (c *Cluster) meaningOf(r RuleOf) *meaning {
	b, ok := c.bound[r.Policy]
	if !ok || r.Index >= len(b.rules[r.Direction]) {
		return nil
	}
	return b.rules[r.Direction][r.Index]
}

func (c *Cluster) namedElsewhere(choice NamedElsewhere, order Order) iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		n, ok := c.named[choice.Port]
		if !ok {
			return
		}
		for _, namespace := range n.namespaces {
			if namespace == choice.Namespace {
				continue
			}
			for p := range walk(n.pods[namespace], order, nil) {
				if !yield(p) {
					return
				}
			}
		}
	}
}

func (c *Cluster) within(prefix netip.Prefix) iter.Seq[*Pod] {
	return func(yield func(*Pod) bool) {
		// No Pod has the zero UID at the zero time: it is before them all.
		c.addresses.AscendGreaterOrEqual(held{prefix.Addr(), &Pod{}}, func(h held) bool {
			return prefix.Contains(h.addr) && yield(h.pod)
		})
	}
}

// Population implements World.
func (c *Cluster) Population(choice Choice) int {
	switch choice := choice.(type) {
	case MeantBy:
		m := c.meaningOf(choice.Rule)
		if m == nil {
			return 0
		}
		if choice.Declaring == (PortName{}) {
			return m.members()
		}
		n := 0
		for _, s := range m.selectors {
			n += s.declaring[choice.Declaring]
		}
		return n
	case SelectedBy:
		b, ok := c.bound[choice.Policy]
		switch {
		case !ok || b.own == nil:
			return 0
		case choice.Declaring == (PortName{}):
			return b.own.members
		}
		return b.own.declaring[choice.Declaring]
	case Named:
		if n, ok := c.named[choice.Port]; ok && n.pods[choice.Namespace] != nil {
			return n.pods[choice.Namespace].Len()
		}
	case Giving:
		if n, ok := c.named[choice.Port]; ok {
			return n.numbers[choice.Number]
		}
	case On:
		return len(c.byNode[choice.Node])
	case Anywhere:
		return c.family[bit(choice.V6)].Len()
	}
	return 0
}
