// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"
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
}

// PolicyResult is what must be confirmed for a policy to be in force.
type PolicyResult struct {
	// Nodes has the expectations of every node that hosts a Pod which counts and
	// which the policy selects, an empty list included, but for nodes that are
	// not known or out. nil: not computed, and Notes say why.
	Nodes map[string][]Expectation
	// Next is the lowest Seq beyond the horizon of a Pod that the policy selects.
	// 0: there is none.
	Next uint64
	// Notes are sorted and without duplicates.
	Notes []Note
	// Footprint is what all this but Next was computed from.
	Footprint Footprint
}

const (
	// drawnPods are the Pods of a node that are asked about. Engines write a
	// policy once per node and a Pod's part of it once per Pod: two tell whether
	// it is one Pod that lacks, and others are drawn later.
	drawnPods = 2
	// drawnSpare are those that stand in for Pods without an address of their
	// own.
	drawnSpare = 2
)

// ExpectPolicy computes what must be confirmed for a policy: of a few of the
// Pods that it selects on each node, drawn anew with each Rotation, that their
// strangers are refused in the directions in which the policy isolates, and
// that what its rules allow them is allowed. Everything is asked of the Pod's
// own node. Like Expect it gives the same result for the same state.
//
// It costs a moment for each Pod that the policy selects, and for each node
// what Expect costs for as many flows.
func ExpectPolicy(w World, s PolicySubject, options Options) PolicyResult {
	options.Budget = options.PolicyBudget
	k := newPlan(w, s.Horizon, options)
	k.policy = s.Policy
	k.looks.footprint.Policies = []types.NamespacedName{s.Policy.key()}
	byNode, next := draw(w.Selected(s.Policy), s)
	if !k.noteUnreadable(s.Policy.Namespace) {
		k.notePolicy(s.Policy)
		k.result.Nodes = map[string][]Expectation{}
		for _, node := range slices.Sorted(maps.Keys(byNode)) {
			if n := k.looks.node(node); n != nil && !n.Out {
				k.askPolicy(node, byNode[node])
			}
		}
	}
	k.sortNotes()
	return PolicyResult{Nodes: k.result.Nodes, Next: next, Notes: k.result.Notes, Footprint: k.looks.footprint}
}

// ExpectPolicy is ExpectPolicy of this cluster.
func (c *Cluster) ExpectPolicy(s PolicySubject, options Options) PolicyResult {
	return ExpectPolicy(c, s, options)
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
// their own.
func (k *plan) askPolicy(node string, list []lot) {
	k.result.Nodes[node] = nil
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
