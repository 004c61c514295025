// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// conntrackPriority is where the kernel looks the connection up at prerouting
// and output (NF_IP_PRI_CONNTRACK): chains before it see no connection.
const conntrackPriority = -200

// tracking is what conntrack knows of the packet.
type tracking uint8

const (
	// before conntrack: the kernel answers as for an invalid packet.
	before tracking = iota
	tracked
	untracked
)

// bits are a mark of which some bits may be unknown; value is 0 there.
type bits struct{ value, unknown uint32 }

// mix returns (b &^ mask) ^ (with & withMask), bit by bit.
func (b bits) mix(mask uint32, with bits, withMask uint32) bits {
	unknown := b.unknown&^mask | with.unknown&withMask
	return bits{value: ((b.value &^ mask) ^ (with.value & withMask)) &^ unknown, unknown: unknown}
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
}

// state is one way in which the packet can be on its way.
type state struct {
	traits
	// cause is the first undecided rule that led here, "" if none did.
	cause string
	// by is the rule that accepted the packet last, "" if none has.
	by string
}

// because notes the first reason for which a state is only a possibility.
func (s *state) because(cause string) {
	if s.cause == "" {
		s.cause = cause
	}
}

// states is a set of states that differ in their traits.
type states struct {
	list []state
}

func newStates(size int) *states {
	return &states{list: make([]state, 0, size)}
}

// add adds a state. Of two with the same traits one stays, which is certain
// to be reached if either is.
func (s *states) add(add state) {
	for i := range s.list {
		have := &s.list[i]
		if have.traits != add.traits {
			continue
		}
		if add.cause == "" && have.cause != "" {
			*have = add
		}
		return
	}
	s.list = append(s.list, add)
}

// walk is one evaluation.
type walk struct {
	path Path
	flow flow.Flow
	sets Membership
	at   ruleset.Hook
	left int
	// depth is how many jumps lead here.
	depth int
	// inBase is the base chain being walked.
	inBase base

	// The fates that ended the walk of some state. denied is the first rule
	// that refused it; deniedCause why that is only a possibility, if no
	// refusal was certain; unknown the first thing after which nothing is
	// known.
	denied      string
	deniedCause string
	unknown     string
}

func (w *walk) deny(s state, by string) {
	if w.denied == "" || (w.deniedCause != "" && s.cause == "") {
		w.denied, w.deniedCause = by, s.cause
	}
}

func (w *walk) unsure(what string) {
	if w.unknown == "" {
		w.unknown = what
	}
}

// verdict joins the fates with the states that passed everything.
func (w *walk) verdict(passed []state) flow.Verdict {
	answer, reason := flow.Inconclusive, ""
	switch {
	case w.unknown != "":
		reason = w.unknown
	case w.denied != "" && len(passed) > 0:
		reason = w.deniedCause
		for i := 0; reason == "" && i < len(passed); i++ {
			reason = passed[i].cause
		}
		if reason == "" {
			reason = "the order of base chains that have one priority"
		}
	case w.denied != "":
		answer, reason = flow.Denied, w.denied
	case w.path.Way == 0:
		reason = "the packet's way through the node is not known"
	case w.path.Unseen != "":
		answer, reason = flow.Allowed, w.path.Unseen
	case len(passed) > 0:
		answer, reason = flow.Allowed, "no rule refuses it"
		for _, s := range passed {
			if s.by != "" {
				reason = s.by
				break
			}
		}
	}
	return flow.Verdict{Answer: answer, Reason: Clean(reason)}
}

// base walks a base chain and returns the states that leave it alive.
func (w *walk) base(b base, in []state) []state {
	w.inBase = b
	out := newStates(len(in))
	enter := newStates(len(in))
	for _, s := range in {
		early := (w.at == ruleset.Prerouting || w.at == ruleset.Output) && b.chain.Base.Priority <= conntrackPriority
		if s.tracking == before && !early {
			s.tracking = tracked
		}
		if b.chain.Base.NAT && s.tracking != tracked {
			out.add(s)
			continue
		}
		enter.add(s)
	}
	if len(enter.list) == 0 {
		return out.list
	}
	if b.chain.Opaque != "" {
		w.unsure(b.name() + ": " + b.chain.Opaque)
		return nil
	}
	for _, s := range w.chain(b.chain, enter.list, out) {
		if b.chain.Base.Drop {
			w.deny(s, b.name()+" policy DROP")
			continue
		}
		out.add(s)
	}
	return out.list
}

