// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package world

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/api/v1alpha1"
)

// pod is what enforcement looks at of a Pod.
type pod struct {
	namespace, name, node string
	labels                labels.Set
	ips                   []netip.Addr
	ports                 []containerPort
	// host: it has the host's network. ended: it is finished. leaving: it is
	// being deleted, which engines do not mind until it is gone.
	host, ended, leaving bool
}

type containerPort struct {
	name     string
	protocol flow.Protocol
	number   uint16
}

func newPod(p *corev1.Pod) *pod {
	out := &pod{
		namespace: p.Namespace, name: p.Name, node: p.Spec.NodeName,
		labels: maps.Clone(p.Labels), host: p.Spec.HostNetwork,
		ended:   p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		leaving: p.DeletionTimestamp != nil,
	}
	for _, ip := range p.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			out.ips = append(out.ips, addr.Unmap())
		}
	}
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			out.ports = append(out.ports, containerPort{
				port.Name, protocolOf(&port.Protocol), uint16(port.ContainerPort),
			})
		}
	}
	return out
}

// peer reports whether rules are made for and with p.
func (p *pod) peer() bool { return p.node != "" && len(p.ips) > 0 && !p.host && !p.ended }

func (p *pod) same(o *pod) bool {
	return p.node == o.node && p.ended == o.ended && p.leaving == o.leaving &&
		slices.Equal(p.ips, o.ips) && maps.Equal(p.labels, o.labels)
}

// has reports whether addr is one of p's.
func (p *pod) has(addr netip.Addr) bool { return slices.Contains(p.ips, addr) }

// named returns the number that p gives a port's name.
func (p *pod) named(name string, protocol flow.Protocol) (uint16, bool) {
	for _, port := range p.ports {
		if port.name == name && port.protocol == protocol {
			return port.number, true
		}
	}
	return 0, false
}

type namespace struct {
	labels labels.Set
	inject bool
}

func newNamespace(ns *corev1.Namespace) *namespace {
	return &namespace{
		labels: maps.Clone(ns.Labels),
		inject: ns.Labels[v1alpha1.KeyInject] == v1alpha1.InjectNamespace,
	}
}

func (n *namespace) same(o *namespace) bool { return maps.Equal(n.labels, o.labels) }

// direction is seen from the Pod that a policy selects.
type direction int

const (
	ingress direction = iota
	egress
)

type policy struct {
	generation int64
	selector   labels.Selector
	isolates   [2]bool
	rules      [2][]rule
	// reaches: some peer has a namespaceSelector.
	reaches bool
}

type rule struct {
	peers []peer
	ports []networkingv1.NetworkPolicyPort
}

type peer struct {
	// block is valid for an ipBlock, and the others are nil then.
	block      netip.Prefix
	except     []netip.Prefix
	namespaces labels.Selector // nil: the policy's own
	pods       labels.Selector
}

func newPolicy(np *networkingv1.NetworkPolicy) (*policy, error) {
	out := &policy{generation: np.Generation}
	var err error
	if out.selector, err = metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
		return nil, fmt.Errorf("spec.podSelector: %w", err)
	}
	kinds := np.Spec.PolicyTypes
	out.isolates[ingress] = len(kinds) == 0 || slices.Contains(kinds, networkingv1.PolicyTypeIngress)
	out.isolates[egress] = len(kinds) == 0 && len(np.Spec.Egress) > 0 || slices.Contains(kinds, networkingv1.PolicyTypeEgress)
	for _, r := range np.Spec.Ingress {
		if err := out.add(ingress, r.From, r.Ports); err != nil {
			return nil, err
		}
	}
	for _, r := range np.Spec.Egress {
		if err := out.add(egress, r.To, r.Ports); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (q *policy) add(d direction, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) error {
	r := rule{ports: ports}
	for _, in := range peers {
		p, err := newPeer(in)
		if err != nil {
			return err
		}
		r.peers = append(r.peers, p)
		q.reaches = q.reaches || p.namespaces != nil
	}
	q.rules[d] = append(q.rules[d], r)
	return nil
}

func newPeer(in networkingv1.NetworkPolicyPeer) (peer, error) {
	var out peer
	var err error
	if in.IPBlock != nil {
		if out.block, err = netip.ParsePrefix(in.IPBlock.CIDR); err != nil {
			return peer{}, err
		}
		for _, text := range in.IPBlock.Except {
			prefix, err := netip.ParsePrefix(text)
			if err != nil {
				return peer{}, err
			}
			out.except = append(out.except, prefix)
		}
		return out, nil
	}
	if in.PodSelector == nil && in.NamespaceSelector == nil {
		return peer{}, errors.New("a peer without selector and block: want one")
	}
	out.pods = labels.Everything()
	if in.PodSelector != nil {
		if out.pods, err = metav1.LabelSelectorAsSelector(in.PodSelector); err != nil {
			return peer{}, err
		}
	}
	if in.NamespaceSelector != nil {
		if out.namespaces, err = metav1.LabelSelectorAsSelector(in.NamespaceSelector); err != nil {
			return peer{}, err
		}
	}
	return out, nil
}

func protocolOf(p *corev1.Protocol) flow.Protocol {
	if p != nil {
		switch *p {
		case corev1.ProtocolUDP:
			return flow.UDP
		case corev1.ProtocolSCTP:
			return flow.SCTP
		case corev1.ProtocolTCP:
		}
	}
	return flow.TCP
}

// admits reports whether one of the rule's ports is the flow's. dst is the
// destination, or nil if that is no Pod.
func (r *rule) admits(f flow.Flow, dst *pod) bool {
	if len(r.ports) == 0 {
		return true
	}
	for i := range r.ports {
		port := &r.ports[i]
		if protocolOf(port.Protocol) != f.Protocol {
			continue
		}
		switch {
		case port.Port == nil:
			return true
		case port.Port.Type == intstr.String:
			if dst == nil {
				continue
			}
			if number, ok := dst.named(port.Port.StrVal, f.Protocol); ok && number == f.Port {
				return true
			}
		default:
			last := port.Port.IntVal
			if port.EndPort != nil {
				last = *port.EndPort
			}
			if port.Port.IntVal <= int32(f.Port) && int32(f.Port) <= last {
				return true
			}
		}
	}
	return false
}

// means reports whether a peer means an address that is, or is not, a Pod of
// a namespace. own is the policy's namespace; ns is nil if it is not known.
func (p *peer) means(own string, addr netip.Addr, other *pod, ns *namespace) bool {
	switch {
	case p.pods == nil:
		return p.block.Contains(addr) &&
			!slices.ContainsFunc(p.except, func(e netip.Prefix) bool { return e.Contains(addr) })
	case other == nil || !p.pods.Matches(other.labels):
		return false
	case p.namespaces == nil:
		return other.namespace == own
	}
	return ns != nil && p.namespaces.Matches(ns.labels)
}
