// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"slices"

	"github.com/policygate/policygate/api/flow"
)

// End is one end of a connection.
type End struct {
	Addr netip.Addr
	// Pod is nil for an address that is no Pod's.
	Pod *Pod
}

// Conn is a new connection whose ends are known.
type Conn struct {
	Src, Dst End
	Protocol flow.Protocol
	Port     uint16
}

// Flow returns what of the connection a node sees.
func (x Conn) Flow() flow.Flow {
	return flow.Flow{Protocol: x.Protocol, Src: x.Src.Addr, Dst: x.Dst.Addr, Port: x.Port}
}

// sides returns the isolated end and the other one, seen in direction d.
func (x Conn) sides(d Direction) (isolated, other End) {
	if d == Ingress {
		return x.Dst, x.Src
	}
	return x.Src, x.Dst
}

// Admission is what policies say of a connection, and how far an engine is
// known to follow them. The values are ordered: of several rules the highest
// counts, of the two sides of a connection the lowest.
type Admission uint8

const (
	// Refused: no rule admits it, and no engine is known to admit it.
	Refused Admission = iota
	// Doubtful: an engine is known to admit what the rules do not, or the
	// rules are not clear. Nothing may be expected.
	Doubtful
	// Deviating: a rule admits it, and an engine is known not to.
	Deviating
	// Admitted: a rule admits it.
	Admitted
)

// Answer returns what a node must do with the connection, and whether a node
// that does not is known to deviate. Inconclusive means that nothing may be
// expected.
func (a Admission) Answer() (want flow.Answer, advisory bool) {
	switch a {
	case Refused:
		return flow.Denied, false
	case Deviating:
		return flow.Allowed, true
	case Admitted:
		return flow.Allowed, false
	case Doubtful:
	}
	return flow.Inconclusive, false
}

// Selecting returns those of policies that select p.
func Selecting(policies []*Policy, p *Pod) []*Policy {
	var out []*Policy
	for _, q := range policies {
		if q.Selects(p) {
			out = append(out, q)
		}
	}
	return out
}

// Isolated reports whether policies, all of which select one Pod, isolate it
// in direction d.
func Isolated(policies []*Policy, d Direction) bool {
	for _, q := range policies {
		if q.Isolates[d] {
			return true
		}
	}
	return false
}

// isolating returns the first policy that isolates in direction d, or nil.
func isolating(policies []*Policy, d Direction) *Policy {
	for _, q := range policies {
		if q.Isolates[d] {
			return q
		}
	}
	return nil
}

// semantics are those of NetworkPolicy in a world.
type semantics struct {
	World
	// memory is nil if nothing is to be remembered.
	memory *memory
}

// memory has the admissions that were computed already of Pods that no rule
// can tell apart. The world must not change meanwhile.
type memory struct {
	admissions map[pair]Admission
	// byAddress has the classes with a policy that means addresses too.
	byAddress map[class]bool
}

type pair struct {
	isolated, other class
	direction       Direction
	protocol        flow.Protocol
	port            uint16
}

func newMemory() *memory {
	return &memory{admissions: map[pair]Admission{}, byAddress: map[class]bool{}}
}

// alike returns the class of p if the policies that select it do not tell Pods
// apart by their addresses either.
func (c semantics) alike(policies []*Policy, p *Pod) class {
	if c.memory == nil {
		return class{}
	}
	of := c.LabelSet(p).class()
	byAddress, ok := c.memory.byAddress[of]
	if !ok {
		byAddress = slices.ContainsFunc(policies, (*Policy).hasBlocks)
		c.memory.byAddress[of] = byAddress
	}
	if byAddress {
		return class{}
	}
	return of
}

// anywhere stands for all nodes together, as no Pod with an address is on a node
// of no name.
const anywhere = ""

// judged is the lower of the sides of x that node judges.
func (c semantics) judged(node string, x Conn) Admission {
	out := Admitted
	for _, d := range []Direction{Ingress, Egress} {
		side, _ := x.sides(d)
		if side.Pod == nil || node != anywhere && side.Pod.Node != node {
			continue
		}
		policies := c.Selecting(side.Pod)
		if len(c.Unreadable(side.Pod.Namespace)) > 0 {
			return Doubtful
		}
		out = min(out, c.admission(policies, d, x))
	}
	return out
}

// admission is Cluster.Admission.
func (c semantics) admission(policies []*Policy, d Direction, x Conn) Admission {
	if !Isolated(policies, d) {
		return Admitted
	}
	isolated, other := x.sides(d)
	if other.Pod == nil {
		return c.compute(policies, d, x)
	}
	key := pair{c.alike(policies, isolated.Pod), c.LabelSet(other.Pod).class(), d, x.Protocol, x.Port}
	if key.isolated == (class{}) || key.other == (class{}) {
		return c.compute(policies, d, x)
	}
	known, ok := c.memory.admissions[key]
	if !ok {
		known = c.compute(policies, d, x)
		c.memory.admissions[key] = known
	}
	return known
}

func (c semantics) compute(policies []*Policy, d Direction, x Conn) Admission {
	best := Refused
	for _, q := range policies {
		for i := range q.Rules[d] {
			best = max(best, c.ruleAdmission(q, d, i, x))
		}
	}
	if best == Refused && c.admittedInMirror(policies, d, x) {
		return Doubtful
	}
	return best
}

