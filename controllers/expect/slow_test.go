// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/flow"
)

// The slow evaluator: the semantics of NetworkPolicy read straight from the API
// objects, with nothing of the package under test and no engine in mind.

func (w *world) slowPod(a netip.Addr) *corev1.Pod {
	for _, p := range w.pods {
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.DeletionTimestamp != nil {
			continue
		}
		for _, ip := range p.Status.PodIPs {
			if netip.MustParseAddr(ip.IP) == a {
				return p
			}
		}
	}
	return nil
}

// slowVerdict is what node must do with f.
func (w *world) slowVerdict(node string, f flow.Flow) flow.Answer {
	src, dst := w.slowPod(f.Src), w.slowPod(f.Dst)
	if dst != nil && dst.Spec.NodeName == node && !w.slowAdmits(dst, networkingv1.PolicyTypeIngress, f) {
		return flow.Denied
	}
	if src != nil && src.Spec.NodeName == node && !w.slowAdmits(src, networkingv1.PolicyTypeEgress, f) {
		return flow.Denied
	}
	return flow.Allowed
}

func (w *world) slowAdmits(p *corev1.Pod, t networkingv1.PolicyType, f flow.Flow) bool {
	isolated := false
	for _, q := range w.policies {
		if q.Namespace != p.Namespace || !slowMatch(&q.Spec.PodSelector, p.Labels) || !slices.Contains(q.Spec.PolicyTypes, t) {
			continue
		}
		isolated = true
		if t == networkingv1.PolicyTypeIngress {
			for _, r := range q.Spec.Ingress {
				if w.slowPeers(q.Namespace, r.From, f.Src) && w.slowPorts(r.Ports, f) {
					return true
				}
			}
			continue
		}
		for _, r := range q.Spec.Egress {
			if w.slowPeers(q.Namespace, r.To, f.Dst) && w.slowPorts(r.Ports, f) {
				return true
			}
		}
	}
	return !isolated
}

func (w *world) slowPeers(namespace string, peers []networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	p := w.slowPod(a)
	for _, peer := range peers {
		if b := peer.IPBlock; b != nil {
			in := netip.MustParsePrefix(b.CIDR).Contains(a)
			for _, e := range b.Except {
				in = in && !netip.MustParsePrefix(e).Contains(a)
			}
			if in {
				return true
			}
			continue
		}
		if p == nil || peer.PodSelector != nil && !slowMatch(peer.PodSelector, p.Labels) {
			continue
		}
		if peer.NamespaceSelector == nil {
			if p.Namespace == namespace {
				return true
			}
			continue
		}
		for _, ns := range w.namespaces {
			if ns.Name == p.Namespace && slowMatch(peer.NamespaceSelector, ns.Labels) {
				return true
			}
		}
	}
	return false
}

func (w *world) slowPorts(ports []networkingv1.NetworkPolicyPort, f flow.Flow) bool {
	if len(ports) == 0 {
		return true
	}
	for _, port := range ports {
		name := "tcp"
		if port.Protocol != nil {
			name = map[corev1.Protocol]string{"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}[*port.Protocol]
		}
		if name != f.Protocol.String() {
			continue
		}
		switch {
		case port.Port == nil:
			return true
		case port.Port.Type == intstr.Int:
			first := int(port.Port.IntVal)
			last := first
			if port.EndPort != nil {
				last = int(*port.EndPort)
			}
			if first <= int(f.Port) && int(f.Port) <= last {
				return true
			}
		default:
			if p := w.slowPod(f.Dst); p != nil && slowNamed(p, port.Port.StrVal, int32(f.Port)) {
				return true
			}
		}
	}
	return false
}

// slowNamed knows TCP only, like the Pods of these tests.
func slowNamed(p *corev1.Pod, name string, number int32) bool {
	for _, c := range slices.Concat(p.Spec.Containers, p.Spec.InitContainers) {
		for _, port := range c.Ports {
			if port.Name == name && port.ContainerPort == number {
				return true
			}
		}
	}
	return false
}

func slowMatch(s *metav1.LabelSelector, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(set))
}
