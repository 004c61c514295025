// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"slices"

	"github.com/policygate/policygate/api/flow"
)

// maxWhys is how many whys a report names as unrealized, and as realized.
const maxWhys = 64

// outcome is which rules one look shows to be realized: those of whys, by
// their indexes, ascending.
type outcome struct {
	// unrealized are the whys of which some Allowed was asked and all that
	// were are Denied. An Inconclusive one may be Allowed.
	unrealized []uint32
	// realized are the excused whys of which an Allowed holds, while every
	// Denied does: a node on which nothing is programmed yet allows whatever
	// is asked.
	realized []uint32
	// explained: every Denied holds, and whatever is awaited and does not hold
	// is an Allowed of an unrealized why.
	explained bool
}

// tells reports whether there is anything to learn from o.
func (o outcome) tells() bool { return len(o.unrealized)+len(o.realized) > 0 }

// equal reports whether the same whys are realized and unrealized.
func (o outcome) equal(other outcome) bool {
	return slices.Equal(o.unrealized, other.unrealized) && slices.Equal(o.realized, other.realized)
}

// tally is what one look says of the Allowed expectations of one why.
type tally uint8

const (
	// someAllowed, someDenied, someUnclear: such was the answer to some.
	someAllowed tally = 1 << iota
	someDenied
	someUnclear
	// someAwaited: one that is awaited does not hold.
	someAwaited
)

// tallyOf returns the tally of one answer to an Allowed expectation.
func tallyOf(a flow.Answer, awaited bool) tally {
	var t tally
	switch a {
	case flow.Allowed:
		return someAllowed
	case flow.Denied:
		t = someDenied
	case flow.Inconclusive:
		t = someUnclear
	}
	if awaited {
		t |= someAwaited
	}
	return t
}

func (t tally) unrealized() bool { return t&(someAllowed|someDenied|someUnclear) == someDenied }

// outcome sums up the findings of all families but those that are left out.
func (d findings) outcome(c *content, without [families]bool) outcome {
	o := outcome{explained: true}
	controls := true
	tallies := make([]tally, c.description.whys)
	for f, found := range d {
		if without[f] {
			continue
		}
		if len(found.admitted) > 0 || found.unclear > 0 {
			controls = false
		}
		if found.unexplained {
			o.explained = false
		}
		for why, t := range found.tallies {
			tallies[why] |= t
		}
	}
	for why, t := range tallies {
		switch {
		case t.unrealized():
			if len(o.unrealized) < maxWhys {
				o.unrealized = append(o.unrealized, uint32(why))
			}
		case t&someAwaited != 0:
			o.explained = false
		case t&someAllowed != 0 && controls && len(o.realized) < maxWhys && c.excuses(uint32(why)):
			o.realized = append(o.realized, uint32(why))
		}
	}
	o.explained = o.explained && controls
	return o
}
