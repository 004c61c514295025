// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// PolicySubject is a policy of which it is asked whether it is in force.
type PolicySubject struct {
	// Policy is one of the world's.
	Policy *Policy
	// Horizon is the highest Seq of a Pod that counts, whether the policy
	// selects it or means it: an engine may not know younger ones yet. It is no
	// higher than that of some Pod that was there.
	Horizon uint64
	// Rotation is any number. With another one other Pods are drawn.
	Rotation uint64
	// Former has, by node, what an earlier generation of the policy was expected
	// to allow. Of that is asked what must be denied now: else a policy that only
	// takes away would count as in force before any engine has seen it.
	Former map[string][]Granted
}

// Granted is a flow that a policy was expected to allow.
type Granted struct {
	Flow flow.Flow
	// External is Expectation's.
	External bool
}

// PolicyResult is what must be confirmed for a policy to be in force.
type PolicyResult struct {
	// Nodes has the expectations of every node that hosts a Pod which counts and
	// which the policy selects, an empty list included, but for nodes that are
	// not known or out. nil: not computed, and Notes say why. Of
	// Options.Northbound it has what Result.Nodes has, of as many nodes as have
	// room in DefaultBudget flows, drawn anew with each Rotation.
	Nodes map[string][]Expectation
	// Next is the lowest Seq beyond the horizon of a Pod that the policy selects.
	// 0: there is none.
	Next uint64
	// Notes are sorted and without duplicates.
	Notes []Note
	// Footprint is what all this but Next was computed from.
	Footprint Footprint
}

// Granted returns, by node, what is expected to be allowed.
func (r PolicyResult) Granted() map[string][]Granted {
	out := map[string][]Granted{}
	for node, list := range r.Nodes {
		for _, e := range list {
			if e.Want == flow.Allowed {
				out[node] = append(out[node], Granted{e.Flow, e.External})
			}
		}
	}
	return out
}

const (
	// drawnPods are the Pods of a node that are asked about. Engines write a
	// policy once per node and a Pod's part of it once per Pod: two tell whether
	// it is one Pod that lacks, and others are drawn later.
	drawnPods = 2
	// drawnSpare are those that stand in for Pods without an address of their
	// own.
	drawnSpare = 2
	// nearPods bounds the search for a stranger on the same node; without one the
	// stranger from another node must do. Where all Pods are isolated there is
	// none, and the policy would depend on every Pod of its nodes.
	nearPods = 8
)

// ForPolicy computes what must be confirmed for a policy: of a few of the
// Pods that it selects on each node, drawn anew with each Rotation, that their
// strangers are refused in the directions in which the policy isolates, and
// that what its rules allow them is allowed. Everything is asked of the Pod's
// own node. Like Expect it gives the same result for the same state.
//
// It costs a moment for each Pod that the policy selects, and for each node
// what Expect costs for as many flows.
func ForPolicy(w World, s PolicySubject, options Options) PolicyResult {
	options.Budget = options.PolicyBudget
	k := newPlan(w, s.Horizon, options)
	k.policy, k.near = s.Policy, nearPods
	k.looks.footprint.Policies = []types.NamespacedName{s.Policy.key()}
	byNode, next := draw(w.Peers(SelectedBy{Policy: s.Policy}, AnyOrder, nil), s)
	if !k.noteUnreadable(s.Policy.Namespace) {
		k.notePolicy(s.Policy)
		k.result.Nodes = map[string][]Expectation{}
		for _, node := range slices.Sorted(maps.Keys(byNode)) {
			if n := k.looks.node(node); n != nil && !n.Out {
				k.askPolicy(node, byNode[node], s.Former[node])
			}
		}
		k.askNorthboundOfPolicy(s.Rotation)
	}
	k.sortNotes()
	return PolicyResult{Nodes: k.result.Nodes, Next: next, Notes: k.result.Notes, Footprint: k.looks.footprint}
}

// ExpectPolicy is ForPolicy of this cluster.
func (c *Cluster) ExpectPolicy(s PolicySubject, options Options) PolicyResult {
	return ForPolicy(c, s, options)
}

// lot is a Pod and what it drew: who has the lowest weights is asked about.
// That another Pod comes or goes does not change it.
type lot struct {
	weight uint64
	pod    *Pod
}

func byWeight(a, b lot) int {
	return cmp.Or(cmp.Compare(a.weight, b.weight), cmp.Compare(a.pod.UID, b.pod.UID))
}

// draw returns the Pods of each node that may be asked about, in the order in
// which they should be, and the lowest Seq of those that do not count yet.
func draw(selected iter.Seq[*Pod], s PolicySubject) (byNode map[string][]lot, next uint64) {
	byNode = map[string][]lot{}
	for p := range selected {
		if p.Seq > s.Horizon {
			if next == 0 || p.Seq < next {
				next = p.Seq
			}
			continue
		}
		drawn := lot{weight(p.UID, s.Rotation), p}
		list := byNode[p.Node]
		if len(list) == drawnPods+drawnSpare {
			if byWeight(drawn, list[len(list)-1]) > 0 {
				continue
			}
			list = list[:len(list)-1]
		}
		byNode[p.Node] = insert(list, drawn, byWeight)
	}
	return byNode, next
}

