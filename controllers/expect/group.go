// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/policygate/policygate/api/flow"
)

// group is what one rule demands of one address of the subject: every peer on
// every port. Peers are found one by one, only as far as there are flows left.
type group struct {
	rule RuleOf
	// self is the subject; the other end is one of peers.
	self End
	// peers are those found so far: those of choice, newest first, then those
	// of more.
	peers  []candidate
	choice Choice
	more   []candidate
	// ahead are Pods that were read, a step at once, and not considered yet;
	// last is the one that was considered last. drained is set if there are no
	// others, exhausted if peers has all.
	ahead              []*Pod
	last               *Pod
	step, passedOver   int
	drained, exhausted bool

	ports []Port
	// out is set if the subject is the source.
	out bool
	// remote is set if the peers' nodes are asked, else the subject's; localOnly
	// if only the subject's is.
	remote, localOnly bool
	// denied is set if only refusals are asked: what a predecessor had.
	denied bool
	// previous is the Pod that a port name is resolved on in place of the
	// subject, or nil.
	previous *Pod
	why      string

	visited int
}

// candidate is one peer of a group.
type candidate struct {
	End
	external, advisory bool
}

// diagonal is the number of pairs that have each port and each peer once.
func (g *group) diagonal() int { return max(len(g.peers), len(g.ports)) }

// pairs is the number of all pairs.
func (g *group) pairs() int { return len(g.peers) * len(g.ports) }

// pair returns the i-th pair: the diagonal, then one rotation after the other.
// On the diagonal peers need not have more than i.
func (g *group) pair(i int) (candidate, Port) {
	peers, ports := len(g.peers), len(g.ports)
	along, rotation := i%g.diagonal(), i/g.diagonal()
	if peers >= ports {
		return g.peers[along], g.ports[(along+rotation)%ports]
	}
	return g.peers[(along+rotation)%peers], g.ports[along]
}

// question resolves a pair; false if the port means nothing for that peer.
func (k *plan) question(g *group, peer candidate, port Port) (question, bool) {
	x := Conn{Src: peer.End, Dst: g.self, Protocol: port.Protocol, Port: port.First}
	if g.out {
		x.Src, x.Dst = g.self, peer.End
	}
	node := g.self.Pod.Node
	if g.remote {
		node = peer.Pod.Node
	}
	switch {
	case port.Name != "":
		dst := x.Dst.Pod
		if g.previous != nil && !g.out {
			dst = g.previous
		}
		if dst == nil {
			return question{}, false
		}
		declared, ok := dst.named(port.Name, port.Protocol)
		if !ok {
			return question{}, false
		}
		x.Port = declared.Number
	case port.First == 0:
		x.Port = k.anyPort(g, x)
	}
	return question{
		node: node, conn: x, why: g.why, policy: g.rule.Policy, denied: g.denied,
		advisory: peer.advisory, external: peer.external,
		foreign: g.rule.Policy.Namespace != k.subject.Namespace,
	}, true
}

// anyPort returns the port to ask where a rule means them all: one that no
// other rule of the same side grants.
func (k *plan) anyPort(g *group, x Conn) uint16 {
	d := Ingress
	if g.out != g.remote {
		d = Egress
	}
	side, _ := x.sides(d)
	return freePort(k.Selecting(side.Pod), d, x.Dst.Pod)
}

// maxPassedOver bounds the Pods and pairs of one group of which nothing can be
// asked: it is reached only where a rule means thousands of no use.
const maxPassedOver = 4096

// peer finds the peers of g up to the i-th; false if there are not as many.
func (k *plan) peer(g *group, i int) bool {
	for len(g.peers) <= i && !g.exhausted {
		if p := k.next(g); p != nil {
			k.consider(g, p)
			continue
		}
		g.peers = append(g.peers, g.more...)
		g.exhausted = true
	}
	return i < len(g.peers)
}

// next returns the next Pod of g's choice, or nil.
func (k *plan) next(g *group) *Pod {
	if len(g.ahead) == 0 && !g.drained && g.choice != nil {
		g.step = min(max(2*g.step, 4), 64)
		for p := range k.Peers(g.choice, NewestFirst, g.last) {
			if g.ahead = append(g.ahead, p); len(g.ahead) == g.step {
				break
			}
		}
		g.drained = len(g.ahead) < g.step
	}
	if len(g.ahead) == 0 || g.passedOver > maxPassedOver {
		return nil
	}
	g.last, g.ahead = g.ahead[0], g.ahead[1:]
	return g.last
}

// consider adds p to the peers of g if it has an address to ask about and, if
// its node is to be asked, that is one which the subject waits for.
func (k *plan) consider(g *group, p *Pod) {
	if g.remote && p.Node != k.subject.Node {
		n := k.looks.node(p.Node)
		if g.localOnly || n == nil || n.Out {
			g.passedOver++
			return
		}
	}
	e, ok := k.end(p, g.self.Addr.Is6())
	if !ok {
		g.passedOver++
		return
	}
	g.peers = append(g.peers, candidate{End: e})
}

// addGroup adds a group that asks for anything.
func (k *plan) addGroup(g group) {
	if len(g.ports) == 0 || !k.peer(&g, 0) {
		return
	}
	if namespace := g.rule.Policy.Namespace; namespace != k.subject.Namespace {
		k.foreign[namespace] = append(k.foreign[namespace], &g)
		return
	}
	k.own = append(k.own, &g)
}

