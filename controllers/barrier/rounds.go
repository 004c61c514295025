// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"math/bits"

	"k8s.io/apimachinery/pkg/types"
)

// maxIncomplete bounds the rounds that are remembered while the index lags
// behind them. At one a second it tolerates a watch that is a minute late,
// while new Pods keep arriving; beyond that the oldest is dropped and its
// tickets pass with the next one that completes. A lack has one bit for each
// in 64.
const maxIncomplete = 60

// rounds is the barrier's pure part: which tickets exist, which rounds of
// LISTs have begun, and what the index lacks of what they returned. A ticket
// needs any complete round that began after it was given out.
//
// What it does in one call is proportional to what is passed or lacking then,
// never to the tickets that wait on.
type rounds struct {
	// begun counts the rounds; complete is the latest that the index covers.
	begun, complete uint64
	// needs holds, by uid, the first round that may pass it, and waiting the
	// uids that have not passed, by that round.
	needs   map[types.UID]uint64
	waiting map[uint64]map[types.UID]struct{}
	// fresh are those that passed since they were last asked for.
	fresh []types.UID

	// slots are the incomplete rounds. Each is known by its place, which a
	// round keeps, so that a lack says in one word which rounds need it.
	slots [maxIncomplete]slot
	// lacks are the listed objects that the index lacked, and known has the
	// place of each of them. One that many rounds listed is one lack.
	lacks []lack
	known map[Version]int
	// cursor is the lack that is looked at next.
	cursor int
}

// slot is one incomplete round, or free if round is 0.
type slot struct {
	round uint64
	// lacking counts the lacks of the round.
	lacking int
}

// lack is a listed object that the index lacked when it was last looked at.
type lack struct {
	version Version
	// slots has bit i set if slots[i] needs it.
	slots uint64
}

func newRounds() rounds {
	return rounds{
		needs:   map[types.UID]uint64{},
		waiting: map[uint64]map[types.UID]struct{}{},
		known:   map[Version]int{},
	}
}

func (r *rounds) ticket(uid types.UID) {
	if _, ok := r.needs[uid]; ok {
		return
	}
	need := r.begun + 1
	r.needs[uid] = need
	if r.waiting[need] == nil {
		r.waiting[need] = map[types.UID]struct{}{}
	}
	r.waiting[need][uid] = struct{}{}
}

func (r *rounds) forget(uid types.UID) {
	need := r.needs[uid]
	delete(r.needs, uid)
	if delete(r.waiting[need], uid); len(r.waiting[need]) == 0 {
		delete(r.waiting, need)
	}
}

func (r *rounds) passed(uid types.UID) bool {
	need, ok := r.needs[uid]
	return ok && need <= r.complete
}

// takePassed returns, once, the uids that have passed since the last call.
func (r *rounds) takePassed() []types.UID {
	fresh := r.fresh
	r.fresh = nil
	return fresh
}

// wantsRound reports whether a ticket waits. A round that lists an object
// which is deleted before the index saw it never completes, so a waiting
// ticket wants further rounds even when one has begun for it.
func (r *rounds) wantsRound() bool { return len(r.waiting) > 0 }

// pending reports whether the index is yet to catch up with a round.
func (r *rounds) pending() bool { return len(r.lacks) > 0 }

func (r *rounds) begin() uint64 {
	r.begun++
	return r.begun
}

// listed notes what the index lacks of what a round returned, and reports
// whether that completes it.
func (r *rounds) listed(round uint64, lacking []Version) bool {
	if round <= r.complete {
		return false
	}
	if len(lacking) == 0 {
		r.completed(round)
		return true
	}
	place := 0
	for i, s := range r.slots {
		if s.round == 0 {
			place = i
			break
		}
		if s.round < r.slots[place].round {
			place = i
		}
	}
	r.free(1 << place)
	r.slots[place].round = round
	for _, v := range lacking {
		i, ok := r.known[v]
		if !ok {
			i = len(r.lacks)
			r.lacks = append(r.lacks, lack{version: v})
			r.known[v] = i
		}
		if r.lacks[i].slots&(1<<place) == 0 {
			r.lacks[i].slots |= 1 << place
			r.slots[place].lacking++
		}
	}
	return false
}

// missing returns up to limit versions that some round waits for, others each
// time until all have had their turn.
func (r *rounds) missing(limit int) []Version {
	out := make([]Version, 0, min(limit, len(r.lacks)))
	for range cap(out) {
		r.cursor = (r.cursor + 1) % len(r.lacks)
		out = append(out, r.lacks[r.cursor].version)
	}
	return out
}

// held takes away what the index holds and reports whether a round is
// complete that was not.
func (r *rounds) held(versions []Version) bool {
	var complete uint64
	for _, v := range versions {
		i, ok := r.known[v]
		if !ok {
			continue
		}
		for left := r.lacks[i].slots; left != 0; left &= left - 1 {
			s := &r.slots[bits.TrailingZeros64(left)]
			if s.lacking--; s.lacking == 0 {
				complete = max(complete, s.round)
			}
		}
		r.drop(i)
	}
	if complete == 0 {
		return false
	}
	r.completed(complete)
	return true
}

// completed passes the tickets that needed this round or an earlier one.
// Earlier rounds say nothing more then and are dropped.
func (r *rounds) completed(round uint64) {
	r.complete = round
	for need, uids := range r.waiting {
		if need > round {
			continue
		}
		for uid := range uids {
			r.fresh = append(r.fresh, uid)
		}
		delete(r.waiting, need)
	}
	var over uint64
	for i, s := range r.slots {
		if s.round != 0 && s.round <= round {
			over |= 1 << i
		}
	}
	r.free(over)
}

// free empties slots, given as bits, and drops what only they lacked.
func (r *rounds) free(slots uint64) {
	used := false
	for left := slots; left != 0; left &= left - 1 {
		s := &r.slots[bits.TrailingZeros64(left)]
		used = used || s.lacking > 0
		*s = slot{}
	}
	if !used {
		return
	}
	for i := len(r.lacks) - 1; i >= 0; i-- {
		if r.lacks[i].slots &^= slots; r.lacks[i].slots == 0 {
			r.drop(i)
		}
	}
}

// drop removes a lack; the last one takes its place.
func (r *rounds) drop(i int) {
	delete(r.known, r.lacks[i].version)
	last := len(r.lacks) - 1
	if i != last {
		r.lacks[i] = r.lacks[last]
		r.known[r.lacks[i].version] = i
	}
	r.lacks[last] = lack{}
	r.lacks = r.lacks[:last]
}
