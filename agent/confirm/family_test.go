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

// strangers has a letter for the answer to each stranger of IPv4, then of
// IPv6: a(llowed), d(enied) or i(nconclusive).
type strangers [families]string

func (s strangers) findings() findings {
	var all findings
	for f, answers := range s {
		for i, letter := range answers {
			answer := map[rune]flow.Answer{'a': flow.Allowed, 'd': flow.Denied, 'i': flow.Inconclusive}[letter]
			all[f].stranger(tcp(fmt.Sprintf("10.0.%d.%d", f, i+1), "10.0.0.9"), answer)
		}
	}
	return all
}

func TestEnforcement(t *testing.T) {
	const only4, only6, both = "v6 unenforced", "v4 unenforced", ""
	// second is a look at that many seconds after the first, on the subjects p
	// and q. A look that takes no part of a subject leaves its row alone.
	type second struct {
		at   int
		p, q strangers
		want string
	}
	open, shut, off := strangers{"d", "a"}, strangers{"d", "d"}, strangers{}
	for name, looks := range map[string][]second{
		"a family is left out after 15 s": {
			{at: 0, p: open}, {at: 1, p: open}, {at: 14, p: open}, {at: 15, p: open, want: only4},
		},
		"so is IPv4": {
			{at: 0, p: strangers{"a", "d"}}, {at: 15, p: strangers{"a", "d"}, want: only6},
		},
		"what is learned of one subject serves another at once": {
			{at: 0, p: open}, {at: 15, p: open, want: only4}, {at: 16, q: open, want: only4},
			{at: 17, q: strangers{"a", "a"}, want: only4},
		},
		"a look that shows nothing teaches nothing new": {
			{at: 0, p: open}, {at: 15, p: open, want: only4}, {at: 900, want: only4},
			{at: 901, p: strangers{"i", "i"}, want: only4},
		},
		"a family that was denied once is enforced for good": {
			{at: 0, p: shut}, {at: 1, p: open}, {at: 20, p: open}, {at: 60, p: open, want: both},
		},
		"a denial of another subject's counts": {
			{at: 0, p: open, q: off}, {at: 14, p: open, q: shut}, {at: 30, p: open}, {at: 60, p: open, want: both},
		},
		"a denial ends what was believed, for good": {
			{at: 0, p: open}, {at: 15, p: open, want: only4},
			{at: 16, p: open, q: shut, want: both}, {at: 17, p: open}, {at: 60, p: open, want: both},
		},
		"a subject that is open in both shows nothing": {
			{at: 0, p: strangers{"a", "a"}, q: strangers{"d", ""}}, {at: 60, p: strangers{"a", "a"}, q: strangers{"d", ""}, want: both},
		},
		"the row begins when the other family is denied": {
			{at: 0, p: strangers{"a", "a"}}, {at: 10, p: open}, {at: 24, p: open}, {at: 25, p: open, want: only4},
		},
		"all strangers of the other family must be denied": {
			{at: 0, p: strangers{"da", "a"}}, {at: 60, p: strangers{"da", "a"}, want: both},
		},
		"all strangers of the family must be let in": {
			{at: 0, p: strangers{"d", "ai"}}, {at: 60, p: strangers{"d", "ai"}, want: both},
		},
		"an inconclusive answer ends the row": {
			{at: 0, p: open}, {at: 10, p: strangers{"d", "i"}}, {at: 15, p: open}, {at: 29, p: open}, {at: 30, p: open, want: only4},
		},
		"an inconclusive answer of the other family ends the row": {
			{at: 0, p: open}, {at: 10, p: strangers{"i", "a"}}, {at: 15, p: open}, {at: 29, p: open, want: both},
		},
		"a look without a stranger of the family ends the row": {
			{at: 0, p: open}, {at: 10, p: strangers{"d", ""}}, {at: 15, p: open, want: both},
		},
		"a look without a stranger of the other family ends the row": {
			{at: 0, p: open}, {at: 10, p: strangers{"", "a"}}, {at: 15, p: open, want: both},
		},
		"rows of two subjects do not add up": {
			{at: 0, p: open}, {at: 8, q: open}, {at: 16, p: off, q: open, want: both},
		},
		"a subject without the other family shows nothing": {
			{at: 0, p: strangers{"", "a"}, q: strangers{"d", ""}}, {at: 60, p: strangers{"", "a"}, q: strangers{"d", ""}, want: both},
		},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			var n enforcement
			var rows [2]openSince
			for _, look := range looks {
				at := start.Add(time.Duration(look.at) * time.Second)
				m := moment{began: at, ended: at}
				subjects := []findings{look.p.findings(), look.q.findings()}
				for _, found := range subjects {
					for f := range families {
						if found[f].denied > 0 {
							n.denied(f)
						}
					}
				}
				for i, found := range subjects {
					rows[i].observe(m, found)
					n.observe(m, rows[i], found)
				}
				got := ""
				for f, unenforced := range n.unenforced {
					if unenforced {
						got += family(f).String() + " unenforced"
					}
				}
				if got != look.want {
					t.Fatalf("after the look at %d s: %q, want %q", look.at, got, look.want)
				}
			}
		})
	}
}

