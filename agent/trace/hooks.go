// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"slices"

	"github.com/policygate/policygate/agent/ruleset"
)

// conntrackPriority is where the kernel looks the connection up at prerouting
// and output (NF_IP_PRI_CONNTRACK): chains before it see no connection.
const conntrackPriority = -200

// Where the kernel calls all nat chains of a hook, one after the other
// (NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC; since Linux 4.18 whatever the
// chains' own priorities are, which only order them among each other).
const (
	destinationPriority = -100
	sourcePriority      = 100
)

func (p *Path) hooks() []ruleset.Hook {
	switch p.Way {
	case Forwarded:
		return []ruleset.Hook{ruleset.Prerouting, ruleset.Forward, ruleset.Postrouting}
	case Delivered:
		return []ruleset.Hook{ruleset.Prerouting, ruleset.Input}
	case Sent:
		return []ruleset.Hook{ruleset.Output, ruleset.Postrouting}
	}
	return nil
}

// base is a base chain and the table it belongs to.
type base struct {
	table *ruleset.Table
	chain *ruleset.Chain
	// priority is where the kernel calls the chain.
	priority int
}

func newBase(t *ruleset.Table, c *ruleset.Chain) base {
	b := base{t, c, c.Base.Priority}
	if c.Base.NAT {
		b.priority = sourcePriority
		if c.Base.Hook == ruleset.Prerouting || c.Base.Hook == ruleset.Output {
			b.priority = destinationPriority
		}
	}
	return b
}

func (b *base) name() string {
	return b.table.Backend.String() + " " + b.table.Family.String() + " " + b.table.Name + "/" + b.chain.Name
}

// idle reports whether a base chain lets every packet pass untouched.
func idle(c *ruleset.Chain) bool {
	return c.Read == nil && len(c.Rules) == 0 && c.Opaque == "" && !c.Base.Drop
}

// empty reports whether a base chain turns out to be idle once it is read.
func empty(c *ruleset.Chain) bool {
	if c.Opaque != "" || c.Base.Drop {
		return false
	}
	listing, err := c.Listing()
	return err == nil && len(listing.Rules) == 0
}

// link takes note of the link layer chains that can see the packet. Their
// rules are never readable, so one of them decides that nothing is decided.
func (w *walk) link(tables []ruleset.Table) {
	for i := range tables {
		t := &tables[i]
		if t.Family != ruleset.Netdev && (t.Family != ruleset.Bridge || !w.path.OnBridge) {
			continue
		}
		for _, c := range t.Chains {
			if c.Base == nil || w.over() {
				continue
			}
			why := c.Opaque
			if why == "" {
				why = "its rules are not followed"
			}
			b := newBase(t, c)
			w.at = c.Base.Hook
			w.unsure(place{base: &b, chain: c}, b.name()+": "+why)
		}
	}
}

// meet returns the base chains that the packet meets, in their order.
func (w *walk) meet(tables []ruleset.Table, hooks []ruleset.Hook) []base {
	family := ruleset.IPv6
	if w.flow.Dst.Is4() {
		family = ruleset.IPv4
	}
	bases := w.room[:0]
	for i := range tables {
		t := &tables[i]
		if t.Family != family {
			continue
		}
		for _, c := range t.Chains {
			if c.Base != nil && slices.Contains(hooks, c.Base.Hook) && !idle(c) {
				bases = append(bases, newBase(t, c))
			}
		}
	}
	// Hooks are numbered in the order in which a packet meets them.
	slices.SortStableFunc(bases, func(a, b base) int {
		return cmp.Or(cmp.Compare(a.chain.Base.Hook, b.chain.Base.Hook), cmp.Compare(a.priority, b.priority))
	})
	return bases
}

// tie returns how many of the first base chains are called at one place.
func tie(bases []base) int {
	first := &bases[0]
	end, filter := 1, !first.chain.Base.NAT
	for end < len(bases) && bases[end].chain.Base.Hook == first.chain.Base.Hook && bases[end].priority == first.priority {
		filter = filter || !bases[end].chain.Base.NAT
		end++
	}
	if filter {
		return end
	}
	// Among themselves, nat chains keep to their own priorities.
	slices.SortStableFunc(bases[:end], func(a, b base) int {
		return cmp.Compare(a.chain.Base.Priority, b.chain.Base.Priority)
	})
	for end > 1 && bases[end-1].chain.Base.Priority != first.chain.Base.Priority {
		end--
	}
	return end
}

