// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"fmt"
	"testing"

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
				r.held(map[Version]bool{allow: true})
			},
			wantRound: true,
		},
		"what is held later completes the round": {
			steps: func(r *rounds) {
				r.ticket(pod)
				r.listed(r.begin(), []Version{allow, deny})
				r.held(map[Version]bool{allow: true})
				r.held(map[Version]bool{deny: true})
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
	if got := len(r.incomplete); got != maxIncomplete {
		t.Errorf("%d incomplete rounds are remembered, want %d", got, maxIncomplete)
	}
	held := map[Version]bool{}
	for _, v := range r.missing() {
		held[v] = true
	}
	if !r.held(held) || !r.passed("first") {
		t.Errorf("the ticket of a dropped round does not pass with a later one")
	}
	if r.pending() {
		t.Errorf("rounds are pending after the last one is complete: %v", r.incomplete)
	}
}

// complete runs one round whose objects the index holds.
func complete(r *rounds, versions ...Version) {
	held := map[Version]bool{}
	for _, v := range versions {
		held[v] = true
	}
	r.listed(r.begin(), versions)
	r.held(held)
}
