// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// asked is an expectation and the answer to it, a(llowed), d(enied) or
// i(nconclusive); in capitals if there is no route for it.
type asked struct {
	answer                                      string
	why                                         uint32
	denied, advisory, witness, external, ofIPv6 bool
}

// hold returns the content of the expectations and the answers.
func hold(t *testing.T, all []asked, whys int, excused []uint32) (*content, []Answer) {
	t.Helper()
	var expectations []*hubv1.Expectation
	var answers []Answer
	for i, of := range all {
		e := between(fmt.Sprintf("10.0.%d.%d", 1+i/200, 1+i%200), "10.0.0.9", flow.Allowed)
		if of.ofIPv6 {
			e = between(fmt.Sprintf("fd00::1:%d", i+1), "fd00::9", flow.Allowed)
		}
		if of.denied {
			e.Want = hubv1.AnswerOf(flow.Denied)
		}
		e.Why, e.Advisory, e.Witness, e.External = of.why, of.advisory, of.witness, of.external
		expectations = append(expectations, e)
		letters := map[string]flow.Answer{"a": flow.Allowed, "d": flow.Denied, "i": flow.Inconclusive, "D": flow.Denied, "A": flow.Allowed}
		answers = append(answers, Answer{
			Verdict: flow.Verdict{Answer: letters[of.answer]}, Routed: of.answer != "A" && of.answer != "D",
		})
	}
	c := contentOf(&hubv1.Assign{Excused: excused}, described(t, make([]string, whys), expectations...))
	if c.malformed != nil {
		t.Fatal(c.malformed.reason)
	}
	return &c, answers
}

