// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/expect"
)

// asked is what a node was asked for the policy db/allow-jobs: of each kind of
// policy an Allowed and a Denied.
func asked(t testing.TB) demand.Demand {
	t.Helper()
	var expectations []expect.Expectation
	for i, policy := range []types.NamespacedName{
		allowJobs, {Namespace: "db", Name: "other"}, {Namespace: "payroll", Name: "secret-plan"}, {},
	} {
		for j, want := range []flow.Answer{flow.Allowed, flow.Denied} {
			why := policy.String() + " ingress[0]"
			if want == flow.Denied {
				why = "db/mysql-0 ingress isolation, stranger from another node"
			}
			expectations = append(expectations, expect.Expectation{
				Flow: flow.Flow{
					Protocol: flow.TCP, Port: uint16(1000 + i), Dst: netip.MustParseAddr("10.0.0.1"),
					Src: netip.AddrFrom4([4]byte{10, 9, byte(i), byte(j)}),
				},
				Want: want, Policy: policy, Generation: 1, Why: why,
			})
		}
	}
	d, err := demand.NewTable().Of(expectations, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWhatANodeLacksIsSaidInThePolicysOwnWords(t *testing.T) {
	const cannot = "it cannot be told what the node does; its agent's log says why"
	tests := map[string]struct {
		expectation uint32
		reason      string
		lag, text   string
	}{
		"a rule does not admit": {0, "denied (rule)", v1alpha1.LagNotAdmitting, "connections that ingress[0] allows would be refused"},
		"strangers get in":      {1, "allowed", v1alpha1.LagNotIsolating, "connections that the policy does not allow would pass"},
		"another policy of the namespace does not admit": {
			2, "denied", v1alpha1.LagNotAdmitting, "connections that the policy allows would be refused, as other is not in force there",
		},
		"another policy of the namespace does not isolate": {
			3, "allowed (x)", v1alpha1.LagNotIsolating, "connections that the policy does not allow would pass, as other is not in force there",
		},
		"a policy of another namespace has no name": {
			4, "denied (payroll/secret-plan 10.9.2.0)", v1alpha1.LagNotAdmitting,
			"connections that the policy allows would be refused, as a policy in another namespace is not in force there",
		},
		"nobody's flow":                   {6, "denied", v1alpha1.LagNotAdmitting, "connections that the policy allows would be refused"},
		"inconclusive":                    {0, "inconclusive (unknown match)", v1alpha1.LagInconclusive, cannot},
		"the dataplane could not be read": {0, "the dataplane could not be read: denied", v1alpha1.LagInconclusive, cannot},
		"an expectation that there isn't": {99, "denied", v1alpha1.LagInconclusive, cannot},
	}
	d := asked(t)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			lag, text := lacks(&hubv1.Unmet{Expectation: tc.expectation, Reason: tc.reason}, d, allowJobs)
			if lag != tc.lag || text != tc.text {
				t.Errorf("%s: %q, want %s: %q", lag, text, tc.lag, tc.text)
			}
		})
	}
}

func TestWhatAnEngineDoesNotCarryOutIsSaidInThePolicysOwnWords(t *testing.T) {
	d := asked(t)
	r := &hubv1.Report{
		Confirmed: true, UnmetAdvisory: 1, Unmet: []*hubv1.Unmet{{Expectation: 0, Reason: "denied (rule)"}},
		Unrealized: []uint32{0, 2, 4, 99}, Ipv6Unenforced: true,
	}
	want := []string{
		"IPv6 is not enforced",
		"a policy in another namespace does not admit all that it allows",
		"ingress[0] does not admit all that it allows",
		"other does not admit all that it allows",
	}
	if diff := cmp.Diff(want, answerOf(r, d, allowJobs).deviates); diff != "" {
		t.Errorf("deviates (-want +got):\n%s", diff)
	}
	if got := answerOf(&hubv1.Report{Unrealized: []uint32{0}}, d, allowJobs).deviates; got != nil {
		t.Errorf("%q of a node that neither confirms nor rests, want nothing", got)
	}
}

func TestNotesOfTheEngineNameNoObjects(t *testing.T) {
	var notes []expect.Note
	for _, k := range []expect.NoteKind{
		expect.EngineConflict, expect.EngineOverAllows, expect.EngineLimit, expect.DuplicatePodIP, expect.PolicyNotUnderstood,
	} {
		notes = append(notes, expect.Note{Kind: k, Text: "payroll/secret-plan"}, expect.Note{Kind: k, Text: "payroll/other"})
	}
	got := notesOf(notes)
	if len(got) != 3 || strings.Contains(strings.Join(got, " "), "payroll") {
		t.Errorf("notes %q, want three that name nothing", got)
	}
}

func FuzzAnswerOf(f *testing.F) {
	f.Add(uint32(0), "denied (rule)", uint32(0), true, true)
	f.Add(uint32(4), "allowed (payroll)", uint32(1<<31), false, true)
	f.Fuzz(func(t *testing.T, expectation uint32, reason string, why uint32, confirmed, steady bool) {
		a := answerOf(&hubv1.Report{
			Confirmed: confirmed, Steady: steady, Unrealized: []uint32{why},
			Unmet: []*hubv1.Unmet{{Expectation: expectation, Reason: reason}},
		}, asked(t), allowJobs)
		if a.confirmed != confirmed {
			t.Errorf("confirmed is %t of a report that says %t", a.confirmed, confirmed)
		}
		for _, text := range append(a.deviates, a.text) {
			if strings.Contains(text, "payroll") || strings.Contains(text, "10.9.") {
				t.Errorf("%q names another namespace's objects", text)
			}
		}
	})
}
