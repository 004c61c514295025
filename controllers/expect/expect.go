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

// DefaultBudget bounds the flows of one subject on all nodes together.
const DefaultBudget = 256

// DefaultMaxForeignNodes bounds the nodes that policies of other namespaces
// can make a Pod wait for.
const DefaultMaxForeignNodes = 32

// Expectation is a flow and what one node must do with it.
type Expectation struct {
	Flow flow.Flow
	// Want is Allowed or Denied.
	Want flow.Answer
	// Advisory is set for an Allowed that the engine is known never to
	// realize: it is asked and named, and not awaited for ever.
	Advisory bool
	// External is set for a flow from or to an address outside the cluster: it
	// is asked only of a node that has a route for it.
	External bool
	// Why names the rule, for administrators: it holds names of objects of any
	// namespace.
	Why string
	// Policy is the policy that demands it: of several that isolate a Pod, one
	// of them. It is zero if none does.
	Policy types.NamespacedName
	// Generation is that policy's metadata.generation.
	Generation int64
	// Witness is set for an Allowed that does not concern the subject: see
	// Subject.Witnesses. It is never awaited.
	Witness bool
}

// Families says which address families are asked.
type Families string

// The values of Families.
const (
	// FamiliesAuto asks both. Who asks may leave out a family on a node whose
	// engine turns out not to enforce it.
	FamiliesAuto Families = "auto"
	FamiliesV4   Families = "v4"
	FamiliesV6   Families = "v6"
	// FamiliesBoth asks both and leaves out none.
	FamiliesBoth Families = "both"
)

// asks reports whether IPv6, if v6 is set, or IPv4 is asked.
func (f Families) asks(v6 bool) bool {
	switch f {
	case FamiliesV4:
		return !v6
	case FamiliesV6:
		return v6
	case FamiliesAuto, FamiliesBoth:
	}
	return true
}

// Options are what a cluster's administrator chose. The zero value asks
// nothing: see DefaultOptions.
type Options struct {
	// Families is FamiliesAuto if empty.
	Families Families
	// MaxForeignNodes are the nodes that only policies of other namespaces ask
	// about and that are still awaited. 0: none is.
	MaxForeignNodes int
	// Budget is the most flows of one subject. 0: none.
	Budget int
	// Avoid are prefixes that no representative of an ipBlock is taken from,
	// beside pod CIDRs and node addresses: the Services' ranges.
	Avoid []netip.Prefix
}

// DefaultOptions returns the defaults of every option.
func DefaultOptions() Options {
	return Options{Families: FamiliesAuto, MaxForeignNodes: DefaultMaxForeignNodes, Budget: DefaultBudget}
}

// Subject is a gated Pod at its present addresses.
type Subject struct {
	// Pod need not be in the Cluster.
	Pod *Pod
	// Predecessors are the Pods that an address of Pod belonged to a short
	// while ago, as they were then.
	Predecessors map[netip.Addr][]*Pod
	// LocalOnly asks the Pod's own node only.
	LocalOnly bool
	// Witnesses asks beside each rule's flows one between older Pods that the
	// same rule allows: if that is not realized either, the rule is not.
	Witnesses bool
}

// NoteKind says what a Note is about.
type NoteKind string

// The kinds of notes.
const (
	// EngineConflict: kube-router cannot tell two policies apart.
	EngineConflict NoteKind = "EngineConflict"
	// EngineOverAllows: a named port that nobody has opens every port to the
	// peers of its rule.
	EngineOverAllows NoteKind = "EngineOverAllows"
	// EngineLimit: a rule means more Pods than the engine's sets hold.
	EngineLimit NoteKind = "EngineLimit"
	// DuplicatePodIP: an address that two live Pods have was skipped.
	DuplicatePodIP NoteKind = "DuplicatePodIP"
	// PolicyNotUnderstood: a policy that may bind the subject could not be
	// read, so nothing was computed.
	PolicyNotUnderstood NoteKind = "PolicyNotUnderstood"
)

// Note is something a person should know about a subject's expectations. Text
// is for administrators: it holds names of objects of any namespace.
type Note struct {
	Kind NoteKind
	Text string
}

// Result is what must be confirmed for a subject.
type Result struct {
	// Span are the nodes that must confirm, sorted. nil: not computed, and
	// Notes say why; nothing may be released.
	Span []string
	// Nodes has the expectations of every node of the span, an empty list
	// included, and of nodes that are asked and not awaited.
	Nodes map[string][]Expectation
	// NotAsked counts flows that were left out because of the budget.
	NotAsked int
	// Settle is set if an address was another Pod's a short while ago: what
	// the engine does is believed only after it had time to notice.
	Settle bool
	// Notes are sorted and without duplicates.
	Notes []Note
	// Policies are those that select the subject or name it as a peer, whether
	// or not anything is asked because of them, sorted.
	Policies []types.NamespacedName
	// Footprint is what all this was computed from.
	Footprint Footprint
}

