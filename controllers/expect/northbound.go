// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"cmp"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// twofold is what was asked of a node, and is to be asked of the northbound
// database too.
type twofold struct {
	node        string
	conn        Conn
	expectation Expectation
}

// askNorthbound asks of the northbound database what is asked of the nodes of
// the span: of the subject's own first, which reports name first. What only
// nodes that nobody awaits are asked is left to these: it would be awaited here.
func (k *plan) askNorthbound(own string) {
	if len(k.twofold) == 0 {
		return
	}
	rank := func(q twofold) int {
		if q.node == own {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(k.twofold, func(a, b twofold) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.node, b.node))
	})
	list := newTogether()
	for _, q := range k.twofold {
		if !k.beyond[q.node] {
			k.askTogether(list, q)
		}
	}
	k.addTogether(list)
}

// askNorthboundOfPolicy asks the same of a policy, which may be asked of any
// number of nodes: of whole nodes, since an Allowed belongs to its controls, as
// far as there is room.
func (k *plan) askNorthboundOfPolicy(rotation uint64) {
	if len(k.twofold) == 0 {
		return
	}
	byNode := map[string][]twofold{}
	var nodes []string
	for _, q := range k.twofold {
		if byNode[q.node] == nil {
			nodes = append(nodes, q.node)
		}
		byNode[q.node] = append(byNode[q.node], q)
	}
	drawn := func(node string) uint64 { return weight(types.UID(node), rotation) }
	slices.SortFunc(nodes, func(a, b string) int {
		return cmp.Or(cmp.Compare(drawn(a), drawn(b)), cmp.Compare(a, b))
	})
	list := newTogether()
	for i, node := range nodes {
		if i > 0 && len(list.asked)+len(byNode[node]) > DefaultBudget {
			break
		}
		for _, q := range byNode[node] {
			k.askTogether(list, q)
		}
	}
	k.addTogether(list)
}

// together is what is asked of all nodes, each flow once.
type together struct {
	asked []Expectation
	at    map[flow.Flow]int
}

func newTogether() *together { return &together{at: map[flow.Flow]int{}} }

// askTogether adds q to the list. A node judges the ends of a connection that
// are on it, the database both: what one end must refuse is refused, but what
// one must allow may be refused by the other, and is no demand then.
func (k *plan) askTogether(list *together, q twofold) {
	e := q.expectation
	if e.Want == flow.Allowed {
		want, deviates := k.judged(anywhere, q.conn).Answer()
		if want != flow.Allowed {
			return
		}
		e.Advisory = e.Advisory || deviates
	}
	i, known := list.at[e.Flow]
	if !known {
		list.at[e.Flow] = len(list.asked)
		list.asked = append(list.asked, e)
		return
	}
	// What is awaited of some node is awaited.
	if before := &list.asked[i]; weighs(&e) > weighs(before) {
		*before = e
	}
}

// weighs is how much depends on an expectation.
func weighs(e *Expectation) int {
	switch {
	case e.Witness:
		return 0
	case e.Advisory:
		return 1
	}
	return 2
}

// addTogether makes the list the northbound database's.
func (k *plan) addTogether(list *together) {
	if len(list.asked) > 0 {
		k.result.Nodes[k.options.Northbound] = list.asked
	}
}
