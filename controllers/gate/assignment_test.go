// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"net/netip"
	"testing"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/expect"
)

func TestSameContent(t *testing.T) {
	table := demand.NewTable()
	demandOf := func(change func(*expect.Expectation)) demand.Demand {
		e := allow(shopAllow, "10.0.0.1", 80)
		change(&e)
		d, err := table.Of([]expect.Expectation{e}, []netip.Addr{e.Flow.Src})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	base := func(change func(a *Assignment)) *Assignment {
		a := &Assignment{
			Subject: &hubv1.Subject{Uid: "p", Ips: []string{"10.0.0.1"}},
			Basis:   &hubv1.Basis{Pod: 1},
			Span:    []string{"n1"},
			Demands: map[string]demand.Demand{"n1": demandOf(func(*expect.Expectation) {})},
		}
		change(a)
		return a
	}
	other := func(change func(*expect.Expectation)) func(*Assignment) {
		return func(a *Assignment) { a.Demands["n1"] = demandOf(change) }
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
		"another node is not":                  {func(a *Assignment) { a.Demands["n2"] = demand.Demand{} }, false},
		"another port is not":                  {other(func(e *expect.Expectation) { e.Flow.Port = 2 }), false},
		"an advisory expectation is not":       {other(func(e *expect.Expectation) { e.Advisory = true }), false},
		"another why is not":                   {other(func(e *expect.Expectation) { e.Why = "other" }), false},
		"a policy that changed in what is not asked is the same": {
			other(func(e *expect.Expectation) { e.Generation = 2 }), true,
		},
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
