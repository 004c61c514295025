// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"slices"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/controllers/expect"
)

// abstention is one reason for which expect may say that nothing can be
// demanded (Doubtful), or that an engine is known not to meet a demand
// (Deviating). All are kube-router's: see docs/confirmation.md section 2.
type abstention struct {
	name      string
	admission expect.Admission
	reason    string
	// applies is about one rule of a policy that selects the isolated end; for
	// Deviating, one that admits the connection.
	applies func(*rulebook, *rule, view) bool
}

// view is a connection seen from its isolated end.
type view struct {
	connection
	d               expect.Direction
	isolated, other end
}

func viewed(x connection, d expect.Direction) view {
	v := view{connection: x, d: d}
	v.isolated, v.other = x.sides(d)
	return v
}

func abstentions() []abstention {
	return []abstention{
		{
			name: "a rule of the other direction", admission: expect.Doubtful,
			reason: "a policy of both directions that selects both ends is one chain, asked of both ends",
			applies: func(b *rulebook, r *rule, v view) bool {
				opposite := 1 - v.d
				if v.other.pod == nil || !b.selects(r.policy, v.other.pod) {
					return false
				}
				return slices.ContainsFunc(b.rules, func(m *rule) bool {
					return m.policy == r.policy && m.direction == opposite && m.mayAdmit(b, viewed(v.connection, opposite))
				})
			},
		},
		{
			name: "a port name that the destination lacks", admission: expect.Doubtful,
			reason: "a name that none of the destinations has leaves a rule without a port match",
			applies: func(b *rulebook, r *rule, v view) bool {
				return r.direction == v.d && r.means(b, v.other) && slices.ContainsFunc(r.ports, func(p port) bool {
					return p.name != "" && !v.dst.pod.has(p.name, p.protocol)
				})
			},
		},
		{
			name: "a port name that is another number elsewhere", admission: expect.Doubtful,
			reason: "sets of one name hold, at times, Pods that give it another number",
			applies: func(b *rulebook, r *rule, v view) bool {
				return r.direction == v.d && r.meansOrHas(b, v.other) && slices.ContainsFunc(r.ports, func(p port) bool {
					return p.name != "" && p.protocol == v.protocol && b.anyoneHas(p, v.port) && v.dst.pod.resolves(p) != v.port
				})
			},
		},
		{
			name: "a port name and an ipBlock, egress", admission: expect.Doubtful,
			reason: "no rule is written for it",
			applies: func(b *rulebook, r *rule, v view) bool {
				return r.direction == expect.Egress && v.d == expect.Egress && r.has(v.other.addr) && !r.means(b, v.other) &&
					r.hasNamedPort(v.dst.pod, v.protocol, v.port)
			},
		},
		{
			name: "an except of one block in another", admission: expect.Deviating,
			reason: "all blocks of a rule are one set, in which the except hides the address",
			applies: func(_ *rulebook, r *rule, v view) bool {
				return r.has(v.other.addr) && slices.ContainsFunc(r.blocks, func(b *networkingv1.IPBlock) bool {
					return slices.ContainsFunc(b.Except, func(e string) bool { return inCIDR(e, v.other.addr) })
				})
			},
		},
		{
			name: "an address that ::/0 leaves out", admission: expect.Deviating,
			reason: "::/0 is written as 2000::/3 and fd00::/8",
			applies: func(_ *rulebook, r *rule, v view) bool {
				return !inCIDR("2000::/3", v.other.addr) && !inCIDR("fd00::/8", v.other.addr) &&
					slices.ContainsFunc(r.blocks, func(b *networkingv1.IPBlock) bool { return b.CIDR == "::/0" && inBlock(b, v.other.addr) })
			},
		},
		{
			name: "a sidecar's port name", admission: expect.Deviating,
			reason: "only spec.containers are read",
			applies: func(_ *rulebook, r *rule, v view) bool {
				return slices.ContainsFunc(r.ports, func(p port) bool {
					return p.name != "" && v.dst.pod != nil && slices.ContainsFunc(v.dst.pod.ports(), func(c containerPort) bool {
						return c.sidecar && c == containerPort{p.name, p.protocol, v.port, true}
					})
				})
			},
		},
		{
			name: "a port name without peers, egress to another namespace", admission: expect.Deviating,
			reason: "the name is resolved in the policy's own namespace only",
			applies: func(_ *rulebook, r *rule, v view) bool {
				return v.d == expect.Egress && len(r.peers) == 0 && v.dst.pod != nil &&
					v.dst.pod.Namespace != r.policy.Namespace && r.hasNamedPort(v.dst.pod, v.protocol, v.port)
			},
		},
		{
			name: "two policies with one name", admission: expect.Deviating,
			reason: "chains and sets are named by a hash of namespace and name, written without a separator",
			applies: func(b *rulebook, r *rule, _ view) bool {
				return slices.ContainsFunc(b.oracle.world.policies, func(q *networkingv1.NetworkPolicy) bool {
					return q.Namespace != r.policy.Namespace && q.Namespace+q.Name == r.policy.Namespace+r.policy.Name
				})
			},
		},
	}
}

