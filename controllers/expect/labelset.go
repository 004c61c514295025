// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unique"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// PortName is a container port's name, which each Pod may give a number.
type PortName struct {
	Name     string
	Protocol flow.Protocol
}

// LabelSet is all Pods of one namespace that have the same labels and the same
// named ports: no selector and no port name can tell them apart. It exists as
// long as one of its Pods does; besides, each namespace has one that stands
// for Pods that are not in the Cluster. Pointers to it are compared.
type LabelSet struct {
	Namespace string

	key    string
	labels labels.Set
	// ports are those that have a name.
	ports []ContainerPort
	pods  []*entry
	// selectors are those that match.
	selectors []*selector
	// selecting are the policies that select it, as of the namespace's stamp.
	selecting []*Policy
	stamp     uint64
	// likeness is zero until somebody asks, and after selectors have changed.
	likeness class
}

// class is equal for sets whose Pods no rule in the Cluster can tell apart by
// their labels and named ports. It is zero for no set.
type class struct{ handle unique.Handle[string] }

// class returns that of l; none for the set that stands for Pods that are not
// in the Cluster, which have nothing in common.
func (l *LabelSet) class() class {
	if l == nil || len(l.pods) == 0 {
		return class{}
	}
	if l.likeness != (class{}) {
		return l.likeness
	}
	ids := make([]uint64, len(l.selectors))
	for i, s := range l.selectors {
		ids[i] = s.id
	}
	slices.Sort(ids)
	text := append([]byte(l.Namespace), '/')
	text = append(text, portsKey(l.ports)...)
	for _, id := range ids {
		text = append(text, ' ')
		text = strconv.AppendUint(text, id, 36)
	}
	l.likeness = class{unique.Make(string(text))}
	return l.likeness
}

// entry is a Pod of a Cluster and its place in its label set; set is nil if it
// is no peer.
type entry struct {
	*Pod
	set  *LabelSet
	slot int
}

// namedPorts returns the ports of p that have a name.
func (p *Pod) namedPorts() []ContainerPort {
	var out []ContainerPort
	for _, port := range p.Ports {
		if port.Name != "" {
			out = append(out, port)
		}
	}
	return out
}

// labelKey is equal for Pods that no selector and no port name can tell apart.
func labelKey(p *Pod) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(p.Labels)) {
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(p.Labels[key])
		b.WriteByte(',')
	}
	b.WriteString(portsKey(p.namedPorts()))
	return b.String()
}

func portsKey(ports []ContainerPort) string {
	var b strings.Builder
	for _, port := range ports {
		b.WriteByte(';')
		b.WriteString(port.Name)
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(int(port.Protocol)))
		b.WriteByte(':')
		b.WriteString(strconv.Itoa(int(port.Number)))
		if port.Sidecar {
			b.WriteByte('s')
		}
	}
	return b.String()
}