// askGroups spends the budget: first on what policies of the subject's own
// namespace demand; what is left is shared by the others, one flow of each
// namespace in turn, so that none can crowd out another. Of those of one
// namespace, each port and each peer of each rule comes first, rule by rule in
// turn, then the others in rotation.
func (k *plan) askGroups() {
	turns := []*turn{{groups: k.own}}
	k.askInTurn(turns)
	turns = nil
	for _, namespace := range slices.Sorted(maps.Keys(k.foreign)) {
		turns = append(turns, &turn{groups: k.foreign[namespace]})
	}
	k.askInTurn(turns)
	for _, g := range k.own {
		k.result.NotAsked += k.notAsked(g)
	}
	for _, groups := range k.foreign {
		for _, g := range groups {
			k.result.NotAsked += k.notAsked(g)
		}
	}
}

// notAsked counts the pairs of g that were not looked at.
func (k *plan) notAsked(g *group) int {
	peers := len(g.peers)
	if !g.exhausted || !g.drained {
		peers = max(peers, k.Population(g.choice))
	}
	return peers*len(g.ports) - g.visited
}

// turn is how far the groups of one namespace were asked.
type turn struct {
	groups []*group
	// at is the group whose turn it is. idle counts the groups in a row that
	// had nothing left.
	at, idle int
	// rotating is set once all diagonals are asked.
	rotating bool
}

// askInTurn asks one pair of each until nothing is left, or no budget.
func (k *plan) askInTurn(turns []*turn) {
	for len(turns) > 0 {
		left := turns[:0]
		for _, t := range turns {
			more := k.askOne(t)
			if k.full {
				return
			}
			if more {
				left = append(left, t)
			}
		}
		turns = left
	}
}

// askOne goes on with t until something is asked. It returns false if nothing
// was left.
func (k *plan) askOne(t *turn) bool {
	for t.idle < len(t.groups) || !t.rotating {
		if t.idle == len(t.groups) {
			t.idle, t.rotating = 0, true
			continue
		}
		g := t.groups[t.at]
		t.at = (t.at + 1) % len(t.groups)
		if !k.left(g, t.rotating) {
			t.idle++
			continue
		}
		t.idle = 0
		peer, port := g.pair(g.visited)
		q, ok := k.question(g, peer, port)
		result := fruitless
		if ok {
			result = k.ask(q)
		}
		switch result {
		case noRoom:
			return false
		case fruitless:
			g.passedOver++
			g.visited++
		case known, asked:
			g.visited++
			if result == asked && k.witnesses && !g.denied {
				k.grant(g, q, port)
			}
			return true
		}
	}
	return false
}

// left reports whether g has a pair left, on the diagonal or in rotation.
func (k *plan) left(g *group, rotating bool) bool {
	if g.passedOver > maxPassedOver {
		return false
	}
	if !rotating {
		k.peer(g, g.visited)
		return g.visited < g.diagonal()
	}
	return g.visited < g.pairs()
}

// askOwnIsolation asks the subject's own node: in a direction in which the
// subject is isolated, a stranger on each path is Denied; in the other, a real
// Pod elsewhere is Allowed.
func (k *plan) askOwnIsolation(self End) {
	policies := k.Selecting(k.subject)
	for _, d := range []Direction{Ingress, Egress} {
		if !Isolated(policies, d) {
			k.askOpen(self, d)
			continue
		}
		paths := []path{fromOtherNode, fromSameNode}
		if reachesOutside(policies, d, self.Addr.Is6()) {
			paths = append(paths, fromOutside)
		}
		for _, by := range paths {
			k.askStranger(self, d, by)
		}
	}
}

// askStranger asks the node of self for a stranger on one path, if there is one.
func (k *plan) askStranger(self End, d Direction, by path) {
	x, ok := k.stranger(self, d, by)
	if !ok {
		return
	}
	k.ask(question{
		node: self.Pod.Node, conn: x, denied: true,
		external: by == fromOutside,
		why:      strangerWhy(self.Pod, d, by), policy: k.isolating(k.Selecting(self.Pod), d),
	})
}

// reachesOutside reports whether a rule means addresses outside the cluster.
func reachesOutside(policies []*Policy, d Direction, v6 bool) bool {
	for _, q := range policies {
		for i := range q.Rules[d] {
			rule := &q.Rules[d][i]
			if rule.everyone() || len(rule.blocks(v6)) > 0 {
				return true
			}
		}
	}
	return false
}

func (k *plan) askOpen(self End, d Direction) {
	other, ok := k.anyoneElsewhere(self.Addr.Is6())
	if !ok {
		return
	}
	x := between(self, d, other)
	x.Protocol, x.Port = flow.TCP, freePort(nil, d, x.Dst.Pod)
	k.ask(question{node: k.subject.Node, conn: x, why: fmt.Sprintf("%s is not isolated for %s", k.subject, d)})
}

// anyoneElsewhere returns the oldest Pod on another node, or else an unused
// address there.
func (k *plan) anyoneElsewhere(v6 bool) (End, bool) {
	for e := range k.elsewhere(k.subject.Node, v6) {
		return e, true
	}
	var found End
	k.unused(k.subject.Node, v6, func(addr netip.Addr) bool {
		found = End{Addr: addr}
		return false
	})
	return found, found.Addr.IsValid()
}
