// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "k8s.io/api/networking/v1"
)

func TestIntentSaysWhoGetsWhere(t *testing.T) {
	type flow struct {
		from, to Role
		port     uint16
	}
	for name, tc := range map[string]struct {
		intent Intent
		want   map[flow]bool
	}{
		"without policies everybody gets everywhere": {
			want: map[flow]bool{
				{Stranger, Server, servedPort}: true, {Client, Server, otherPort}: true,
				{Client, Stranger, servedPort}: true, {Stranger, Client, servedPort}: true,
			},
		},
		"admitting clients isolates servers alone": {
			intent: Intent{AdmitClients: true},
			want: map[flow]bool{
				{Client, Server, servedPort}: true, {Client, Server, otherPort}: false,
				{Guest, Server, servedPort}: false, {Server, Server, servedPort}: false,
				{Stranger, Server, servedPort}: false, {Stranger, Client, servedPort}: true,
			},
		},
		"deny-all isolates everybody": {
			intent: Intent{DenyAll: true},
			want: map[flow]bool{
				{Client, Server, servedPort}: false, {Stranger, Server, servedPort}: false,
				{Stranger, Client, servedPort}: false, {Client, Stranger, servedPort}: true,
			},
		},
		"deny-all leaves in who is admitted": {
			intent: Intent{DenyAll: true, AdmitClients: true, AdmitGuests: true},
			want: map[flow]bool{
				{Client, Server, servedPort}: true, {Guest, Server, servedPort}: true,
				{Guest, Server, otherPort}: false, {Guest, Client, servedPort}: false,
			},
		},
		"guests are admitted by the clients' policy or not at all": {
			intent: Intent{DenyAll: true, AdmitGuests: true},
			want:   map[flow]bool{{Guest, Server, servedPort}: false},
		},
		"confined clients get out to servers alone": {
			intent: Intent{ConfineClients: true},
			want: map[flow]bool{
				{Client, Server, servedPort}: true, {Client, Server, otherPort}: false,
				{Client, Stranger, servedPort}: false, {Client, Client, servedPort}: false,
				{Guest, Stranger, servedPort}: true,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for f, want := range tc.want {
				if got := tc.intent.Allows(f.from, f.to, f.port); got != want {
					t.Errorf("%s to %s port %d: allowed %t, want %t", f.from, f.to, f.port, got, want)
				}
			}
		})
	}
}

func TestPoliciesSayWhatTheIntentDoes(t *testing.T) {
	none := Intent{}.Policies()
	if len(none) != 0 {
		t.Errorf("no intent has %d policies", len(none))
	}
	all := Intent{DenyAll: true, AdmitClients: true, AdmitGuests: true, ConfineClients: true}.Policies()
	got := map[string][]networkingv1.PolicyType{}
	for _, p := range all {
		got[p.Name] = p.Spec.PolicyTypes
	}
	want := map[string][]networkingv1.PolicyType{
		policyDenyAll: {networkingv1.PolicyTypeIngress}, policyAdmit: {networkingv1.PolicyTypeIngress},
		policyConfine: {networkingv1.PolicyTypeEgress},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	if peers := find(all, policyAdmit).Spec.Ingress[0].From; len(peers) != 2 {
		t.Errorf("clients and guests are %d peers", len(peers))
	}
	if find(all, "another") != nil {
		t.Error("a policy was found that is not there")
	}
}

// An edit that changed nothing, or more than it says, would void looks that
// prove something, or judge ones that prove nothing.
func TestAnEditChangesTheOnePolicyItNames(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	intent := Intent{}
	seen := map[Intent]bool{}
	for range 1000 {
		after, name := intent.Edit(random)
		for _, policy := range []string{policyDenyAll, policyAdmit, policyConfine} {
			before, now := find(intent.Policies(), policy), find(after.Policies(), policy)
			changed := !cmp.Equal(before, now)
			if changed && policy != name || !changed && policy == name {
				t.Fatalf("%+v to %+v: policy %s changed %t, and the edit is of %s", intent, after, policy, changed, name)
			}
		}
		if intent.DenyAll && !intent.AdmitClients && !after.AdmitClients {
			t.Fatalf("%+v shuts clients out for more than one edit", intent)
		}
		intent = after
		seen[intent] = true
	}
	if len(seen) < 10 {
		t.Errorf("%d intents in 1000 edits", len(seen))
	}
}
