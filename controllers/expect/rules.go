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
	v6 := self.Addr.Is6()
	for _, q := range k.policies(k.subject) {
		k.noteConflict(q)
		for _, d := range []Direction{Ingress, Egress} {
			for i := range q.Rules[d] {
				rule := &q.Rules[d][i]
				g := group{self: self, out: d == Egress, ports: portsOf(rule), why: ruleWhy(q, d, i), policy: q.key()}
				if rule.everyone() {
					k.groupEveryone(g, q, d)
					continue
				}
				means := k.meant(q, rule)
				k.noteRule(q, d, i, means)
				k.addGroup(g, k.newestFirst(means, v6))
				k.addGroup(g, k.representatives(rule, v6))
			}
		}
	}
}

func (k *plan) addGroup(g group, peers []candidate) {
	if g.peers = peers; g.pairs() > 0 {
		k.groups = append(k.groups, &g)
	}
}

// meant returns the Pods that the selector peers of a rule mean, oldest first.
func (k *plan) meant(q *Policy, rule *Rule) []*Pod {
	c := k.cluster
	namespaces := map[string]bool{}
	for i := range rule.Peers {
		switch peer := &rule.Peers[i]; {
		case peer.Block != nil:
		case peer.Namespaces == nil:
			namespaces[q.Namespace] = true
		default:
			for name, ns := range c.namespaces {
				if peer.Namespaces.Matches(ns.Labels) {
					namespaces[name] = true
				}
			}
		}
	}
	var out []*Pod
	for name := range namespaces {
		for _, p := range c.byNamespace[name] {
			if p.UID != k.subject.UID && c.ruleNames(q, rule, p) {
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, byAge)
	return out
}

// groupEveryone collects for a rule without peers. Nobody in particular is
// meant, so one Pod or address elsewhere and one on the node stand for all;
// but a port name in an egress rule means the Pods that have it.
func (k *plan) groupEveryone(g group, q *Policy, d Direction) {
	v6 := g.self.Addr.Is6()
	var anyone []candidate
	if e, ok := k.anyoneElsewhere(v6); ok {
		anyone = append(anyone, candidate{End: e})
	}
	for e := range k.older(k.cluster.byNode[k.subject.Node], v6) {
		if !Isolated(k.policies(e.Pod), d.opposite()) {
			anyone = append(anyone, candidate{End: e})
			break
		}
	}
	if d == Ingress {
		k.addGroup(g, anyone)
		return
	}
	ports := g.ports
	g.ports = slices.DeleteFunc(slices.Clone(ports), func(port Port) bool { return port.Name != "" })
	k.addGroup(g, anyone)
	for _, port := range ports {
		if port.Name != "" {
			g.ports = []Port{port}
			k.addGroup(g, k.having(q.Namespace, port, v6))
		}
	}
}

// having returns the Pods of a namespace that declare a named port, newest
// first, and one of any other namespace.
func (k *plan) having(namespace string, port Port, v6 bool) []candidate {
	out := slices.DeleteFunc(k.newestFirst(k.cluster.byNamespace[namespace], v6), func(peer candidate) bool {
		_, has := peer.Pod.named(port.Name, port.Protocol)
		return !has
	})
	if len(k.cluster.ports[portName{port.Name, port.Protocol}]) == 0 {
		return out
	}
	for e := range k.older(k.cluster.peers, v6) {
		if _, has := e.Pod.named(port.Name, port.Protocol); has && e.Pod.Namespace != namespace {
			return append(out, candidate{End: e})
		}
	}
	return out
}

// representatives returns an address of each block of a rule and of each of
// its excepts.
func (k *plan) representatives(rule *Rule, v6 bool) []candidate {
	var excepts []netip.Prefix
	blocks := rule.blocks(v6)
	for _, b := range blocks {
		excepts = append(excepts, b.Except...)
	}
	inside := k.inside(v6)
	var out []candidate
	for _, b := range blocks {
		if c, ok := k.representative(b, excepts); ok {
			out = append(out, c)
		}
	}
	for _, e := range excepts {
		if addr, ok := pick(e, inside); ok {
			out = append(out, candidate{End: End{Addr: addr}, external: true})
		}
	}
	return out
}

// representative returns an address of a block: outside the cluster, or else a
// real Pod on another node, or else one that it may be hard to say anything
// about.
func (k *plan) representative(b *Block, excepts []netip.Prefix) (candidate, bool) {
	v6 := b.CIDR.Addr().Is6()
	within := []netip.Prefix{b.CIDR}
	if v6 && b.CIDR.Bits() == 0 {
		within = []netip.Prefix{netip.MustParsePrefix("2000::/3"), netip.MustParsePrefix("fd00::/8")}
	}
	for _, p := range within {
		if addr, ok := pick(p, slices.Concat(k.inside(v6), excepts)); ok {
			return candidate{End: End{Addr: addr}, external: true}, true
		}
	}
	for e := range k.elsewhere(k.subject.Node, v6) {
		if b.contains(e.Addr) {
			return candidate{End: e}, true
		}
	}
	for _, avoid := range [][]netip.Prefix{slices.Concat(martians(v6), excepts), slices.Concat(martians(v6), b.Except)} {
		if addr, ok := pick(b.CIDR, avoid); ok {
			return candidate{End: End{Addr: addr}, external: true, advisory: true}, true
		}
	}
	return candidate{}, false
}

// groupNamingRules collects what policies demand that name p, which the nodes
// of the Pods they select judge: of the subject itself, or of the Pod p that
// had its address before.
func (k *plan) groupNamingRules(self End, p *Pod, localOnly, denied bool) {
	c := k.cluster
	for _, q := range c.Naming(p) {
		foreign := q.Namespace != k.subject.Namespace
		if ns := c.namespaces[q.Namespace]; foreign && (ns == nil || !ns.Inject) {
			continue
		}
		selected := k.selectedBy(q, localOnly)
		for _, d := range []Direction{Ingress, Egress} {
			for i := range q.Rules[d] {
				rule := &q.Rules[d][i]
				if !c.ruleMeans(q, d, rule, p) {
					continue
				}
				g := group{
					self: self, out: d == Ingress, remote: true, foreign: foreign, denied: denied,
					ports: portsOf(rule), why: ruleWhy(q, d, i), policy: q.key(),
				}
				if denied {
					g.previous = p
				} else if len(selected) > 0 {
					k.noteConflict(q)
					k.noteRule(q, d, i, nil)
				}
				k.addGroup(g, k.newestFirst(selected, self.Addr.Is6()))
			}
		}
	}
}

// selectedBy returns the Pods that a policy selects, oldest first, on nodes
// that the subject may wait for.
func (k *plan) selectedBy(q *Policy, localOnly bool) []*Pod {
	var out []*Pod
	for _, t := range k.cluster.byNamespace[q.Namespace] {
		if t.UID == k.subject.UID || !q.Selects(t) {
			continue
		}
		if t.Node != k.subject.Node {
			n := k.cluster.nodes[t.Node]
			if localOnly || n == nil || n.Out {
				continue
			}
		}
		out = append(out, t)
	}
	return out
}

// groupPredecessor collects what the Pod that had the address before was
// granted and the subject must not have.
func (k *plan) groupPredecessor(self End, previous *Pod, localOnly bool) {
	k.groupNamingRules(self, previous, localOnly, true)
	for _, q := range Selecting(k.cluster.policies[previous.Namespace], previous) {
		for _, d := range []Direction{Ingress, Egress} {
			for i := range q.Rules[d] {
				rule := &q.Rules[d][i]
				g := group{
					self: self, out: d == Egress, denied: true, previous: previous,
					ports: portsOf(rule), policy: q.key(),
					why: ruleWhy(q, d, i) + " granted the address's previous pod",
				}
				k.addGroup(g, k.newestFirst(k.meant(q, rule), self.Addr.Is6()))
			}
		}
	}
}

func (k *plan) noteConflict(q *Policy) {
	for _, other := range k.cluster.Sharing(q) {
		k.note(EngineConflict, "%s and %s", q, other)
		k.note(EngineConflict, "%s and %s", other, q)
	}
}

// noteRule notes what is known to go wrong with a rule. peers are the Pods that
// it means, if it is the subject's own.
func (k *plan) noteRule(q *Policy, d Direction, i int, peers []*Pod) {
	if k.cluster.tooLarge(q, d, i) {
		k.note(EngineLimit, "%s means more than %d pods", ruleWhy(q, d, i), maxSetMembers)
	}
	rule := &q.Rules[d][i]
	named := func(port Port) bool { return port.Name != "" }
	if rule.everyone() || !slices.ContainsFunc(rule.Ports, named) {
		return
	}
	own := q.Selects(k.subject)
	destinations := peers
	switch {
	case d == Ingress && own && len(peers) > 0:
		destinations = append(k.selectedBy(q, false), k.subject)
	case d == Ingress && !own:
		destinations = k.selectedBy(q, false)
	}
	for _, port := range rule.Ports {
		has := func(p *Pod) bool {
			_, ok := p.named(port.Name, port.Protocol)
			return ok
		}
		if named(port) && len(destinations) > 0 && !slices.ContainsFunc(destinations, has) {
			k.note(EngineOverAllows, "%s: no pod has a port named %q", ruleWhy(q, d, i), port.Name)
		}
	}
}
