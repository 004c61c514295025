// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// city is size times 500 Pods on 10 nodes, 10 namespaces and 20 policies, each
// of which selects and admits one app of its namespace.
func city(size int) *api {
	a := newAPI()
	for n := range 10 * size {
		a.node(fmt.Sprintf("n%d", n), fmt.Sprintf("10.%d.%d.0/24", n/250, n%250))
	}
	for ns := range 10 * size {
		a.namespace(fmt.Sprintf("ns%d", ns))
		for q := range 2 {
			a.policy(fmt.Sprintf("ns%d/q%d", ns, q), fmt.Sprintf("server%d", q), pods(fmt.Sprintf("client%d", q)))
		}
	}
	for i := range 500 * size {
		node := i % (10 * size)
		role := []string{"server0", "server1", "client0", "client1"}[i/(10*size)%4]
		a.pod(fmt.Sprintf("ns%d/p%d", i%(10*size), i), fmt.Sprintf("n%d", node),
			fmt.Sprintf("10.%d.%d.%d", node/250, node%250, 1+i/(10*size)), app(role))
	}
	return a
}

// BenchmarkPodEvent is what one gated Pod costs, from its address to its
// assignment. At ten times the size of everything it must stay of one order.
func BenchmarkPodEvent(b *testing.B) {
	for _, size := range []int{1, 10} {
		b.Run(fmt.Sprintf("%dx", size), func(b *testing.B) {
			a := city(size)
			p := a.pod("ns3/job", "n1", "10.0.1.200", app("client0"), gated)
			flows := 0
			for b.Loop() {
				a.x.DeletePod(p.UID)
				a.x.SetPod(p)
				for _, uid := range a.x.Affected() {
					got, _ := a.x.Assignment(uid)
					flows = 0
					for _, list := range got.PerNode {
						flows += len(list)
					}
				}
			}
			b.ReportMetric(float64(flows), "flows/subject")
		})
	}
}

// BenchmarkUngatedPodEvent is what every other Pod's events cost.
func BenchmarkUngatedPodEvent(b *testing.B) {
	for _, size := range []int{1, 10} {
		b.Run(fmt.Sprintf("%dx", size), func(b *testing.B) {
			a := city(size)
			held := a.pod("ns3/job", "n1", "10.0.1.200", app("client0"), gated)
			a.x.Affected()
			a.x.Assignment(held.UID)
			p := a.pod("ns3/other", "n2", "10.0.2.200", app("server0"))
			affected := 0
			for b.Loop() {
				a.x.SetPod(withIP(p, "10.0.2.201"))
				a.x.SetPod(p)
				affected = len(a.x.Affected())
			}
			b.ReportMetric(float64(affected), "affected/event")
		})
	}
}

func withIP(p *corev1.Pod, ip string) *corev1.Pod {
	p = p.DeepCopy()
	p.Status.PodIPs[0].IP = ip
	return p
}
