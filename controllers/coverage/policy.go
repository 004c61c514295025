// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"cmp"
	"maps"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// drawPeriod is for how long the same Pods are asked about for a policy, as
// long as they are there. Most of it has to be left when all nodes have
// confirmed what is asked of them, which takes up to a sync of the engine; and
// each Pod of a node should have its turn within hours.
const drawPeriod = 5 * time.Minute

// PolicySubject is a NetworkPolicy at a generation.
type PolicySubject struct {
	UID             types.UID
	Namespace, Name string
	// Generation is the policy's metadata.generation.
	Generation int64
	// Since is when this process first saw the generation; zero if it was there
	// when the process started, nobody knows since when.
	Since time.Time
}

// PolicyPods counts the Pods that a policy selects and that can be peers.
type PolicyPods struct {
	// Gated are those of Selected that are gated, Pending those of Gated that
	// wait for their gate.
	Selected, Gated, Pending int
}

// PolicyAssignment is what must be confirmed for a policy to be in force.
type PolicyAssignment struct {
	Subject PolicySubject
	// PerNode has the expectations of every node that has to enforce the
	// policy: those that host a Pod which it selects, but for nodes that have
	// not been ready for long; and those of expect.Options.Northbound. nil: not
	// computed, and Notes say why.
	PerNode map[string][]expect.Expectation
	Pods    PolicyPods
	Notes   []expect.Note
	// ExcuseFamilies is Assignment's.
	ExcuseFamilies bool
	Basis          Basis
	// Again is when time alone will have changed the above: a Pod that is too
	// young to be asked about will be old enough. Zero: only events do.
	Again time.Time
}

// PolicyChange says what may have changed of a policy.
type PolicyChange struct {
	Policy types.NamespacedName
	// Meaning is set if what it is made of has changed: the policy itself, a
	// namespace's labels, a node, or a Pod that was asked about. It should be
	// computed again soon. Else Pods came or went beside: their number has
	// changed, and at leisure the sample may.
	Meaning bool
}

// policy is a policy as a subject, at a generation. Of its last assignment
// nothing is kept but the footprint.
type policy struct {
	key        types.NamespacedName
	uid        types.UID
	generation int64
	// since is PolicySubject.Since. known is the Seq of the youngest Pod then.
	since time.Time
	known uint64
	// former is what the generations before were expected to allow.
	former map[string][]expect.Granted
	// computed is set once an assignment was; footprint is the last one's.
	computed  bool
	footprint expect.Footprint
}

// Policies returns all policies, sorted.
func (x *Index) Policies() []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.SortedFunc(maps.Keys(x.policies), byName)
}