// explain returns the names of the abstentions of one kind that apply to x.
func (b *rulebook) explain(admission expect.Admission, x connection, d expect.Direction) []string {
	v := viewed(x, d)
	var out []string
	for _, a := range abstentions() {
		applies := func(r *rule) bool {
			return r.isolates && b.selects(r.policy, v.isolated.pod) &&
				(admission != expect.Deviating || r.direction == d && r.admits(b, v)) && a.applies(b, r, v)
		}
		if a.admission == admission && slices.ContainsFunc(b.rules, applies) {
			out = append(out, a.name)
		}
	}
	return out
}

// rulebook has every rule of a world by itself, as cyclonus reads it with all
// corrections.
type rulebook struct {
	oracle  *cyclonus
	rules   []*rule
	targets map[*networkingv1.NetworkPolicy]*matcher.Target
}

// rule is one element of a policy's ingress or egress list.
type rule struct {
	policy    *networkingv1.NetworkPolicy
	direction expect.Direction
	// isolates is set for a direction of the policy's types.
	isolates bool
	// both is set for a policy that isolates in both directions.
	both  bool
	peers []networkingv1.NetworkPolicyPeer
	// whole is the rule, anyPort the same without its ports, selectors what of
	// that is no ipBlock.
	whole, anyPort, selectors []matcher.PeerMatcher
	blocks                    []*networkingv1.IPBlock
	ports                     []port
}

// port is a rule's port, by name or any other way.
type port struct {
	name     string
	protocol corev1.Protocol
}

func newRulebook(o *cyclonus) *rulebook {
	b := &rulebook{oracle: o, targets: map[*networkingv1.NetworkPolicy]*matcher.Target{}}
	for _, original := range o.world.policies {
		np := o.correct(original)
		b.targets[original] = &matcher.Target{Namespace: np.Namespace, PodSelector: np.Spec.PodSelector}
		types := np.Spec.PolicyTypes
		ingress, egress := slices.Contains(types, networkingv1.PolicyTypeIngress), slices.Contains(types, networkingv1.PolicyTypeEgress)
		add := func(d expect.Direction, isolates bool, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
			r := newRule(np.Namespace, peers, ports)
			r.policy, r.direction, r.isolates, r.both = original, d, isolates, ingress && egress
			b.rules = append(b.rules, r)
		}
		for i := range np.Spec.Ingress {
			add(expect.Ingress, ingress, np.Spec.Ingress[i].From, np.Spec.Ingress[i].Ports)
		}
		for i := range np.Spec.Egress {
			add(expect.Egress, egress, np.Spec.Egress[i].To, np.Spec.Egress[i].Ports)
		}
	}
	return b
}

func newRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) *rule {
	r := &rule{
		peers:   peers,
		whole:   matcher.BuildPeerMatcher(namespace, ports, peers),
		anyPort: matcher.BuildPeerMatcher(namespace, nil, peers),
	}
	for i := range peers {
		if b := peers[i].IPBlock; b != nil {
			r.blocks = append(r.blocks, b)
			continue
		}
		r.selectors = append(r.selectors, matcher.BuildPeerMatcher(namespace, nil, peers[i:i+1])...)
	}
	for _, p := range ports {
		out := port{protocol: corev1.ProtocolTCP}
		if p.Protocol != nil {
			out.protocol = *p.Protocol
		}
		if p.Port != nil && p.Port.Type == intstr.String {
			out.name = p.Port.StrVal
		}
		r.ports = append(r.ports, out)
	}
	return r
}

// selects reports whether np selects p.
func (b *rulebook) selects(np *networkingv1.NetworkPolicy, p *pod) bool {
	in := b.oracle.internal[p]
	return in != nil && b.targets[np].IsMatch(in.Namespace, in.PodLabels)
}

// means reports whether a selector of the rule means e.
func (r *rule) means(b *rulebook, e end) bool {
	return anyAllows(r.selectors, b.oracle.peer(e), 0, "", corev1.ProtocolTCP)
}

// has reports whether an ipBlock of the rule contains addr.
func (r *rule) has(addr netip.Addr) bool {
	return slices.ContainsFunc(r.blocks, func(b *networkingv1.IPBlock) bool { return inBlock(b, addr) })
}

// meansOrHas reports whether the rule's peers are e or everyone.
func (r *rule) meansOrHas(b *rulebook, e end) bool {
	return anyAllows(r.anyPort, b.oracle.peer(e), 0, "", corev1.ProtocolTCP)
}

// admits reports whether the rule by itself admits v.
func (r *rule) admits(b *rulebook, v view) bool {
	return slices.ContainsFunc(b.oracle.names(v.dst, v.protocol, v.port), func(name string) bool {
		return anyAllows(r.whole, b.oracle.peer(v.other), int(v.port), name, v.protocol)
	})
}

// mayAdmit reports whether the rule of a policy that isolates in both
// directions admits v, or leaves it in doubt for its port names.
func (r *rule) mayAdmit(b *rulebook, v view) bool {
	named := slices.ContainsFunc(r.ports, func(p port) bool { return p.name != "" })
	return r.both && (r.admits(b, v) || named && r.meansOrHas(b, v.other))
}

func (r *rule) hasNamedPort(p *pod, protocol corev1.Protocol, number uint16) bool {
	return p != nil && slices.ContainsFunc(p.ports(), func(c containerPort) bool {
		return c.protocol == protocol && c.number == number && c.name != "" && slices.Contains(r.ports, port{c.name, protocol})
	})
}

// resolves returns the number that the Pod gives the name, 0 if none.
func (p *pod) resolves(name port) uint16 {
	if p != nil {
		for _, c := range p.ports() {
			if c.name == name.name && c.protocol == name.protocol {
				return c.number
			}
		}
	}
	return 0
}

// anyoneHas reports whether a Pod gives the name that number.
func (b *rulebook) anyoneHas(p port, number uint16) bool {
	return slices.ContainsFunc(b.oracle.pods, func(q *pod) bool {
		return slices.ContainsFunc(q.ports(), func(c containerPort) bool {
			return c.name == p.name && c.protocol == p.protocol && c.number == number
		})
	})
}

func anyAllows(matchers []matcher.PeerMatcher, peer *matcher.TrafficPeer, number int, name string, protocol corev1.Protocol) bool {
	return slices.ContainsFunc(matchers, func(m matcher.PeerMatcher) bool { return m.Allows(peer, number, name, protocol) })
}

func inBlock(b *networkingv1.IPBlock, addr netip.Addr) bool {
	return inCIDR(b.CIDR, addr) && !slices.ContainsFunc(b.Except, func(e string) bool { return inCIDR(e, addr) })
}

// inCIDR takes a CIDR without leading zeros.
func inCIDR(cidr string, addr netip.Addr) bool {
	p, err := netip.ParsePrefix(cidr)
	if err != nil {
		return false
	}
	if p.Addr().Is4In6() {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked().Contains(addr)
}
