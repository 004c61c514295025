// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/controllers/expect"
)

// cyclonus is the other implementation, told of one world with some of the
// corrections of the table of differences.
type cyclonus struct {
	world  *world
	with   correction
	policy *matcher.Policy
	// pods are those that can be an end, oldest first.
	pods     []*pod
	internal map[*pod]*matcher.InternalPeer
	// keys are those of which a NotIn of the world asks.
	keys map[string]bool
}

// newCyclonus returns an error where the matcher panics.
func newCyclonus(w *world, with correction) (c *cyclonus, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cyclonus panics: %v", r)
		}
	}()
	c = &cyclonus{world: w, with: with, internal: map[*pod]*matcher.InternalPeer{}, keys: map[string]bool{}}
	c.pods = slices.DeleteFunc(slices.Clone(w.pods), func(p *pod) bool {
		return with&hostNetworkIsOutside != 0 && p.hostNetwork() ||
			with&finishedHasNoAddress != 0 && p.finished() ||
			with&terminatingIsNoPeer != 0 && p.terminating()
	})
	slices.SortFunc(c.pods, older)
	var policies []*networkingv1.NetworkPolicy
	for _, np := range w.policies {
		policies = append(policies, c.correct(np))
	}
	for _, p := range c.pods {
		c.internal[p] = c.tell(p)
	}
	c.policy = matcher.BuildNetworkPolicies(false, policies)
	return c, nil
}

// correct returns np as cyclonus is told of it.
func (c *cyclonus) correct(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	np = np.DeepCopy()
	spec := &np.Spec
	if c.with&policyTypesDefault != 0 && len(spec.PolicyTypes) == 0 {
		// What the API server writes into a policy that does not say.
		spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(spec.Egress) > 0 {
			spec.PolicyTypes = append(spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	c.correctSelector(&spec.PodSelector)
	for i := range spec.Ingress {
		c.correctPeers(spec.Ingress[i].From)
	}
	for i := range spec.Egress {
		c.correctPeers(spec.Egress[i].To)
	}
	return np
}

func (c *cyclonus) correctPeers(peers []networkingv1.NetworkPolicyPeer) {
	for i := range peers {
		peer := &peers[i]
		if peer.PodSelector != nil {
			c.correctSelector(peer.PodSelector)
		}
		if peer.NamespaceSelector != nil {
			c.correctSelector(peer.NamespaceSelector)
			if c.with&unknownNamespaceMatchesNothing != 0 {
				peer.NamespaceSelector.MatchExpressions = append(peer.NamespaceSelector.MatchExpressions,
					metav1.LabelSelectorRequirement{Key: knownKey, Operator: metav1.LabelSelectorOpExists})
			}
		}
		if b := peer.IPBlock; b != nil && c.with&leadingZerosAreDecimal != 0 {
			b.CIDR = canonical(b.CIDR)
			for j := range b.Except {
				b.Except[j] = canonical(b.Except[j])
			}
		}
	}
}

// Labels that no object of a world has: knownKey is given to namespaces that
// are known. Beside each key of which a NotIn asks stands one with this
// suffix, which every object has: where the key is absent its value is
// absentValue, which no selector names.
const (
	knownKey     = "known"
	absentSuffix = "-or-absent"
	absentValue  = "absent"
)

func (c *cyclonus) correctSelector(s *metav1.LabelSelector) {
	for i := range s.MatchExpressions {
		r := &s.MatchExpressions[i]
		if r.Operator == metav1.LabelSelectorOpNotIn && c.with&notInMatchesAbsent != 0 {
			c.keys[r.Key] = true
			r.Key += absentSuffix
		}
	}
	for key, value := range s.MatchLabels {
		if value == "" && c.with&emptyValueNeedsKey != 0 {
			s.MatchExpressions = append(s.MatchExpressions,
				metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpExists})
		}
	}
}

// tell returns p as cyclonus is told of it, after all policies are known.
func (c *cyclonus) tell(p *pod) *matcher.InternalPeer {
	ns, known := c.world.namespaceLabels(p.Namespace)
	out := &matcher.InternalPeer{
		Namespace: p.Namespace, PodLabels: c.correctLabels(p.Labels), NamespaceLabels: c.correctLabels(ns),
	}
	if known {
		out.NamespaceLabels[knownKey] = ""
	}
	return out
}

func (c *cyclonus) correctLabels(in map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, in)
	for key := range c.keys {
		out[key+absentSuffix] = absentValue
		if value, ok := in[key]; ok {
			out[key+absentSuffix] = value
		}
	}
	return out
}

// canonical removes the leading zeros of an IPv4 CIDR, which is decimal with
// them as well.
func canonical(cidr string) string {
	if strings.Contains(cidr, ":") {
		return cidr
	}
	addr, bits, _ := strings.Cut(cidr, "/")
	octets := strings.Split(addr, ".")
	for i, octet := range octets {
		if n, err := strconv.ParseUint(octet, 10, 8); err == nil {
			octets[i] = strconv.FormatUint(n, 10)
		}
	}
	return strings.Join(octets, ".") + "/" + bits
}

// at returns the end of connections at addr: of several Pods the oldest.
func (c *cyclonus) at(addr netip.Addr) end {
	for _, p := range c.pods {
		if slices.Contains(p.addrs, addr) {
			return end{addr, p}
		}
	}
	return end{addr: addr}
}

func (c *cyclonus) peer(e end) *matcher.TrafficPeer {
	return &matcher.TrafficPeer{IP: e.addr.String(), Internal: c.internal[e.pod]}
}

// names returns the names of the port on its Pod, or an empty one.
func (c *cyclonus) names(dst end, protocol corev1.Protocol, number uint16) []string {
	var out []string
	if c.internal[dst.pod] != nil {
		for _, port := range dst.pod.ports() {
			if port.protocol == protocol && port.number == number && port.name != "" {
				out = append(out, port.name)
			}
		}
	}
	switch {
	case len(out) == 0:
		return []string{""}
	case c.with&everyNameOfPort == 0:
		return out[:1]
	}
	return out
}

// admits is what the policies that select the isolated end say of x. It returns
// an error where the matcher panics.
func (c *cyclonus) admits(d expect.Direction, x connection) (admitted bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("cyclonus panics: %v", r)
		}
	}()
	traffic := &matcher.Traffic{
		Source: c.peer(x.src), Destination: c.peer(x.dst), ResolvedPort: int(x.port), Protocol: x.protocol,
	}
	for _, name := range c.names(x.dst, x.protocol, x.port) {
		traffic.ResolvedPortName = name
		if c.policy.IsIngressOrEgressAllowed(traffic, d == expect.Ingress).IsAllowed() {
			return true, nil
		}
	}
	return false, nil
}

// sided is what the policies of both ends of a connection say.
type sided struct {
	connection
	admitted [2]bool
	err      error
}

// ask resolves the addresses of x anew.
func (c *cyclonus) ask(x connection) sided {
	x.src, x.dst = c.at(x.src.addr), c.at(x.dst.addr)
	out := sided{connection: x}
	for _, d := range directions() {
		admitted, err := c.admits(d, x)
		if err != nil {
			out.err = err
		}
		out.admitted[d] = admitted
	}
	return out
}

// on is what a node must let through: it judges the sides that run on it.
func (s sided) on(node string) bool {
	for _, d := range directions() {
		if isolated, _ := s.sides(d); isolated.pod != nil && isolated.pod.Spec.NodeName == node && !s.admitted[d] {
			return false
		}
	}
	return true
}
