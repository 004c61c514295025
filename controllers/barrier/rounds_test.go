// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"
)

func TestRounds(t *testing.T) {
	allow := Version{Kind: NetworkPolicies, UID: "allow", ResourceVersion: 7}
	deny := Version{Kind: NetworkPolicies, UID: "deny", ResourceVersion: 9}
	const pod types.UID = "p"
	cases := map[string]struct {
		steps      func(r *rounds)
		wantPassed bool
		wantRound  bool
	}{
		"a ticket does not pass by itself": {
			steps:     func(r *rounds) { r.ticket(pod) },
			wantRound: true,
		},
		"a uid without a ticket never passes": {
			steps: func(r *rounds) { complete(r) },
		},
		"a round that began after the ticket passes it": {
			steps:      func(r *rounds) { r.ticket(pod); complete(r, allow) },
			wantPassed: true,
		},
		"a round that began before the ticket does not pass it": {
			steps: func(r *rounds) {
				n := r.begin()
				r.ticket(pod)
				r.listed(n, nil)
				r.held(nil)
			},
			wantRound: true,
		},
		"a round waits for every version that it listed": {
			steps: func(r *rounds) {
				r.ticket(pod)
				r.listed(r.begin(), []Version{allow, deny})
				r.held([]Version{allow})
			},
			wantRound: true,
		},
		"what is held later completes the round": {
			steps: func(r *rounds) {
				r.ticket(pod)
				r.listed(r.begin(), []Version{allow, deny})
				r.held([]Version{allow})
				r.held([]Version{deny})
			},
			wantPassed: true,
		},
		"an object deleted before it was seen holds up only its own round": {
			steps: func(r *rounds) {
				r.ticket(pod)
				r.listed(r.begin(), []Version{allow})
				r.held(nil)
				complete(r, deny)
			},
			wantPassed: true,
		},
		"a failed round passes nobody": {
			steps:     func(r *rounds) { r.ticket(pod); r.begin(); r.held(nil) },
			wantRound: true,
		},
		"a second ticket does not make a passed uid wait again": {
			steps:      func(r *rounds) { r.ticket(pod); complete(r); r.ticket(pod) },
			wantPassed: true,
		},
		"a uid that was forgotten waits anew": {
			steps:     func(r *rounds) { r.ticket(pod); complete(r); r.forget(pod); r.ticket(pod) },
			wantRound: true,
		},
		"no round is wanted when all tickets are forgotten": {
			steps: func(r *rounds) { r.ticket(pod); r.forget(pod) },
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			r := newRounds()
			tc.steps(&r)
			if got := r.passed(pod); got != tc.wantPassed {
				t.Errorf("passed = %v, want %v", got, tc.wantPassed)
			}
			if got := r.wantsRound(); got != tc.wantRound {
				t.Errorf("wantsRound = %v, want %v", got, tc.wantRound)
			}
		})
	}
}

func TestRoundsRememberABoundedNumber(t *testing.T) {
	r := newRounds()
	r.ticket("first")
	for i := range 3 * maxIncomplete {
		r.listed(r.begin(), []Version{{UID: types.UID(fmt.Sprint(i)), ResourceVersion: 1}})
	}
	if got := len(r.lacks); got != maxIncomplete {
		t.Errorf("%d lacks are remembered, want %d", got, maxIncomplete)
	}
	if !r.held(r.missing(len(r.lacks))) || !r.passed("first") {
		t.Errorf("the ticket of a dropped round does not pass with a later one")
	}
	if r.pending() {
		t.Errorf("rounds are pending after the last one is complete: %v", r.lacks)
	}
}

// A frozen watch makes every round lack the same objects.
func TestWhatManyRoundsLackIsRememberedOnce(t *testing.T) {
	var lacking []Version
	for i := range 5000 {
		lacking = append(lacking, Version{NetworkPolicies, types.UID(fmt.Sprint(i)), 1})
	}
	r := newRounds()
	r.ticket("p")
	for range 2 * maxIncomplete {
		r.listed(r.begin(), lacking)
	}
	if got := len(r.lacks); got != len(lacking) {
		t.Errorf("%d lacks are remembered, want %d", got, len(lacking))
	}
	// All have their turn, a part in each look.
	looks := 0
	for ; r.pending(); looks++ {
		r.held(r.missing(maxLook))
	}
	if want := (len(lacking) + maxLook - 1) / maxLook; looks != want {
		t.Errorf("%d looks until nothing lacks, want %d", looks, want)
	}
	if diff := cmp.Diff([]types.UID{"p"}, r.takePassed()); diff != "" {
		t.Errorf("passed (-want +got):\n%s", diff)
	}
}

func TestWhoPassedIsToldOnce(t *testing.T) {
	r := newRounds()
	r.ticket("a")
	r.ticket("b")
	r.ticket("forgotten")
	r.forget("forgotten")
	n := r.begin()
	r.ticket("late")
	r.listed(n, nil)
	got := r.takePassed()
	slices.Sort(got)
	if diff := cmp.Diff([]types.UID{"a", "b"}, got); diff != "" {
		t.Errorf("passed (-want +got):\n%s", diff)
	}
	if got := r.takePassed(); len(got) > 0 {
		t.Errorf("%v passed twice", got)
	}
	complete(&r)
	if diff := cmp.Diff([]types.UID{"late"}, r.takePassed()); diff != "" {
		t.Errorf("passed (-want +got):\n%s", diff)
	}
}

// complete runs one round whose objects the index comes to hold.
func complete(r *rounds, versions ...Version) {
	r.listed(r.begin(), versions)
	r.held(versions)
}

// BenchmarkTickets takes and forgets a ticket while others wait.
func BenchmarkTickets(b *testing.B) {
	for _, waiting := range []int{300, 3000} {
		b.Run(fmt.Sprintf("%d wait", waiting), func(b *testing.B) {
			r := newRounds()
			for i := range waiting {
				r.ticket(types.UID(fmt.Sprint(i)))
			}
			b.ReportAllocs()
			for b.Loop() {
				r.ticket("p")
				if !r.wantsRound() {
					b.Fatal("tickets wait and no round is wanted")
				}
				r.forget("p")
			}
		})
	}
}