func TestTheNewestWitnessesAreKept(t *testing.T) {
	var n enforcement
	at := func(i int) flow.Flow { return tcp(fmt.Sprintf("10.0.1.%d", i), "10.0.0.9") }
	for i := range maxWitnesses {
		n.watch(ipv6, at(i))
	}
	n.watch(ipv6, at(0)) // again: it is the newest now
	n.watch(ipv6, at(100))
	got := n.witnesses[ipv6]
	if len(got) != maxWitnesses || got[0] != at(2) || got[maxWitnesses-2] != at(0) || got[maxWitnesses-1] != at(100) {
		t.Errorf("witnesses %v, want 2 to 15, 0 and 100", got)
	}
	n.denied(ipv6)
	if len(n.witnesses[ipv6]) != 0 {
		t.Errorf("witnesses %v of a family that is enforced, want none", n.witnesses[ipv6])
	}
}

func TestResultOfFindings(t *testing.T) {
	lacks := func(indexes ...int) finding {
		d := finding{asked: len(indexes), requiredCount: len(indexes)}
		for _, i := range indexes {
			d.required = append(d.required, unmet{i, "allowed"})
		}
		return d
	}
	advises := func(d finding, index int) finding {
		d.asked++
		d.advisoryCount++
		d.advisory = append(d.advisory, unmet{index, "denied"})
		return d
	}
	off6 := [families]bool{ipv6: true}
	for name, tc := range map[string]struct {
		found   findings
		excused [families]bool
		want    result
	}{
		"nothing was asked": {excused: off6},
		"both families count": {
			found: findings{lacks(2), lacks(1)},
			want:  result{required: 2, unmet: []unmet{{1, "allowed"}, {2, "allowed"}}},
		},
		"the first three are named, required ones first": {
			found: findings{advises(lacks(5), 0), advises(lacks(4), 1)},
			want:  result{required: 2, advisory: 2, unmet: []unmet{{4, "allowed"}, {5, "allowed"}, {0, "denied"}}},
		},
		"an excused family does not count, its advisory ones included": {
			found: findings{lacks(5), advises(lacks(4), 1)}, excused: off6,
			want: result{required: 1, unmet: []unmet{{5, "allowed"}}, without: off6},
		},
		"a family that holds is left out too": {
			found: findings{{asked: 1}, {asked: 1}}, excused: off6,
			want: result{without: off6},
		},
		"a family that is not asked is not left out": {
			found: findings{{asked: 1}, {}}, excused: off6,
		},
		"what is left of a subject must be something": {
			found: findings{{}, advises(lacks(4), 1)}, excused: off6,
			want: result{required: 1, advisory: 1, unmet: []unmet{
				{4, "v6 is not enforced on this node, and nothing else was asked: allowed"},
				{1, "v6 is not enforced on this node, and nothing else was asked: denied"},
			}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := tc.found.result(&content{description: &Description{}}, tc.excused)
			if len(got.unmet) == 0 {
				got.unmet = nil
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(result{}, unmet{}), cmpopts.IgnoreFields(result{}, "outcome")); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

var (
	client6   = tcp("fd00::1", "fd00::9")
	stranger6 = tcp("fd00::7", "fd00::9")
)

// dual is what a replica assigns for a client of two families, to be excused.
func dual(uid string) *assigned {
	a := assign(uid, 1)
	a.Expectations = append(a.Expectations, want(client6, flow.Allowed), want(stranger6, flow.Denied))
	a.ExcuseFamilies = true
	return a
}

// only4 is what an engine does that does not enforce IPv6.
func only4() map[flow.Flow]flow.Answer {
	v := programmed()
	v[client6], v[stranger6] = flow.Allowed, flow.Allowed
	return v
}

func TestAFamilyThatIsNotEnforcedIsLeftOutAndSeenToBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: only4()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		waits := func(uid string) sent {
			return sent{replicaA, &hubv1.Report{
				Uid: uid, Generation: 1, UnmetRequired: 1, Unmet: []*hubv1.Unmet{{Expectation: 3, Reason: "allowed (rule)"}},
			}}
		}
		excused := func(uid string) sent {
			return sent{replicaA, &hubv1.Report{Uid: uid, Generation: 1, Confirmed: true, Ipv6Unenforced: true}}
		}
		must(t, give(c, replicaA, dual("u")))
		pass(openLong - time.Millisecond)
		expect(t, out, waits("u"))
		pass(2*shortest + secondLook)
		expect(t, out, excused("u"))
		if holds, reason := c.Holds(t.Context(), "u"); !holds {
			t.Errorf("does not hold: %s", reason)
		}

		// The next one does not wait, unless it must not be excused.
		must(t, give(c, replicaA, dual("v")))
		strict := dual("strict")
		strict.ExcuseFamilies = false
		pass(time.Second)
		expect(t, out, excused("v"))
		must(t, give(c, replicaA, strict))
		single := dual("single")
		single.Expectations = single.Expectations[2:]
		pass(time.Second)
		expect(t, out, waits("strict"))
		must(t, give(c, replicaA, single))
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "single", Generation: 1, UnmetRequired: 1, Unmet: []*hubv1.Unmet{{
				Expectation: 1, Reason: "v6 is not enforced on this node, and nothing else was asked: allowed (rule)",
			}},
		}})

		// The engine begins with another Pod, v's policies are still to come.
		c.Withdraw(replicaA, "strict")
		c.Withdraw(replicaA, "single")
		c.Withdraw(replicaA, "u")
		other := dual("w")
		begun := tcp("fd00::7", "fd00::8")
		other.Expectations[3] = want(begun, flow.Denied)
		d.set(func(d *dataplane) { d.verdicts[begun] = flow.Denied })
		must(t, give(c, replicaA, other))
		pass(time.Second)
		got := map[string]bool{}
		for _, s := range out.taken() {
			got[s.Report.GetUid()] = s.Report.GetConfirmed()
			if s.Report.GetIpv6Unenforced() {
				t.Errorf("%v leaves out IPv6, which is enforced", s.Report)
			}
		}
		if diff := cmp.Diff(map[string]bool{"v": false, "w": true}, got); diff != "" {
			t.Errorf("confirmed (-want +got):\n%s", diff)
		}
		d.set(func(d *dataplane) { d.verdicts[stranger6] = flow.Denied })
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "v", Generation: 1, Confirmed: true}})
		// It is never left out again.
		d.set(func(d *dataplane) { d.verdicts[stranger6] = flow.Allowed })
		pass(time.Minute)
		expect(t, out, waits("v"))
	})
}

