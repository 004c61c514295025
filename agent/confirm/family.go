// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"slices"
	"time"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// family is an address family.
type family int

const (
	ipv4 family = iota
	ipv6
	// families is how many there are.
	families
)

func familyOf(f flow.Flow) family {
	if f.Src.Is4() {
		return ipv4
	}
	return ipv6
}

func (f family) String() string {
	if f == ipv4 {
		return "v4"
	}
	return "v6"
}

func (f family) other() family { return ipv6 - f }

const (
	// openLong is how long strangers of one family must have been let in,
	// while those of the other were denied, until the engine is believed not
	// to enforce it. kube-router programs the families one after the other in
	// one sync; the longest full sync that was measured took 13.3 s.
	openLong = 15 * time.Second
	// maxWitnesses is how many flows of a family are asked again. One of them
	// suffices, if its Pod still runs by the time the engine begins.
	maxWitnesses = 16
)

// openSince is, per family, since when each look on one subject has shown all
// strangers of the family let in and all of the other family denied; zero if
// the newest look did not. Both must be of one subject: what the engine has
// done for a Pod in one family it has had the time to do in the other, while
// a Pod that it has not come to yet is open in both and shows nothing.
type openSince [families]time.Time

// observe takes in a look. Whatever is not plainly open ends the row: an
// Inconclusive, an Allowed of the other family, and also a look without a
// stranger of either, for nobody saw what happened meanwhile.
func (o *openSince) observe(m moment, found findings) {
	for f := range families {
		other := found[f.other()]
		plain := len(found[f].admitted) > 0 && found[f].denied == 0 && found[f].unclear == 0 &&
			other.denied > 0 && len(other.admitted) == 0 && other.unclear == 0
		switch {
		case !plain:
			o[f] = time.Time{}
		case o[f].IsZero():
			o[f] = m.ended
		}
	}
}

// enforcement is what was seen, since the agent started, of the families that
// the node's engine enforces. The zero value has seen nothing. It does no I/O
// and reads no clock.
type enforcement struct {
	// enforced: a stranger of the family was denied. It is never taken back.
	enforced [families]bool
	// unenforced: none ever was, and a subject was open for openLong. It ends
	// with the first that is denied. Of the two families one at most is
	// unenforced, as it takes the other's strangers to be denied.
	unenforced [families]bool
	// witnesses are strangers that were let in, the newest last. They are
	// asked on each look, whatever became of their subjects: these may all be
	// released before an engine that begins to enforce the family gets to them.
	witnesses [families][]flow.Flow
}

// denied notes that a stranger of a family was denied.
func (n *enforcement) denied(f family) {
	n.enforced[f], n.unenforced[f], n.witnesses[f] = true, false, nil
}

// observe takes in what a look has shown of one subject, and since when the
// subject has been open. The denied ones of the look must have been noted.
func (n *enforcement) observe(m moment, since openSince, found findings) {
	for f := range families {
		if n.enforced[f] {
			continue
		}
		if !since[f].IsZero() && m.began.Sub(since[f]) >= openLong {
			n.unenforced[f] = true
		}
		if n.unenforced[f] && len(found[f].admitted) > 0 {
			n.watch(f, found[f].admitted[0])
		}
	}
}

// watch makes w the newest witness.
func (n *enforcement) watch(f family, w flow.Flow) {
	kept := slices.DeleteFunc(slices.Clone(n.witnesses[f]), func(other flow.Flow) bool { return other == w })
	kept = append(kept, w)
	n.witnesses[f] = kept[max(len(kept)-maxWitnesses, 0):]
}

// finding is what one look says about a subject's expectations of one family.
type finding struct {
	// asked counts those that could be asked and are awaited.
	asked int
	// required and advisory have the first maxUnmet that do not hold,
	// requiredCount and advisoryCount are how many there are.
	required, advisory           []unmet
	requiredCount, advisoryCount int
	// admitted are the strangers that were let in; denied and unclear count
	// the others.
	admitted        []flow.Flow
	denied, unclear int
	// tallies are those of each why, or nil if no Allowed was asked.
	// unexplained: an Allowed that has no why is awaited and does not hold.
	tallies     []tally
	unexplained bool
}

// findings has a finding of each family.
type findings [families]finding

// find holds all the expectations against the answers of one look, which are
// in their order.
func (c *content) find(answers []Answer) findings {
	var all findings
	for i := range c.description.expectations {
		e := &c.description.expectations[i]
		if e.external && !answers[i].Routed {
			continue
		}
		found := &all[familyOf(e.flow)]
		v, awaited := answers[i].Verdict, c.awaits(e)
		if e.want == flow.Denied {
			found.stranger(c.flow(e), v.Answer)
		} else {
			found.allowed(e.why, c.description.whys, tallyOf(v.Answer, awaited))
		}
		if !awaited {
			continue
		}
		found.asked++
		if v.Answer == e.want {
			continue
		}
		count, named := &found.requiredCount, &found.required
		if e.advisory {
			count, named = &found.advisoryCount, &found.advisory
		}
		*count++
		if len(*named) < maxUnmet {
			*named = append(*named, unmet{index: i, reason: printable(v.String())})
		}
	}
	return all
}

// allowed tallies the answer to an Allowed of the why-th of so many whys.
func (d *finding) allowed(why uint32, whys int, t tally) {
	if whys == 0 {
		d.unexplained = d.unexplained || t&someAwaited != 0
		return
	}
	if d.tallies == nil {
		d.tallies = make([]tally, whys)
	}
	d.tallies[why] |= t
}

// stranger counts the answer to a flow that must be denied.
func (d *finding) stranger(f flow.Flow, a flow.Answer) {
	switch a {
	case flow.Allowed:
		d.admitted = append(d.admitted, f)
	case flow.Denied:
		d.denied++
	case flow.Inconclusive:
		d.unclear++
	}
}

// result sums up what was found of c without the families that are excused,
// and with a family that is all that was awaited: leaving it out too would
// confirm a subject of which nothing is known.
func (d findings) result(c *content, excused [families]bool) result {
	var r result
	var required, advisory []unmet
	for f, found := range d {
		lacking := ""
		if excused[f] && found.asked > 0 {
			if d[family(f).other()].asked > 0 {
				r.without[f] = true
				continue
			}
			lacking = family(f).String() + hubv1.ReasonUnenforced
		}
		r.required += found.requiredCount
		r.advisory += found.advisoryCount
		for _, u := range found.required {
			required = append(required, unmet{u.index, printable(lacking + u.reason)})
		}
		for _, u := range found.advisory {
			advisory = append(advisory, unmet{u.index, printable(lacking + u.reason)})
		}
	}
	byIndex := func(a, b unmet) int { return a.index - b.index }
	slices.SortFunc(required, byIndex)
	slices.SortFunc(advisory, byIndex)
	all := slices.Concat(required, advisory)
	r.unmet = all[:min(len(all), maxUnmet)]
	r.outcome = d.outcome(c, r.without)
	return r
}
