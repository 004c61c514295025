// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package deviation remembers which rules of NetworkPolicies the policy engine
// of which node was seen not to realize, so that not every Pod has to wait for
// them until its timeout.
//
// What is learned belongs to one rule of one policy at one generation on one
// node, and excuses that rule alone. A rule that Pods of the policy's own
// namespace have shown not to be realized is excused for everybody. What Pods
// of another namespace have shown is excused for that namespace alone: nobody
// learns for others what is not his.
//
// The package decides nothing about reports and sends nothing: whoever learns
// must have made sure that a rule is not just late. It is not safe for
// concurrent use.
package deviation

import (
	"container/list"

	"k8s.io/apimachinery/pkg/types"
)

// Rule is a rule of a NetworkPolicy.
type Rule struct {
	Policy types.NamespacedName
	// Generation is the policy's metadata.generation.
	Generation int64
	// Why is the text that names the rule among those of all policies.
	Why string
}

// Extent says how much of a rule is not realized.
type Extent int

// The extents.
const (
	// None: nothing is known.
	None Extent = iota
	// Advisory: what the engine was known not to realize, and was not awaited
	// for. Nothing is known of the rule's other flows.
	Advisory
	// Entire: nothing of the rule, for older Pods neither.
	Entire
)

// Table is what was learned. The zero Table is not usable: see NewTable.
type Table struct {
	limit int
	// nodes has what was learned on each node.
	nodes map[string]map[key]*list.Element
	// spaces has the same by the policies' namespaces, oldest first, and
	// policies by policy.
	spaces   map[string]*list.List
	policies map[types.NamespacedName]*policy
	count    int
}

// policy is what was learned of one policy, at one generation.
type policy struct {
	generation int64
	rules      map[*list.Element]struct{}
}

// key is what is learned on a node.
type key struct {
	rule Rule
	// pods is the namespace whose Pods are excused; empty: all are.
	pods string
}

// learned is one thing that was learned.
type learned struct {
	key
	node   string
	extent Extent
}

// NewTable returns a Table that holds at most limit things. Beyond that the
// oldest is forgotten, of the namespace whose policies hold most: whoever
// fills the table pays for it.
func NewTable(limit int) *Table {
	return &Table{
		limit:    limit,
		nodes:    map[string]map[key]*list.Element{},
		spaces:   map[string]*list.List{},
		policies: map[types.NamespacedName]*policy{},
	}
}

// keyFor returns what Pods of a namespace teach of a rule.
func keyFor(r Rule, namespace string) key {
	if r.Policy.Namespace == namespace {
		return key{rule: r}
	}
	return key{rule: r, pods: namespace}
}

// Learn notes that Pods of the namespace have shown that node does not realize
// r in that extent, and reports whether that is news. It forgets what was
// learned of other generations of the policy, and does nothing for None.
func (t *Table) Learn(node string, r Rule, namespace string, extent Extent) bool {
	if extent == None {
		return false
	}
	k := keyFor(r, namespace)
	if e, ok := t.nodes[node][k]; ok {
		l := at(e)
		if l.extent >= extent {
			return false
		}
		l.extent = extent
		return true
	}
	if p := t.policies[r.Policy]; p != nil && p.generation != r.Generation {
		t.ForgetPolicy(r.Policy)
	}
	if t.count >= t.limit {
		t.dropOldest()
	}
	space := t.spaces[r.Policy.Namespace]
	if space == nil {
		space = list.New()
		t.spaces[r.Policy.Namespace] = space
	}
	e := space.PushBack(&learned{key: k, node: node, extent: extent})
	if t.nodes[node] == nil {
		t.nodes[node] = map[key]*list.Element{}
	}
	t.nodes[node][k] = e
	if t.policies[r.Policy] == nil {
		t.policies[r.Policy] = &policy{generation: r.Generation, rules: map[*list.Element]struct{}{}}
	}
	t.policies[r.Policy].rules[e] = struct{}{}
	t.count++
	return true
}

// Extent returns how much of r is known not to be realized on node, for Pods
// of the namespace.
func (t *Table) Extent(node string, r Rule, namespace string) Extent {
	on := t.nodes[node]
	if len(on) == 0 {
		return None
	}
	extent := None
	for _, k := range []key{{rule: r}, {rule: r, pods: namespace}} {
		if e, ok := on[k]; ok {
			extent = max(extent, at(e).extent)
		}
	}
	return extent
}

// Any reports whether anything is known of node.
func (t *Table) Any(node string) bool { return len(t.nodes[node]) > 0 }

// Unlearn forgets what is known of r on node, for all Pods, and reports
// whether anything was: the rule was seen to be realized.
func (t *Table) Unlearn(node string, r Rule) bool {
	forgot := false
	for k, e := range t.nodes[node] {
		if k.rule == r {
			t.drop(e)
			forgot = true
		}
	}
	return forgot
}

// ForgetPolicy forgets all that is known of a policy that is gone.
func (t *Table) ForgetPolicy(name types.NamespacedName) {
	if p := t.policies[name]; p != nil {
		for e := range p.rules {
			t.drop(e)
		}
	}
}

// ForgetNode forgets all that is known of a node that is gone or has booted
// anew.
func (t *Table) ForgetNode(node string) {
	for _, e := range t.nodes[node] {
		t.drop(e)
	}
}

// Len returns how much is known.
func (t *Table) Len() int { return t.count }

// dropOldest forgets the oldest of the namespace whose policies hold most.
// Ties are broken by name, so that the outcome does not depend on chance.
func (t *Table) dropOldest() {
	var name string
	var most *list.List
	for n, l := range t.spaces {
		if most == nil || l.Len() > most.Len() || l.Len() == most.Len() && n < name {
			name, most = n, l
		}
	}
	if most != nil {
		t.drop(most.Front())
	}
}

func (t *Table) drop(e *list.Element) {
	l := at(e)
	if delete(t.nodes[l.node], l.key); len(t.nodes[l.node]) == 0 {
		delete(t.nodes, l.node)
	}
	name := l.rule.Policy
	p := t.policies[name]
	if delete(p.rules, e); len(p.rules) == 0 {
		delete(t.policies, name)
	}
	space := t.spaces[name.Namespace]
	if space.Remove(e); space.Len() == 0 {
		delete(t.spaces, name.Namespace)
	}
	t.count--
}

// at returns what an element of the table's lists holds.
func at(e *list.Element) *learned { return e.Value.(*learned) } //nolint:forcetypeassert // the lists hold nothing else
