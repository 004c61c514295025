// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

type direction int

const (
	ingress direction = iota
	egress
)

func (d direction) String() string {
	if d == egress {
		return "egress"
	}
	return "ingress"
}

func (d direction) ruleWord() string { return d.String() + "rule" }

func (d direction) targetPrefix() string {
	if d == egress {
		return sourceSetPrefix
	}
	return destSetPrefix
}

func (d direction) peerPrefix() string {
	if d == egress {
		return destSetPrefix
	}
	return sourceSetPrefix
}

// policy is a NetworkPolicy with its selectors and named ports resolved.
type policy struct {
	namespace, name string
	targets         []pod
	// targetKeys are the targets' status.podIP.
	targetKeys map[string]bool
	// isolates tells for each direction whether the policy has a say in it.
	isolates [2]bool
	rules    [2][]rule
}

// rule is one ingress or egress rule.
type rule struct {
	// anyPeer is true without "from" or "to".
	anyPeer bool
	peers   []pod
	blocks  []networkingv1.IPBlock
	// allPorts is true without "ports"; a rule whose named ports nobody has
	// is without ports, too, but not for all of them.
	allPorts bool
	ports    []port
	named    []namedPort
}

// port is a protocol and, unless empty, a destination port or range, both as
// iptables-save writes them.
type port struct {
	protocol, number string
}

// namedPort is one number that a named port stands for.
type namedPort struct {
	port
	pods []pod
}

func (v view) evaluate() ([]policy, error) {
	objects := slices.SortedFunc(slices.Values(v.Policies), func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	shuffle(v.Shuffle, objects)
	policies := make([]policy, 0, len(objects))
	for _, object := range objects {
		p, err := v.evaluatePolicy(object)
		if err != nil {
			return nil, fmt.Errorf("network policy %s/%s: %w", object.Namespace, object.Name, err)
		}
		policies = append(policies, p)
	}
	return policies, nil
}

func (v view) evaluatePolicy(object *networkingv1.NetworkPolicy) (policy, error) {
	p := policy{namespace: object.Namespace, name: object.Name, targetKeys: map[string]bool{}}
	selector, err := metav1.LabelSelectorAsSelector(&object.Spec.PodSelector)
	if err != nil {
		return policy{}, fmt.Errorf("spec.podSelector: %w", err)
	}
	p.targets = v.podsIn(object.Namespace, selector)
	for _, target := range p.targets {
		p.targetKeys[target.key] = true
	}
	p.isolates = isolates(object.Spec)
	for i, spec := range object.Spec.Ingress {
		r, err := v.evaluateRule(object.Namespace, spec.From, spec.Ports, p.targets)
		if err != nil {
			return policy{}, fmt.Errorf("spec.ingress[%d]: %w", i, err)
		}
		p.rules[ingress] = append(p.rules[ingress], r)
	}
	for i, spec := range object.Spec.Egress {
		// Named ports of egress are those of the destinations. Without "to"
		// kube-router looks for them in the policy's own namespace only.
		r, err := v.evaluateRule(object.Namespace, spec.To, spec.Ports, nil)
		if err != nil {
			return policy{}, fmt.Errorf("spec.egress[%d]: %w", i, err)
		}
		p.rules[egress] = append(p.rules[egress], r)
	}
	return p, nil
}

func isolates(spec networkingv1.NetworkPolicySpec) [2]bool {
	if len(spec.PolicyTypes) == 0 {
		return [2]bool{ingress: true, egress: len(spec.Egress) > 0}
	}
	return [2]bool{
		ingress: slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress),
		egress:  slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress),
	}
}

// evaluateRule resolves one rule. destinations are the Pods whose named ports
// count; nil means the peers.
func (v view) evaluateRule(
	namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, destinations []pod,
) (rule, error) {
	r := rule{anyPeer: len(peers) == 0, allPorts: len(ports) == 0}
	seen := map[string]bool{}
	for i, peer := range peers {
		if peer.IPBlock != nil {
			r.blocks = append(r.blocks, *peer.IPBlock)
			continue
		}
		pods, err := v.podsOf(namespace, peer)
		if err != nil {
			return rule{}, fmt.Errorf("peer %d: %w", i, err)
		}
		for _, p := range pods {
			if key := p.namespace + "/" + p.name; !seen[key] {
				seen[key] = true
				r.peers = append(r.peers, p)
			}
		}
	}
	if destinations == nil {
		destinations = r.peers
		if r.anyPeer {
			destinations = v.podsIn(namespace, labels.Everything())
		}
	}
	for _, spec := range ports {
		if spec.Port != nil && spec.Port.Type == intstr.String {
			r.named = append(r.named, resolve(spec.Port.StrVal, protocolOf(spec.Protocol), destinations)...)
			continue
		}
		r.ports = append(r.ports, numericPort(spec))
	}
	shuffle(v.Shuffle, r.named)
	return r, nil
}

