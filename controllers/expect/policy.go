// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"net/netip"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	netutils "k8s.io/utils/net"

	"github.com/policygate/policygate/api/flow"
)

// Direction is seen from the Pod that a policy selects.
type Direction uint8

// The directions of a rule.
const (
	Ingress Direction = iota
	Egress
)

// String returns "ingress" or "egress".
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

func (d Direction) opposite() Direction { return 1 - d }

// Policy is a NetworkPolicy with its selectors compiled. A Policy given to a
// Cluster must not be changed afterwards.
type Policy struct {
	UID             types.UID
	Namespace, Name string
	// Generation is metadata.generation.
	Generation int64
	// Pods selects the Pods of Namespace that the policy isolates.
	Pods labels.Selector
	// Isolates says in which directions.
	Isolates [2]bool
	// Rules are those of each direction, in order.
	Rules [2][]Rule
	// Err is set, and the other fields but UID, Namespace, Name and Generation
	// are not, if the policy could not be understood: then nothing is known of
	// the Pods of its namespace.
	Err error
}

// Rule is one element of a policy's ingress or egress list.
type Rule struct {
	// Peers are alternatives. Empty: everyone.
	Peers []Peer
	// Ports are alternatives. Empty: every port of every protocol.
	Ports []Port
}

// Peer is one element of a rule's from or to list: selectors or a block.
type Peer struct {
	// Namespaces is nil for the policy's own namespace.
	Namespaces labels.Selector
	// Pods is nil if and only if Block is not.
	Pods  labels.Selector
	Block *Block
}

// Block is an ipBlock.
type Block struct {
	CIDR   netip.Prefix
	Except []netip.Prefix
}

// Port is one element of a rule's port list.
type Port struct {
	Protocol flow.Protocol
	// Name is a named port. If it is empty, First to Last are meant, which are
	// 0 for every port of the protocol.
	Name        string
	First, Last uint16
}

// NewPolicy compiles np. On an error it returns a policy whose Err is that
// error.
func NewPolicy(np *networkingv1.NetworkPolicy) (*Policy, error) {
	q := &Policy{UID: np.UID, Namespace: np.Namespace, Name: np.Name, Generation: np.Generation}
	if err := q.compile(&np.Spec); err != nil {
		err = fmt.Errorf("network policy %s/%s: %w", np.Namespace, np.Name, err)
		return &Policy{UID: np.UID, Namespace: np.Namespace, Name: np.Name, Generation: np.Generation, Err: err}, err
	}
	return q, nil
}

func (q *Policy) compile(spec *networkingv1.NetworkPolicySpec) error {
	var err error
	if q.Pods, err = metav1.LabelSelectorAsSelector(&spec.PodSelector); err != nil {
		return fmt.Errorf("spec.podSelector: %w", err)
	}
	q.Isolates[Ingress] = len(spec.PolicyTypes) == 0 || slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	q.Isolates[Egress] = len(spec.PolicyTypes) == 0 && len(spec.Egress) > 0 ||
		slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	if q.Isolates[Ingress] {
		for i := range spec.Ingress {
			rule, err := newRule(spec.Ingress[i].From, spec.Ingress[i].Ports)
			if err != nil {
				return fmt.Errorf("spec.ingress[%d]: %w", i, err)
			}
			q.Rules[Ingress] = append(q.Rules[Ingress], rule)
		}
	}
	if q.Isolates[Egress] {
		for i := range spec.Egress {
			rule, err := newRule(spec.Egress[i].To, spec.Egress[i].Ports)
			if err != nil {
				return fmt.Errorf("spec.egress[%d]: %w", i, err)
			}
			q.Rules[Egress] = append(q.Rules[Egress], rule)
		}
	}
	return nil
}

func newRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (Rule, error) {
	var rule Rule
	for i := range peers {
		peer, err := newPeer(&peers[i])
		if err != nil {
			return Rule{}, fmt.Errorf("peer %d: %w", i, err)
		}
		rule.Peers = append(rule.Peers, peer)
	}
	for i := range ports {
		port, err := newPort(&ports[i])
		if err != nil {
			return Rule{}, fmt.Errorf("port %d: %w", i, err)
		}
		rule.Ports = append(rule.Ports, port)
	}
	return rule, nil
}

func newPeer(in *networkingv1.NetworkPolicyPeer) (Peer, error) {
	if in.IPBlock != nil {
		block, err := newBlock(in.IPBlock)
		return Peer{Block: block}, err
	}
	if in.PodSelector == nil && in.NamespaceSelector == nil {
		return Peer{}, fmt.Errorf("none of podSelector, namespaceSelector and ipBlock is set: want at least one")
	}
	peer := Peer{Pods: labels.Everything()}
	var err error
	if in.PodSelector != nil {
		if peer.Pods, err = metav1.LabelSelectorAsSelector(in.PodSelector); err != nil {
			return Peer{}, fmt.Errorf("podSelector: %w", err)
		}
	}
	if in.NamespaceSelector != nil {
		if peer.Namespaces, err = metav1.LabelSelectorAsSelector(in.NamespaceSelector); err != nil {
			return Peer{}, fmt.Errorf("namespaceSelector: %w", err)
		}
	}
	return peer, nil
}

func newBlock(in *networkingv1.IPBlock) (*Block, error) {
	cidr, err := parseCIDR(in.CIDR)
	if err != nil {
		return nil, fmt.Errorf("ipBlock.cidr: %w", err)
	}
	block := &Block{CIDR: cidr}
	for i, text := range in.Except {
		except, err := parseCIDR(text)
		if err != nil {
			return nil, fmt.Errorf("ipBlock.except[%d]: %w", i, err)
		}
		block.Except = append(block.Except, except)
	}
	return block, nil
}