// Subjects come and go faster than an engine that was switched to IPv6
// programs them, so that none is ever seen denied. An earlier one is.
func TestAReleasedSubjectTellsThatTheEngineHasBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: only4()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, dual("u")))
		pass(openLong + time.Second)
		c.Withdraw(replicaA, "u")
		pass(time.Hour)
		out.taken()

		young := tcp("fd00::7", "fd00::8")
		d.set(func(d *dataplane) { d.verdicts[stranger6], d.verdicts[young] = flow.Denied, flow.Allowed })
		next := dual("next")
		next.Expectations[3] = want(young, flow.Denied)
		must(t, give(c, replicaA, next))
		pass(time.Minute)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "next", Generation: 1, UnmetRequired: 1, Unmet: []*hubv1.Unmet{{Expectation: 3, Reason: "allowed (rule)"}},
		}})
	})
}

func TestAReleaseIsRefusedOnTheLookThatSeesTheEngineBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: only4()}, &outbox{}
		c := newConfirmer(d, out)
		must(t, give(c, replicaA, dual("u")))
		for range 20 {
			c.look(t.Context())
			pass(time.Second)
		}
		if holds, reason := c.Holds(t.Context(), "u"); !holds {
			t.Fatalf("does not hold: %s", reason)
		}
		// Another stranger is refused, u's is not yet.
		second := tcp("fd00::6", "fd00::9")
		a := dual("u")
		a.Expectations = append(a.Expectations, want(second, flow.Denied))
		d.set(func(d *dataplane) { d.verdicts[second] = flow.Allowed })
		must(t, give(c, replicaA, a))
		for range 3 {
			c.look(t.Context())
			pass(time.Second)
		}
		if holds, reason := c.Holds(t.Context(), "u"); !holds {
			t.Fatalf("does not hold with a second stranger: %s", reason)
		}
		d.set(func(d *dataplane) { d.verdicts[second] = flow.Denied })
		if holds, reason := c.Holds(t.Context(), "u"); holds || reason != "allowed (rule)" {
			t.Errorf("Holds = %v, %q, want that the other stranger is let in", holds, reason)
		}
		all := out.taken()
		if last := all[len(all)-1].Report; last.GetConfirmed() || last.GetIpv6Unenforced() {
			t.Errorf("last report %v, want a retraction with IPv6", last)
		}
	})
}

