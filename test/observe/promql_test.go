// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMetricNames(t *testing.T) {
	tests := map[string]struct {
		expr string
		want []string
	}{
		"a name":                         {`up`, []string{"up"}},
		"a selector":                     {`up{job="x", a=~"b{c}", d!="sum(e)"}`, []string{"up"}},
		"a range, and a function":        {`rate(x_total[5m])`, []string{"x_total"}},
		"a variable of Grafana":          {`rate(x_total{a="b"}[$__rate_interval])`, []string{"x_total"}},
		"labels ahead of what is summed": {`sum by (le, role) (rate(x_bucket[5m]))`, []string{"x_bucket"}},
		"labels behind it":               {`sum(rate(x_bucket[5m])) by (le)`, []string{"x_bucket"}},
		"operators that are words":       {`max(a) > 0 unless on (b) group_left (c) e or vector(0) offset 5m`, []string{"a", "e"}},
		"numbers":                        {`1e3 * a + 0.5 + inf`, []string{"a"}},
		"a subquery":                     {`max_over_time(a[5m:1m])`, []string{"a"}},
		"the same twice":                 {`b / (a + b)`, []string{"a", "b"}},
		"no metric":                      {`vector(1)`, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, MetricNames(tc.expr)); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMeasured(t *testing.T) {
	tests := map[string]struct{ expr, want string }{
		"a limit":                       {`max(a) > 0`, `max(a)`},
		"a limit of two signs":          {`sum by (x) (a{b="> 1"}) >= 0.1`, `sum by (x) (a{b="> 1"})`},
		"a comparison in parentheses":   {`absent(up{job="a"} == 1)`, `absent(up{job="a"} == 1)`},
		"no comparison":                 {`a / b`, `a / b`},
		"another that is no last limit": {`a > 0 unless b > 0`, `a > 0 unless b`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Measured(tc.expr); got != tc.want {
				t.Errorf("measured = %s, want %s", got, tc.want)
			}
		})
	}
}

func FuzzExpressions(f *testing.F) {
	f.Add(`sum by (a) (rate(x{b="c"}[5m])) > 0 unless y`)
	f.Add(`by ( on`)
	f.Add(`{"}`)
	f.Fuzz(func(t *testing.T, expr string) {
		for _, n := range MetricNames(expr) {
			if !strings.Contains(expr, n) || !name.MatchString(n) {
				t.Errorf("%q: %q is no name in it", expr, n)
			}
		}
		Measured(expr)
	})
}
