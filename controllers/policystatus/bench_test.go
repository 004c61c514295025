// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"fmt"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// cluster is a ledger with that many policies in 50 namespaces, each on that
// many nodes, all in force.
func cluster(b *testing.B, policies, nodes int) (*bench, []types.NamespacedName, []string) {
	b.Helper()
	c := newBench(b)
	names := make([]string, nodes)
	for i := range names {
		names[i] = fmt.Sprintf("n%04d", i)
	}
	c.connect(names...)
	keys := make([]types.NamespacedName, policies)
	for i := range keys {
		keys[i] = types.NamespacedName{Namespace: fmt.Sprint("ns", i%50), Name: fmt.Sprint("p", i)}
		c.assign(keys[i], 1, 1, names...)
	}
	c.objects.history = map[types.NamespacedName][]string{}
	for len(c.objects.objects) < policies {
		c.run(20 * time.Second)
	}
	for _, key := range keys {
		c.confirm(key, names...)
	}
	c.run(time.Duration(policies/writesPerSecond+5) * time.Second)
	return c, keys, names
}

// BenchmarkNothingChanges is a minute of a cluster in which nothing changes:
// each policy is computed once, and nothing is written.
func BenchmarkNothingChanges(b *testing.B) {
	for _, policies := range []int{500, 5000} {
		b.Run(fmt.Sprint(policies, "-policies"), func(b *testing.B) {
			c, _, _ := cluster(b, policies, 3)
			writes, computed := len(c.objects.writes), c.coverage.computed
			for b.Loop() {
				c.run(time.Minute)
			}
			if n := len(c.objects.writes) - writes; n > 0 {
				b.Errorf("%d writes, want none", n)
			}
			b.ReportMetric(float64(len(c.objects.writes)-writes)/float64(b.N), "writes/op")
			b.ReportMetric(float64(c.coverage.computed-computed)/float64(b.N), "computations/op")
		})
	}
}

// BenchmarkReport is one report that says what the one before said, with all
// that it brings about, on policies of 3 nodes and of 500.
func BenchmarkReport(b *testing.B) {
	for _, size := range []struct{ policies, nodes int }{{500, 3}, {5000, 3}, {20, 500}} {
		b.Run(fmt.Sprint(size.policies, "-policies-", size.nodes, "-nodes"), func(b *testing.B) {
			c, keys, names := cluster(b, size.policies, size.nodes)
			writes, i := len(c.objects.writes), 0
			for b.Loop() {
				c.report(names[i%len(names)], keys[i%len(keys)], &hubv1.Report{Confirmed: true})
				if i++; i%100 == 0 { // as many as come within a decision's interval
					c.clock.Step(decideInterval)
				}
				c.ledger.step()
			}
			if n := len(c.objects.writes) - writes; n > 0 {
				b.Errorf("%d writes, want none", n)
			}
		})
	}
}
