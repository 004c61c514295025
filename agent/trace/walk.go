// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// budget bounds the visits of one verdict: a rule seen in one state is a
// visit. Large clusters have some hundred rules on a path (319 of 3,149 at
// 110 pods and 100 policies), so this is only met by what is not a ruleset.
const budget = 100_000

// remembered is after how many jumps a walk begins to remember what becomes of
// a state in a chain. Before, it costs more than it spares: engines' rules
// take some twenty.
const remembered = 200

// depth bounds nested jumps. nf_tables allows 16 and xtables as many as there
// are chains; engines use fewer than ten. Neither loads jumps without end.
const depth = 64

// walk is one evaluation.
type walk struct {
	path Path
	flow flow.Flow
	sets Membership

	// at is the hook being walked, and what it sees of the packet.
	at      ruleset.Hook
	in, out device
	header  ruleset.Header
	// inBase is the base chain being walked and depth how many chains.
	inBase *base
	depth  int
	// visits and calls count rules and jumps.
	visits, calls int
	// why says what made the last match Unknown, "" if its text does.
	why string
	// bytes and unknown hold the last value that was put together.
	bytes, unknown []byte
	memo           map[entry]*outcome
	// connections: a rule was met that makes the kernel track connections.
	connections bool
	// asked are the latest of the questions that sets were asked at this hook.
	asked     [4]question
	questions int
	// record takes the steps; nil if nobody wants them.
	record *record

	// The fates that ended the walk of some state. denied is where it was
	// refused first, without a base if nowhere; deniedCause why that is only
	// a possibility, if no refusal was certain; refusals how many there were;
	// lost the first thing after which nothing is known; exhausted whether
	// that was the budget's end.
	denied      place
	deniedCause *cause
	refusals    int
	lost        string
	exhausted   bool

	// arena is where short lists of states are, from top on free.
	arena [32]state
	top   int
	// room is for the base chains of common nodes.
	room [12]base
}

// over reports whether the verdict cannot change any more.
func (w *walk) over() bool { return w.exhausted || (w.lost != "" && w.record == nil) }

func (w *walk) run(tables []ruleset.Table) flow.Verdict {
	w.link(tables)
	if w.path.Unseen != "" {
		return w.verdict(nil)
	}
	return w.verdict(w.through(w.meet(tables, w.path.hooks())))
}

func (w *walk) deny(at place, c *cause) {
	w.refusals++
	if w.denied.base == nil || (w.deniedCause != nil && c == nil) {
		w.denied, w.deniedCause = at, c
	}
}

// unsure notes that nobody knows what becomes of the packet from here on.
func (w *walk) unsure(at place, what string) {
	w.note(at, &cause{why: what}, "may meet any fate")
	if w.lost == "" {
		w.lost = what
	}
}

// verdict joins the fates with the states that passed everything.
func (w *walk) verdict(passed []state) flow.Verdict {
	answer, reason := flow.Inconclusive, ""
	switch {
	case w.lost != "":
		reason = w.lost
	case w.denied.base != nil && len(passed) > 0:
		reason = w.deniedCause.text()
		for i := 0; reason == "" && i < len(passed); i++ {
			reason = passed[i].cause.text()
		}
		if reason == "" {
			reason = "the order of base chains that have one priority"
		}
	case w.denied.base != nil:
		answer, reason = flow.Denied, w.denied.name()
	case w.path.Way == 0:
		reason = "the packet's way through the node is not known"
	case w.path.Unseen != "":
		answer, reason = flow.Allowed, w.path.Unseen
	case len(passed) > 0:
		answer, reason = flow.Allowed, "no rule refuses it"
		for i := range passed {
			if passed[i].by.base != nil {
				reason = passed[i].by.name()
				break
			}
		}
	}
	return flow.Verdict{Answer: answer, Reason: Clean(reason)}
}

// list returns an empty list. It is free again when w.top is set back.
func (w *walk) list() states {
	const size = 2
	if w.top+size > len(w.arena) {
		return states{}
	}
	w.top += size
	return states{list: w.arena[w.top-size : w.top-size : w.top]}
}

// base walks a base chain and adds the states that leave it alive to out.
func (w *walk) base(b *base, in []state, out *states) {
	w.inBase = b
	clear(w.memo)
	at := place{base: b, chain: b.chain}
	w.header = ruleset.NewHeader(w.flow.Src, w.flow.Dst, uint8(w.flow.Protocol), w.flow.Port)
	top := w.top
	enter, back := w.list(), w.list()
	var untouched []state
	for _, s := range in {
		// Nat chains see tracked connections only, and none that another has
		// given a new source.
		if b.chain.Base.NAT && (s.tracking != tracked || s.resourced) {
			w.note(at, s.cause, "is passed by, for its connection is not tracked or has its source already")
			out.add(s)
			continue
		}
		if s.resourced {
			w.header = w.header.AnySource()
		}
		enter.add(s)
		if b.chain.Base.NAT && !w.connections {
			untouched = append(untouched, s)
		}
	}
	if b.priority == conntrackPriority {
		w.lookUp(b, &enter)
	}
	if len(enter.list) > 0 {
		w.chain(b.chain, enter.list, &back, out)
	}
	for _, s := range back.list {
		if b.chain.Base.Drop {
			w.note(at, s.cause, "policy drops")
			w.deny(at, s.cause)
			continue
		}
		w.note(at, s.cause, "policy accepts")
		out.add(s)
	}
	if !w.connections {
		for _, s := range untouched {
			s.because(&cause{at: at, why: b.name() + " sees tracked connections only, and no rule shows that there are any"})
			out.add(s)
		}
	}
	w.top = top
}

