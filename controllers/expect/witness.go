// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"iter"

	"github.com/policygate/policygate/api/flow"
)

// maxWitnesses bounds the Pods that are tried as the witness of one rule on
// one node.
const maxWitnesses = 16

// grant is a question that a rule's Allowed came from.
type grant struct {
	group    *group
	question question
	port     Port
}

type grantKey struct {
	rule RuleOf
	node string
}

// grant notes what was asked last, if it is the first Allowed of the rule there.
func (k *plan) grant(g *group, q question, port Port) {
	key := grantKey{g.rule, q.node}
	if k.grants[key] {
		return
	}
	if want, _ := k.judged(q.node, q.conn).Answer(); want == flow.Allowed {
		k.grants[key] = true
		k.granted = append(k.granted, grant{g, q, port})
	}
}

// askWitnesses asks, beside each rule's Allowed on each node, one in which an
// older Pod stands in for the subject.
func (k *plan) askWitnesses() {
	for _, a := range k.granted {
		if k.full {
			return
		}
		k.askWitness(a)
	}
}

func (k *plan) askWitness(a grant) {
	_, other := a.question.conn.sides(Ingress)
	if a.group.out {
		other, _ = a.question.conn.sides(Ingress)
	}
	g := *a.group
	tries := 0
	for p := range k.standIns(a) {
		if tries++; tries > maxWitnesses {
			return
		}
		e, ok := k.end(p, other.Addr.Is6())
		if !ok || other.Pod != nil && other.Pod.UID == p.UID {
			continue
		}
		g.self = e
		peer := candidate{End: other, external: a.question.external, advisory: a.question.advisory}
		q, ok := k.question(&g, peer, a.port)
		if !ok {
			continue
		}
		q.witness = true
		if k.ask(q) == asked || k.full {
			return
		}
	}
}

// standIns returns the Pods of which the rule says the same as of the subject:
// those that it means as well, or that the policy selects on the same node.
func (k *plan) standIns(a grant) iter.Seq[*Pod] {
	r := a.group.rule
	switch {
	case a.group.remote && r.rule().everyone():
		return func(yield func(*Pod) bool) {
			for _, name := range r.rule().portNames() {
				for p := range k.Peers(Named{name, r.Policy.Namespace}, OldestFirst, nil) {
					if !yield(p) {
						return
					}
				}
			}
		}
	case a.group.remote:
		return k.Peers(MeantBy{Rule: r}, OldestFirst, nil)
	}
	return func(yield func(*Pod) bool) {
		for p := range k.Peers(On{a.question.node}, OldestFirst, nil) {
			if r.Policy.Selects(p) && !yield(p) {
				return
			}
		}
	}
}
