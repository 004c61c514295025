// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
)

// tally counts what was compared, by what it was.
type tally map[string]int

// check compares one world. It returns the first disagreement, or an empty
// string. Without r everything is compared, not a sample.
type check func(w *world, r *rand.Rand, counts tally) (disagreement string)

// run checks random worlds, as many as ORACLE_WORLDS says or else worlds, and
// fails with the smallest that it finds for the first disagreement. Then it
// holds what was compared against want, which is what worlds have to give: of
// everything named there at least so much. Fewer worlds need not.
func run(t *testing.T, worlds int, c check, want tally) tally {
	t.Helper()
	first := uint64(environment(t, "ORACLE_SEED", 1))
	n := environment(t, "ORACLE_WORLDS", worlds)
	t.Logf("%d worlds from ORACLE_SEED=%d", n, first)
	counts := tally{}
	for seed := first; seed < first+uint64(n); seed++ {
		w := randomWorld(seed)
		disagreement := c(w, rand.New(rand.NewPCG(seed, 0x0b)), counts)
		if disagreement == "" {
			continue
		}
		small, left := shrink(w, func(w *world) string { return c(w, nil, tally{}) })
		if left == "" {
			left = disagreement
		}
		t.Fatalf("ORACLE_SEED=%d ORACLE_WORLDS=1: %s\nin\n%s", seed, left, small)
	}
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%9d %s", counts[name], name)
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if n >= worlds && counts[name] < want[name] {
			t.Errorf("only %d times %q, want at least %d", counts[name], name, want[name])
		}
	}
	return counts
}

func environment(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q: want a positive number", name, text)
	}
	return n
}
