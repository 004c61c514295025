// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// sets is a kernel in which every element is in every set, or none is.
type sets struct {
	none  bool
	tests int
}

func (s *sets) Ask(uint16, uint16, []byte, func([]byte) error) error {
	s.tests++
	if s.none {
		// IPSET_ERR_EXIST: not in the set.
		return unix.Errno(4103)
	}
	return nil
}

// remembers returns a memory that has one verdict, and what may change: the
// answers of sets, and the element of a native set.
func remembers(verdict flow.Answer) (m *memory, q Question, paths []trace.Path, kernel *sets, native *ruleset.Element, r *reading) {
	kernel, native = &sets{}, &ruleset.Element{In: true}
	fresh := newMemory()
	m = &fresh
	q = Question{Flow: flow.Flow{Port: 80}}
	paths = []trace.Path{{Way: trace.Forwarded, In: "a", Out: "b"}}
	r = &reading{number: 1, sets: ipset.New(kernel)}
	w := m.witness(r)
	w.note(ipset.Question{Set: "s", Element: "e"}, ipset.Answer{In: trace.Yes})
	w.note(ipset.Question{Set: "s", Element: "e"}, ipset.Answer{In: trace.Yes})
	set := &ruleset.NativeSet{Volatile: true, Get: func([]byte) (ruleset.Element, error) {
		if native.Unknown == "error" {
			return ruleset.Element{}, errors.New("refused")
		}
		return *native, nil
	}}
	if _, err := w.Element(set, []byte("key")); err != nil {
		panic(err)
	}
	m.remember(q, paths, flow.Verdict{Answer: verdict, Reason: "rule"}, w)
	return m, q, paths, kernel, native, r
}

func TestAVerdictStandsWhileAllThatItRestsOnDoes(t *testing.T) {
	for name, c := range map[string]struct {
		verdict flow.Answer
		change  func(m *memory, paths []trace.Path, kernel *sets, native *ruleset.Element)
		stands  bool
	}{
		"nothing changed":                    {flow.Denied, func(*memory, []trace.Path, *sets, *ruleset.Element) {}, true},
		"an Inconclusive one is never kept":  {flow.Inconclusive, func(*memory, []trace.Path, *sets, *ruleset.Element) {}, false},
		"the rules changed":                  {flow.Denied, func(m *memory, _ []trace.Path, _ *sets, _ *ruleset.Element) { m.forget() }, false},
		"the path changed":                   {flow.Denied, func(_ *memory, p []trace.Path, _ *sets, _ *ruleset.Element) { p[0].Out = "c" }, false},
		"a set changed":                      {flow.Denied, func(_ *memory, _ []trace.Path, s *sets, _ *ruleset.Element) { s.none = true }, false},
		"an element timed out":               {flow.Denied, func(_ *memory, _ []trace.Path, _ *sets, e *ruleset.Element) { e.In = false }, false},
		"an element has another verdict":     {flow.Denied, func(_ *memory, _ []trace.Path, _ *sets, e *ruleset.Element) { e.Verdict.Kind = ruleset.Drop }, false},
		"an element cannot be had this time": {flow.Denied, func(_ *memory, _ []trace.Path, _ *sets, e *ruleset.Element) { e.Unknown = "error" }, false},
	} {
		t.Run(name, func(t *testing.T) {
			m, q, paths, kernel, native, _ := remembers(c.verdict)
			other := []trace.Path{paths[0]}
			c.change(m, other, kernel, native)
			v, ok := m.recall(&reading{number: 2, sets: ipset.New(kernel)}, q, other)
			if ok != c.stands {
				t.Errorf("stands: %v, want %v", ok, c.stands)
			}
			if ok && v.Answer != c.verdict {
				t.Errorf("got %s, want %s", v, c.verdict)
			}
			if _, ok := m.recall(&reading{number: 3, sets: ipset.New(&sets{})}, Question{Flow: q.Flow, External: true}, paths); ok {
				t.Error("a verdict stands for a question that was not asked")
			}
		})
	}
}

func TestASetIsAskedOnceForAMoment(t *testing.T) {
	m, q, paths, kernel, _, first := remembers(flow.Allowed)
	recall := func(r *reading) {
		t.Helper()
		if _, ok := m.recall(r, q, paths); !ok {
			t.Fatal("the verdict does not stand")
		}
	}
	recall(first)
	if kernel.tests != 0 {
		t.Errorf("%d tests for the moment that the walk was of, want none", kernel.tests)
	}
	second := &reading{number: 2, sets: ipset.New(kernel)}
	recall(second)
	recall(second)
	if kernel.tests != 1 {
		t.Errorf("%d tests for the next, want 1", kernel.tests)
	}
}

func TestWhatIsAskedForNowMakesRoomForItself(t *testing.T) {
	m := newMemory()
	r := &reading{number: 1, sets: ipset.New(&sets{})}
	ask := func(from, to int) {
		for i := range to - from {
			q := Question{Flow: flow.Flow{Port: uint16(from + i)}}
			m.remember(q, nil, flow.Verdict{Answer: flow.Allowed}, m.witness(r))
		}
	}
	m.nextLook()
	ask(0, mostRemembered)
	ask(mostRemembered, mostRemembered+10)
	if len(m.verdicts) != mostRemembered || m.verdicts[Question{Flow: flow.Flow{Port: mostRemembered}}] != nil {
		t.Errorf("%d verdicts are remembered, want the first %d of a look", len(m.verdicts), mostRemembered)
	}
	m.nextLook()
	ask(mostRemembered, mostRemembered+10)
	for i := range 10 {
		if m.verdicts[Question{Flow: flow.Flow{Port: uint16(mostRemembered + i)}}] == nil {
			t.Errorf("number %d of the next look is not remembered", i)
		}
	}
	if len(m.verdicts) != mostRemembered {
		t.Errorf("%d verdicts are remembered, want %d", len(m.verdicts), mostRemembered)
	}
}

func TestWhatNobodyAsksForIsForgotten(t *testing.T) {
	m, q, paths, kernel, _, _ := remembers(flow.Allowed)
	look := func(count int) {
		for range count {
			m.nextLook()
		}
	}
	look(forgotten)
	if _, ok := m.recall(&reading{number: 2, sets: ipset.New(kernel)}, q, paths); !ok {
		t.Fatal("forgotten too early")
	}
	look(forgotten + tidyEvery)
	if len(m.verdicts) != 0 {
		t.Errorf("%d verdicts are left", len(m.verdicts))
	}
	look(tidyEvery)
	if len(m.facts) != 0 {
		t.Errorf("%d facts are left", len(m.facts))
	}
	w := m.witness(&reading{sets: ipset.New(kernel)})
	for i := range mostRemembered + 1 {
		f := q
		f.Flow.Port = uint16(i)
		m.remember(f, paths, flow.Verdict{Answer: flow.Denied}, w)
	}
	if len(m.verdicts) != mostRemembered {
		t.Errorf("%d verdicts are remembered, want %d at most", len(m.verdicts), mostRemembered)
	}
}
