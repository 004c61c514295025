// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// maxIncomplete bounds the rounds that are remembered while the index lags
// behind them. At one a second it tolerates a watch that is a minute late,
// while new Pods keep arriving; beyond that the oldest is dropped and its
// tickets pass with the next one that completes.
const maxIncomplete = 60

// rounds is the barrier's pure part: which tickets exist, which rounds of
// LISTs have begun, and what the index lacks of what they returned. A ticket
// needs any complete round that began after it was given out.
type rounds struct {
	// begun counts the rounds; complete is the latest that the index covers.
	begun, complete uint64
	// needs holds, by uid, the first round that may pass it.
	needs map[types.UID]uint64
	// incomplete holds, by round, the listed objects that the index lacked.
	incomplete map[uint64]map[Version]bool
}

func newRounds() rounds {
	return rounds{
		needs:      map[types.UID]uint64{},
		incomplete: map[uint64]map[Version]bool{},
	}
}

func (r *rounds) ticket(uid types.UID) {
	if _, ok := r.needs[uid]; !ok {
		r.needs[uid] = r.begun + 1
	}
}

func (r *rounds) forget(uid types.UID) { delete(r.needs, uid) }

func (r *rounds) passed(uid types.UID) bool {
	need, ok := r.needs[uid]
	return ok && need <= r.complete
}

// wantsRound reports whether a ticket waits. A round that lists an object
// which is deleted before the index saw it never completes, so a waiting
// ticket wants further rounds even when one has begun for it.
func (r *rounds) wantsRound() bool {
	for _, need := range r.needs {
		if need > r.complete {
			return true
		}
	}
	return false
}

// pending reports whether the index has yet to catch up with a round.
func (r *rounds) pending() bool { return len(r.incomplete) > 0 }

func (r *rounds) begin() uint64 {
	r.begun++
	return r.begun
}

// listed notes what a round returned; all of it counts as missing until held
// says otherwise.
func (r *rounds) listed(round uint64, versions []Version) {
	set := make(map[Version]bool, len(versions))
	for _, v := range versions {
		set[v] = true
	}
	r.incomplete[round] = set
	if len(r.incomplete) > maxIncomplete {
		delete(r.incomplete, slices.Min(slices.Collect(maps.Keys(r.incomplete))))
	}
}

// missing returns every version that some round waits for.
func (r *rounds) missing() []Version {
	all := map[Version]bool{}
	for _, set := range r.incomplete {
		maps.Copy(all, set)
	}
	return slices.Collect(maps.Keys(all))
}

// held takes away what the index holds and reports whether a round is
// complete that was not. Older rounds say nothing more then and are dropped.
func (r *rounds) held(versions map[Version]bool) bool {
	before := r.complete
	for round, set := range r.incomplete {
		maps.DeleteFunc(set, func(v Version, _ bool) bool { return versions[v] })
		if len(set) == 0 {
			r.complete = max(r.complete, round)
		}
	}
	maps.DeleteFunc(r.incomplete, func(round uint64, _ map[Version]bool) bool { return round <= r.complete })
	return r.complete > before
}
