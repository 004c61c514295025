// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// group is what one rule demands of one address of the subject: every peer on
// every port.
type group struct {
	// self is the subject; the other end is one of peers.
	self  End
	peers []candidate
	ports []Port
	// out is set if the subject is the source.
	out bool
	// remote is set if the peers' nodes are asked, else the subject's.
	remote bool
	// foreign is set for a policy of another namespace.
	foreign bool
	// denied is set if only refusals are asked: what a predecessor had.
	denied bool
	// previous is the Pod that a port name is resolved on in place of the
	// subject, or nil.
	previous *Pod
	why      string
	policy   types.NamespacedName

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
		node: node, conn: x, why: g.why, policy: g.policy, denied: g.denied,
		advisory: peer.advisory, external: peer.external,
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
	return freePort(k.policies(side.Pod), d, x.Dst.Pod)
}

// askGroups spends the budget: each port and each peer of each rule first,
// rule by rule in turn, then what is left in rotation.
func (k *plan) askGroups() {
	k.askInTurn((*group).diagonal)
	k.askInTurn((*group).pairs)
	for _, g := range k.groups {
		k.result.NotAsked += g.pairs() - g.visited
	}
}

func (k *plan) askInTurn(upTo func(*group) int) {
	for progress := true; progress && !k.full; {
		progress = false
		for _, g := range k.groups {
			if g.visited >= min(upTo(g), g.pairs()) {
				continue
			}
			peer, port := g.pair(g.visited)
			q, ok := k.question(g, peer, port)
			if ok && !k.ask(q) {
				return
			}
			g.visited++
			progress = true
		}
	}
}

// newestFirst returns the peers that the subject waits for.
func (k *plan) newestFirst(pods []*Pod, v6 bool) []candidate {
	var out []candidate
	for e := range k.older(pods, v6) {
		out = append(out, candidate{End: e})
	}
	slices.Reverse(out)
	return out
}

// askOwnIsolation asks the subject's own node: in a direction in which the
// subject is isolated, a stranger on each path is Denied; in the other, a real
// Pod elsewhere is Allowed.
func (k *plan) askOwnIsolation(self End) {
	policies := k.policies(k.subject)
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
			if x, ok := k.stranger(self, d, by); ok {
				k.ask(question{
					node: k.subject.Node, conn: x, denied: true,
					external: by == fromOutside,
					why:      strangerWhy(k.subject, d, by), policy: isolating(policies, d),
				})
			}
		}
	}
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

// limitForeignNodes marks the nodes that only policies of other namespaces ask
// about, beyond the limit. Those with the newest peers are kept.
func (k *plan) limitForeignNodes() {
	home := map[string]bool{k.subject.Node: true}
	newest := map[string]*Pod{}
	for _, g := range k.groups {
		for _, peer := range g.peers {
			switch {
			case !g.remote:
			case !g.foreign:
				home[peer.Pod.Node] = true
			case newest[peer.Pod.Node] == nil || byAge(newest[peer.Pod.Node], peer.Pod) < 0:
				newest[peer.Pod.Node] = peer.Pod
			}
		}
	}
	var nodes []string
	for node := range newest {
		if !home[node] {
			nodes = append(nodes, node)
		}
	}
	slices.SortFunc(nodes, func(a, b string) int {
		return cmp.Or(-byAge(newest[a], newest[b]), cmp.Compare(a, b))
	})
	for _, node := range nodes[min(len(nodes), k.options.MaxForeignNodes):] {
		k.beyond[node] = true
	}
}
