// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"slices"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

const (
	// mostRemembered bounds the verdicts that are remembered: about one
	// kilobyte each, for a hundred subjects with eighty flows. Beyond it one
	// that this look has not asked for makes room, of so many that are looked
	// at; else the new one is found anew, which is slower and as right.
	mostRemembered = 8192
	mostWeighed    = 8
	// forgotten is after how many looks a verdict that nobody asked for is
	// dropped, and tidyEvery how often that is looked for. An audit asks for a
	// sample, so a look does not ask for everything.
	forgotten = 64
	tidyEvery = 16
)

// memory keeps verdicts with all that they rest on. It is emptied when the
// rules change. It is not safe for concurrent use.
type memory struct {
	verdicts map[Question]*remembered
	facts    map[ipset.Question]*fact
	// elements are what native sets have answered in this look, without those
	// that are volatile: Pods under one policy are asked about in its sets.
	elements map[keyed]ruleset.Element
	look     uint64
}

// keyed is a key in a native set.
type keyed struct {
	set *ruleset.NativeSet
	key string
}

func newMemory() memory {
	return memory{
		verdicts: map[Question]*remembered{}, facts: map[ipset.Question]*fact{}, elements: map[keyed]ruleset.Element{},
	}
}

// fact is a question to a set, shared by all verdicts that rest on it.
type fact struct {
	question ipset.Question
	// answer is of the reading of that number.
	answer  ipset.Answer
	reading uint64
}

// grounds are what a verdict rests on beside the rules and the path.
type grounds struct {
	facts   []ground
	lookups []lookup
}

// ground is a fact and the answer that the walk was given.
type ground struct {
	fact   *fact
	answer ipset.Answer
}

// lookup is a question to a native set whose elements come and go without a
// commit.
type lookup struct {
	set     *ruleset.NativeSet
	key     []byte
	element ruleset.Element
	err     string
}

// remembered is a verdict with what it rests on beside the rules.
type remembered struct {
	verdict flow.Verdict
	paths   []trace.Path
	grounds grounds
	// asked is the look in which somebody wanted to know last.
	asked uint64
}

// forget empties the memory: the rules are others.
func (m *memory) forget() {
	clear(m.verdicts)
	clear(m.facts)
	clear(m.elements)
}

// nextLook counts looks, and drops now and then what nobody asks for.
func (m *memory) nextLook() {
	m.look++
	clear(m.elements)
	if m.look%tidyEvery != 0 {
		return
	}
	clear(m.facts)
	for q, r := range m.verdicts {
		if r.asked+forgotten < m.look {
			delete(m.verdicts, q)
			continue
		}
		for _, g := range r.grounds.facts {
			m.facts[g.fact.question] = g.fact
		}
	}
}

// recall returns the verdict that stands, having asked again what it rests on.
func (m *memory) recall(r *reading, q Question, paths []trace.Path) (flow.Verdict, bool) {
	known := m.verdicts[q]
	if known == nil {
		return flow.Verdict{}, false
	}
	if !slices.Equal(known.paths, paths) || !known.grounds.stand(r) {
		delete(m.verdicts, q)
		return flow.Verdict{}, false
	}
	known.asked = m.look
	return known.verdict, true
}

// stand reports whether every question has the answer that it had.
func (g *grounds) stand(r *reading) bool {
	for i := range g.facts {
		f := g.facts[i].fact
		if f.reading != r.number {
			f.answer, f.reading = r.sets.Ask(f.question), r.number
		}
		if f.answer != g.facts[i].answer {
			return false
		}
	}
	for i := range g.lookups {
		l := &g.lookups[i]
		element, err := l.set.Get(l.key)
		if !same(element, l.element) || text(err) != l.err {
			return false
		}
	}
	return true
}

// remember keeps a verdict. An Inconclusive one is not worth it: what it was
// for want of may be had the next time.
func (m *memory) remember(q Question, paths []trace.Path, v flow.Verdict, w *witness) {
	if v.Answer == flow.Inconclusive || len(m.verdicts) >= mostRemembered && !m.makeRoom() {
		return
	}
	m.verdicts[q] = &remembered{
		verdict: v, paths: paths, asked: m.look,
		grounds: grounds{facts: slices.Clone(w.facts), lookups: slices.Clone(w.lookups)},
	}
}

// makeRoom drops a verdict that was not asked for in this look, if it comes upon
// one: what rests is asked for now and then only, and must not keep what is
// pending, which is asked for in each look, from being remembered.
func (m *memory) makeRoom() bool {
	weighed := 0
	for q, known := range m.verdicts {
		if known.asked < m.look {
			delete(m.verdicts, q)
			return true
		}
		if weighed++; weighed == mostWeighed {
			break
		}
	}
	return false
}

// witness answers a walk and takes down what was asked.
type witness struct {
	memory *memory
	number uint64
	sets   ipset.Noted
	grounds
}

var _ trace.Membership = (*witness)(nil)

// witness returns one that has seen nothing.
func (m *memory) witness(r *reading) *witness {
	w := &witness{memory: m, number: r.number}
	w.sets = r.sets.Noting(w.note)
	return w
}

// Member implements trace.Membership.
func (w *witness) Member(set string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	return w.sets.Member(set, dims, p)
}

// note takes down a question and its answer, once.
func (w *witness) note(q ipset.Question, a ipset.Answer) {
	f := w.memory.facts[q]
	if f == nil {
		f = &fact{question: q}
		w.memory.facts[q] = f
	}
	f.answer, f.reading = a, w.number
	for _, g := range w.facts {
		if g.fact == f {
			return
		}
	}
	w.facts = append(w.facts, ground{f, a})
}

// Element implements trace.Membership.
func (w *witness) Element(set *ruleset.NativeSet, key []byte) (ruleset.Element, error) {
	if !set.Volatile {
		return w.memory.element(set, key)
	}
	element, err := set.Get(key)
	w.lookups = append(w.lookups, lookup{set, slices.Clone(key), element, text(err)})
	return element, err
}

// element asks a native set that is not volatile, once in a look. That the
// answers of earlier batches stand is known by the rules, as for verdicts: the
// memory is emptied when they change.
func (m *memory) element(set *ruleset.NativeSet, key []byte) (ruleset.Element, error) {
	if known, ok := m.elements[keyed{set, string(key)}]; ok {
		return known, nil
	}
	element, err := set.Get(key)
	if err == nil {
		m.elements[keyed{set, string(key)}] = element
	}
	return element, err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// same reports whether two elements are. Chains are the same only if they were
// read together.
func same(a, b ruleset.Element) bool {
	x, y := a.Verdict, b.Verdict
	return a.In == b.In && a.Unknown == b.Unknown && x.Kind == y.Kind && x.Chain == y.Chain && x.Map == y.Map &&
		slices.Equal(x.Key, y.Key) && x.Value == y.Value && x.Mask == y.Mask && x.CTMask == y.CTMask && x.Name == y.Name
}