// weight is as good as random, and the same in every replica. It is FNV-1a with
// the last step of splitmix64, which spreads the rotation.
func weight(uid types.UID, rotation uint64) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(uid) {
		h = (h ^ uint64(uid[i])) * 1099511628211
	}
	h += rotation * 0x9e3779b97f4a7c15
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// askPolicy asks one node of the first Pods of a list that have an address of
// their own, and of what was granted there before.
func (k *plan) askPolicy(node string, list []lot, former []Granted) {
	k.result.Nodes[node] = make([]Expectation, 0, max(k.options.Budget, 0))
	clear(k.asked)
	k.full = false
	k.awaited[node] = true
	var drawn [][]End
	for _, l := range list {
		k.looks.pod(l.pod)
		k.subject = l.pod
		if ends := k.ends(); len(ends) > 0 {
			drawn = append(drawn, ends)
		}
		if len(drawn) == drawnPods {
			break
		}
	}
	k.askPolicyIsolation(drawn)
	k.askFormer(node, former)
	var turns []*turn
	for i, ends := range drawn {
		k.subject, k.own = ends[0].Pod, nil
		for _, end := range ends {
			k.groupRules(k.policy, end)
		}
		k.spread(k.own, ends, i, len(drawn))
		turns = append(turns, &turn{groups: k.own})
	}
	k.askInTurn(turns)
}

// spread puts the groups of the i-th of n Pods in the order in which they are
// asked: every rule once before any comes again at another address, and each Pod
// and each address begins with another rule. So together they get furthest.
func (k *plan) spread(groups []*group, ends []End, i, n int) {
	rules := len(k.policy.Rules[Ingress]) + len(k.policy.Rules[Egress])
	place := func(g *group) (round, turn int) {
		ordinal := g.rule.Index
		if g.rule.Direction == Egress {
			ordinal += len(k.policy.Rules[Ingress])
		}
		return (slices.Index(ends, g.self) + ordinal + i) % len(ends), (ordinal + rules - i*rules/n) % rules
	}
	slices.SortStableFunc(groups, func(a, b *group) int {
		roundA, turnA := place(a)
		roundB, turnB := place(b)
		return cmp.Or(cmp.Compare(roundA, roundB), cmp.Compare(turnA, turnB))
	})
}

// askPolicyIsolation asks for strangers of the Pods drawn, in the directions in
// which the policy isolates: the path that matters most first, and with half of
// the budget if there are rules to ask about. An Allowed brings those along that
// it needs.
func (k *plan) askPolicyIsolation(drawn [][]End) {
	room := k.options.Budget
	if len(k.policy.Rules[Ingress])+len(k.policy.Rules[Egress]) > 0 {
		room = (room + 1) / 2
	}
	for _, by := range []path{fromOtherNode, fromSameNode, fromOutside} {
		for _, end := range slices.Concat(drawn...) {
			for _, d := range []Direction{Ingress, Egress} {
				outside := by == fromOutside && !reachesOutside(k.Selecting(end.Pod), d, end.Addr.Is6())
				if !k.policy.Isolates[d] || outside {
					continue
				}
				if len(k.asked) >= room {
					return
				}
				k.askStranger(end, d, by)
			}
		}
	}
}

// askFormer asks for what was granted before and is refused by the policy's own
// Pods now, with a quarter of the budget.
func (k *plan) askFormer(node string, former []Granted) {
	room := len(k.asked) + k.options.Budget/4
	for _, g := range former {
		if len(k.asked) >= room {
			return
		}
		src, known := k.holder(g.Flow.Src, g.External)
		dst, ok := k.holder(g.Flow.Dst, g.External)
		if x := (Conn{src, dst, g.Flow.Protocol, g.Flow.Port}); known && ok && k.refuses(node, x) {
			k.ask(question{
				node: node, conn: x, denied: true, external: g.External,
				why: k.policy.String() + " granted it before", policy: k.policy,
			})
		}
	}
}

// holder returns who has an address by now: one peer that counts, or, if that
// will do, nobody.
func (k *plan) holder(addr netip.Addr, nobody bool) (End, bool) {
	list := k.Holding(addr)
	switch {
	case len(list) == 0:
		return End{Addr: addr}, nobody
	case len(list) > 1 || !list[0].Peer() || list[0].Seq > k.looks.horizon:
		return End{}, false
	}
	k.looks.pod(list[0])
	return End{Addr: addr, Pod: list[0]}, true
}

// refuses reports whether an end of x on a node is refused it where the subject
// isolates it.
func (k *plan) refuses(node string, x Conn) bool {
	for _, d := range []Direction{Ingress, Egress} {
		side, _ := x.sides(d)
		if side.Pod == nil || side.Pod.Node != node || !k.policy.Isolates[d] {
			continue
		}
		policies := k.Selecting(side.Pod)
		if slices.Contains(policies, k.policy) && k.admission(policies, d, x) == Refused {
			return true
		}
	}
	return false
}