// admittedInMirror reports whether a policy that selects both ends of x, and
// isolates in both directions, admits x in the other direction. kube-router
// has all rules of a policy in one chain, and asks that chain of both ends in
// whichever direction: so the source's egress is let through by the rule that
// admits it to the destination, and the other way round.
func (c semantics) admittedInMirror(policies []*Policy, d Direction, x Conn) bool {
	_, other := x.sides(d)
	if other.Pod == nil {
		return false
	}
	mirror := d.opposite()
	for _, q := range policies {
		if !q.Isolates[d] || !q.Isolates[mirror] || !q.Selects(other.Pod) {
			continue
		}
		for i := range q.Rules[mirror] {
			if c.ruleAdmission(q, mirror, i, x) != Refused {
				return true
			}
		}
	}
	return false
}

// ruleAdmission is the admission of one rule: the lower of what its peers and
// its ports say.
func (c semantics) ruleAdmission(q *Policy, d Direction, i int, x Conn) Admission {
	rule := &q.Rules[d][i]
	_, other := x.sides(d)
	how := c.matchPeers(q, rule, other)
	if how.admission == Refused {
		return Refused
	}
	admission := min(how.admission, c.matchPorts(q, d, rule, how, x))
	if admission == Admitted && (c.conflicting(q) || c.tooLarge(q, d, i)) {
		return Deviating
	}
	return admission
}

// peerMatch says by which kind of peer a rule admits an end: named ports are
// realized differently for each.
type peerMatch struct {
	admission Admission
	selector  bool
	everyone  bool
}

func (c semantics) matchPeers(q *Policy, rule *Rule, other End) peerMatch {
	if rule.everyone() {
		return peerMatch{admission: Admitted, everyone: true}
	}
	var how peerMatch
	for i := range rule.Peers {
		peer := &rule.Peers[i]
		switch {
		case peer.Block == nil:
			if other.Pod != nil && c.names(q, peer, other.Pod) {
				return peerMatch{admission: Admitted, selector: true}
			}
		case peer.Block.contains(other.Addr):
			how.admission = max(how.admission, blockAdmission(rule, peer.Block, other.Addr))
		}
	}
	return how
}

// blockAdmission is the admission of an address that block contains.
// kube-router keeps all blocks of a rule in one set in which an except of one
// block hides the address of another, and writes ::/0 as 2000::/3 and fd00::/8.
func blockAdmission(rule *Rule, block *Block, addr netip.Addr) Admission {
	for i := range rule.Peers {
		if b := rule.Peers[i].Block; b != nil && b.excepts(addr) {
			return Deviating
		}
	}
	if block.CIDR.Bits() == 0 && addr.Is6() && !enforcedAny6(addr) {
		return Deviating
	}
	return Admitted
}

// names reports whether a selector peer of q means p.
func (c semantics) names(q *Policy, peer *Peer, p *Pod) bool {
	if peer.Block != nil || p.HostNetwork || !peer.Pods.Matches(p.Labels) {
		return false
	}
	if peer.Namespaces == nil {
		return p.Namespace == q.Namespace
	}
	ns := c.Namespace(p.Namespace)
	return ns != nil && peer.Namespaces.Matches(ns.Labels)
}

// conflicting reports whether kube-router cannot tell q from another policy.
func (c semantics) conflicting(q *Policy) bool { return len(c.Sharing(q)) > 0 }

// maxSetMembers is what kube-router's ipsets hold: maxelem 65536.
const maxSetMembers = 65536

// tooLarge reports whether the rule's selectors mean more Pods than the
// engine's sets hold. Addresses are counted per family, and a Pod has at most
// one of each. One that different selectors mean is counted for each.
func (c semantics) tooLarge(q *Policy, d Direction, i int) bool {
	return c.Population(MeantBy{Rule: RuleOf{q, d, i}}) > maxSetMembers
}

func (c semantics) matchPorts(q *Policy, d Direction, rule *Rule, how peerMatch, x Conn) Admission {
	if len(rule.Ports) == 0 {
		return Admitted
	}
	best := Refused
	for _, port := range rule.Ports {
		switch {
		case port.Name != "":
			best = max(best, c.matchNamedPort(q, d, port, how, x))
		case port.Protocol == x.Protocol && (port.First == 0 || port.First <= x.Port && x.Port <= port.Last):
			best = Admitted
		}
	}
	return best
}

// matchNamedPort resolves the port on the destination. What kube-router does
// otherwise: it reads only ordinary containers; writes no rule for an egress
// block; with selector peers and a name that no Pod has it opens all ports;
// without `to` it resolves the name in the policy's own namespace and opens
// the numbers found to every destination; and its sets for one name hold, at
// times, Pods that give the name another number.
func (c semantics) matchNamedPort(q *Policy, d Direction, port Port, how peerMatch, x Conn) Admission {
	var declared ContainerPort
	var has bool
	if x.Dst.Pod != nil {
		declared, has = x.Dst.Pod.named(port.Name, port.Protocol)
	}
	if has && port.Protocol == x.Protocol && declared.Number == x.Port {
		switch {
		case d == Egress && !how.selector && !how.everyone:
			return Doubtful
		case declared.Sidecar, d == Egress && how.everyone && x.Dst.Pod.Namespace != q.Namespace:
			return Deviating
		}
		return Admitted
	}
	// Its second number counts here although it is no peer of this world.
	gives := has && slices.ContainsFunc(x.Dst.Pod.Ports, func(other ContainerPort) bool {
		return other.Name == port.Name && other.Protocol == x.Protocol && other.Number == x.Port
	})
	if how.selector && !has || port.Protocol == x.Protocol &&
		(gives || c.Population(Giving{PortName{port.Name, port.Protocol}, x.Port}) > 0) {
		return Doubtful
	}
	return Refused
}