func TestOutcome(t *testing.T) {
	for name, tc := range map[string]struct {
		all     []asked
		excused []uint32
		without [families]bool
		// required and advisory are what is unmet.
		required, advisory int
		want               outcome
	}{
		"what holds is realized, and that is no news": {
			all: []asked{{answer: "a"}, {answer: "d", denied: true}}, want: outcome{explained: true},
		},
		"an Allowed that is denied is unrealized": {
			all: []asked{{answer: "d", why: 1}, {answer: "a"}}, required: 1,
			want: outcome{unrealized: []uint32{1}, explained: true},
		},
		"so is one that is advisory": {
			all: []asked{{answer: "d", why: 1, advisory: true}}, advisory: 1,
			want: outcome{unrealized: []uint32{1}, explained: true},
		},
		"one that holds speaks for its why": {
			all: []asked{{answer: "d", why: 1}, {answer: "a", why: 1}}, required: 1,
			want: outcome{},
		},
		"an inconclusive answer is no evidence": {
			all: []asked{{answer: "i", why: 1}}, required: 1, want: outcome{},
		},
		"nor is a denied one beside it": {
			all: []asked{{answer: "i", why: 1}, {answer: "d", why: 1}}, required: 2, want: outcome{},
		},
		"a Denied says nothing of its why": {
			all: []asked{{answer: "d", why: 1, denied: true}, {answer: "a", why: 2}}, want: outcome{explained: true},
		},
		"a stranger that is let in explains nothing": {
			all: []asked{{answer: "a", denied: true}, {answer: "d", why: 1}}, required: 2,
			want: outcome{unrealized: []uint32{1}},
		},
		"nor does one of whom it is not clear": {
			all: []asked{{answer: "i", denied: true}, {answer: "d", why: 1}}, required: 2,
			want: outcome{unrealized: []uint32{1}},
		},
		"an external flow without a route is not asked": {
			all:  []asked{{answer: "D", why: 1, external: true}, {answer: "A", denied: true, external: true}},
			want: outcome{explained: true},
		},
		"one with a route is": {
			all: []asked{{answer: "d", why: 1, external: true}}, required: 1,
			want: outcome{unrealized: []uint32{1}, explained: true},
		},
		"a witness is not awaited": {
			all: []asked{{answer: "a", why: 1}, {answer: "d", why: 1, witness: true}}, want: outcome{explained: true},
		},
		"a witness that is denied counts for unrealized": {
			all: []asked{{answer: "d", why: 1, witness: true}}, want: outcome{unrealized: []uint32{1}, explained: true},
		},
		"a witness that is let through counts against it": {
			all: []asked{{answer: "d", why: 1}, {answer: "a", why: 1, witness: true}}, required: 1, want: outcome{},
		},
		"a witness of which it is not clear, too": {
			all: []asked{{answer: "d", why: 1}, {answer: "i", why: 1, witness: true}}, required: 1, want: outcome{},
		},
		"an advisory witness is not awaited either": {
			all: []asked{{answer: "d", why: 1, witness: true, advisory: true}}, want: outcome{unrealized: []uint32{1}, explained: true},
		},
		"an excused why is not awaited, and still unrealized": {
			all: []asked{{answer: "d", why: 1}, {answer: "d", why: 1, advisory: true}}, excused: []uint32{1},
			want: outcome{unrealized: []uint32{1}, explained: true},
		},
		"an excused why of which it is not clear explains itself": {
			all: []asked{{answer: "i", why: 1}, {answer: "d", why: 2}}, excused: []uint32{1}, required: 1,
			want: outcome{unrealized: []uint32{2}, explained: true},
		},
		"an excused why that holds after all is realized": {
			all: []asked{{answer: "a", why: 1}, {answer: "d", why: 1}, {answer: "d", denied: true}}, excused: []uint32{1},
			want: outcome{realized: []uint32{1}, explained: true},
		},
		"one of which a witness holds, too": {
			all: []asked{{answer: "d", why: 1}, {answer: "a", why: 1, witness: true}}, excused: []uint32{1},
			want: outcome{realized: []uint32{1}, explained: true},
		},
		"not while a stranger is let in": {
			all: []asked{{answer: "a", why: 1}, {answer: "a", denied: true}}, excused: []uint32{1}, required: 1,
			want: outcome{},
		},
		"not while it is not clear whether a stranger is": {
			all: []asked{{answer: "a", why: 1}, {answer: "i", denied: true}}, excused: []uint32{1}, required: 1,
			want: outcome{},
		},
		"a Denied is never excused": {
			all: []asked{{answer: "a", why: 1, denied: true}}, excused: []uint32{1}, required: 1, want: outcome{},
		},
		"a family that is left out does not count": {
			all: []asked{
				{answer: "d", why: 1, ofIPv6: true}, {answer: "i", why: 2, ofIPv6: true}, {answer: "a", why: 3, ofIPv6: true},
				{answer: "a", denied: true, ofIPv6: true}, {answer: "d", denied: true}, {answer: "d", why: 3},
			},
			excused: []uint32{3}, without: [families]bool{ipv6: true},
			want: outcome{unrealized: []uint32{3}, explained: true},
		},
		"both families count together": {
			all:      []asked{{answer: "d", why: 1}, {answer: "a", why: 1, ofIPv6: true}, {answer: "d", why: 2}, {answer: "d", why: 2, ofIPv6: true}},
			required: 3, want: outcome{unrealized: []uint32{2}},
		},
		"nothing was asked": {want: outcome{explained: true}},
	} {
		t.Run(name, func(t *testing.T) {
			c, answers := hold(t, tc.all, 4, tc.excused)
			got := c.find(answers).result(c, tc.without)
			if diff := cmp.Diff(tc.want, got.outcome, cmp.AllowUnexported(outcome{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
			if got.required != tc.required || got.advisory != tc.advisory {
				t.Errorf("%d required and %d advisory are unmet, want %d and %d", got.required, got.advisory, tc.required, tc.advisory)
			}
		})
	}
}

func TestAnOutcomeWithoutWhysExplainsNothing(t *testing.T) {
	c, answers := hold(t, []asked{{answer: "d"}}, 0, nil)
	if got := c.find(answers).result(c, [families]bool{}).outcome; got.tells() || got.explained {
		t.Errorf("outcome %+v of an Allowed without a why", got)
	}
}

func TestAtMostSixtyFourWhysAreNamed(t *testing.T) {
	var all []asked
	var excused []uint32
	for i := range uint32(2 * maxWhys) {
		all = append(all, asked{answer: "d", why: i}, asked{answer: "a", why: 2*maxWhys + i})
		excused = append(excused, 2*maxWhys+i)
	}
	all = append(all, asked{answer: "d", why: 4 * maxWhys})
	c, answers := hold(t, all, 4*maxWhys+1, excused)
	got := c.find(answers).result(c, [families]bool{}).outcome
	if len(got.unrealized) != maxWhys || got.unrealized[maxWhys-1] != maxWhys-1 || len(got.realized) != maxWhys || got.realized[0] != 2*maxWhys {
		t.Errorf("outcome %+v, want the first %d of each", got, maxWhys)
	}
	if !got.explained {
		t.Error("not explained by whys that are not named")
	}
}

// Leaving out one family must leave something that is awaited in the other.
func TestWhatIsNotAwaitedIsNotWhatIsLeftOfASubject(t *testing.T) {
	for name, left := range map[string]asked{
		"a witness":      {answer: "a", why: 1, witness: true},
		"an excused one": {answer: "a"},
	} {
		t.Run(name, func(t *testing.T) {
			c, answers := hold(t, []asked{left, {answer: "a", denied: true, ofIPv6: true}}, 2, []uint32{0})
			got := c.find(answers).result(c, [families]bool{ipv6: true})
			if got.without[ipv6] || got.required != 1 {
				t.Errorf("result %+v, want that v6 is not left out", got)
			}
		})
	}
}

// ruled is an assignment with a stranger and one Allowed of a rule.
func ruled(change func(*assigned)) *assigned {
	a := assign("u", 1)
	a.Whys = []string{"jobs isolates", "jobs/rule ingress[0]"}
	a.Expectations[0].Why = 1
	change(a)
	return a
}

func TestSteady(t *testing.T) {
	// step is a second with what the engine does meanwhile.
	type step struct {
		client, stranger flow.Answer
		rewrites         uint64
		failed           bool
		want             bool
	}
	const allowed, denied, unclear = flow.Allowed, flow.Denied, flow.Inconclusive
	for name, steps := range map[string][]step{
		"two rewrites since the first look": {
			{denied, denied, 5, false, false}, {denied, denied, 6, false, false}, {denied, denied, 7, false, true},
		},
		"rewrites before the first look are none": {
			{denied, denied, 5, false, false}, {denied, denied, 5, false, false},
		},
		"a stranger that is let in ends it": {
			{denied, denied, 5, false, false}, {denied, denied, 6, false, false}, {denied, denied, 7, false, true},
			{denied, allowed, 7, false, false}, {denied, denied, 7, false, true},
		},
		"a stranger of which it is not clear prevents it": {
			{denied, unclear, 5, false, false}, {denied, unclear, 6, false, false}, {denied, unclear, 7, false, false},
		},
		"an answer that is not clear explains nothing": {
			{unclear, denied, 5, false, false}, {unclear, denied, 6, false, false}, {unclear, denied, 7, false, false},
		},
		"a look that fails ends it": {
			{denied, denied, 5, false, false}, {denied, denied, 6, false, false}, {denied, denied, 7, false, true},
			{denied, denied, 7, true, false}, {denied, denied, 7, false, true},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, out := &dataplane{}, &outbox{}
				c := newConfirmer(d, out)
				must(t, give(c, replicaA, ruled(func(*assigned) {})))
				for i, s := range steps {
					d.set(func(d *dataplane) {
						d.verdicts, d.rewrites, d.err = map[flow.Flow]flow.Answer{client: s.client, stranger: s.stranger}, s.rewrites, nil
						if s.failed {
							d.err = errors.New("busy")
						}
					})
					// Each is looked at twice; what is lacking is not asked
					// alone, as a second has passed.
					for range 2 {
						pass(2 * time.Second)
						c.look(t.Context())
					}
					if all := out.taken(); len(all) > 0 || i == 0 {
						if got := all[len(all)-1].Report.GetSteady(); got != s.want {
							t.Errorf("steady after step %d: %v, want %v", i, got, s.want)
						}
					} else if c.subjects["u"].assignments[0].evaluation.answer.steady != s.want {
						t.Errorf("steady after step %d is not %v, and nothing was reported", i, s.want)
					}
				}
			})
		})
	}
}

