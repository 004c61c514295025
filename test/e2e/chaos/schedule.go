// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"math/rand/v2"
	"time"
)

// The streams of one seed: what one part draws moves no other part's.
const (
	streamSchedule = iota + 1
	streamWorkload
	streamFaults
)

func stream(seed uint64, n uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, n))
}

// Bounds of the pauses between faults and of what faults last. A fault and its
// pause take 11 s or so, and half as long again until what failed runs: 30
// faults and more in ten minutes.
const (
	minCalm, maxCalm   = 3 * time.Second, 8 * time.Second
	minFault, maxFault = 3 * time.Second, 7 * time.Second
)

// schedule says which kind of fault comes next, when, and how long it lasts.
type schedule struct {
	random *rand.Rand
	kinds  int
	// left are the kinds that have not had their turn in this round.
	left []int
}

func newSchedule(seed uint64, kinds int) *schedule {
	return &schedule{random: stream(seed, streamSchedule), kinds: kinds}
}

// turn is one fault: after how much calm it begins, which kind it is, and how
// long it is in force.
type turn struct {
	calm, lasts time.Duration
	kind        int
}

// next returns the next turn: each kind once, in random order, and again.
func (s *schedule) next() turn {
	if len(s.left) == 0 {
		s.left = s.random.Perm(s.kinds)
	}
	kind := s.left[0]
	s.left = s.left[1:]
	return turn{calm: between(s.random, minCalm, maxCalm), lasts: between(s.random, minFault, maxFault), kind: kind}
}

func between(random *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(random.Int64N(int64(high-low)))
}