func TestALookThatFailsEndsTheRow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: only4()}, &outbox{}
		c := newConfirmer(d, out)
		must(t, give(c, replicaA, dual("u")))
		look := func(seconds int) {
			for range seconds {
				c.look(t.Context())
				pass(time.Second)
			}
		}
		confirmed := func() bool {
			all := out.taken()
			return len(all) > 0 && all[len(all)-1].Report.GetConfirmed()
		}
		look(10)
		d.set(func(d *dataplane) { d.err = errors.New("busy") })
		look(1)
		d.set(func(d *dataplane) { d.err = nil })
		look(15)
		if confirmed() {
			t.Fatal("confirmed 15 s after the failure at the latest: want a row of its own")
		}
		look(3)
		if !confirmed() {
			t.Error("not confirmed after 15 s without a failure")
		}
	})
}

// A change of what is asked, as another Pod comes or goes, is no break: the
// row is of the subject at its addresses.
func TestARowOutlivesAChangeOfTheAssignment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: only4()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		for i := range 8 {
			a := dual("u")
			a.Generation = uint64(i) + 1
			extra := tcp(fmt.Sprintf("10.0.2.%d", i), "10.0.0.9")
			d.set(func(d *dataplane) { d.verdicts[extra] = flow.Denied })
			a.Expectations = append(a.Expectations, want(extra, flow.Denied))
			must(t, give(c, replicaA, a))
			pass(2 * time.Second)
		}
		all := out.taken()
		if last := all[len(all)-1].Report; !last.GetConfirmed() || !last.GetIpv6Unenforced() {
			t.Errorf("last report after 16 s: %v, want confirmed without IPv6", last)
		}
	})
}

func TestAConfirmedSubjectThatIsEnforcedAfterAllIsToldWithoutTheExcuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: only4()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, dual("u")))
		pass(openLong + time.Second)
		out.taken()
		d.set(func(d *dataplane) { d.verdicts[stranger6] = flow.Denied })
		pass(2 * shortest)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}
