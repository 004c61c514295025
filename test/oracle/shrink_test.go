// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/policygate/policygate/controllers/expect"
)

// shrink removes what it can from w, one thing after the other, while
// disagreement still finds one. It returns what is left and the disagreement
// in it, which is empty if there was none to begin with.
func shrink(w *world, disagreement func(*world) string) (*world, string) {
	last := disagreement(w)
	if last == "" {
		return w, ""
	}
	for progress := true; progress; {
		progress = false
		for _, smaller := range w.smaller() {
			if d := disagreement(smaller); d != "" {
				w, last, progress = smaller, d, true
				break
			}
		}
	}
	return w, last
}

// smaller returns copies of w, each without one thing.
func (w *world) smaller() []*world {
	var out []*world
	for i := range w.policies {
		c := *w
		c.policies = without(w.policies, i)
		out = append(out, &c)
	}
	for i := range w.pods {
		c := *w
		c.pods = without(w.pods, i)
		out = append(out, &c)
	}
	for i, n := range w.nodes {
		if !slices.ContainsFunc(w.pods, func(p *pod) bool { return p.Spec.NodeName == n.Name }) {
			c := *w
			c.nodes = without(w.nodes, i)
			out = append(out, &c)
		}
	}
	for i, ns := range w.namespaces {
		if !w.uses(ns.Name) {
			c := *w
			c.namespaces = without(w.namespaces, i)
			out = append(out, &c)
		}
	}
	for i, np := range w.policies {
		for _, smaller := range smallerPolicies(np) {
			c := *w
			c.policies = slices.Clone(w.policies)
			c.policies[i] = smaller
			out = append(out, &c)
		}
	}
	for i, p := range w.pods {
		for _, smaller := range smallerPods(p) {
			c := *w
			c.pods = slices.Clone(w.pods)
			c.pods[i] = smaller
			out = append(out, &c)
		}
	}
	return out
}

func (w *world) uses(namespace string) bool {
	return slices.ContainsFunc(w.pods, func(p *pod) bool { return p.Namespace == namespace }) ||
		slices.ContainsFunc(w.policies, func(np *networkingv1.NetworkPolicy) bool { return np.Namespace == namespace })
}

func smallerPolicies(np *networkingv1.NetworkPolicy) []*networkingv1.NetworkPolicy {
	var out []*networkingv1.NetworkPolicy
	change := func(f func(*networkingv1.NetworkPolicySpec)) {
		c := np.DeepCopy()
		f(&c.Spec)
		out = append(out, c)
	}
	// The last of a rule's peers or ports stays: without it the rule means
	// everyone, or every port.
	for i, rule := range np.Spec.Ingress {
		change(func(s *networkingv1.NetworkPolicySpec) { s.Ingress = without(s.Ingress, i) })
		for j := 0; len(rule.From) > 1 && j < len(rule.From); j++ {
			change(func(s *networkingv1.NetworkPolicySpec) { s.Ingress[i].From = without(s.Ingress[i].From, j) })
		}
		for j := 0; len(rule.Ports) > 1 && j < len(rule.Ports); j++ {
			change(func(s *networkingv1.NetworkPolicySpec) { s.Ingress[i].Ports = without(s.Ingress[i].Ports, j) })
		}
	}
	for i, rule := range np.Spec.Egress {
		change(func(s *networkingv1.NetworkPolicySpec) { s.Egress = without(s.Egress, i) })
		for j := 0; len(rule.To) > 1 && j < len(rule.To); j++ {
			change(func(s *networkingv1.NetworkPolicySpec) { s.Egress[i].To = without(s.Egress[i].To, j) })
		}
		for j := 0; len(rule.Ports) > 1 && j < len(rule.Ports); j++ {
			change(func(s *networkingv1.NetworkPolicySpec) { s.Egress[i].Ports = without(s.Egress[i].Ports, j) })
		}
	}
	return out
}

func smallerPods(p *pod) []*pod {
	var out []*pod
	change := func(f func(*corev1.Pod)) {
		c := p.DeepCopy()
		f(c)
		out = append(out, newPod(c, p.seq))
	}
	for i := range p.Status.PodIPs {
		change(func(c *corev1.Pod) { c.Status.PodIPs = without(c.Status.PodIPs, i) })
	}
	for i, container := range p.Spec.Containers {
		if len(p.Spec.Containers) > 1 {
			change(func(c *corev1.Pod) { c.Spec.Containers = without(c.Spec.Containers, i) })
		}
		for j := range container.Ports {
			change(func(c *corev1.Pod) { c.Spec.Containers[i].Ports = without(c.Spec.Containers[i].Ports, j) })
		}
	}
	for i, container := range p.Spec.InitContainers {
		change(func(c *corev1.Pod) { c.Spec.InitContainers = without(c.Spec.InitContainers, i) })
		for j := range container.Ports {
			change(func(c *corev1.Pod) { c.Spec.InitContainers[i].Ports = without(c.Spec.InitContainers[i].Ports, j) })
		}
	}
	for key := range p.Labels {
		change(func(c *corev1.Pod) { delete(c.Labels, key) })
	}
	return out
}

func without[T any](list []T, i int) []T {
	return slices.Delete(slices.Clone(list), i, i+1)
}

func TestShrinkingLeavesWhatTheFailureNeeds(t *testing.T) {
	fails := func(w *world) string {
		for _, p := range w.pods {
			for _, port := range p.ports() {
				if port.name == "db" && len(w.policies) > 0 {
					return "a Pod with a database, and a policy"
				}
			}
		}
		return ""
	}
	shrunk := 0
	for seed := range uint64(50) {
		whole := randomWorld(seed)
		before := whole.String()
		w, left := shrink(whole, fails)
		if whole.String() != before {
			t.Fatalf("seed %d: shrinking changed the world itself", seed)
		}
		if left == "" {
			continue
		}
		shrunk++
		if len(w.pods) != 1 || len(w.pods[0].ports()) != 1 || len(w.policies) != 1 || len(w.policies[0].Spec.Ingress) > 0 {
			t.Errorf("seed %d: there is more left than is needed:\n%s", seed, w)
		}
	}
	if shrunk == 0 {
		t.Error("nothing was shrunk")
	}
}

func TestAWorldIsTheSameForTheSameSeedAndIsAdmitted(t *testing.T) {
	for seed := range uint64(50) {
		w := randomWorld(seed)
		if again := randomWorld(seed); w.String() != again.String() {
			t.Errorf("seed %d gives two worlds", seed)
		}
		for _, np := range w.policies {
			if _, err := expect.NewPolicy(np); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
	}
}
