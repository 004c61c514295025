// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"strings"
	"testing"
	"time"
)

func round(name string, failed ...bool) Round {
	r := Round{Name: name}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for i, f := range failed {
		r.Jobs = append(r.Jobs, Job{
			Name: name, Scheduled: start,
			Connected: start.Add(time.Duration(i+1) * time.Second), Failed: f,
		})
	}
	return r
}

func unconfirmed(r Round) Round {
	r.Jobs[0].Unconfirmed = true
	return r
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		rounds  []Round
		wantErr string
	}{
		"all gated succeed and some ungated fail": {
			rounds: []Round{round(Ungated, true, false), round(Gated, false, false)},
		},
		"one gated Job fails": {
			rounds:  []Round{round(Ungated, true), round(Gated, false, true)},
			wantErr: "1 of 2 gated Jobs failed",
		},
		"one gated Job was started by its timeout": {
			rounds:  []Round{round(Ungated, true), unconfirmed(round(Gated, false))},
			wantErr: "started by its timeout",
		},
		"the race did not show": {
			rounds:  []Round{round(Ungated, false), round(Gated, false)},
			wantErr: "the race did not show",
		},
		"a round is missing": {
			rounds:  []Round{round(Ungated, true)},
			wantErr: "round gated was not run",
		},
		"a round without Jobs proves nothing": {
			rounds:  []Round{round(Ungated, true), round(Gated)},
			wantErr: "round gated had no Job",
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := Check(tc.rounds)
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("Check() = %v, want %q", err, tc.wantErr)
			}
		})
	}
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	r := round(Gated, false, false, false, false)
	for p, want := range map[int]time.Duration{0: time.Second, 50: 2 * time.Second, 99: 4 * time.Second, 100: 4 * time.Second} {
		if got := r.Percentile(p); got != want {
			t.Errorf("Percentile(%d) = %v, want %v", p, got, want)
		}
	}
	if got := (Round{}).Percentile(50); got != 0 {
		t.Errorf("Percentile of no Jobs = %v, want 0", got)
	}
}

func TestTimelineShowsWhoWasRefused(t *testing.T) {
	var out strings.Builder
	if err := WriteTimeline(&out, round(Ungated, true, false)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"X", "FAILED after 1.00 s", "o| ok after 2.00 s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("timeline lacks %q:\n%s", want, out.String())
		}
	}
}
