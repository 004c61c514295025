// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import "time"

const (
	// youth is for how long a Pod's address must have been known for policies to
	// be asked about it: longer than the longest sync of an engine that was
	// measured, 13.3 s, so that a policy does not lag whenever a Pod starts.
	youth = 15 * time.Second
	// arrivalStep is how exactly it is remembered when an address became known:
	// so that however many do, no more than 61 times are kept.
	arrivalStep = youth / 60
)

// arrivals remembers when the Seq of young Pods were given out. The zero value
// is empty.
type arrivals struct {
	// young are the oldest first.
	young []arrival
	// old is the highest Seq that is not young any more.
	old uint64
}

// arrival is what came between two times less than a step apart: seq is the
// highest, and by at all of them were there.
type arrival struct {
	at  time.Time
	seq uint64
}

// add notes that seq, which is higher than all others, is given out now.
func (a *arrivals) add(seq uint64, now time.Time) {
	if n := len(a.young); n > 0 && now.Before(a.young[n-1].at) {
		a.young[n-1].seq = seq
		return
	}
	a.horizon(now)
	a.young = append(a.young, arrival{now.Add(arrivalStep), seq})
}

// horizon returns the highest Seq that is not young any more.
func (a *arrivals) horizon(now time.Time) uint64 {
	n := 0
	for n < len(a.young) && now.Sub(a.young[n].at) >= youth {
		a.old = a.young[n].seq
		n++
	}
	a.young = a.young[n:]
	return a.old
}

// settles returns when seq, which is young, will not be any more.
func (a *arrivals) settles(seq uint64) time.Time {
	for _, other := range a.young {
		if other.seq >= seq {
			return other.at.Add(youth)
		}
	}
	return time.Time{}
}
