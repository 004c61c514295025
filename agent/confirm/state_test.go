// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// observation is a look at a number of milliseconds after the first, which
// takes 10 ms, and the answer that is wanted after it.
type observation struct {
	at       int
	rewrites uint64
	required int
	advisory int
	failed   bool
	without6 bool

	wantConfirmed bool
	wantWanting   bool
	wantReason    string
}

func TestStateObserve(t *testing.T) {
	const held = 0
	for name, tc := range map[string]struct {
		settle bool
		looks  []observation
	}{
		"two looks 50 ms apart confirm": {looks: []observation{
			{at: 0, required: held, wantWanting: true},
			{at: 60, required: held, wantConfirmed: true},
		}},
		"the gap counts from the end of the first look": {looks: []observation{
			{at: 0, wantWanting: true},
			{at: 59, wantWanting: true},
			{at: 100, wantConfirmed: true},
		}},
		"a failure between two looks starts anew": {looks: []observation{
			{at: 0, wantWanting: true},
			{at: 30, required: 1},
			{at: 60, wantWanting: true},
			{at: 100, wantWanting: true},
			{at: 120, wantConfirmed: true},
		}},
		"a required one that fails retracts at once": {looks: []observation{
			{at: 0, wantWanting: true},
			{at: 60, wantConfirmed: true},
			{at: 120, required: 1},
			{at: 180, wantWanting: true},
			{at: 240, wantConfirmed: true},
		}},
		"a family that counts again is looked at twice": {looks: []observation{
			{at: 0, without6: true, wantWanting: true},
			{at: 60, wantWanting: true},
			{at: 120, wantConfirmed: true},
		}},
		"what was confirmed without a family that holds stays confirmed with it": {looks: []observation{
			{at: 0, without6: true, wantWanting: true},
			{at: 60, without6: true, wantConfirmed: true},
			{at: 120, wantConfirmed: true},
			{at: 180, required: 1},
		}},
		"a look that fails confirms nothing and retracts": {looks: []observation{
			{at: 0, wantWanting: true},
			{at: 30, failed: true, wantReason: "unreadable"},
			{at: 60, wantWanting: true},
			{at: 120, wantConfirmed: true},
			{at: 180, failed: true, wantReason: "unreadable"},
		}},
		"an unmet advisory one is awaited for 10 s": {looks: []observation{
			{at: 0, advisory: 1},
			{at: 60, advisory: 1},
			{at: 10_000, advisory: 1},
			{at: 10_010, advisory: 1, wantConfirmed: true},
		}},
		"an unmet advisory one is awaited for two rewrites": {looks: []observation{
			{at: 0, rewrites: 7, advisory: 1},
			{at: 60, rewrites: 8, advisory: 1},
			{at: 120, rewrites: 9, advisory: 1, wantConfirmed: true},
		}},
		"rewrites within 50 ms are still one look": {looks: []observation{
			{at: 0, rewrites: 7, advisory: 1},
			{at: 40, rewrites: 9, advisory: 1},
			{at: 60, rewrites: 9, advisory: 1, wantConfirmed: true},
		}},
		"the wait for advisory ones starts anew when a required one fails": {looks: []observation{
			{at: 0, advisory: 1},
			{at: 9_000, required: 1, advisory: 1},
			{at: 9_500, advisory: 1},
			{at: 10_100, advisory: 1},
			{at: 19_510, advisory: 1, wantConfirmed: true},
		}},
		"an advisory one that fails later retracts nothing": {looks: []observation{
			{at: 0, wantWanting: true},
			{at: 60, wantConfirmed: true},
			{at: 120, advisory: 1, wantConfirmed: true},
		}},
		"an advisory one that comes to hold confirms after a second look": {looks: []observation{
			{at: 0, advisory: 1},
			{at: 100, wantWanting: true},
			{at: 160, wantConfirmed: true},
		}},
		"settling ends with two rewrites": {settle: true, looks: []observation{
			{at: 0, rewrites: 4, wantReason: settling},
			{at: 60, rewrites: 5, wantReason: settling},
			{at: 120, rewrites: 6, wantConfirmed: true},
		}},
		"settling ends after 10 s without a rewrite": {settle: true, looks: []observation{
			{at: 0, rewrites: 4, wantReason: settling},
			{at: 5_000, rewrites: 5, wantReason: settling},
			{at: 15_000, rewrites: 5, wantReason: settling},
			{at: 15_010, rewrites: 5, wantConfirmed: true},
		}},
		"settling does not excuse a required one": {settle: true, looks: []observation{
			{at: 0, rewrites: 4, required: 1},
			{at: 60, rewrites: 6, required: 1},
			{at: 120, rewrites: 6, wantWanting: true},
			{at: 180, rewrites: 6, wantConfirmed: true},
		}},
		"a count of rewrites that falls begins anew": {settle: true, looks: []observation{
			{at: 0, rewrites: 9, wantReason: settling},
			{at: 60, rewrites: 1, wantReason: settling},
			{at: 120, rewrites: 2, wantReason: settling},
			{at: 180, rewrites: 3, wantConfirmed: true},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
			s := state{settle: tc.settle}
			for _, o := range tc.looks {
				began := start.Add(time.Duration(o.at) * time.Millisecond)
				var a answer
				if o.failed {
					a = s.fail("unreadable", 1)
				} else {
					a = s.observe(
						moment{began: began, ended: began.Add(10 * time.Millisecond), rewrites: o.rewrites},
						result{required: o.required, advisory: o.advisory, without: [families]bool{ipv6: o.without6}},
					)
				}
				reason := ""
				if len(a.unmet) > 0 {
					reason = a.unmet[0].reason
				}
				got := observation{
					at: o.at, rewrites: o.rewrites, required: o.required, advisory: o.advisory, failed: o.failed, without6: a.without[ipv6],
					wantConfirmed: a.confirmed, wantWanting: s.wanting, wantReason: reason,
				}
				if diff := cmp.Diff(o, got, cmp.AllowUnexported(observation{})); diff != "" {
					t.Fatalf("after the look at %d ms (-want +got):\n%s", o.at, diff)
				}
			}
		})
	}
}

