// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestWhatIsAwaitedTellsNoOthersSecrets(t *testing.T) {
	own, other := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("10.9.9.9")
	expectation := func(src, dst netip.Addr, want flow.Answer) *hubv1.Expectation {
		return &hubv1.Expectation{
			Flow: hubv1.FlowOf(flow.Flow{Protocol: flow.TCP, Src: src, Dst: dst, Port: 3306}),
			Want: hubv1.AnswerOf(want),
		}
	}
	allowJobs := types.NamespacedName{Namespace: "db", Name: "allow-jobs"}
	cases := map[string]struct {
		expectation *hubv1.Expectation
		policy      types.NamespacedName
		want        string
	}{
		"the Pod is not admitted by a policy of its namespace": {
			expectation(own, other, flow.Allowed), allowJobs,
			"db/allow-jobs does not admit 10.1.2.3 there yet",
		},
		"another address than the Pod's own is not told": {
			expectation(other, own, flow.Allowed), allowJobs,
			"db/allow-jobs is not in force there yet",
		},
		"a stranger gets in": {
			expectation(other, own, flow.Denied), allowJobs,
			"db/allow-jobs does not isolate its Pods there yet",
		},
		"a policy of another namespace has no name": {
			expectation(own, other, flow.Allowed), types.NamespacedName{Namespace: "payroll", Name: "secret-plan"},
			"a policy in another namespace is not in force there yet",
		},
		"a Pod that no policy isolates is not let through": {
			expectation(own, other, flow.Allowed), types.NamespacedName{},
			"the rules there are not complete yet",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			d := Demand{Expectations: []*hubv1.Expectation{tc.expectation}, Whys: []string{"payroll/secret-plan ingress[0]"}, Policies: []types.NamespacedName{tc.policy}}
			if got := d.awaits(0, "db", []netip.Addr{own}); got != tc.want {
				t.Errorf("awaits = %q, want %q", got, tc.want)
			}
		})
	}
	if got := (Demand{}).awaits(7, "db", nil); got != "" {
		t.Errorf("awaits of an index that is not there = %q, want none", got)
	}
}

func TestSameContent(t *testing.T) {
	base := func(change func(a *Assignment)) *Assignment {
		a := &Assignment{
			Subject: &hubv1.Subject{Uid: "p", Ips: []string{"10.0.0.1"}},
			Basis:   &hubv1.Basis{Pod: 1},
			Span:    []string{"n1"},
			Demands: map[string]Demand{"n1": {
				Expectations: []*hubv1.Expectation{{Want: hubv1.Answer_ANSWER_DENIED, Flow: &hubv1.Flow{Port: 1}}},
				Whys:         []string{"why"},
			}},
		}
		change(a)
		return a
	}
	cases := map[string]struct {
		change func(a *Assignment)
		want   bool
	}{
		"another basis is the same content":    {func(a *Assignment) { a.Basis.Pod = 2 }, true},
		"other addresses are not":              {func(a *Assignment) { a.Subject.Ips[0] = "10.0.0.2" }, false},
		"another generation of the Pod is not": {func(a *Assignment) { a.Subject.Generation = 2 }, false},
		"settling is not":                      {func(a *Assignment) { a.Settle = true }, false},
		"leave to excuse families is not":      {func(a *Assignment) { a.ExcuseFamilies = true }, false},
		"another span is not":                  {func(a *Assignment) { a.Span = nil }, false},
		"another node is not":                  {func(a *Assignment) { a.Demands["n2"] = Demand{} }, false},
		"another port is not":                  {func(a *Assignment) { a.Demands["n1"].Expectations[0].Flow.Port = 2 }, false},
		"an advisory expectation is not":       {func(a *Assignment) { a.Demands["n1"].Expectations[0].Advisory = true }, false},
		"another why is not":                   {func(a *Assignment) { a.Demands["n1"].Whys[0] = "other" }, false},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			if got := base(func(*Assignment) {}).sameContent(base(tc.change)); got != tc.want {
				t.Errorf("sameContent = %v, want %v", got, tc.want)
			}
		})
	}
	if base(func(*Assignment) {}).sameContent(nil) {
		t.Error("an assignment has the same content as none")
	}
}