// through walks the packet through the base chains and returns the states in
// which it passes all of them.
func (w *walk) through(bases []base) []state {
	passed, next := w.list(), w.list()
	passed.add(state{})
	for len(bases) > 0 && len(passed.list) > 0 && !w.over() {
		end := tie(bases)
		w.turn(bases[0].chain.Base.Hook)
		w.lookUp(&bases[0], &passed)
		next.list = next.list[:0]
		w.tied(bases[:end], passed.list, &next)
		passed, next = next, passed
		bases = bases[end:]
	}
	return passed.list
}

// lookUp does what conntrack does before a base chain is called. A chain of
// conntrack's own priority may be called before it or after it, whatever the
// one before that was.
func (w *walk) lookUp(b *base, s *states) {
	early := (w.at == ruleset.Prerouting || w.at == ruleset.Output) && b.priority <= conntrackPriority
	if early && b.priority < conntrackPriority {
		return
	}
	if !slices.ContainsFunc(s.list, func(s state) bool { return s.tracking == before }) {
		return
	}
	in := s.list
	s.list = s.list[:0]
	if early {
		in = slices.Clone(in)
	}
	for _, one := range in {
		if one.tracking == before && early {
			one.because(&cause{why: "the order of " + b.name() + " and connection tracking, which have one priority"})
			s.add(one)
		}
		if one.tracking == before {
			one.tracking = tracked
		}
		s.add(one)
	}
}

// permuted is how many base chains of one priority are walked in every order
// that they can have: 24 of 4 chains.
const permuted = 4

// tied walks base chains of one priority and adds the states that leave all of
// them alive to out. Which of them the kernel calls first depends on which was
// registered last, and nothing tells. If none of them does anything that
// another could see, there is one outcome. Else they are walked in every
// order, and where they end in different states all stay.
func (w *walk) tied(bases []base, in []state, out *states) {
	if len(bases) > 1 {
		// Next to an engine's own chains there often are those that iptables
		// made and nobody filled.
		bases = slices.DeleteFunc(bases, func(b base) bool { return empty(b.chain) })
	}
	if len(bases) == 0 {
		for _, s := range in {
			out.add(s)
		}
		return
	}
	if len(bases) == 1 {
		w.base(&bases[0], in, out)
		return
	}
	current, alike := in, len(in) == 1
	for i := range bases {
		// One that no packet gets to in this order may be the first in
		// another.
		entering, reached := current, len(current) > 0
		if !reached {
			entering = in
		}
		var left states
		w.base(&bases[i], entering, &left)
		for _, s := range left.list {
			alike = alike && s.traits == in[0].traits
		}
		if reached {
			current = left.list
		}
	}
	for _, s := range current {
		out.add(s)
	}
	switch {
	case alike || w.over():
	case len(bases) > permuted:
		w.unsure(place{base: &bases[0], chain: bases[0].chain}, orderOf(bases)+", is not known, and one changes what another may see")
	default:
		w.permute(bases, in, out)
	}
}

// permute walks base chains in all orders but the first.
func (w *walk) permute(bases []base, in []state, out *states) {
	muted, firsts := w.record.mute(), len(out.list)
	for order := range permutations(len(bases)) {
		current := in
		for _, i := range order {
			if len(current) > 0 {
				var left states
				w.base(&bases[i], current, &left)
				current = left.list
			}
		}
		for _, s := range current {
			s.because(&cause{why: orderOf(bases)})
			out.add(s)
		}
	}
	w.record.unmute(muted)
	if len(out.list) != firsts {
		w.note(place{base: &bases[0], chain: bases[0].chain}, &cause{why: orderOf(bases)}, "may end otherwise")
	}
}

func orderOf(bases []base) string {
	return "the order of " + bases[0].name() + " and " + bases[1].name() + ", which have one priority"
}

// permutations yields the orders of n things, all but the identity. The slice
// is valid until the next one.
func permutations(n int) func(yield func([]int) bool) {
	return func(yield func([]int) bool) {
		order := make([]int, n)
		for i := range order {
			order[i] = i
		}
		for {
			// The next in lexical order.
			i := n - 2
			for i >= 0 && order[i] > order[i+1] {
				i--
			}
			if i < 0 {
				return
			}
			j := n - 1
			for order[j] < order[i] {
				j--
			}
			order[i], order[j] = order[j], order[i]
			slices.Reverse(order[i+1:])
			if !yield(order) {
				return
			}
		}
	}
}
