// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/demand"
)

// agent is what the ledger keeps of a node's agent.
type agent struct {
	name string
	// connected is true while it has a session, unseen if it cannot see into
	// its node's dataplane.
	connected, unseen bool
	// inquiries are what it was asked, by policy.
	inquiries map[types.UID]*inquiry
}

// inquiry is what one node was asked about one policy, and what it answered.
type inquiry struct {
	node
	entry  *entry
	agent  *agent
	demand demand.Demand
	// stood is what it had confirmed of the policy's generation when it was
	// asked something else.
	stood demand.Demand
	// generation is that of the assignment.
	generation uint64
}

// agent returns the agent of the named node, which it makes if need be.
func (l *Ledger) agent(name string) *agent {
	n := l.nodes[name]
	if n == nil {
		n = &agent{name: name, inquiries: map[types.UID]*inquiry{}}
		l.nodes[name] = n
	}
	return n
}

// connected notes that the node's agent has a new session, or none any more.
// What it said before counts for a while.
func (l *Ledger) connected(name string, is, unseen bool) {
	n := l.agent(name)
	n.connected, n.unseen = is, unseen
	now := l.clock.Now()
	for _, q := range n.inquiries {
		if q.given && q.lost.IsZero() {
			q.lost = now
		}
		l.touch(q.entry)
	}
	l.prune(n)
}

// seen notes whether the node's agent can see into its dataplane.
func (l *Ledger) seen(name string, unseen bool) {
	n := l.agent(name)
	if n.unseen == unseen {
		return
	}
	n.unseen = unseen
	for _, q := range n.inquiries {
		l.touch(q.entry)
	}
}

// prune forgets a node of which nothing is known.
func (l *Ledger) prune(n *agent) {
	if !n.connected && len(n.inquiries) == 0 {
		delete(l.nodes, n.name)
	}
}

// handing says on what occasion something is handed out.
type handing struct {
	now time.Time
	// fresh is true if the policy's generation is another than before.
	fresh bool
	// founding is true if it is the first time of a policy that was there when
	// this replica was elected.
	founding bool
}

// handOut tells the nodes what has changed of what they must confirm. A node
// that is asked the same goes on to confirm it, for whatever generation.
func (l *Ledger) handOut(e *entry, a coverage.PolicyAssignment, demands map[string]demand.Demand, h handing) {
	frame := e.excuseFamilies == a.ExcuseFamilies
	e.excuseFamilies = a.ExcuseFamilies
	former := e.inquiries
	e.inquiries = make([]*inquiry, 0, len(demands))
	for _, name := range slices.Sorted(maps.Keys(demands)) {
		n := l.agent(name)
		q, known := n.inquiries[e.uid]
		if !known {
			q = &inquiry{entry: e, agent: n}
			q.since, q.founding = h.now, h.founding
			n.inquiries[e.uid] = q
		}
		e.inquiries = append(e.inquiries, q)
		if h.fresh {
			q.drifted, q.vouched, q.stood = false, false, demand.Demand{}
		}
		before := q.demand
		same := known && frame && demands[name].Content() == before.Content()
		q.demand = demands[name]
		if same {
			continue
		}
		if q.confirmed {
			q.since, q.vouched = h.now, !h.fresh
			if !h.fresh {
				q.stood = before
			}
		}
		q.answer, q.lost, q.had, q.steady = answer{}, time.Time{}, false, time.Time{}
		l.assign(q, a.Subject.Generation)
	}
	for _, q := range former {
		if _, stays := demands[q.agent.name]; !stays {
			l.drop(q)
		}
	}
}

// assign asks the node, in place of what it was asked before.
func (l *Ledger) assign(q *inquiry, generation int64) {
	l.generation++
	q.generation = l.generation
	e := q.entry
	config := e.config
	if q.agent.name == hubv1.Northbound {
		config = 0
	}
	l.hub.Assign(q.agent.name, &hubv1.Assign{
		Subject: &hubv1.Subject{
			Uid: string(e.uid), Namespace: e.key.Namespace, Name: e.key.Name, Generation: generation,
		},
		Generation:     q.generation,
		Basis:          e.basis,
		ExcuseFamilies: e.excuseFamilies,
		Policy:         true,

		NorthboundConfig: config,
	}, q.demand.Content())
}

