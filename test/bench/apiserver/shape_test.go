// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestShape(t *testing.T) {
	cases := map[string]Shape{
		"a small cluster":           {Nodes: 20, Pods: 100},
		"more nodes than Pods":      {Nodes: 1000, Pods: 30},
		"ten times the usual":       {Nodes: 1000, Pods: 5000},
		"as many as are admissible": {Nodes: 1 << 14, Pods: 10000},
	}
	for name, s := range cases {
		t.Run(name, func(t *testing.T) {
			if err := s.Validate(); err != nil {
				t.Fatal(err)
			}
			nodes, ranges := make(map[string]bool), make(map[netip.Prefix]bool)
			for i := range s.Nodes {
				nodes[s.node(i)], ranges[podRange(i)], ranges[netip.PrefixFrom(nodeAddress(i), 32)] = true, true, true
				if r := podRange(i); r.Masked() != r {
					t.Errorf("range %s has host bits", r)
				}
			}
			if len(nodes) != s.Nodes || len(ranges) != 2*s.Nodes {
				t.Errorf("%d names and %d ranges of %d nodes", len(nodes), len(ranges), s.Nodes)
			}
			namespaces := make(map[string]bool)
			for i := range s.namespaces() {
				namespaces[namespaceName(i)] = true
			}
			names, on, large, held := make(map[string]bool), make(map[string]int), 0, 0
			check := func(pod *corev1.Pod) {
				if !nodes[pod.Spec.NodeName] || !namespaces[pod.Namespace] || names[pod.Name] {
					t.Errorf("%s/%s on %s: want a new name, a namespace and a node that are there", pod.Namespace, pod.Name, pod.Spec.NodeName)
				}
				names[pod.Name] = true
				on[pod.Spec.NodeName]++
			}
			for i := range s.Pods {
				pod := s.newStanding(i)
				check(pod)
				if pod.Namespace == namespaceName(0) {
					large++
				}
			}
			for i := range 100 {
				pod := s.newGated(i)
				check(pod)
				if pod.Spec.RestartPolicy == corev1.RestartPolicyNever {
					held++
				}
			}
			if want := s.Pods / largeShare; large < want || held != 50 {
				t.Errorf("%d Pods in the large namespace and %d of Jobs, want %d and 50", large, held, want)
			}
			for node, n := range on {
				if n > 4*(s.Pods+100)/s.Nodes+4 {
					t.Errorf("%d Pods are on %s, of %d in all on %d nodes", n, node, s.Pods+100, s.Nodes)
				}
			}
		})
	}
	for name, s := range map[string]Shape{"no nodes": {Pods: 100}, "few Pods": {Nodes: 1}, "too many nodes": {Nodes: 1 << 15, Pods: 100}} {
		t.Run(name, func(t *testing.T) {
			if s.Validate() == nil {
				t.Error("no error")
			}
		})
	}
}