// parseCIDR reads what the API server admits, leading zeros of old objects
// included, and clears the host's bits.
func parseCIDR(text string) (netip.Prefix, error) {
	malformed := fmt.Errorf("%q: want a CIDR such as 10.0.0.0/8 or fd00::/8", text)
	_, ipnet, err := netutils.ParseCIDRSloppy(text)
	if err != nil {
		return netip.Prefix{}, malformed
	}
	addr, ok := netip.AddrFromSlice(ipnet.IP)
	ones, bits := ipnet.Mask.Size()
	addr = addr.Unmap()
	// A 4-in-6 mapped prefix has the mask of IPv6.
	ones -= bits - addr.BitLen()
	if !ok || ones < 0 {
		return netip.Prefix{}, malformed
	}
	return netip.PrefixFrom(addr, ones).Masked(), nil
}

func newPort(in *networkingv1.NetworkPolicyPort) (Port, error) {
	protocol, ok := protocolOf(in.Protocol)
	if !ok {
		return Port{}, fmt.Errorf("protocol %q: want TCP, UDP or SCTP", *in.Protocol)
	}
	port := Port{Protocol: protocol}
	switch {
	case in.Port == nil:
	case in.Port.Type == intstr.String:
		if in.Port.StrVal == "" {
			return Port{}, fmt.Errorf("port name is empty: want a container port's name")
		}
		port.Name = in.Port.StrVal
	default:
		last := in.Port.IntVal
		if in.EndPort != nil {
			last = *in.EndPort
		}
		if in.Port.IntVal < 1 || last > 65535 || last < in.Port.IntVal {
			return Port{}, fmt.Errorf("ports %d to %d: want 1 to 65535, ascending", in.Port.IntVal, last)
		}
		port.First, port.Last = uint16(in.Port.IntVal), uint16(last) //nolint:gosec // bounded above
	}
	return port, nil
}

// Selects reports whether the policy selects p. A policy that was not
// understood selects nobody.
func (q *Policy) Selects(p *Pod) bool {
	return q.Err == nil && q.Namespace == p.Namespace && q.Pods.Matches(p.Labels)
}

// String returns "namespace/name".
func (q *Policy) String() string { return q.Namespace + "/" + q.Name }

func (q *Policy) key() types.NamespacedName {
	return types.NamespacedName{Namespace: q.Namespace, Name: q.Name}
}

// concatenation is what kube-router hashes into the names of a policy's chain
// and sets: without a separator, so two policies can share them.
func (q *Policy) concatenation() string { return q.Namespace + q.Name }

// same reports whether nothing differs between q and other, which has the same
// name, that a Result can be made of.
func (q *Policy) same(other *Policy) bool {
	if q.Generation != other.Generation || (q.Err == nil) != (other.Err == nil) {
		return false
	}
	if q.Err != nil {
		return q.Err.Error() == other.Err.Error()
	}
	return q.Isolates == other.Isolates && selectorKey(q.Pods) == selectorKey(other.Pods) &&
		slices.EqualFunc(q.Rules[Ingress], other.Rules[Ingress], Rule.same) &&
		slices.EqualFunc(q.Rules[Egress], other.Rules[Egress], Rule.same)
}

func (r Rule) same(other Rule) bool {
	return slices.Equal(r.Ports, other.Ports) && slices.EqualFunc(r.Peers, other.Peers, Peer.same)
}

func (p Peer) same(other Peer) bool {
	if p.Block != nil || other.Block != nil {
		return p.Block != nil && other.Block != nil &&
			p.Block.CIDR == other.Block.CIDR && slices.Equal(p.Block.Except, other.Block.Except)
	}
	if (p.Namespaces == nil) != (other.Namespaces == nil) || selectorKey(p.Pods) != selectorKey(other.Pods) {
		return false
	}
	return p.Namespaces == nil || selectorKey(p.Namespaces) == selectorKey(other.Namespaces)
}

// everyonesNames returns the port names of egress rules for everyone.
func (q *Policy) everyonesNames() []PortName {
	var out []PortName
	for i := range q.Rules[Egress] {
		if rule := &q.Rules[Egress][i]; rule.everyone() {
			out = append(out, rule.portNames()...)
		}
	}
	return out
}

// portNames returns the names among the rule's ports.
func (r *Rule) portNames() []PortName {
	var out []PortName
	for _, port := range r.Ports {
		if port.Name != "" {
			out = append(out, PortName{port.Name, port.Protocol})
		}
	}
	return out
}

// hasBlocks reports whether a rule of q means addresses.
func (q *Policy) hasBlocks() bool {
	for _, rules := range q.Rules {
		for i := range rules {
			if slices.ContainsFunc(rules[i].Peers, func(p Peer) bool { return p.Block != nil }) {
				return true
			}
		}
	}
	return false
}

func (r *Rule) everyone() bool { return len(r.Peers) == 0 }

// blocks returns the rule's blocks of one family.
func (r *Rule) blocks(v6 bool) []*Block {
	var out []*Block
	for i := range r.Peers {
		if b := r.Peers[i].Block; b != nil && b.CIDR.Addr().Is6() == v6 {
			out = append(out, b)
		}
	}
	return out
}

func (b *Block) contains(addr netip.Addr) bool {
	return b.CIDR.Contains(addr) && !b.excepts(addr)
}

func (b *Block) excepts(addr netip.Addr) bool {
	return slices.ContainsFunc(b.Except, func(e netip.Prefix) bool { return e.Contains(addr) })
}
