// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import "time"

// passTime applies what time alone changes: nodes that have been not ready for
// too long leave the spans of others, and predecessors are forgotten. The
// latter touches the subject that has the address now, though it only takes
// demands away: what must be denied of it because another Pod was allowed it,
// and the wait for the engine to rest. Were it not touched, its assignment
// would stand and yet come out differently when it is next computed.
func (x *Index) passTime() {
	now := x.options.Clock.Now()
	x.departed.expire(now)
	if x.due.IsZero() || now.Before(x.due) {
		return
	}
	x.due = time.Time{}
	for name := range x.expiring {
		if out := x.nodes[name].notReadySince.Add(x.options.NotReadyLimit); now.Before(out) {
			x.schedule(out, now)
			continue
		}
		delete(x.expiring, name)
		x.meet(x.placeNode(name))
	}
	for h, until := range x.succeeding {
		if now.Before(until) {
			x.schedule(until, now)
			continue
		}
		delete(x.succeeding, h)
		x.touch(h)
	}
}

// schedule has passTime do its work at a time, and wakes the receivers of Wake
// and PolicyWake then.
func (x *Index) schedule(at, now time.Time) {
	if x.due.IsZero() || at.Before(x.due) {
		x.due = at
		x.options.Clock.AfterFunc(at.Sub(now), func() {
			x.signal()
			x.signalPolicies()
		})
	}
}

// succeed notes until when the last assignment of h holds, as far as that
// depends on whose its addresses were. Zero: for good.
func (x *Index) succeed(h *held, until time.Time) {
	if until.IsZero() {
		delete(x.succeeding, h)
		return
	}
	x.succeeding[h] = until
	x.schedule(until, x.options.Clock.Now())
}