func TestAnUnmetAdvisoryOneIsToldAsUnrealized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: map[flow.Flow]flow.Answer{client: flow.Denied, stranger: flow.Denied}}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, ruled(func(a *assigned) { a.Expectations[0].Advisory = true })))
		pass(rest - time.Second)
		report := &hubv1.Report{
			Uid: "u", Generation: 1, UnmetAdvisory: 1, Unrealized: []uint32{1},
			Unmet: []*hubv1.Unmet{{Reason: "denied (rule)"}},
		}
		expect(t, out, sent{replicaA, report})
		pass(2 * time.Second)
		report.Confirmed = true
		expect(t, out, sent{replicaA, report})
		// It is told when that turns out to be wrong.
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(2 * time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}

func TestAnExcusedRuleIsNotAwaitedAndItsComingIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: map[flow.Flow]flow.Answer{client: flow.Denied, stranger: flow.Denied}}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, ruled(func(a *assigned) { a.Excused = []uint32{0, 1} })))
		pass(secondLook + time.Millisecond)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true, Unrealized: []uint32{1}}})
		if holds, reason := c.Holds(t.Context(), "u"); !holds {
			t.Errorf("does not hold: %s", reason)
		}
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(2 * time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true, Realized: []uint32{1}}})
		// It never retracts, a stranger does.
		d.set(func(d *dataplane) { d.verdicts[client] = flow.Inconclusive })
		pass(2 * time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(time.Second)
		if holds, reason := c.Holds(t.Context(), "u"); holds || reason != "allowed (rule)" {
			t.Errorf("Holds = %v, %q, want that the stranger is let in", holds, reason)
		}
	})
}

func TestAWitnessNeverHoldsASubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		older := tcp("10.0.0.3", "10.0.0.9")
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		d.verdicts[older] = flow.Denied
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, ruled(func(a *assigned) {
			w := want(older, flow.Allowed)
			w.Witness, w.Why = true, 1
			a.Expectations = append(a.Expectations, w)
		})))
		pass(2 * secondLook)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}

// Reports on what is learned do not come more often than others.
func TestWhatIsRealizedByTurnsIsToldOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, ruled(func(a *assigned) { a.Excused = []uint32{1} })))
		for i := range 100 {
			d.set(func(d *dataplane) { d.verdicts[client] = flow.Allowed + flow.Answer(i%2) })
			pass(shortest)
		}
		if n := len(out.taken()); n < 5 || n > 11 {
			t.Errorf("%d reports in 10 s, want about 10 at most", n)
		}
	})
}

// Steadiness of a subject of which nothing can be learned is no news.
func TestNothingIsToldWhenAllHoldsAndTheEngineGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, ruled(func(*assigned) {})))
		for range 10 {
			d.set(func(d *dataplane) { d.rewrites++ })
			pass(time.Second)
		}
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}