func byName(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// PolicyAssignment computes what must be confirmed for a policy from all that
// the index holds at the time of the call. It returns false if there is no such
// policy.
//
// The Pods that count, selected and peers, are those that had their addresses
// when the policy's generation was first seen, and those that have had them for
// youth since. Which of them are asked about changes with every drawPeriod.
func (x *Index) PolicyAssignment(key types.NamespacedName) (PolicyAssignment, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.passTime()
	q := x.policies[key]
	if q == nil {
		return PolicyAssignment{}, false
	}
	a, footprint := x.computePolicy(x.policySubject(q), q)
	x.policyLinks.remove(&q.footprint, q)
	q.computed, q.footprint = true, footprint
	x.policyLinks.add(&q.footprint, q)
	return a, true
}

// policySubject is what is computed of q now.
func (x *Index) policySubject(q *policy) expect.PolicySubject {
	now := x.options.Clock.Now()
	return expect.PolicySubject{
		Policy:   x.cluster.Policy(q.key.Namespace, q.key.Name),
		Horizon:  max(q.known, x.arrivals.horizon(now)),
		Rotation: uint64(max(0, now.Sub(x.started)/drawPeriod)),
		Former:   q.former,
	}
}

// computePolicy changes nothing.
func (x *Index) computePolicy(s expect.PolicySubject, q *policy) (PolicyAssignment, expect.Footprint) {
	r := x.cluster.ExpectPolicy(s, x.options.Expect)
	a := PolicyAssignment{
		Subject: PolicySubject{
			UID: q.uid, Namespace: q.key.Namespace, Name: q.key.Name,
			Generation: q.generation,
			Since:      q.since,
		},
		PerNode:        r.Nodes,
		Pods:           x.policyPods(q.key),
		Notes:          r.Notes,
		ExcuseFamilies: x.excuseFamilies(),
		Basis:          x.policyBasis(),
	}
	if r.Next > 0 {
		a.Again = x.arrivals.settles(r.Next)
	}
	return a, r.Footprint
}

// PolicyPods counts the Pods of a policy, for less than PolicyAssignment costs:
// it costs what there are label sets that the policy selects. It returns false
// if there is no such policy.
func (x *Index) PolicyPods(key types.NamespacedName) (PolicyPods, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.policies[key] == nil {
		return PolicyPods{}, false
	}
	return x.policyPods(key), true
}

// ChangedPolicies returns, once and sorted, the policies of which something may
// have changed since the last call, those that are gone included.
func (x *Index) ChangedPolicies() []PolicyChange {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.passTime()
	if x.allChanged {
		for key := range x.policies {
			x.changed[key] = true
		}
	}
	out := make([]PolicyChange, 0, len(x.changed))
	for key, meaning := range x.changed {
		out = append(out, PolicyChange{Policy: key, Meaning: meaning})
	}
	slices.SortFunc(out, func(a, b PolicyChange) int { return byName(a.Policy, b.Policy) })
	// A map that was large once takes long to clear.
	x.allChanged, x.changed = false, map[types.NamespacedName]bool{}
	return out
}

// PolicyWake receives after ChangedPolicies has got something to return. It
// holds one element: there is one receiver.
func (x *Index) PolicyWake() <-chan struct{} { return x.policyWake }

// setPolicySubject takes a generation of a policy that was not seen yet; before
// is nil if the policy was not either.
func (x *Index) setPolicySubject(before *policy, np *networkingv1.NetworkPolicy) {
	now := x.options.Clock.Now()
	next := &policy{
		key:        types.NamespacedName{Namespace: np.Namespace, Name: np.Name},
		uid:        np.UID,
		generation: np.Generation,
		since:      now,
		known:      x.sequence,
	}
	known := before != nil && before.uid == np.UID
	if !known && !x.listed {
		next.since = time.Time{}
	}
	if known && before.computed {
		next.former = x.granted(before)
	}
	if before != nil {
		x.policyLinks.remove(&before.footprint, before)
	}
	x.policies[next.key] = next
	x.change(next)
}

// granted returns what q is expected to allow, and then what its former
// generations were: no more of each node than is asked of one.
func (x *Index) granted(q *policy) map[string][]expect.Granted {
	out := x.cluster.ExpectPolicy(x.policySubject(q), x.options.Expect).Granted()
	delete(out, x.options.Expect.Northbound) // what is granted there is of the nodes
	for node, list := range q.former {
		all := slices.Concat(out[node], list)
		out[node] = all[:min(len(all), x.options.Expect.PolicyBudget)]
	}
	return out
}

// deletePolicySubject forgets a policy.
func (x *Index) deletePolicySubject(q *policy) {
	x.policyLinks.remove(&q.footprint, q)
	delete(x.policies, q.key)
	x.change(q)
}

// change marks a policy as changed in its meaning.
func (x *Index) change(q *policy) {
	x.changed[q.key] = true
	x.signalPolicies()
}

// changeAll marks every policy. Who that is, ChangedPolicies finds out.
func (x *Index) changeAll() {
	if len(x.policies) == 0 {
		return
	}
	x.allChanged = true
	x.signalPolicies()
}

// changeNumber marks a policy of which the number of Pods may have changed.
func (x *Index) changeNumber(q *expect.Policy) {
	key := types.NamespacedName{Namespace: q.Namespace, Name: q.Name}
	if _, marked := x.changed[key]; !marked {
		x.changed[key] = false
		x.signalPolicies()
	}
}

// signalPolicies needs no lock.
func (x *Index) signalPolicies() {
	select {
	case x.policyWake <- struct{}{}:
	default:
	}
}
