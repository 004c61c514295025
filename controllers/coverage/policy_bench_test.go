// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// takePolicies computes what is changed in its meaning, and counts the Pods of
// the others. It says how many there were of both.
func (c *city) takePolicies() (meaning, numbers int) {
	for _, change := range c.x.ChangedPolicies() {
		if change.Meaning {
			meaning++
			c.x.PolicyAssignment(change.Policy)
		} else {
			numbers++
			c.x.PolicyPods(change.Policy)
		}
	}
	return meaning, numbers
}

// BenchmarkEventWithPolicies is what one event of a Pod costs if every policy is
// a subject: the event itself with what it has held Pods compute, and what the
// policies compute. The ratios are the claim.
func BenchmarkEventWithPolicies(b *testing.B) {
	cities := map[int]*city{1: newCity(1), 10: newCity(10)}
	for _, c := range cities {
		c.clock.Step(2 * youth)
		c.takePolicies()
	}
	for _, tc := range []struct {
		name  string
		event func(c *city) func()
	}{
		{"gated pod", gatedPod},
		{"ungated pod", ungatedPod},
		{"pod asked about", podAskedAbout},
		{"policy edit", policyEdit},
	} {
		b.Run(tc.name, func(b *testing.B) {
			events := map[int]func(){1: tc.event(cities[1]), 10: tc.event(cities[10])}
			event, policies := map[int]time.Duration{}, map[int]time.Duration{}
			meaning, numbers := map[int]int{}, map[int]int{}
			rounds := 0
			for b.Loop() {
				rounds++
				for size, c := range cities {
					begin := time.Now()
					events[size]()
					c.compute()
					middle := time.Now()
					m, n := c.takePolicies()
					policies[size] += time.Since(middle)
					event[size] += middle.Sub(begin)
					meaning[size], numbers[size] = meaning[size]+m, numbers[size]+n
				}
			}
			per := func(sum float64) float64 { return sum / float64(rounds) }
			for size := range cities {
				b.ReportMetric(per(float64(event[size].Nanoseconds())), fmt.Sprintf("ns/event-%dx", size))
				b.ReportMetric(per(float64(policies[size].Nanoseconds())), fmt.Sprintf("ns/policies-%dx", size))
				b.ReportMetric(per(float64(meaning[size])), fmt.Sprintf("meaning-%dx", size))
				b.ReportMetric(per(float64(numbers[size])), fmt.Sprintf("numbers-%dx", size))
			}
			b.ReportMetric(float64(event[10])/float64(event[1]), "ratio-event")
			b.ReportMetric(float64(policies[10])/float64(policies[1]), "ratio-policies")
			b.ReportMetric(0, "ns/op") // both sizes together say nothing
		})
	}
}

// podAskedAbout is one of two on its node that the policy of its app selects: it
// comes and goes, as old as can be.
func podAskedAbout(c *city) func() {
	p := c.pod("ns3/asked", "n40", "10.0.40.214", app("app3"))
	c.clock.Step(2 * youth)
	c.takePolicies()
	key := types.NamespacedName{Namespace: "ns3", Name: "q3"}
	return func() {
		c.x.DeletePod(p.UID)
		c.x.SetPod(p)
		c.clock.Step(2 * youth)
		c.x.PolicyAssignment(key)
	}
}

// BenchmarkPolicyAssignment computes one policy that selects twenty Pods on
// five nodes, and admits one app on one port.
func BenchmarkPolicyAssignment(b *testing.B) {
	for _, size := range []int{1, 10} {
		c := newCity(size)
		for i := range 20 {
			c.pod(fmt.Sprintf("ns3/five%d", i), cityNode(20+i%5), fmt.Sprintf("10.0.%d.%d", 20+i%5, 220+i/5), app("five"))
		}
		c.policy("ns3/five", "five", pods("app4"))
		key := types.NamespacedName{Namespace: "ns3", Name: "five"}
		b.Run(fmt.Sprintf("%dx", size), func(b *testing.B) {
			b.ReportAllocs()
			var a PolicyAssignment
			for b.Loop() {
				a, _ = c.x.PolicyAssignment(key)
			}
			flows := 0
			for _, list := range a.PerNode {
				flows += len(list)
			}
			b.ReportMetric(float64(len(a.PerNode)), "nodes")
			b.ReportMetric(float64(flows), "flows")
		})
	}
}

// BenchmarkPolicyMemory is what the index keeps once every policy was computed.
func BenchmarkPolicyMemory(b *testing.B) {
	for _, size := range []int{1, 10} {
		b.Run(fmt.Sprintf("%dx", size), func(b *testing.B) {
			for b.Loop() {
				c := newCity(size)
				c.clock.Step(2 * youth)
				before := heap()
				policies, nodes := 0, 0
				for _, key := range c.x.Policies() {
					a, _ := c.x.PolicyAssignment(key)
					policies++
					nodes += len(a.PerNode)
				}
				grown := float64(heap() - before)
				b.ReportMetric(float64(policies), "policies")
				b.ReportMetric(float64(nodes), "policies*nodes")
				b.ReportMetric(grown/float64(nodes), "B/policy*node")
				b.ReportMetric(grown/1e6, "MB")
				runtime.KeepAlive(c)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // finalizers of the first round free more
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
