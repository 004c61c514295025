// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"slices"

	"github.com/policygate/policygate/agent/ruleset"
)

// tracking is what conntrack knows of the packet.
type tracking uint8

const (
	// before conntrack: the kernel answers as for an invalid packet.
	before tracking = iota
	tracked
	untracked
)

func (t tracking) states() ruleset.CTStates {
	switch t {
	case tracked:
		return ruleset.New
	case untracked:
		return ruleset.Untracked
	case before:
		return ruleset.Invalid
	}
	return 0
}

// bits are a mark of which some bits may be unknown; value is 0 there.
type bits struct{ value, unknown uint32 }

// mix returns (b &^ mask) ^ (with & withMask), bit by bit.
func (b bits) mix(mask uint32, with bits, withMask uint32) bits {
	unknown := b.unknown&^mask | with.unknown&withMask
	return bits{value: ((b.value &^ mask) ^ (with.value & withMask)) &^ unknown, unknown: unknown}
}

// join returns what b and other agree on.
func (b bits) join(other bits) bits {
	unknown := b.unknown | other.unknown | (b.value ^ other.value)
	return bits{value: b.value &^ unknown, unknown: unknown}
}

func (b bits) match(value, mask uint32) Ternary {
	if (b.value^value)&mask&^b.unknown != 0 {
		return No
	}
	// The kernel compares the masked mark with the value as it is: bits of
	// the value outside of the mask can never match.
	if value&^mask != 0 {
		return No
	}
	if b.unknown&mask != 0 {
		return Unknown
	}
	return Yes
}

// traits are the part of a state that later rules can see.
type traits struct {
	mark, connMark bits
	tracking       tracking
	// resourced: the source may have been rewritten.
	resourced bool
}

// state is one way in which the packet can be on its way.
type state struct {
	traits
	// cause is the first undecided rule that led here, nil if none did.
	cause *cause
	// by is what accepted the packet last, the zero place if nothing has.
	by place
}

// because notes the first reason for which a state is only a possibility.
func (s *state) because(c *cause) {
	if s.cause == nil {
		s.cause = c
	}
}

// place is where the walk is: at a rule of a chain within a base chain. At the
// policy there is no rule.
type place struct {
	base  *base
	chain *ruleset.Chain
	rule  *ruleset.Rule
}

// cause is why something is only a possibility.
type cause struct {
	at place
	// why, if not empty, says more than the rule does, or takes its place.
	why string
}

func (c *cause) text() string {
	switch {
	case c == nil:
		return ""
	case c.at.rule == nil:
		return c.why
	case c.why == "":
		return c.at.text()
	}
	return c.why + ": " + c.at.text()
}

// text is the rule's.
func (p place) text() string {
	if p.rule.Raw == "" {
		return ruleset.Render(p.chain.Name, p.rule)
	}
	return p.rule.Raw
}

// chainName names the chain, with its base chain.
func (p place) chainName() string {
	if p.chain == p.base.chain {
		return p.base.name()
	}
	return p.base.name() + " " + p.chain.Name
}

// name names a deciding rule: its chain and its comment, or its text if it has
// none.
func (p place) name() string {
	switch {
	case p.rule == nil:
		return p.chainName() + " policy DROP"
	case p.rule.Comment != "" && p.rule.Target.Name != "":
		return p.chainName() + ": " + p.rule.Target.Name + " (" + p.rule.Comment + ")"
	}
	return p.chainName() + ": " + p.text()
}

// crowd is how many states are kept apart. Undecided rules that each set a bit
// of a mark would double them.
const crowd = 64

// states is a set of states that differ in their traits.
type states struct {
	list []state
	// adds counts the states that were added.
	adds int
}

// add adds a state. Of two with the same traits one stays, which is certain
// to be reached if either is. When they become a crowd, states that differ in
// their marks only are joined: a bit on which they differ becomes unknown.
func (s *states) add(add state) {
	s.adds++
	for i := range s.list {
		have := &s.list[i]
		if have.traits != add.traits {
			continue
		}
		if add.cause == nil && have.cause != nil {
			*have = add
		}
		return
	}
	s.list = append(s.list, add)
	if len(s.list) > crowd {
		s.join()
	}
}

func (s *states) join() {
	joined := s.list[:0]
next:
	for _, one := range s.list {
		for i := range joined {
			have := &joined[i]
			if have.tracking != one.tracking || have.resourced != one.resourced {
				continue
			}
			have.mark, have.connMark = have.mark.join(one.mark), have.connMark.join(one.connMark)
			have.because(one.cause)
			if have.by == (place{}) {
				have.by = one.by
			}
			continue next
		}
		joined = append(joined, one)
	}
	s.list = joined
}

// tracks reports whether the kernel tracks the connections of the rule's
// family because there is this rule (nf_ct_netns_get). Without any such rule
// it does not, and then nat chains see no packet at all.
func tracks(r *ruleset.Rule) bool {
	for _, m := range r.Matches {
		switch m := m.(type) {
		case ruleset.CTState:
			return true
		case ruleset.Mark:
			if m.Conn {
				return true
			}
		case ruleset.Compare:
			if ofConnection(m.Value) {
				return true
			}
		case ruleset.Lookup:
			if ofConnection(m.Key) {
				return true
			}
		}
	}
	switch r.Target.Kind {
	case ruleset.SetConnMark, ruleset.SaveMark, ruleset.RestoreMark:
		return true
	case ruleset.NewDestination, ruleset.NewSource:
		// These two translate prefixes of IPv6 without.
		return r.Target.Name != "DNPT" && r.Target.Name != "SNPT"
	case ruleset.Decide:
		return ofConnection(r.Target.Key)
	case ruleset.UnknownTarget, ruleset.Continue, ruleset.Accept, ruleset.Drop, ruleset.Return, ruleset.Jump, ruleset.Goto, ruleset.SetMark, ruleset.NoTrack:
	}
	return false
}

func ofConnection(v ruleset.Value) bool {
	return slices.ContainsFunc(v, func(b ruleset.Byte) bool {
		return b.Known && (b.Field == ruleset.ConnMark || b.Field == ruleset.ConnState || b.Field == ruleset.ConnStatus)
	})
}