// plan is one computation.
type plan struct {
	cluster *Cluster
	options Options
	subject *Pod

	result Result
	groups []*group
	// beyond are the nodes over the limit of foreign nodes.
	beyond map[string]bool
	asked  map[ask]bool
	full   bool

	// What was computed already.
	selecting map[types.UID][]*Policy
	insideOf  [2][]netip.Prefix
	strangers map[strangerKey]stranger
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
// It reads the subject's namespace's policies, those that name it, and the
// Pods that these mean.
func (c *Cluster) Expect(s Subject, options Options) Result {
	k := &plan{
		cluster:   c,
		options:   options,
		subject:   s.Pod,
		beyond:    map[string]bool{},
		asked:     map[ask]bool{},
		selecting: map[types.UID][]*Policy{},
		strangers: map[strangerKey]stranger{},
	}
	k.dependOn()
	ends := k.ends()
	if c.unreadable(s.Pod.Namespace) || s.Pod.Node == "" || len(ends) == 0 {
		k.noteUnreadable()
		k.sortNotes()
		return k.result
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
	k.limitForeignNodes()
	k.askGroups()
	k.result.Footprint = Footprint{Everything: true}
	k.result.Span = []string{}
	for node := range k.result.Nodes {
		if !k.beyond[node] {
			k.result.Span = append(k.result.Span, node)
		}
	}
	slices.Sort(k.result.Span)
	k.sortNotes()
	return k.result
}

// ends returns the subject at each address that is asked about.
func (k *plan) ends() []End {
	var out []End
	for _, addr := range k.subject.IPs {
		others := slices.DeleteFunc(slices.Clone(k.cluster.byAddr[addr]), func(p *Pod) bool {
			return p.UID == k.subject.UID || !p.Peer()
		})
		if len(others) > 0 {
			k.note(DuplicatePodIP, "%s is an address of %s and of %s", addr, k.subject, others[0])
			continue
		}
		out = append(out, End{Addr: addr, Pod: k.subject})
	}
	return out
}

// dependOn notes the policies that the result depends on.
func (k *plan) dependOn() {
	for _, q := range slices.Concat(k.policies(k.subject), k.cluster.Naming(k.subject)) {
		k.result.Policies = append(k.result.Policies, q.key())
	}
	slices.SortFunc(k.result.Policies, func(a, b types.NamespacedName) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	k.result.Policies = slices.Compact(k.result.Policies)
}

func (k *plan) noteUnreadable() {
	for _, q := range k.cluster.policies[k.subject.Namespace] {
		if q.Err != nil {
			k.note(PolicyNotUnderstood, "%v", q.Err)
		}
	}
}

// policies returns the policies that select p.
func (k *plan) policies(p *Pod) []*Policy {
	out, ok := k.selecting[p.UID]
	if !ok {
		out = Selecting(k.cluster.policies[p.Namespace], p)
		k.selecting[p.UID] = out
	}
	return out
}

// question is a connection that may be asked of a node.
type question struct {
	node               string
	conn               Conn
	advisory, external bool
	// denied: ask only if the answer must be Denied.
	denied bool
	why    string
	policy types.NamespacedName
}

// ask adds the question to its node's list, with the controls that an Allowed
// needs. It returns false if the budget does not suffice.
func (k *plan) ask(q question) bool {
	f := q.conn.Flow()
	key := ask{q.node, f}
	if k.asked[key] || f.Validate() != nil || f.Src == f.Dst || !k.options.Families.asks(f.Src.Is6()) {
		return true
	}
	want, deviates := k.cluster.admission(q.node, q.conn, k.policies).Answer()
	if want == flow.Inconclusive || q.denied && want != flow.Denied {
		return true
	}
	var controls []question
	if want == flow.Allowed {
		for _, control := range k.controls(q.node, q.conn) {
			if !k.asked[ask{control.node, control.conn.Flow()}] {
				controls = append(controls, control)
			}
		}
	}
	if len(k.asked)+1+len(controls) > k.options.Budget {
		k.full = true
		return false
	}
	k.add(key, Expectation{
		Flow:     f,
		Want:     want,
		Advisory: want == flow.Allowed && (deviates || q.advisory || k.beyond[q.node]),
		External: q.external,
		Why:      q.why,
		Policy:   q.policy,
	})
	for _, control := range controls {
		f := control.conn.Flow()
		k.add(ask{control.node, f}, Expectation{Flow: f, Want: flow.Denied, Why: control.why, Policy: control.policy})
	}
	return true
}

func (k *plan) add(key ask, e Expectation) {
	k.asked[key] = true
	k.result.Nodes[key.node] = append(k.result.Nodes[key.node], e)
}

// controls returns, for each end of an Allowed x that node judges and that is
// isolated, a stranger's connection that the same policies refuse. Those of
// the subject itself are asked once, by askOwnIsolation.
func (k *plan) controls(node string, x Conn) []question {
	var out []question
	for _, d := range []Direction{Ingress, Egress} {
		side, other := x.sides(d)
		if side.Pod == nil || side.Pod.Node != node || side.Pod.UID == k.subject.UID || !Isolated(k.policies(side.Pod), d) {
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
		if s.ok {
			out = append(out, question{
				node: node, conn: s.conn,
				why: strangerWhy(side.Pod, d, by), policy: isolating(k.policies(side.Pod), d),
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
		if Isolated(k.policies(other.Pod), d.opposite()) {
			return stranger{}
		}
	}
	x, ok := k.refused(side, d, other)
	return stranger{x, ok}
}

func strangerWhy(p *Pod, d Direction, by path) string {
	return fmt.Sprintf("%s %s isolation, stranger from %s", p, d, by)
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
