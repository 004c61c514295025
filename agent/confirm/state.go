// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"slices"
	"time"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// secondLook is how far two looks must be apart. The second guards
	// against torn reads only.
	secondLook = 50 * time.Millisecond
	// rest is how long rules must stand for a subject that settles, and how
	// long required expectations must hold before unmet advisory ones no
	// longer count. An engine's full sync took up to 3 s (13 s in a mode that
	// commits all the time, which the count of rewrites covers).
	rest = 10 * time.Second
	// enoughRewrites is the number of rewrites after which the rules were
	// certainly made from what the engine knew at the first: the one in flight
	// may be of an older snapshot.
	enoughRewrites = 2
)

// moment is when a look was taken and how many rewrites preceded it.
type moment struct {
	began, ended time.Time
	rewrites     uint64
}

// answer is what a report says.
type answer struct {
	confirmed bool
	unmet     []unmet
	// required and advisory count what does not hold.
	required, advisory int
	// without are the families that were left out.
	without [families]bool
	// outcome is which rules are realized, and steady is hub.proto's.
	outcome outcome
	steady  bool
}

// equal reports whether b is no news after a. That everything is steady where
// there is nothing to learn is none: each subject would be reported once more.
func (a answer) equal(b answer) bool {
	return a.confirmed == b.confirmed && a.required == b.required &&
		a.advisory == b.advisory && a.without == b.without && slices.Equal(a.unmet, b.unmet) &&
		a.outcome.equal(b.outcome) && (a.steady == b.steady || !a.outcome.tells())
}

// reason returns the first thing that does not hold, or "".
func (a answer) reason() string {
	if len(a.unmet) == 0 {
		return ""
	}
	return a.unmet[0].reason
}

// state is what the looks so far say about one subject. The zero value has
// seen none. It does no I/O and reads no clock.
type state struct {
	settle bool

	// looked: there was a look, and the next three are set.
	looked   bool
	base     uint64    // rewrites at the first look
	rewrites uint64    // rewrites at the newest look
	rested   time.Time // when the newest rewrite was noticed, or the first look

	// without are the families that the newest look was summed up without.
	without [families]bool
	// requiredSince is when the first of an unbroken row of looks ended in
	// which every required expectation held; zero if the newest did not.
	// requiredBase is the number of rewrites then.
	requiredSince time.Time
	requiredBase  uint64
	// allSince is the same for required and advisory ones together.
	allSince time.Time
	// explainedSince is the same for looks whose outcome is explained.
	explainedSince time.Time

	confirmed bool
	// wanting: nothing but a second look is missing.
	wanting bool
}

// successor returns the state to begin with when a subject at the same
// addresses is asked something else: what was noticed of the engine stands.
func (s *state) successor(settle bool) state {
	return state{settle: settle, looked: s.looked, base: s.base, rewrites: s.rewrites, rested: s.rested}
}

// observe takes in one look and returns the answer. The answer is not worth a
// report while s.wanting.
func (s *state) observe(m moment, r result) answer {
	s.noteRewrites(m)
	if r.without != s.without {
		// What is counted now was not looked at twice.
		s.requiredSince, s.allSince, s.explainedSince = time.Time{}, time.Time{}, time.Time{}
		s.without = r.without
	}
	s.noteHeld(m, r)

	settled := !s.settle || s.rewrites-s.base >= enoughRewrites || m.began.Sub(s.rested) >= rest
	// Not yet confirmed: everything twice, or the required ones for long.
	// Afterwards an advisory one that fails is told, but retracts nothing.
	all := !s.allSince.IsZero() && m.began.Sub(s.allSince) >= secondLook
	held := m.began.Sub(s.requiredSince)
	long := !s.requiredSince.IsZero() && held >= secondLook &&
		(held >= rest || m.rewrites-s.requiredBase >= enoughRewrites)
	switch {
	case r.required > 0:
		s.confirmed = false
	case settled && (all || long):
		s.confirmed = true
	}
	s.wanting = !s.confirmed && settled && !s.allSince.IsZero()

	a := answer{
		confirmed: s.confirmed, unmet: r.unmet, required: r.required, advisory: r.advisory, without: r.without,
		outcome: r.outcome,
		steady: !s.explainedSince.IsZero() && m.began.Sub(s.explainedSince) >= secondLook &&
			s.rewrites-s.base >= enoughRewrites,
	}
	if !settled && !s.confirmed && r.required == 0 {
		a.unmet = append([]unmet{{reason: settling}}, r.unmet[:min(len(r.unmet), maxUnmet-1)]...)
	}
	return a
}

// settling is the reason while nothing but the engine's rewrites is awaited.
const settling = hubv1.ReasonSettling + ": waiting for two rewrites of the rules, or 10 s without any"

// noteRewrites updates what is known of the engine's rewrites.
func (s *state) noteRewrites(m moment) {
	switch {
	case !s.looked || m.rewrites < s.base:
		s.looked, s.base, s.rested = true, m.rewrites, m.ended
	case m.rewrites != s.rewrites:
		s.rested = m.ended
	}
	s.rewrites = m.rewrites
}

// noteHeld updates since when expectations have held.
func (s *state) noteHeld(m moment, r result) {
	switch {
	case r.required > 0:
		s.requiredSince = time.Time{}
	case s.requiredSince.IsZero() || m.rewrites < s.requiredBase:
		s.requiredSince, s.requiredBase = m.ended, m.rewrites
	}
	switch {
	case r.required > 0 || r.advisory > 0:
		s.allSince = time.Time{}
	case s.allSince.IsZero():
		s.allSince = m.ended
	}
	switch {
	case !r.outcome.explained:
		s.explainedSince = time.Time{}
	case s.explainedSince.IsZero():
		s.explainedSince = m.ended
	}
}

// fail takes in a look that failed: nothing is known to hold any more.
func (s *state) fail(reason string, required int) answer {
	s.requiredSince, s.allSince, s.explainedSince = time.Time{}, time.Time{}, time.Time{}
	s.confirmed, s.wanting = false, false
	return answer{unmet: []unmet{{reason: reason}}, required: required}
}

// recall takes back a confirmation that a release did not get through with,
// so that the hub is told and releases anew. What held, still does: the next
// look may confirm again.
func (s *state) recall(reason string) answer {
	s.confirmed, s.wanting = false, false
	return answer{unmet: []unmet{{reason: reason}}}
}
