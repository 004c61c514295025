// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// plan is one computation.
type plan struct {
	semantics
	looks   *looks
	options Options
	subject *Pod

	result Result
	// policy is nil unless it is the subject: then only what it demands is
	// asked, and subject is each of the Pods that it is asked of in turn.
	policy *Policy
	// near is how many Pods of a node are looked at for one that is not
	// isolated. 0: all.
	near int
	// own are the groups of policies of the subject's namespace, foreign those
	// of others by namespace.
	own     []*group
	foreign map[string][]*group
	// awaited are the nodes of the span so far, beyond those over the limit of
	// foreign nodes; foreigners counts the foreign ones of the span.
	awaited, beyond map[string]bool
	foreigners      int
	asked           map[ask]bool
	full            bool

	// granted has the first Allowed of each rule on each node, if witnesses are
	// asked.
	witnesses bool
	granted   []grant
	grants    map[grantKey]bool
	// twofold is what was asked of nodes, if the northbound database is asked.
	twofold []twofold

	// What was found already.
	strangers map[strangerKey]stranger
	refusals  map[refusalKey][]End
}

type ask struct {
	node string
	flow flow.Flow
}

type strangerKey struct {
	pod       types.UID
	v6        bool
	direction Direction
	path      path
}

type stranger struct {
	conn Conn
	ok   bool
}

// Expect computes what must be confirmed for s: the same result for the same
// state, in every replica that saw Pods get their addresses in the same order.
// It reads the policies that select the subject or name it, and of the Pods
// that these mean as many as the budget has flows for.
func Expect(w World, s Subject, options Options) Result {
	k := newPlan(w, s.Pod.Seq, options)
	k.subject, k.witnesses = s.Pod, s.Witnesses
	k.awaited[s.Pod.Node] = true
	k.looks.subject = s.Pod.UID
	k.looks.pod(s.Pod)
	k.dependOn()
	k.fill(s)
	k.sortNotes()
	k.result.Footprint = k.looks.footprint
	return k.result
}

func newPlan(w World, horizon uint64, options Options) *plan {
	l := newLooks(w, horizon)
	return &plan{
		semantics: semantics{World: l, memory: newMemory()},
		looks:     l,
		options:   options,
		foreign:   map[string][]*group{},
		awaited:   map[string]bool{},
		beyond:    map[string]bool{},
		asked:     map[ask]bool{},
		grants:    map[grantKey]bool{},
		strangers: map[strangerKey]stranger{},
		refusals:  map[refusalKey][]End{},
	}
}

// fill computes all of the result but what it was computed from.
func (k *plan) fill(s Subject) {
	ends := k.ends()
	if k.noteUnreadable(s.Pod.Namespace) || s.Pod.Node == "" || len(ends) == 0 {
		return
	}
	k.result.Nodes = map[string][]Expectation{s.Pod.Node: nil}
	for _, end := range ends {
		k.askOwnIsolation(end)
		k.groupOwnRules(end)
		k.groupNamingRules(end, end.Pod, s.LocalOnly, false)
		for _, previous := range s.Predecessors[end.Addr] {
			if previous.UID != s.Pod.UID {
				k.result.Settle = true
				k.groupPredecessor(end, previous, s.LocalOnly)
			}
		}
	}
	k.askGroups()
	k.askWitnesses()
	k.askNorthbound(s.Pod.Node)
	k.result.Span = []string{}
	for node := range k.result.Nodes {
		if !k.beyond[node] {
			k.result.Span = append(k.result.Span, node)
		}
	}
	slices.Sort(k.result.Span)
}

// ends returns the subject at each address that is asked about.
func (k *plan) ends() []End {
	var out []End
	for _, addr := range k.subject.IPs {
		other := slices.IndexFunc(k.Holding(addr), func(p *Pod) bool {
			return p.UID != k.subject.UID && p.Peer()
		})
		if other >= 0 {
			k.note(DuplicatePodIP, "%s is an address of %s and of %s", addr, k.subject, k.Holding(addr)[other])
			continue
		}
		out = append(out, End{Addr: addr, Pod: k.subject})
	}
	return out
}

// end returns p at its address of one family; false if it has none that is its
// alone.
func (k *plan) end(p *Pod, v6 bool) (End, bool) {
	for _, ip := range p.IPs {
		if ip.Is6() != v6 {
			continue
		}
		peers := 0
		for _, other := range k.Holding(ip) {
			if other.Peer() {
				peers++
			}
		}
		if peers < 2 {
			return End{Addr: ip, Pod: p}, true
		}
	}
	return End{}, false
}

