// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"strings"
	"testing"
	"time"
)

func TestSchedule(t *testing.T) {
	const kinds = 15
	a, b, other := newSchedule(7, kinds), newSchedule(7, kinds), newSchedule(8, kinds)
	differs := false
	seen := map[int]int{}
	for range 2 * kinds {
		turn := a.next()
		if again := b.next(); turn != again {
			t.Fatalf("one seed gives %+v and %+v", turn, again)
		}
		differs = differs || turn != other.next()
		if turn.calm < minCalm || turn.calm >= maxCalm || turn.lasts < minFault || turn.lasts >= maxFault {
			t.Errorf("%+v is out of bounds", turn)
		}
		seen[turn.kind]++
	}
	if !differs {
		t.Error("two seeds give the same schedule")
	}
	for kind := range kinds {
		if seen[kind] != 2 {
			t.Errorf("kind %d came %d times in two rounds", kind, seen[kind])
		}
	}
}

func TestReport(t *testing.T) {
	good := func(change ...func(*Report)) Report {
		r := Report{
			Seed: 9, Duration: 10 * time.Minute, Kinds: []string{"a", "b"}, Faults: map[string]int{"a": 15, "b": 15},
			Openings: map[string]int{"Confirmed": 499, "PartiallyConfirmed": 1}, Proven: 1,
		}
		for _, c := range change {
			c(&r)
		}
		return r
	}
	for name, tc := range map[string]struct {
		report  Report
		last    string
		wantErr string
	}{
		"a good run": {report: good(), last: "gates=500 opened_wrongly=0 stuck=0 lost=0 faults=30 kinds=2 seed=9"},
		"a wrong opening": {
			report: good(func(r *Report) { r.Wrong = []string{"x"} }), wantErr: "1 opened wrongly",
			last: "gates=500 opened_wrongly=1 stuck=0 lost=0 faults=30 kinds=2 seed=9",
		},
		"a stuck Pod": {
			report: good(func(r *Report) { r.Stuck = []string{"x"} }), wantErr: "1 stuck",
			last: "gates=500 opened_wrongly=0 stuck=1 lost=0 faults=30 kinds=2 seed=9",
		},
		"a lost Pod": {
			report: good(func(r *Report) { r.Lost = []string{"x"} }), wantErr: "1 lost",
			last: "gates=500 opened_wrongly=0 stuck=0 lost=1 faults=30 kinds=2 seed=9",
		},
		"too few gates":               {report: good(func(r *Report) { r.Openings["Confirmed"] = 9 }), wantErr: "10 gates opened"},
		"few gates of a short run":    {report: good(func(r *Report) { r.Openings["Confirmed"] = 9; r.Duration = time.Minute })},
		"few gates without bridge-nf": {report: good(func(r *Report) { r.Openings["Confirmed"] = 9; r.Variant = NoBridgeNF })},
		"too few faults":              {report: good(func(r *Report) { r.Faults["a"] = 1 }), wantErr: "16 faults"},
		"a kind is missing":           {report: good(func(r *Report) { r.Kinds = append(r.Kinds, "c") }), wantErr: `"c"`},
		"nothing was proven":          {report: good(func(r *Report) { r.Proven = 0 }), wantErr: "no packet proved"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.report.Check()
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("Check() = %v, want %q", err, tc.wantErr)
			}
			var text strings.Builder
			if err := tc.report.Write(&text); err != nil {
				t.Fatal(err)
			}
			if tc.last != "" && !strings.HasSuffix(text.String(), "\n"+tc.last+"\n") {
				t.Errorf("the report ends with %q, want %q", text.String()[strings.LastIndex(strings.TrimSpace(text.String()), "\n")+1:], tc.last)
			}
		})
	}
}

func TestPercentileIsTheNearestRank(t *testing.T) {
	of := []time.Duration{4, 1, 3, 2}
	for p, want := range map[int]time.Duration{0: 1, 50: 2, 99: 4} {
		if got := percentile(of, p); got != want {
			t.Errorf("percentile %d is %d, want %d", p, got, want)
		}
	}
	if got := percentile(nil, 50); got != 0 {
		t.Errorf("percentile of none is %d", got)
	}
}

func TestParseVariant(t *testing.T) {
	for _, name := range []string{"", "host-firewall", "no-bridge-nf", "no-ipv6"} {
		if v, err := ParseVariant(name); err != nil || string(v) != name {
			t.Errorf("ParseVariant(%q) = %q, %v", name, v, err)
		}
	}
	if _, err := ParseVariant("other"); err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("ParseVariant(other) = %v, want an error that names it", err)
	}
}