// chain walks the states through a chain. It adds those that come back from
// it, at its end or by RETURN, to back and the accepted ones to accepted.
func (w *walk) chain(c *ruleset.Chain, in []state, back, accepted *states) {
	at := place{base: w.inBase, chain: c}
	if w.depth >= depth {
		w.unsure(at, fmt.Sprintf("%s: more than %d nested jumps", w.inBase.name(), depth))
		return
	}
	if c.Opaque != "" {
		w.unsure(at, at.chainName()+": "+c.Opaque)
		return
	}
	listing, err := c.Listing()
	if err != nil {
		w.unsure(at, at.chainName()+": "+err.Error())
		return
	}
	w.depth++
	top := w.top
	one, two := w.list(), w.list()
	next, other := &one, &two
	current, seen := in, 0
	for len(current) > 0 {
		i := listing.Next(&w.header, seen)
		w.visits += (min(i+1, len(listing.Rules)) - seen) * len(current)
		if i == len(listing.Rules) {
			break
		}
		at.rule = &listing.Rules[i]
		if w.visits > budget {
			w.exhausted = true
			w.unsure(at, fmt.Sprintf("more than %d rules visited, at %s", budget, at.text()))
		}
		if w.over() {
			break
		}
		if left, changed := w.rule(at, current, next, back, accepted); changed {
			current, next, other = left, other, next
		}
		seen = i + 1
	}
	for _, s := range current {
		back.add(s)
	}
	w.top = top
	w.depth--
}

// rule shows a rule to the states. If it matches none of them nothing has
// changed. Else it returns those that go on with the next rule.
func (w *walk) rule(at place, current []state, next, back, accepted *states) (left []state, changed bool) {
	w.connections = w.connections || tracks(at.rule)
	for i := range current {
		s := current[i]
		hit := w.matches(at.rule, &s)
		if w.record != nil && hit != Unknown {
			w.nearly(at, &s, hit)
		}
		if hit == No {
			if changed {
				next.add(s)
			}
			continue
		}
		if !changed {
			changed = true
			next.list = append(next.list[:0], current[:i]...)
		}
		if hit == Yes {
			w.apply(at, &at.rule.Target, s, next, back, accepted)
		} else {
			undecided := &cause{at: at, why: w.why}
			w.fork(at, &at.rule.Target, s, undecided, next, back, accepted)
		}
		if w.over() {
			return nil, true
		}
	}
	return next.list, changed
}

// fork goes both ways, through the target and past it. Where they meet again
// at once, as after a rule that only logs, nothing was left undecided.
func (w *walk) fork(at place, t *ruleset.Target, s state, undecided *cause, next, back, accepted *states) {
	missed, matched := s, s
	matched.because(undecided)
	fates, others := w.refusals+back.adds+accepted.adds, len(next.list)
	w.apply(at, t, matched, next, back, accepted)
	meet := fates == w.refusals+back.adds+accepted.adds
	for i := others; i < len(next.list); i++ {
		meet = meet && next.list[i].traits == s.traits
	}
	if others > 0 && t.Kind != ruleset.Continue {
		// It may have met another state.
		meet = false
	}
	if !meet {
		missed.because(undecided)
	}
	next.add(missed)
}

// apply does what a rule does to a state that it matches.
func (w *walk) apply(at place, t *ruleset.Target, s state, next, back, accepted *states) {
	if w.record != nil && t.Kind != ruleset.Decide {
		w.note(at, s.cause, effect(t))
	}
	switch t.Kind {
	case ruleset.Continue:
		next.add(s)
	case ruleset.Accept:
		s.by = at
		accepted.add(s)
	case ruleset.Drop:
		w.deny(at, s.cause)
	case ruleset.Return:
		back.add(s)
	case ruleset.Jump:
		w.call(at, t.Chain, s, next, accepted)
	case ruleset.Goto:
		w.call(at, t.Chain, s, back, accepted)
	case ruleset.SetMark, ruleset.SetConnMark, ruleset.SaveMark, ruleset.RestoreMark:
		s.write(t)
		next.add(s)
	case ruleset.NoTrack:
		if s.tracking == before {
			s.tracking = untracked
		}
		next.add(s)
	case ruleset.Decide:
		w.decide(at, t, s, next, back, accepted)
	case ruleset.NewDestination:
		w.unsure(at, flow.DestinationRewritten+": "+at.text())
	case ruleset.NewSource:
		if w.path.Onward {
			w.unsure(at, flow.SourceRewritten+": "+at.text())
			return
		}
		s.resourced = true
		accepted.add(s)
	case ruleset.UnknownTarget:
		w.unsure(at, at.text())
	default:
		w.unsure(at, at.text())
	}
}