// dependOn notes the policies that the result depends on.
func (k *plan) dependOn() {
	for _, q := range slices.Concat(k.Selecting(k.subject), policiesOf(k.Meaning(k.subject))) {
		k.result.Policies = append(k.result.Policies, q.key())
	}
	slices.SortFunc(k.result.Policies, func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	k.result.Policies = slices.Compact(k.result.Policies)
}

// noteUnreadable reports whether nothing is known of the subject's namespace.
func (k *plan) noteUnreadable(namespace string) bool {
	list := k.Unreadable(namespace)
	for _, q := range list {
		k.note(PolicyNotUnderstood, "%v", q.Err)
	}
	return len(list) > 0
}

// question is a connection that may be asked of a node.
type question struct {
	node               string
	conn               Conn
	advisory, external bool
	// denied: ask only if the answer must be Denied. witness: only if it must
	// be Allowed.
	denied, witness bool
	// foreign is set if a policy of another namespace asks.
	foreign bool
	why     string
	// policy may be nil.
	policy *Policy
}

// outcome is what became of a question.
type outcome uint8

const (
	// fruitless: nothing can be expected.
	fruitless outcome = iota
	// known: it was asked before.
	known
	// asked: it is asked now.
	asked
	// noRoom: the budget does not suffice.
	noRoom
)

// ask adds the question to its node's list, with the controls that an Allowed
// needs.
func (k *plan) ask(q question) outcome {
	f := q.conn.Flow()
	key := ask{q.node, f}
	switch {
	case k.asked[key]:
		return known
	case f.Src == f.Dst || f.Validate() != nil || !k.options.Families.asks(f.Src.Is6()):
		return fruitless
	}
	want, deviates := k.judged(q.node, q.conn).Answer()
	if want == flow.Inconclusive || q.denied && want != flow.Denied || q.witness && want != flow.Allowed {
		return fruitless
	}
	var controls []question
	if want == flow.Allowed && !q.witness {
		controls = k.controls(q.node, q.conn)
	}
	if len(k.asked)+1+len(controls) > k.options.Budget {
		k.full = true
		return noRoom
	}
	k.await(q)
	e := q.expectation(want)
	e.Advisory = want == flow.Allowed && (deviates || q.advisory || k.beyond[q.node])
	k.add(key, q.conn, e)
	for _, control := range controls {
		k.add(ask{control.node, control.conn.Flow()}, control.conn, control.expectation(flow.Denied))
	}
	return asked
}

func (q *question) expectation(want flow.Answer) Expectation {
	e := Expectation{Flow: q.conn.Flow(), Want: want, External: q.external, Why: q.why, Witness: q.witness}
	if q.policy != nil {
		e.Policy, e.Generation = q.policy.key(), q.policy.Generation
	}
	return e
}

// await sorts the node of a question that is asked into the span, or beyond
// the limit of those that only policies of other namespaces ask about.
func (k *plan) await(q question) {
	switch {
	case k.awaited[q.node] || k.beyond[q.node]:
	case !q.foreign:
		k.awaited[q.node] = true
	case k.foreigners < k.options.MaxForeignNodes:
		k.foreigners++
		k.awaited[q.node] = true
	default:
		k.beyond[q.node] = true
	}
}

func (k *plan) add(key ask, x Conn, e Expectation) {
	k.asked[key] = true
	k.result.Nodes[key.node] = append(k.result.Nodes[key.node], e)
	if k.options.Northbound != "" {
		k.twofold = append(k.twofold, twofold{key.node, x, e})
	}
}

// controls returns, for each end of an Allowed x that node judges and that is
// isolated, a stranger's connection that the same policies refuse, unless it is
// asked already. Those of
// a subject that is a Pod are asked once, by askOwnIsolation.
func (k *plan) controls(node string, x Conn) []question {
	var out []question
	for _, d := range []Direction{Ingress, Egress} {
		side, other := x.sides(d)
		if side.Pod == nil || side.Pod.Node != node || k.policy == nil && side.Pod.UID == k.subject.UID {
			continue
		}
		policies := k.Selecting(side.Pod)
		if !Isolated(policies, d) {
			continue
		}
		by := fromOtherNode
		if other.Pod != nil && other.Pod.Node == node {
			by = fromSameNode
		}
		key := strangerKey{side.Pod.UID, side.Addr.Is6(), d, by}
		s, ok := k.strangers[key]
		if !ok {
			s = k.control(side, other, d, by)
			k.strangers[key] = s
		}
		if s.ok && !k.asked[ask{node, s.conn.Flow()}] {
			out = append(out, question{
				node: node, conn: s.conn, why: strangerWhy(side.Pod, d, by), policy: k.isolating(policies, d),
			})
		}
	}
	return out
}

// control finds the stranger. On one node it may have to come by the other
// path. Where nobody else is to be had it is the other end itself, on a port
// that no rule names: that too is refused by side's policies alone.
func (k *plan) control(side, other End, d Direction, by path) stranger {
	if x, ok := k.stranger(side, d, by); ok {
		return stranger{x, true}
	}
	if by == fromSameNode {
		if x, ok := k.stranger(side, d, fromOtherNode); ok {
			return stranger{x, true}
		}
		if Isolated(k.Selecting(other.Pod), d.opposite()) {
			return stranger{}
		}
	}
	x, ok := k.refused(side, d, other)
	return stranger{x, ok}
}

// isolating returns one of policies, all of which select one Pod, that isolates
// it in direction d: the subject, if it is one of them; nil if none does.
func (k *plan) isolating(policies []*Policy, d Direction) *Policy {
	if k.policy != nil && k.policy.Isolates[d] && slices.Contains(policies, k.policy) {
		return k.policy
	}
	return isolating(policies, d)
}

func strangerWhy(p *Pod, d Direction, by path) string {
	return p.String() + " " + d.String() + " isolation, stranger from " + by.String()
}

func (k *plan) note(kind NoteKind, format string, args ...any) {
	n := Note{Kind: kind, Text: fmt.Sprintf(format, args...)}
	if !slices.Contains(k.result.Notes, n) {
		k.result.Notes = append(k.result.Notes, n)
	}
}

func (k *plan) sortNotes() {
	slices.SortFunc(k.result.Notes, func(a, b Note) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Text, b.Text))
	})
}