func TestStateSuccessorKeepsWhatWasNoticedOfTheEngine(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s := state{}
	s.observe(moment{began: start, ended: start, rewrites: 3}, result{required: 1})
	next := s.successor(true)
	next.observe(moment{began: start.Add(time.Second), ended: start.Add(time.Second), rewrites: 5}, result{})
	a := next.observe(moment{began: start.Add(2 * time.Second), ended: start.Add(2 * time.Second), rewrites: 5}, result{})
	if !a.confirmed {
		t.Errorf("not confirmed after two rewrites since the predecessor's first look: %+v", a)
	}
}

func TestInterval(t *testing.T) {
	for name, tc := range map[string]struct {
		age, cost, want time.Duration
		blind           bool
	}{
		"a cheap look is taken every 100 ms":           {cost: time.Millisecond, want: 100 * time.Millisecond},
		"a look takes one percent of the time":         {cost: 2 * time.Millisecond, want: 200 * time.Millisecond},
		"within 250 ms":                                {cost: 40 * time.Millisecond, want: 250 * time.Millisecond},
		"but never more than a fifth":                  {cost: 70 * time.Millisecond, want: 280 * time.Millisecond},
		"a costly look, too":                           {cost: time.Second, want: 4 * time.Second},
		"after 30 s once in a second, however cheaply": {age: 30 * time.Second, cost: time.Millisecond, want: time.Second},
		"each 50 ms where nothing tells":               {cost: time.Millisecond, want: 50 * time.Millisecond, blind: true},
		"a twentieth of the time there":                {cost: 4 * time.Millisecond, want: 80 * time.Millisecond, blind: true},
		"a fifth there too at the most":                {cost: 70 * time.Millisecond, want: 280 * time.Millisecond, blind: true},
		"once in a second there too":                   {age: 30 * time.Second, cost: time.Millisecond, want: time.Second, blind: true},
		"an old subject's look may take as much":       {age: 30 * time.Second, cost: time.Second, want: 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if got := interval(tc.age, tc.cost, tc.blind); got != tc.want {
				t.Errorf("interval(%v, %v) = %v, want %v", tc.age, tc.cost, got, tc.want)
			}
		})
	}
}