// chain walks the states through a chain. It returns those that come back
// from it, at its end or by RETURN, and adds the accepted ones to accepted.
func (w *walk) chain(c *ruleset.Chain, in []state, accepted *states) []state {
	if w.depth >= depth {
		w.unsure(fmt.Sprintf("%s: more than %d nested jumps", w.inBase.name(), depth))
		return nil
	}
	if c.Opaque != "" {
		w.unsure(c.Name + ": " + c.Opaque)
		return nil
	}
	w.depth++
	defer func() { w.depth-- }()
	back := newStates(len(in))
	current := in
	for i := range c.Rules {
		if len(current) == 0 {
			break
		}
		r := &c.Rules[i]
		if !slices.ContainsFunc(current, func(s state) bool { return w.matches(r, s) != No }) {
			w.left -= len(current)
			continue
		}
		next := newStates(len(current))
		for _, s := range current {
			if w.left--; w.left < 0 {
				w.unsure(fmt.Sprintf("more than %d rules visited, at %s", budget, r.Raw))
				return nil
			}
			hit := w.matches(r, s)
			if hit == No {
				next.add(s)
				continue
			}
			matched := s
			if hit == Unknown {
				// Where both ways meet again at once, as after a log rule,
				// the certain one stays.
				matched.because(r.Raw)
				missed := s
				missed.because(r.Raw)
				if r.Target.Kind == ruleset.Continue {
					missed = s
				}
				next.add(missed)
			}
			w.apply(c, r, matched, next, back, accepted)
		}
		current = next.list
	}
	for _, s := range current {
		back.add(s)
	}
	return back.list
}

// apply does what a rule does to a state that it matches.
func (w *walk) apply(c *ruleset.Chain, r *ruleset.Rule, s state, next, back, accepted *states) {
	t := &r.Target
	switch t.Kind {
	case ruleset.Continue:
		next.add(s)
	case ruleset.Accept:
		s.by = w.describe(c, r)
		accepted.add(s)
	case ruleset.Drop:
		w.deny(s, w.describe(c, r))
	case ruleset.Return:
		back.add(s)
	case ruleset.Jump:
		for _, left := range w.chain(t.Chain, []state{s}, accepted) {
			next.add(left)
		}
	case ruleset.Goto:
		for _, left := range w.chain(t.Chain, []state{s}, accepted) {
			back.add(left)
		}
	case ruleset.SetMark:
		s.mark = s.mark.mix(t.Mask, bits{value: t.Value}, 0xffffffff)
		next.add(s)
	case ruleset.SetConnMark:
		// Without a connection the kernel's CONNMARK does nothing: so the next two.
		if s.tracking == tracked {
			s.connMark = s.connMark.mix(t.Mask, bits{value: t.Value}, 0xffffffff)
		}
		next.add(s)
	case ruleset.SaveMark:
		if s.tracking == tracked {
			s.connMark = s.connMark.mix(t.CTMask, s.mark, t.Mask)
		}
		next.add(s)
	case ruleset.RestoreMark:
		if s.tracking == tracked {
			s.mark = s.mark.mix(t.Mask, s.connMark, t.CTMask)
		}
		next.add(s)
	case ruleset.NoTrack:
		if s.tracking == before {
			s.tracking = untracked
		}
		next.add(s)
	case ruleset.NewDestination:
		w.unsure("DestinationRewritten: " + r.Raw)
	case ruleset.NewSource:
		if w.path.Onward {
			w.unsure("SourceRewritten: " + r.Raw)
			return
		}
		accepted.add(s)
	case ruleset.UnknownTarget:
		w.unsure(r.Raw)
	default:
		w.unsure(r.Raw)
	}
}

// describe names a deciding rule: its base chain, its chain and its comment,
// or its text if it has none.
func (w *walk) describe(c *ruleset.Chain, r *ruleset.Rule) string {
	name := w.inBase.name()
	if c != w.inBase.chain {
		name += " " + c.Name
	}
	if r.Comment != "" {
		return name + ": " + r.Target.Name + " (" + r.Comment + ")"
	}
	return name + ": " + r.Raw
}

// longest is how many bytes of kernel text leave the node.
const longest = 200

// Clean reduces text that may come from the kernel to printable ASCII and at
// most 200 bytes.
func Clean(text string) string {
	var b strings.Builder
	for i := 0; i < len(text) && b.Len() < longest; i++ {
		c := text[i]
		if c < ' ' || c > '~' {
			c = '?'
		}
		b.WriteByte(c)
	}
	return b.String()
}
