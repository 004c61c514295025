// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/policygate/policygate/api/flow"
)

// portsOf returns the ports to ask for a rule: of a range its ends. Where a
// rule matches on no protocol, one stands for all.
func portsOf(rule *Rule) []Port {
	if len(rule.Ports) == 0 {
		return []Port{{Protocol: flow.TCP}}
	}
	var out []Port
	for _, port := range rule.Ports {
		if port.Name != "" || port.First == port.Last {
			out = append(out, port)
			continue
		}
		out = append(out,
			Port{Protocol: port.Protocol, First: port.First, Last: port.First},
			Port{Protocol: port.Protocol, First: port.Last, Last: port.Last})
	}
	return out
}

func ruleWhy(q *Policy, d Direction, i int) string { return fmt.Sprintf("%s %s[%d]", q, d, i) }

// groupOwnRules collects what the subject's own policies allow, which the
// subject's node judges.
func (k *plan) groupOwnRules(self End) {
	for _, q := range k.Selecting(k.subject) {
		k.notePolicy(q)
		k.groupRules(q, self)
	}
}

// groupRules collects what q, which selects the subject, allows it.
func (k *plan) groupRules(q *Policy, self End) {
	for _, d := range []Direction{Ingress, Egress} {
		for i := range q.Rules[d] {
			rule := &q.Rules[d][i]
			g := group{rule: RuleOf{q, d, i}, self: self, out: d == Egress, ports: portsOf(rule), why: ruleWhy(q, d, i)}
			if rule.everyone() {
				k.groupEveryone(g)
				continue
			}
			k.addGroup(g.of(MeantBy{Rule: g.rule}))
			k.addGroup(g.with(k.representatives(rule, self.Addr.Is6())))
		}
	}
}

// of returns g for the peers of a choice, with for those given.
func (g group) of(choice Choice) group {
	g.choice = choice
	return g
}

func (g group) with(peers []candidate) group {
	g.peers, g.exhausted, g.drained = peers, true, true
	return g
}

// groupEveryone collects for a rule without peers. Nobody in particular is
// meant, so one Pod or address elsewhere and one on the node stand for all;
// but a port name in an egress rule means the Pods that have it: those of the
// policy's namespace, and one of any other.
func (k *plan) groupEveryone(g group) {
	v6 := g.self.Addr.Is6()
	q, d := g.rule.Policy, g.rule.Direction
	var anyone []candidate
	if e, ok := k.anyoneElsewhere(v6); ok {
		anyone = append(anyone, candidate{End: e})
	}
	for e := range k.open(k.subject.Node, d.opposite(), v6) {
		if e.Pod.UID != g.self.Pod.UID {
			anyone = append(anyone, candidate{End: e})
			break
		}
	}
	if d == Ingress {
		k.addGroup(g.with(anyone))
		return
	}
	ports := g.ports
	g.ports = slices.DeleteFunc(slices.Clone(ports), func(port Port) bool { return port.Name != "" })
	k.addGroup(g.with(anyone))
	for _, port := range ports {
		if port.Name == "" {
			continue
		}
		name := PortName{port.Name, port.Protocol}
		named := g.of(Named{name, q.Namespace})
		named.ports = []Port{port}
		for p := range k.Peers(NamedElsewhere{name, q.Namespace}, OldestFirst, nil) {
			if e, ok := k.end(p, v6); ok {
				named.more = []candidate{{End: e}}
				break
			}
		}
		k.addGroup(named)
	}
}

// representatives returns an address of each block of a rule and of each of
// its excepts.
func (k *plan) representatives(rule *Rule, v6 bool) []candidate {
	var excepts []netip.Prefix
	blocks := rule.blocks(v6)
	for _, b := range blocks {
		excepts = append(excepts, b.Except...)
	}
	inside, besides := k.inside(v6)
	var out []candidate
	for _, b := range blocks {
		if c, ok := k.representative(b, excepts); ok {
			out = append(out, c)
		}
	}
	for _, e := range excepts {
		if addr, ok := k.pickFree(e, inside, besides); ok {
			out = append(out, candidate{End: End{Addr: addr}, external: true})
		}
	}
	return out
}

// maxWithin bounds the Pods that are looked at for one on another node: it is
// more than run on one.
const maxWithin = 1024