func (v view) podsIn(namespace string, selector labels.Selector) []pod {
	var pods []pod
	for _, p := range v.listed {
		if p.namespace == namespace && selector.Matches(labels.Set(p.labels)) {
			pods = append(pods, p)
		}
	}
	return pods
}

func (v view) podsOf(namespace string, peer networkingv1.NetworkPolicyPeer) ([]pod, error) {
	selector := labels.Everything()
	if peer.PodSelector != nil {
		s, err := metav1.LabelSelectorAsSelector(peer.PodSelector)
		if err != nil {
			return nil, fmt.Errorf("podSelector: %w", err)
		}
		selector = s
	}
	if peer.NamespaceSelector == nil {
		return v.podsIn(namespace, selector), nil
	}
	namespaces, err := metav1.LabelSelectorAsSelector(peer.NamespaceSelector)
	if err != nil {
		return nil, fmt.Errorf("namespaceSelector: %w", err)
	}
	selected := map[string]bool{}
	for _, ns := range v.Namespaces {
		selected[ns.Name] = namespaces.Matches(labels.Set(ns.Labels))
	}
	var pods []pod
	for _, p := range v.listed {
		if selected[p.namespace] && selector.Matches(labels.Set(p.labels)) {
			pods = append(pods, p)
		}
	}
	return pods, nil
}

func protocolOf(p *corev1.Protocol) string {
	if p == nil || *p == "" {
		return "tcp"
	}
	return strings.ToLower(string(*p))
}

func numericPort(spec networkingv1.NetworkPolicyPort) port {
	result := port{protocol: protocolOf(spec.Protocol)}
	if spec.Port == nil {
		return result
	}
	result.number = strconv.Itoa(int(spec.Port.IntVal))
	if spec.EndPort != nil && *spec.EndPort != spec.Port.IntVal {
		result.number += ":" + strconv.Itoa(int(*spec.EndPort))
	}
	return result
}

// resolve finds the numbers that a named port has among the containers of the
// Pods, in ascending order. Init containers are not asked, sidecars included.
func resolve(name, protocol string, pods []pod) []namedPort {
	owners := map[int32][]pod{}
	for _, p := range pods {
		for _, c := range p.containers {
			for _, cp := range c.Ports {
				if cp.Name == name && protocolOf(&cp.Protocol) == protocol {
					owners[cp.ContainerPort] = append(owners[cp.ContainerPort], p)
				}
			}
		}
	}
	var named []namedPort
	for _, number := range slices.Sorted(maps.Keys(owners)) {
		named = append(named, namedPort{
			port: port{protocol: protocol, number: strconv.Itoa(int(number))},
			pods: owners[number],
		})
	}
	return named
}

// blockMembers are the members of an ipBlock's set in one family. kube-router
// writes a prefix of length zero, which hash:net cannot hold, as two: for IPv6
// the two do not cover everything.
func blockMembers(f Family, blocks []networkingv1.IPBlock) []Member {
	var members []Member
	add := func(cidr string, except bool) {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil || !f.contains(prefix.Addr()) {
			return
		}
		for _, p := range splitZero(prefix.Masked()) {
			members = append(members, Member{Entry: netEntry(p), NoMatch: except})
		}
	}
	for _, block := range blocks {
		add(block.CIDR, false)
		for _, except := range block.Except {
			add(except, true)
		}
	}
	return members
}

func splitZero(p netip.Prefix) []netip.Prefix {
	switch {
	case p.Bits() != 0:
		return []netip.Prefix{p}
	case p.Addr().Is4():
		return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}
	default:
		return []netip.Prefix{netip.MustParsePrefix("2000::/3"), netip.MustParsePrefix("fd00::/8")}
	}
}

// netEntry writes a member of hash:net as the kernel shows it.
func netEntry(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
