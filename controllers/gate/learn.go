// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"

	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/gate/deviation"
	"github.com/policygate/policygate/controllers/queue"
)

// learnAdvisory learns from a node that has confirmed but for advisory
// expectations: for the next Pod they are not awaited.
func (l *Ledger) learnAdvisory(q *inquiry) {
	if q.answer.advisory() {
		l.learn(q, func(w demand.Why) bool { return w.Allows == deviation.Advisory })
	}
}

// learnOverdue learns from the nodes that have not confirmed a Pod at its
// timeout, and whose engines do not realize a rule for older Pods either.
func (l *Ledger) learnOverdue(e *entry) {
	for _, q := range e.inquiries {
		if !q.answer.confirmed {
			l.learn(q, func(w demand.Why) bool { return w.Allows == deviation.Entire && w.Witnessed })
		}
	}
}

// learn learns the unrealized rules for which teaches is true of a steady
// answer: all that must be denied was, whatever is unmet is of rules of which
// nothing is realized, and the engine has moved. It learns nothing of an
// answer to what would be asked otherwise by now.
func (l *Ledger) learn(q *inquiry, teaches func(demand.Why) bool) {
	if !q.answer.steady || len(q.answer.unrealized) == 0 {
		return
	}
	e := q.entry
	if _, stands := l.coverage.Standing(e.pod.uid); !stands || e.stale {
		return
	}
	news := false
	whys := q.demand.Whys()
	for _, i := range q.answer.unrealized {
		if int64(i) >= int64(len(whys)) {
			continue
		}
		if w := whys[i]; w.Excusable() && teaches(w) && l.deviations.Learn(q.name, w.Rule, e.pod.namespace, w.Allows) {
			news = true
			l.metrics.learned()
			l.log.Info("engine does not realize a rule, which holds no more pods", "node", q.name,
				"policy", w.Rule.Policy, "generation", w.Rule.Generation, "rule", w.Rule.Why)
		}
	}
	if news {
		l.excuse(q.name, q.node)
	}
}

// unlearn forgets the deviations that a node was seen not to have any more.
func (l *Ledger) unlearn(q *inquiry, realized []uint32) {
	news := false
	whys := q.demand.Whys()
	for _, i := range realized {
		if int64(i) < int64(len(whys)) && l.deviations.Unlearn(q.name, whys[i].Rule) {
			news = true
			l.log.Info("engine realizes a rule after all", "node", q.name, "policy", whys[i].Rule.Policy, "rule", whys[i].Rule.Why)
		}
	}
	if news {
		l.excuse(q.name, q.node)
	}
}

// forgetDeviations forgets what was learned of a node.
func (l *Ledger) forgetDeviations(name string, n *node) {
	if l.deviations.Any(name) {
		l.deviations.ForgetNode(name)
		l.excuse(name, n)
	}
}

// excuse asks again what is excused by now, or no more.
func (l *Ledger) excuse(name string, n *node) {
	for _, q := range n.inquiries {
		excused := q.demand.Excused(l.deviations, name, q.entry.pod.namespace)
		if !slices.Equal(excused, q.excused) {
			q.excused = excused
			l.assign(q)
			l.touch(q.entry, queue.Usual)
		}
	}
}