// covered takes what the northbound database's agent has answered. Once it
// confirms a generation, nodes with OVN have to acknowledge what it has of that:
// they are asked anew, and what they confirmed without counts no more, unless the
// generation was there before this replica was elected. What the database has of
// Pods that come later, nodes show by themselves: to have each of them
// acknowledged, all would be asked for each.
func (l *Ledger) covered(q *inquiry, config uint64, now time.Time) {
	e := q.entry
	switch {
	case !q.confirmed:
		e.lapsed = e.lapsed || q.lag != ""
		return
	case config == 0 || e.config > 0 && !e.lapsed:
		return
	}
	e.config, e.lapsed = config, false
	for _, other := range e.inquiries {
		if other == q {
			continue
		}
		other.vouched = other.confirmed && e.seen.IsZero()
		if other.confirmed {
			other.since = now
		}
		other.answer, other.lost, other.had, other.steady = answer{}, time.Time{}, false, time.Time{}
		l.assign(other, e.generation)
	}
}

// withdraw takes back what the nodes were asked about the entry.
func (l *Ledger) withdraw(e *entry) {
	for _, q := range e.inquiries {
		l.drop(q)
	}
	e.inquiries = nil
}

// drop ends an inquiry.
func (l *Ledger) drop(q *inquiry) {
	l.hub.Withdraw(q.agent.name, string(q.entry.uid))
	delete(q.agent.inquiries, q.entry.uid)
	l.prune(q.agent)
}

// reported takes a node's answer, if it answers what the node was told last.
func (l *Ledger) reported(name string, r *hubv1.Report) {
	n := l.nodes[name]
	if n == nil {
		return
	}
	q := n.inquiries[types.UID(r.GetUid())]
	if q == nil || r.GetGeneration() != q.generation {
		return
	}
	now := l.clock.Now()
	a := answerOf(r, q.demand, q.entry.key)
	if !q.lost.IsZero() && !a.confirmed && a.lag == "" {
		return // it is back and has yet to look: what it said before stands
	}
	if !a.confirmed && len(r.GetUnmet()) > 0 && q.demand.AskedBefore(r.GetUnmet()[0].GetExpectation(), q.stood) {
		q.had = true
	}
	q.hear(a, r.GetSteady() && len(r.GetUnrealized()) > 0, now)
	if name == hubv1.Northbound {
		l.covered(q, r.GetNorthboundConfig(), now)
	}
	if !a.confirmed && len(r.GetUnmet()) > 0 {
		l.log.V(1).Info("node does not enforce a policy", "policy", q.entry.key, "node", name,
			"reason", r.GetUnmet()[0].GetReason(), "required", r.GetUnmetRequired(), "advisory", r.GetUnmetAdvisory())
	}
	l.touch(q.entry)
}

// hear makes a what the node said last. rests is true if its engine rests on
// not carrying out a rule.
func (n *node) hear(a answer, rests bool, now time.Time) {
	was := n.given && n.confirmed
	n.answer, n.lost, n.vouched = a, time.Time{}, false
	switch {
	case a.confirmed:
		n.had, n.drifted, n.founding = true, false, false
		if !was {
			n.since = now
		}
	case was:
		n.since = now
	}
	if !a.confirmed && n.had && (a.lag == v1alpha1.LagNotAdmitting || a.lag == v1alpha1.LagNotIsolating) {
		n.drifted = true
	}
	switch {
	case a.confirmed || !rests:
		n.steady = time.Time{}
	case n.steady.IsZero():
		n.steady = now
	}
}

// compareKeys orders policies.
func compareKeys(a, b types.NamespacedName) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// sorted returns texts sorted, each once.
func sorted(texts []string) []string {
	slices.Sort(texts)
	return slices.Compact(texts)
}
