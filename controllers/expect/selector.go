// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"k8s.io/apimachinery/pkg/labels"
)

// selector is a podSelector of one namespace, or of those that a
// namespaceSelector matches. Policies and rules with equal selectors share
// one, and it is matched once with each label set. It exists as long as a
// policy has it.
type selector struct {
	// id is never another one's again.
	id  uint64
	key string
	// space is the one namespace, unless reach is not nil.
	space string
	reach *reach
	pods  labels.Selector

	// selects are the policies whose podSelector it is, rules those that have
	// it as a peer.
	selects map[*Policy]struct{}
	rules   map[RuleOf]struct{}
	// unions are the meanings of those rules that have other selectors too.
	unions map[*meaning]struct{}

	sets map[*LabelSet]struct{}
	// members counts the Pods of sets, declaring those that have a port.
	members   int
	declaring map[PortName]int
	// byAge has the Pods of sets. It is nil until somebody asks for them.
	byAge *ages
}

// reach is a namespaceSelector. It is matched once with the labels of each
// namespace, and exists as long as a selector has it.
type reach struct {
	key      string
	selector labels.Selector
	// namespaces are those that it matches.
	namespaces map[string]struct{}
	selectors  map[string]*selector
}

// meaning is what the selector peers of a rule mean: nothing without any.
type meaning struct {
	// selectors differ from each other.
	selectors []*selector
	// union counts the members of all, if there are several.
	union int
}

// members counts a Pod once for each of the selectors.
func (m *meaning) members() int {
	if len(m.selectors) == 1 {
		return m.selectors[0].members
	}
	return m.union
}

// bound is a policy of a Cluster and its selectors. A policy that was not
// understood has none.
type bound struct {
	policy *Policy
	own    *selector
	rules  [2][]*meaning
}

// selectorKey is equal for equal selectors. The text of one that matches
// nothing is that of one that matches everything.
func selectorKey(s labels.Selector) string {
	if s.Empty() {
		return "*"
	}
	return s.String()
}

// intern returns the selector for the Pods of a namespace, or, if namespaces is
// not nil, of those that it matches.
func (c *Cluster) intern(namespace string, namespaces, podSelector labels.Selector) *selector {
	c.serial++
	s := &selector{
		id: c.serial, key: selectorKey(podSelector), space: namespace, pods: podSelector,
		selects: map[*Policy]struct{}{}, rules: map[RuleOf]struct{}{}, unions: map[*meaning]struct{}{},
		sets: map[*LabelSet]struct{}{}, declaring: map[PortName]int{},
	}
	if namespaces == nil {
		sp := c.spaces[namespace]
		if known, ok := sp.fixed[s.key]; ok {
			return known
		}
		sp.fixed[s.key] = s
		c.matchSpace(s, sp)
		return s
	}
	r := c.internReach(namespaces)
	if known, ok := r.selectors[s.key]; ok {
		return known
	}
	s.space, s.reach = "", r
	r.selectors[s.key] = s
	for name := range r.namespaces {
		c.matchSpace(s, c.spaces[name])
	}
	return s
}

func (c *Cluster) internReach(namespaces labels.Selector) *reach {
	key := selectorKey(namespaces)
	if r, ok := c.reaches[key]; ok {
		return r
	}
	r := &reach{key: key, selector: namespaces, namespaces: map[string]struct{}{}, selectors: map[string]*selector{}}
	c.reaches[key] = r
	for name, sp := range c.spaces {
		if sp.object != nil && namespaces.Matches(sp.object.Labels) {
			r.namespaces[name] = struct{}{}
			sp.reached[r] = struct{}{}
		}
	}
	return r
}

// matchSpace matches s, which nobody has yet, with the label sets of a namespace.
func (c *Cluster) matchSpace(s *selector, sp *space) {
	f := c.newChange()
	for _, l := range sp.sets {
		if s.pods.Matches(l.labels) {
			s.match(f, l)
		}
	}
}

// drop forgets s if no policy has it any more.
func (c *Cluster) drop(s *selector) {
	if len(s.selects) > 0 || len(s.rules) > 0 {
		return
	}
	f := c.newChange()
	for l := range s.sets {
		s.unmatch(f, l)
	}
	if s.reach == nil {
		delete(c.spaces[s.space].fixed, s.key)
		return
	}
	if delete(s.reach.selectors, s.key); len(s.reach.selectors) == 0 {
		delete(c.reaches, s.reach.key)
		for name := range s.reach.namespaces {
			delete(c.spaces[name].reached, s.reach)
		}
	}
}

// match adds l, whose Pods s has from now on.
func (s *selector) match(f *change, l *LabelSet) {
	s.sets[l] = struct{}{}
	l.selectors, l.likeness = append(l.selectors, s), class{}
	s.count(f, l, len(l.pods))
	if s.byAge != nil {
		for _, e := range l.pods {
			s.byAge.ReplaceOrInsert(e.Pod)
		}
	}
}

func (s *selector) unmatch(f *change, l *LabelSet) {
	delete(s.sets, l)
	l.likeness = class{}
	for i, other := range l.selectors {
		if other == s {
			l.selectors[i] = l.selectors[len(l.selectors)-1]
			l.selectors = l.selectors[:len(l.selectors)-1]
			break
		}
	}
	s.count(f, l, -len(l.pods))
	if s.byAge != nil {
		for _, e := range l.pods {
			s.byAge.Delete(e.Pod)
		}
	}
}

// count notes that more Pods of l have come, or gone if more is negative.
func (s *selector) count(f *change, l *LabelSet, more int) {
	if more == 0 {
		return
	}
	before := s.members
	s.members += more
	if before == 0 || s.members == 0 {
		f.populated(s, PortName{})
	}
	if len(s.rules) > 0 && crosses(before, s.members) {
		f.everything()
	}
	for _, name := range l.portNames() {
		had := s.declaring[name]
		if s.declaring[name] = had + more; s.declaring[name] == 0 {
			delete(s.declaring, name)
		}
		if had == 0 || had+more == 0 {
			f.populated(s, name)
		}
	}
	for m := range s.unions {
		if m.union += more; crosses(m.union-more, m.union) {
			f.everything()
		}
	}
}

// crosses reports whether one of two counts fits in an engine's set and the
// other does not.
func crosses(before, after int) bool { return (before > maxSetMembers) != (after > maxSetMembers) }

// ordered returns the Pods of s by age.
func (s *selector) ordered() *ages {
	if s.byAge == nil {
		s.byAge = newAges()
		for l := range s.sets {
			for _, e := range l.pods {
				s.byAge.ReplaceOrInsert(e.Pod)
			}
		}
	}
	return s.byAge
}