// write changes the state's marks. Without a connection the kernel's CONNMARK
// and ct mark do nothing.
func (s *state) write(t *ruleset.Target) {
	switch {
	case t.Kind == ruleset.SetMark:
		s.mark = s.mark.mix(t.Mask, bits{value: t.Value}, 0xffffffff)
	case s.tracking != tracked:
	case t.Kind == ruleset.SetConnMark:
		s.connMark = s.connMark.mix(t.Mask, bits{value: t.Value}, 0xffffffff)
	case t.Kind == ruleset.SaveMark:
		s.connMark = s.connMark.mix(t.CTMask, s.mark, t.Mask)
	case t.Kind == ruleset.RestoreMark:
		s.mark = s.mark.mix(t.Mask, s.connMark, t.CTMask)
	}
}

// decide does what the map says.
func (w *walk) decide(at place, t *ruleset.Target, s state, next, back, accepted *states) {
	found, how := w.element(t.Map, t.Key, &s)
	switch {
	case how == broken, how == told && !found.In:
		// The kernel goes on with the next rule (NFT_BREAK).
		w.note(at, s.cause, "finds nothing in map ", t.Map.Name)
		next.add(s)
		return
	case how == untold:
		w.unsure(at, w.why+": "+at.text())
		return
	}
	verdict := &found.Verdict
	w.note(at, s.cause, "looks into map ", t.Map.Name)
	switch {
	case verdict.Kind == ruleset.Decide:
		w.unsure(at, "map "+t.Map.Name+" holds what is no verdict: "+at.text())
	case found.Unknown != "":
		w.fork(at, verdict, s, &cause{at: at, why: found.Unknown}, next, back, accepted)
	default:
		w.apply(at, verdict, s, next, back, accepted)
	}
}

// entry is a state that enters a chain.
type entry struct {
	chain *ruleset.Chain
	traits
}

// outcome is what becomes of it. Causes are those that arose in the chain.
type outcome struct {
	back, accepted states
	denied         place
	deniedCause    *cause
}

// call walks one state through another chain: what comes back from it is
// added to the given states.
func (w *walk) call(at place, c *ruleset.Chain, s state, to, accepted *states) {
	if c == nil {
		w.unsure(at, at.text())
		return
	}
	if w.calls++; w.calls < remembered || w.record != nil {
		top := w.top
		one, back := w.list(), w.list()
		one.add(s)
		w.chain(c, one.list, &back, accepted)
		for _, left := range back.list {
			to.add(left)
		}
		w.top = top
		return
	}
	o := w.recall(entry{c, s.traits})
	add := func(to *states, left state) {
		if s.cause != nil {
			left.cause = s.cause
		}
		if left.by.base == nil {
			left.by = s.by
		}
		to.add(left)
	}
	for _, left := range o.back.list {
		add(to, left)
	}
	for _, left := range o.accepted.list {
		add(accepted, left)
	}
	if o.denied.base != nil {
		c := o.deniedCause
		if s.cause != nil {
			c = s.cause
		}
		w.deny(o.denied, c)
	}
}

// recall returns what becomes of a state in a chain, walking it once for each
// base chain. Match and target depend on nothing else that changes within it.
func (w *walk) recall(e entry) *outcome {
	if o := w.memo[e]; o != nil {
		return o
	}
	o := &outcome{}
	denied, deniedCause := w.denied, w.deniedCause
	w.denied, w.deniedCause = place{}, nil
	w.chain(e.chain, []state{{traits: e.traits}}, &o.back, &o.accepted)
	o.denied, o.deniedCause = w.denied, w.deniedCause
	w.denied, w.deniedCause = denied, deniedCause
	if w.memo == nil {
		w.memo = map[entry]*outcome{}
	}
	w.memo[e] = o
	return o
}

// longest is how many bytes of kernel text leave the node.
const longest = 200

// Clean reduces text that may come from the kernel to printable ASCII and at
// most 200 bytes.
func Clean(text string) string { return printable(text, longest) }

func printable(text string, most int) string {
	if len(text) > most {
		text = text[:most]
	}
	for i := range len(text) {
		if text[i] < ' ' || text[i] > '~' {
			return replaced(text)
		}
	}
	return text
}

func replaced(text string) string {
	clean := []byte(text)
	for i, c := range clean {
		if c < ' ' || c > '~' {
			clean[i] = '?'
		}
	}
	return string(clean)
}
