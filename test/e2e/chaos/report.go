// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Report is what a run found.
type Report struct {
	Seed     uint64
	Duration time.Duration
	Variant  Variant
	// Kinds are the names of all kinds of faults, Faults how often each was
	// begun, Failed how often one could not be.
	Kinds          []string
	Faults, Failed map[string]int
	// Openings are by reason; TimedOut are Pods that were started by their
	// timeout, or whose condition says Timeout.
	Openings map[string]int
	TimedOut int
	// Wrong are gates that opened wrongly: one line each, as are Stuck and Lost.
	Wrong, Stuck, Lost []string
	// Ungated are Pods that came without a gate during a fault, by its kind.
	Ungated map[string]int
	// Proven and Blinks count looks, Void too, by what was seen and why it proves
	// nothing. Refusals
	// counts the proven ones that were to be refused.
	Proven, Refusals, Blinks int
	Void                     map[string]int
	// Retried counts strangers who were let in before a gate opened and were
	// refused after it.
	Retried int
	// Dials are Jobs whose first dial was judged.
	Dials int
	// Edits counts changes of policies.
	Edits int
	// Calm and Disturbed are the times from an address to its opening, without
	// a fault meanwhile and with one.
	Calm, Disturbed []time.Duration
	// Evidence is the directory that holds what was saved.
	Evidence string
}

// Gates is how many gates opened.
func (r Report) Gates() int {
	n := 0
	for _, count := range r.Openings {
		n += count
	}
	return n
}

func (r Report) faults() (faults, kinds int) {
	for _, count := range r.Faults {
		faults += count
		kinds++
	}
	return faults, kinds
}

// finding is what went wrong in one way.
type finding struct {
	what  string
	lines []string
}

func (r Report) findings() []finding {
	return []finding{{"opened wrongly", r.Wrong}, {"stuck", r.Stuck}, {"lost", r.Lost}}
}

// What ten minutes have to show.
const (
	longRun   = 10 * time.Minute
	minGates  = 500
	minFaults = 30
)

// Check returns nil if nothing was wrong, stuck or lost, and if what was shown
// is enough for how long it took.
func (r Report) Check() error {
	var errs []error
	for _, f := range r.findings() {
		if len(f.lines) > 0 {
			errs = append(errs, fmt.Errorf("%d %s", len(f.lines), f.what))
		}
	}
	faults, _ := r.faults()
	if r.Duration >= longRun {
		// With bridge-nf off most gates cannot open, and are not to.
		if r.Gates() < minGates && r.Variant != NoBridgeNF {
			errs = append(errs, fmt.Errorf("%d gates opened: want %d", r.Gates(), minGates))
		}
		if faults < minFaults {
			errs = append(errs, fmt.Errorf("%d faults: want %d", faults, minFaults))
		}
		for _, kind := range r.Kinds {
			if r.Faults[kind] == 0 {
				errs = append(errs, fmt.Errorf("no fault of the kind %q", kind))
			}
		}
	}
	if r.Proven == 0 {
		errs = append(errs, errors.New("no packet proved anything"))
	}
	return errors.Join(errs...)
}

// Write writes the report; its last line is for programs to read.
func (r Report) Write(w io.Writer) error {
	var text strings.Builder
	section := func(title string, counts map[string]int) {
		if len(counts) == 0 {
			return
		}
		fmt.Fprintf(&text, "%s:\n", title)
		for _, name := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(&text, "  %6d  %s\n", counts[name], name)
		}
	}
	section("faults", r.Faults)
	section("faults that could not be begun", r.Failed)
	section("gates opened, by reason", r.Openings)
	fmt.Fprintf(&text, "timed out: %d\n", r.TimedOut)
	section("Pods without a gate, by the fault that they came in", r.Ungated)
	fmt.Fprintf(&text, "edits of policies: %d\n", r.Edits)
	fmt.Fprintf(&text, "packets that proved something: %d, of them refusals: %d; blinks of the engine: %d\n", r.Proven, r.Refusals, r.Blinks)
	fmt.Fprintf(&text, "strangers let in before a gate opened, and refused after it: %d\n", r.Retried)
	fmt.Fprintf(&text, "first dials of Jobs: %d\n", r.Dials)
	section("answers that prove nothing", r.Void)
	latency := func(title string, took []time.Duration) {
		fmt.Fprintf(&text, "address to open gate, in %s: p50 %.2f s, p99 %.2f s of %d\n", title,
			percentile(took, 50).Seconds(), percentile(took, 99).Seconds(), len(took))
	}
	latency("calm", r.Calm)
	latency("faults", r.Disturbed)
	for _, f := range r.findings() {
		for _, line := range f.lines {
			fmt.Fprintf(&text, "%s: %s\n", f.what, line)
		}
	}
	if r.Evidence != "" {
		fmt.Fprintf(&text, "saved: %s\n", r.Evidence)
	}
	faults, kinds := r.faults()
	ungated := 0
	for _, n := range r.Ungated {
		ungated += n
	}
	if ungated > 0 {
		fmt.Fprintf(&text, "ungated=%d\n", ungated)
	}
	fmt.Fprintf(&text, "gates=%d opened_wrongly=%d stuck=%d lost=%d faults=%d kinds=%d seed=%d\n",
		r.Gates(), len(r.Wrong), len(r.Stuck), len(r.Lost), faults, kinds, r.Seed)
	_, err := io.WriteString(w, text.String())
	return err
}

// percentile returns the p-th percentile by nearest rank, or 0 of none.
func percentile(of []time.Duration, p int) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	rank := (p*len(sorted) + 99) / 100
	return sorted[max(rank, 1)-1]
}
