// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"cmp"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// Speller is a Membership for a walk that is explained.
type Speller interface {
	Membership
	// Spell returns the element of an ipset that Member asks for, in the form
	// in which a person would add it, and the set to which: the one that is
	// asked or, of a list of sets, one of its members. The element is "" if
	// the set cannot hold the packet, such as one of another family.
	Spell(set string, dims []ruleset.Direction, p Packet) (in, element string)
}

// NearMiss is a rule that the packet came to and that would have matched if one
// set had held one element more, or one less. All other conditions matched, or
// may have. Or it is one that matched and would not have. Texts are printable
// ASCII.
type NearMiss struct {
	Hook ruleset.Hook
	// Base names the base chain and Chain the chain within it, as for a Step.
	Base, Chain string
	// Rule is the rule as text.
	Rule string
	// Matched: the rule did match.
	Matched bool
	// Set is the set's name. One of nf_tables that has none is called by what
	// it is asked for, such as "ip saddr {...}".
	Set string
	// Element is in the form in which a person would add it: "10.1.2.3",
	// "10.1.2.3,tcp:80", or in nf_tables "10.1.2.3 . 80".
	Element string
	// Held: the set holds the element, and would have to hold it no more.
	Held bool
	// Effect says what the rule does where it matches, such as "accepts".
	Effect string
	// Otherwise is what the verdict would be if the set held the element, or
	// held it no more.
	Otherwise flow.Answer
}

const (
	// mostMisses bounds what is noted on one walk.
	mostMisses = 1_000
	// mostAgain bounds the visits of the walks that tell what would be
	// otherwise. It is enough for each of some hundred near misses among 3,000
	// rules.
	mostAgain = 5 * budget
)

// miss is a near miss as the walk met it.
type miss struct {
	NearMiss
	rule *ruleset.Rule
	// target is the first that the rule has.
	target *ruleset.Target
	// in is the ipset that lacks the element, or holds it; else there are the
	// set of nf_tables and the key.
	in     string
	native *ruleset.NativeSet
	key    string
	// unnamed: the set is part of the rule, and nobody adds anything to it.
	unnamed bool
}

// class is 1 for a near miss that names nothing that a person can change.
func (m *miss) class() int {
	if m.unnamed {
		return 1
	}
	return 0
}

// nearly notes a rule if one set alone keeps it from matching, or if it does
// match and any set alone could keep it from doing so.
func (w *walk) nearly(at place, s *state, hit Ternary) {
	if w.record.muted || len(w.record.misses) >= mostMisses {
		return
	}
	switch hit {
	case Yes:
		if t, _ := whatItDoes(at); !admits(t.Kind) && !hinders(t.Kind) {
			return
		}
		for i := range at.rule.Matches {
			if one, _ := w.turned(at.rule.Matches[i], s, Yes); one.Element != "" {
				w.noteMiss(at, one)
			}
		}
	case No:
		var only miss
		for i := range at.rule.Matches {
			one, answer := w.turned(at.rule.Matches[i], s, No)
			switch {
			case answer != No:
			case one.Element == "", only.Element != "":
				return
			default:
				only = one
			}
		}
		w.noteMiss(at, only)
	case Unknown:
	}
}

// noteMiss notes that a rule would not do what it does if the set were other.
func (w *walk) noteMiss(at place, m miss) {
	for i := range w.record.misses {
		if old := &w.record.misses[i]; old.rule == at.rule && old.Set == m.Set && old.Element == m.Element && old.Matched == m.Matched {
			return
		}
	}
	m.Hook, m.Base, m.Chain = w.at, Clean(at.base.name()), Clean(at.chain.Name)
	m.rule, m.Rule = at.rule, printable(at.text(), longestRule)
	m.target, m.Effect = whatItDoes(at)
	w.record.misses = append(w.record.misses, m)
}

// turned returns what a condition says and, if that is the given answer, what
// has to be otherwise for it to say the opposite. There is no element if that
// cannot be, or if it is no question to a set.
func (w *walk) turned(m ruleset.Match, s *state, from Ternary) (miss, Ternary) {
	one, answer := miss{}, w.match(m, s)
	if answer != from {
		return one, answer
	}
	switch m := m.(type) {
	case ruleset.Set:
		one = w.turnedMember(&m, m.Not != (from == Yes))
	case ruleset.Lookup:
		one = w.turnedElement(&m, s, m.Not != (from == Yes))
	}
	one.Matched = from == Yes
	return one, answer
}

// turnedMember returns what an ipset, that holds the packet or does not, would
// have to hold, or not to hold.
func (w *walk) turnedMember(m *ruleset.Set, held bool) miss {
	in, element := w.record.speller.Spell(m.Name, m.Dims, w.packet())
	name := in
	if in != m.Name {
		name = in + " in list " + m.Name
	}
	return miss{NearMiss: NearMiss{Set: Clean(name), Element: Clean(element), Held: held}, in: in}
}

