// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteTable writes one row per round.
func WriteTable(w io.Writer, rounds []Round) error {
	table := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	if _, err := fmt.Fprintln(table, "round\tjobs\tfirst connection failed\tscheduled to first connect p50\tmax\t"); err != nil {
		return err
	}
	for _, r := range rounds {
		_, err := fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\t\n", r.Name, len(r.Jobs), r.Failed(),
			seconds(r.Percentile(50)), seconds(r.Percentile(100)))
		if err != nil {
			return err
		}
	}
	return table.Flush()
}

func seconds(d time.Duration) string {
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// timelineWidth is the number of columns of a timeline's bar: with the name and
// the outcome it fits a terminal of 100.
const timelineWidth = 56

// WriteTimeline writes one lane per Job over a common axis: '.' from scheduled
// to the first dial, then 'o' for a connection that was let in, 'X' for one
// that was not.
func WriteTimeline(w io.Writer, r Round) error {
	var start, end time.Time
	for _, job := range r.Jobs {
		if !job.Scheduled.IsZero() && (start.IsZero() || job.Scheduled.Before(start)) {
			start = job.Scheduled
		}
		if job.Connected.After(end) {
			end = job.Connected
		}
	}
	if start.IsZero() || !end.After(start) {
		_, err := fmt.Fprintf(w, "%s: no Job dialled\n", r.Name)
		return err
	}
	column := func(t time.Time) int {
		return int(t.Sub(start) * (timelineWidth - 1) / end.Sub(start))
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: '.' scheduled, not started yet; 'o' first connection let in; 'X' refused\n", r.Name)
	for _, job := range r.Jobs {
		lane := []byte(strings.Repeat(" ", timelineWidth))
		outcome := "never dialled"
		if !job.Connected.IsZero() && !job.Scheduled.IsZero() {
			from, to := max(column(job.Scheduled), 0), column(job.Connected)
			for i := from; i < to; i++ {
				lane[i] = '.'
			}
			lane[to], outcome = 'o', "ok after "+seconds(job.FirstConnect())
			if job.Failed {
				lane[to], outcome = 'X', "FAILED after "+seconds(job.FirstConnect())
			}
		}
		fmt.Fprintf(&text, "  %-12s |%s| %s\n", job.Name, lane, outcome)
	}
	fmt.Fprintf(&text, "  %-12s  0%*s\n", "", timelineWidth-1, seconds(end.Sub(start)))
	_, err := io.WriteString(w, text.String())
	return err
}

// Report is what build/demo.json holds.
type Report struct {
	Engine string        `json:"engine"`
	Rounds []RoundReport `json:"rounds"`
}

// RoundReport is one round in it.
type RoundReport struct {
	Name           string       `json:"name"`
	Jobs           int          `json:"jobs"`
	Failed         int          `json:"failed"`
	FirstConnectMS Milliseconds `json:"first_connect_ms"`
}

// Milliseconds are percentiles from the Pod's scheduling to the first dial.
type Milliseconds struct {
	P50 int64 `json:"p50"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

// NewReport sums the rounds up.
func NewReport(engine string, rounds []Round) Report {
	report := Report{Engine: engine}
	for _, r := range rounds {
		report.Rounds = append(report.Rounds, RoundReport{
			Name: r.Name, Jobs: len(r.Jobs), Failed: r.Failed(),
			FirstConnectMS: Milliseconds{
				P50: r.Percentile(50).Milliseconds(),
				P99: r.Percentile(99).Milliseconds(),
				Max: r.Percentile(100).Milliseconds(),
			},
		})
	}
	return report
}

// WriteFile writes the report as JSON.
func (r Report) WriteFile(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}

// Check returns nil if the demo showed what it is for: every gated Job was
// confirmed and succeeded, and some ungated ones failed, so that the race was
// there to lose.
func Check(rounds []Round) error {
	var errs []error
	seen := map[string]bool{}
	for _, round := range rounds {
		seen[round.Name] = true
		if round.Name == Gated && round.Failed() > 0 {
			errs = append(errs, fmt.Errorf("%d of %d gated Jobs failed: want 0", round.Failed(), len(round.Jobs)))
		}
		if round.Name == Ungated && round.Failed() == 0 {
			errs = append(errs, fmt.Errorf("none of %d ungated Jobs failed: the race did not show", len(round.Jobs)))
		}
		for _, job := range round.Jobs {
			if job.Unconfirmed {
				errs = append(errs, fmt.Errorf("%s was started by its timeout, not by a confirmation", job.Name))
			}
		}
		if len(round.Jobs) == 0 {
			errs = append(errs, fmt.Errorf("round %s had no Job", round.Name))
		}
	}
	for _, name := range []string{Ungated, Gated} {
		if !seen[name] {
			errs = append(errs, fmt.Errorf("round %s was not run", name))
		}
	}
	return errors.Join(errs...)
}