// representative returns an address of a block: outside the cluster, or else a
// real Pod on another node, or else one that it may be hard to say anything
// about.
func (k *plan) representative(b *Block, excepts []netip.Prefix) (candidate, bool) {
	v6 := b.CIDR.Addr().Is6()
	within := []netip.Prefix{b.CIDR}
	if v6 && b.CIDR.Bits() == 0 {
		within = []netip.Prefix{netip.MustParsePrefix("2000::/3"), netip.MustParsePrefix("fd00::/8")}
	}
	inside, besides := k.inside(v6)
	besides = append(besides, excepts...)
	for _, p := range within {
		if addr, ok := k.pickFree(p, inside, besides); ok {
			return candidate{End: End{Addr: addr}, external: true}, true
		}
	}
	tries := 0
	for p := range k.Peers(Within{b.CIDR}, OldestFirst, nil) {
		e, ok := k.end(p, v6)
		if ok && p.Node != k.subject.Node && b.contains(e.Addr) {
			return candidate{End: e}, true
		}
		if tries++; tries == maxWithin {
			break
		}
	}
	for _, avoid := range [][]netip.Prefix{excepts, b.Except} {
		if addr, ok := k.pickFree(b.CIDR, newRanges(martians(v6)), avoid); ok {
			return candidate{End: End{Addr: addr}, external: true, advisory: true}, true
		}
	}
	return candidate{}, false
}

// groupNamingRules collects what policies demand that name p, which the nodes
// of the Pods they select judge: of the subject itself, or of the Pod p that
// had its address before.
func (k *plan) groupNamingRules(self End, p *Pod, localOnly, denied bool) {
	for _, r := range k.Meaning(p) {
		if r.Policy.Namespace != k.subject.Namespace {
			if ns := k.Namespace(r.Policy.Namespace); ns == nil || !ns.Inject {
				continue
			}
		}
		g := group{
			rule: r, self: self, out: r.Direction == Ingress, remote: true, localOnly: localOnly, denied: denied,
			ports: portsOf(r.rule()), why: r.String(), choice: SelectedBy{Policy: r.Policy},
		}
		if denied {
			g.previous = p
		} else if k.peer(&g, 0) {
			k.noteConflict(r.Policy)
			k.noteRule(r, false)
		}
		k.addGroup(g)
	}
}

// groupPredecessor collects what the Pod that had the address before was
// granted and the subject must not have.
func (k *plan) groupPredecessor(self End, previous *Pod, localOnly bool) {
	k.groupNamingRules(self, previous, localOnly, true)
	for _, q := range k.Selecting(previous) {
		for _, d := range []Direction{Ingress, Egress} {
			for i := range q.Rules[d] {
				k.addGroup(group{
					rule: RuleOf{q, d, i}, self: self, out: d == Egress, denied: true, previous: previous,
					ports: portsOf(&q.Rules[d][i]), choice: MeantBy{Rule: RuleOf{q, d, i}},
					why: ruleWhy(q, d, i) + " granted the address's previous pod",
				})
			}
		}
	}
}

// notePolicy notes what is known to go wrong with a policy that selects the
// subject, or is it.
func (k *plan) notePolicy(q *Policy) {
	k.noteConflict(q)
	for _, d := range []Direction{Ingress, Egress} {
		for i := range q.Rules[d] {
			k.noteRule(RuleOf{q, d, i}, true)
		}
	}
}

func (k *plan) noteConflict(q *Policy) {
	for _, other := range k.Sharing(q) {
		k.note(EngineConflict, "%s and %s", q, other)
		k.note(EngineConflict, "%s and %s", other, q)
	}
}

// noteRule notes what is known to go wrong with a rule, the subject's own or
// one that names it. A port name is looked for among all Pods that the rule
// may open it on, whatever their age and nodes.
func (k *plan) noteRule(r RuleOf, own bool) {
	if k.tooLarge(r.Policy, r.Direction, r.Index) {
		k.note(EngineLimit, "%s means more than %d pods", r, maxSetMembers)
	}
	names := r.rule().portNames()
	if r.rule().everyone() || len(names) == 0 {
		return
	}
	destinations := func(name PortName) int {
		if r.Direction == Ingress {
			return k.Population(SelectedBy{r.Policy, name})
		}
		return k.Population(MeantBy{r, name})
	}
	for _, name := range names {
		nobody := destinations(name) == 0 && destinations(PortName{}) > 0
		if nobody && own && r.Direction == Ingress {
			nobody = k.Population(MeantBy{Rule: r}) > 0
		}
		if nobody {
			k.note(EngineOverAllows, "%s: no pod has a port named %q", r, name.Name)
		}
	}
}

// pickFree is pick for an address that no Pod has: nodes need not say which
// ranges the Pods' addresses are from. It gives up after some that are taken.
func (k *plan) pickFree(within netip.Prefix, avoid ranges, besides []netip.Prefix) (netip.Addr, bool) {
	besides = slices.Clone(besides)
	for range unusedAddresses {
		addr, ok := pick(within, avoid, besides)
		if !ok || len(k.Holding(addr)) == 0 {
			return addr, ok
		}
		besides = append(besides, netip.PrefixFrom(addr, addr.BitLen()))
	}
	return netip.Addr{}, false
}
