// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"fmt"
	"slices"
	"time"
)

// Distribution is what is said of many durations.
type Distribution struct {
	Count              int
	P50, P99, Greatest time.Duration
}

func distribution(all []time.Duration) Distribution {
	if len(all) == 0 {
		return Distribution{}
	}
	all = slices.Sorted(slices.Values(all))
	at := func(q float64) time.Duration { return all[min(int(q*float64(len(all))), len(all)-1)] }
	return Distribution{Count: len(all), P50: at(0.50), P99: at(0.99), Greatest: all[len(all)-1]}
}

// String returns "p50 1.2ms p99 3.4ms of 1000".
func (d Distribution) String() string {
	if d.Count == 0 {
		return "none"
	}
	return fmt.Sprintf("p50 %s p99 %s of %d", short(d.P50), short(d.P99), d.Count)
}

// short is d with three digits or so.
func short(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// ratio is a to b, 0 if b is.
func ratio[T int | uint64 | float64 | time.Duration](a, b T) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