// turnedElement does the same for a set of nf_tables. Only those are of
// interest that are about the packet's ends: others, such as sets of states,
// are conditions that happen to be written so.
func (w *walk) turnedElement(m *ruleset.Lookup, s *state, held bool) miss {
	ends := func(b ruleset.Byte) bool {
		return b.Known && (b.Field == ruleset.SrcAddr || b.Field == ruleset.DstAddr || b.Field == ruleset.DstPort)
	}
	if m.Set.Verdicts || !slices.ContainsFunc(m.Key, ends) {
		return miss{}
	}
	if found, how := w.element(m.Set, m.Key, s); how != told || found.In != held {
		return miss{}
	}
	return miss{
		NearMiss: NearMiss{Set: Clean(m.SetName()), Element: Clean(ruleset.RenderElement(m.Key, w.bytes)), Held: held},
		native:   m.Set, key: string(w.bytes), unnamed: m.Set.Anonymous(),
	}
}

// whatItDoes returns the first target of a rule, and all of them in words: one
// of nf_tables that does several things leads to a chain of the same name that
// does them one by one.
func whatItDoes(at place) (*ruleset.Target, string) {
	t := &at.rule.Target
	if c := t.Chain; c == nil || c == at.chain || c.Name != at.chain.Name || len(c.Rules) == 0 {
		return t, Clean(effect(t))
	}
	var words []string
	for i := range t.Chain.Rules {
		step := &t.Chain.Rules[i]
		if len(step.Matches) > 0 {
			break
		}
		words = append(words, effect(&step.Target))
	}
	return &t.Chain.Rules[0].Target, Clean(strings.Join(words, ", "))
}

// nearMisses returns the near misses that a person wants to know of, given the
// verdict: those with which it would be the other one. If there are none, and
// the packet does not pass, they are those that would have accepted it or
// marked it for a later rule to do so, and those that refused it. The rules
// that asked most of the packet come first, which are those that were made for
// it.
func (w *walk) nearMisses(tables []ruleset.Table, verdict flow.Answer) []NearMiss {
	misses := slices.DeleteFunc(w.record.misses, func(m miss) bool { return !m.couldTurn(verdict) })
	slices.SortStableFunc(misses, func(a, b miss) int {
		return cmp.Or(cmp.Compare(a.class(), b.class()), cmp.Compare(len(b.rule.Matches), len(a.rule.Matches)))
	})
	var turning, others []NearMiss
	visits := 0
	for i := range misses {
		if visits > mostAgain {
			break
		}
		m := &misses[i]
		again := walk{path: w.path, flow: w.flow, sets: supposed{w.record.speller, m}}
		m.Otherwise = again.run(tables).Answer
		visits += again.visits
		switch {
		case m.Otherwise != verdict && m.Otherwise != flow.Inconclusive:
			turning = append(turning, m.NearMiss)
		case verdict != flow.Allowed && (m.Matched && m.target.Kind == ruleset.Drop || !m.Matched && admits(m.target.Kind)):
			others = append(others, m.NearMiss)
		}
	}
	if len(turning) > 0 {
		return turning
	}
	return others
}

// couldTurn reports whether there can be another verdict than this if the rule
// matches, or no longer does.
func (m *miss) couldTurn(verdict flow.Answer) bool {
	kind := m.target.Kind
	if m.Matched {
		return verdict != flow.Allowed && hinders(kind) || verdict != flow.Denied && admits(kind)
	}
	switch kind {
	case ruleset.Accept:
		return verdict != flow.Allowed
	case ruleset.Drop:
		return verdict != flow.Denied
	case ruleset.Return, ruleset.Jump, ruleset.Goto, ruleset.SetMark, ruleset.SetConnMark, ruleset.SaveMark, ruleset.RestoreMark,
		ruleset.NoTrack, ruleset.Decide:
		return true
	case ruleset.UnknownTarget, ruleset.Continue, ruleset.NewDestination, ruleset.NewSource:
	}
	return false
}

// admits reports whether a target accepts a packet, or is how an engine notes
// that a policy does.
func admits(kind ruleset.TargetKind) bool {
	return kind == ruleset.Accept || kind == ruleset.SetMark || kind == ruleset.SetConnMark
}

// hinders reports whether a target refuses a packet, or keeps it from what
// would accept it.
func hinders(kind ruleset.TargetKind) bool { return kind == ruleset.Drop || kind == ruleset.Return }

// supposed answers as if the element of a near miss were in its set, or were
// not.
type supposed struct {
	Speller
	miss *miss
}

// Member implements Membership.
func (s supposed) Member(set string, dims []ruleset.Direction, p Packet) (Ternary, string) {
	if s.miss.native == nil {
		if in, element := s.Spell(set, dims, p); in == s.miss.in && Clean(element) == s.miss.Element {
			return Of(!s.miss.Held), ""
		}
	}
	return s.Speller.Member(set, dims, p)
}

// Element implements Membership.
func (s supposed) Element(set *ruleset.NativeSet, key []byte) (ruleset.Element, error) {
	if n := s.miss.native; n != nil && n.Table == set.Table && n.Name == set.Name && s.miss.key == string(key) {
		return ruleset.Element{In: !s.miss.Held}, nil
	}
	return s.Speller.Element(set, key)
}