// portNames returns the names that the Pods of l have, each once.
func (l *LabelSet) portNames() []PortName {
	var out []PortName
	for _, port := range l.ports {
		if name := (PortName{port.Name, port.Protocol}); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

func (l *LabelSet) hasAny(names []PortName) bool {
	return slices.ContainsFunc(l.ports, func(port ContainerPort) bool {
		return slices.Contains(names, PortName{port.Name, port.Protocol})
	})
}

// add and drop keep pods without an order, so that neither moves many.
func (l *LabelSet) add(e *entry) {
	e.set, e.slot = l, len(l.pods)
	l.pods = append(l.pods, e)
}

func (l *LabelSet) drop(e *entry) {
	final := l.pods[len(l.pods)-1]
	l.pods[e.slot], final.slot = final, e.slot
	l.pods[len(l.pods)-1] = nil
	l.pods = l.pods[:len(l.pods)-1]
	e.set = nil
}

// space is what is known of one namespace. It exists as long as there is a
// Namespace, a policy or a peer of that name.
type space struct {
	name   string
	object *Namespace
	// policies are ordered by name.
	policies []*Policy
	// unreadable are those of them that were not understood.
	unreadable []*Policy
	// open are those of them with a port name in an egress rule for everyone.
	open []*Policy
	sets map[string]*LabelSet
	// fixed are the selectors that reach this namespace only.
	fixed map[string]*selector
	// reached are the namespaceSelectors that match.
	reached map[*reach]struct{}
	// absent stands for Pods that are not in the Cluster.
	absent *LabelSet
	// stamp changes with policies.
	stamp uint64
}

// space returns what is known of a namespace, from now on something.
func (c *Cluster) space(f *change, name string) *space {
	if s, ok := c.spaces[name]; ok {
		return s
	}
	s := &space{
		name: name, stamp: 1,
		sets: map[string]*LabelSet{}, fixed: map[string]*selector{}, reached: map[*reach]struct{}{},
		absent: &LabelSet{Namespace: name},
	}
	c.spaces[name] = s
	// What was computed while there was none looked at the set for that.
	f.set(c.nowhere)
	return s
}

// leave forgets a namespace of which nothing is known any more.
func (c *Cluster) leave(f *change, s *space) {
	if s.object == nil && len(s.policies) == 0 && len(s.sets) == 0 {
		f.set(s.absent)
		delete(c.spaces, s.name)
	}
}

// absent returns the set that stands for Pods of a namespace that are not in
// the Cluster.
func (c *Cluster) absent(namespace string) *LabelSet {
	if s, ok := c.spaces[namespace]; ok {
		return s.absent
	}
	return c.nowhere
}

// LabelSetOf returns the set that a Pod belongs to, or nil if the Cluster does
// not have the Pod or it is no peer.
func (c *Cluster) LabelSetOf(uid types.UID) *LabelSet {
	if e, ok := c.pods[uid]; ok {
		return e.set
	}
	return nil
}

// LabelSet implements World.
func (c *Cluster) LabelSet(p *Pod) *LabelSet {
	if set := c.setOf(p); set != nil {
		return set
	}
	return c.absent(p.Namespace)
}

// setOf returns the set of p, or nil if p, as it is given, is no peer of the
// Cluster.
func (c *Cluster) setOf(p *Pod) *LabelSet {
	e, ok := c.pods[p.UID]
	if !ok || e.set == nil {
		return nil
	}
	if e.Pod != p && (e.Namespace != p.Namespace || !maps.Equal(e.Labels, p.Labels) || !slices.Equal(e.set.ports, p.namedPorts())) {
		return nil
	}
	return e.set
}

// SetsMatching returns the label sets of a namespace that a selector matches.
// It matches each of them, and none of their Pods.
func (c *Cluster) SetsMatching(namespace string, selector labels.Selector) []*LabelSet {
	s, ok := c.spaces[namespace]
	if !ok {
		return nil
	}
	var out []*LabelSet
	for _, l := range s.sets {
		if selector.Matches(l.labels) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b *LabelSet) int { return cmp.Compare(a.key, b.key) })
	return out
}

// PoliciesMeaning returns the policies that select the Pods of a set, and
// those that mean them as peers, both ordered by namespace and name.
func (c *Cluster) PoliciesMeaning(set *LabelSet) (selecting, naming []*Policy) {
	return c.selectingSet(set), policiesOf(c.meaningSet(set))
}

// Concerned calls do, perhaps more than once, with each policy that selects the
// Pods of a set, and with those that mean them as peers by a selector, if no
// more than most rules do.
func (c *Cluster) Concerned(set *LabelSet, most int, do func(*Policy)) {
	for _, q := range c.selectingSet(set) {
		do(q)
	}
	rules := 0
	for _, s := range set.selectors {
		rules += len(s.rules)
	}
	if rules > most {
		return
	}
	for _, s := range set.selectors {
		for r := range s.rules {
			do(r.Policy)
		}
	}
}

// SetsSelected returns the label sets that a policy selects, and how many Pods
// each has, in no order. It returns none for a policy that the Cluster does not
// have.
func (c *Cluster) SetsSelected(q *Policy) iter.Seq2[*LabelSet, int] {
	return func(yield func(*LabelSet, int) bool) {
		b, ok := c.bound[q]
		if !ok || b.own == nil {
			return
		}
		for l := range b.own.sets {
			if !yield(l, len(l.pods)) {
				return
			}
		}
	}
}

// selectingSet returns the policies that select the Pods of l.
func (c *Cluster) selectingSet(l *LabelSet) []*Policy {
	s, ok := c.spaces[l.Namespace]
	if !ok {
		return nil
	}
	if l.stamp != s.stamp {
		l.selecting, l.stamp = nil, s.stamp
		for _, selector := range l.selectors {
			for q := range selector.selects {
				l.selecting = append(l.selecting, q)
			}
		}
		slices.SortFunc(l.selecting, byName)
	}
	return l.selecting
}

// meaningSet returns the rules that mean the Pods of l.
func (c *Cluster) meaningSet(l *LabelSet) []RuleOf {
	var out []RuleOf
	for _, s := range l.selectors {
		for r := range s.rules {
			out = append(out, r)
		}
	}
	if s, ok := c.spaces[l.Namespace]; ok && len(l.ports) > 0 {
		out = append(out, s.openRules(func(port PortName) bool { return l.hasAny([]PortName{port}) })...)
	}
	return sortRules(out)
}

// openRules returns the egress rules for everyone with a port name that has
// reports true for.
func (s *space) openRules(has func(PortName) bool) []RuleOf {
	var out []RuleOf
	for _, q := range s.open {
		for i := range q.Rules[Egress] {
			if rule := &q.Rules[Egress][i]; rule.everyone() && slices.ContainsFunc(rule.portNames(), has) {
				out = append(out, RuleOf{q, Egress, i})
			}
		}
	}
	return out
}

func sortRules(list []RuleOf) []RuleOf {
	slices.SortFunc(list, func(a, b RuleOf) int {
		return cmp.Or(byName(a.Policy, b.Policy), cmp.Compare(a.Direction, b.Direction), cmp.Compare(a.Index, b.Index))
	})
	return slices.Compact(list)
}

// policiesOf returns the policies of rules that are ordered, each once.
func policiesOf(list []RuleOf) []*Policy {
	var out []*Policy
	for _, r := range list {
		if len(out) == 0 || out[len(out)-1] != r.Policy {
			out = append(out, r.Policy)
		}
	}
	return out
}
