// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"cmp"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// held is a subject that waits for its gate. Of its last assignment nothing is
// kept but the footprint.
type held struct {
	pod *pod
	// computed is set once an assignment was computed; madeOf is the last
	// one's.
	computed bool
	madeOf   madeOf
	// stands is set while nothing that the last assignment was made of has
	// changed, unless everything changed: then epoch is not the index's.
	stands bool
	epoch  uint64
	// suspect has witnesses asked, and settle demands that the engine rest.
	suspect, settle bool
}

// meet marks the subjects whose last footprint meets f.
func (x *Index) meet(f expect.Footprint) {
	switch {
	case f.Everything:
		x.touchAll()
		x.changeAll()
	case len(f.Sets)+len(f.Pods)+len(f.Addresses)+len(f.Nodes)+len(f.Ports)+len(f.Policies) > 0 || f.Ranges:
		x.links.meeting(&f, x.touch)
		x.policyLinks.meeting(&f, x.change)
	}
}

// touch marks a held subject as affected.
func (x *Index) touch(h *held) {
	h.stands = false
	x.affected[h] = struct{}{}
	x.signal()
}

// touchAll marks every subject. Who that is, Affected finds out: a burst of
// such events costs each of them nothing.
func (x *Index) touchAll() {
	if len(x.held) == 0 {
		return
	}
	x.epoch++
	x.all = true
	x.signal()
}

// touchOwners marks the subjects that have one of addrs: whose it was before
// has changed, which no footprint tells.
func (x *Index) touchOwners(addrs []netip.Addr) {
	for _, addr := range addrs {
		for _, p := range x.cluster.Holding(addr) {
			if h := x.held[p.UID]; h != nil {
				x.touch(h)
			}
		}
	}
}

// signal needs no lock.
func (x *Index) signal() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// Wake receives after Affected has got something to return. It holds one
// element: there is one receiver.
func (x *Index) Wake() <-chan struct{} { return x.wake }

// Affected returns, once, the subjects whose assignment may have changed since
// the last call, and those that are no longer held. A subject that becomes
// held is among them.
//
// They come in the order in which they should be computed: first those that
// never were, for which the first node waits; then the others; in either part
// the namespaces take turns, so that none waits for another's burst; those
// that are no longer held come last.
func (x *Index) Affected() []types.UID {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.passTime()
	var list []*held
	if x.all {
		list = make([]*held, 0, len(x.held))
		for _, h := range x.held {
			list = append(list, h)
		}
	} else {
		list = make([]*held, 0, len(x.affected))
		for h := range x.affected {
			list = append(list, h)
		}
	}
	x.all = false
	clear(x.affected)
	out := append(inTurn(list), sortedKeys(x.released)...)
	clear(x.released)
	return out
}

// inTurn returns the UIDs of list: those never computed first, in each part
// namespace by namespace in turn, and of one namespace the older first.
func inTurn(list []*held) []types.UID {
	slices.SortFunc(list, func(a, b *held) int {
		return cmp.Or(
			cmp.Compare(rank(a), rank(b)),
			cmp.Compare(a.pod.Namespace, b.pod.Namespace),
			cmp.Compare(a.pod.Seq, b.pod.Seq),
			cmp.Compare(a.pod.UID, b.pod.UID))
	})
	type place struct {
		*held
		turn int
	}
	places := make([]place, len(list))
	for i, h := range list {
		places[i].held = h
		if i > 0 && rank(list[i-1]) == rank(h) && list[i-1].pod.Namespace == h.pod.Namespace {
			places[i].turn = places[i-1].turn + 1
		}
	}
	slices.SortStableFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(rank(a.held), rank(b.held)), cmp.Compare(a.turn, b.turn))
	})
	out := make([]types.UID, len(places))
	for i, p := range places {
		out[i] = p.pod.UID
	}
	return out
}

// rank is 0 for a subject that was never computed.
func rank(h *held) int {
	if h.computed {
		return 1
	}
	return 0
}
