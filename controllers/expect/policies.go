// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"slices"
	"strings"
)

// SetPolicy adds q, or replaces the policy of the same namespace and name.
func (c *Cluster) SetPolicy(q *Policy) Footprint {
	f := c.newChange()
	before := c.Policy(q.Namespace, q.Name)
	if before == q {
		return f.footprint
	}
	sp := c.space(f, q.Namespace)
	if before == nil {
		c.share(f, q, 1)
	} else {
		f.policy(c.bound[before])
		sp.unlist(before)
	}
	sp.list(q)
	// First, so that selectors that both have stay.
	c.bound[q] = c.bind(q)
	if before != nil {
		c.unbind(before)
		if before.same(q) {
			return Footprint{}
		}
	}
	f.policy(c.bound[q])
	return f.footprint
}

// DeletePolicy removes a policy; one that is not there is no error.
func (c *Cluster) DeletePolicy(namespace, name string) Footprint {
	f := c.newChange()
	q := c.Policy(namespace, name)
	if q == nil {
		return f.footprint
	}
	f.policy(c.bound[q])
	sp := c.spaces[namespace]
	sp.unlist(q)
	c.unbind(q)
	c.share(f, q, -1)
	c.leave(f, sp)
	return f.footprint
}

// share notes that one policy more, or less, has the concatenation of q, which
// is not in the Cluster then.
func (c *Cluster) share(f *change, q *Policy, more int) {
	whole := q.concatenation()
	before := c.sharing[whole]
	if c.sharing[whole] = before + more; c.sharing[whole] == 0 {
		delete(c.sharing, whole)
	}
	if max(before, before+more) > 1 {
		for _, other := range c.splits(q) {
			f.policy(c.bound[other])
		}
	}
}

func (s *space) list(q *Policy) {
	s.stamp++
	s.policies = insert(s.policies, q, byName)
	if q.Err != nil {
		s.unreadable = insert(s.unreadable, q, byName)
	}
	if len(q.everyonesNames()) > 0 {
		s.open = insert(s.open, q, byName)
	}
}

func (s *space) unlist(q *Policy) {
	s.stamp++
	s.policies = remove(s.policies, q, byName)
	s.unreadable = remove(s.unreadable, q, byName)
	s.open = remove(s.open, q, byName)
}

// bind interns the selectors of q, whose namespace is known.
func (c *Cluster) bind(q *Policy) *bound {
	b := &bound{policy: q}
	if q.Err != nil {
		return b
	}
	b.own = c.intern(q.Namespace, nil, q.Pods)
	b.own.selects[q] = struct{}{}
	for d := range q.Rules {
		for i := range q.Rules[d] {
			m := &meaning{}
			for j := range q.Rules[d][i].Peers {
				peer := &q.Rules[d][i].Peers[j]
				if peer.Block != nil {
					continue
				}
				s := c.intern(q.Namespace, peer.Namespaces, peer.Pods)
				s.rules[RuleOf{q, Direction(d), i}] = struct{}{}
				if !slices.Contains(m.selectors, s) {
					m.selectors = append(m.selectors, s)
				}
			}
			if len(m.selectors) > 1 {
				for _, s := range m.selectors {
					s.unions[m] = struct{}{}
					m.union += s.members
				}
			}
			b.rules[d] = append(b.rules[d], m)
		}
	}
	return b
}

// unbind lets the selectors of q go, which is no longer among the policies.
func (c *Cluster) unbind(q *Policy) {
	b := c.bound[q]
	delete(c.bound, q)
	if b.own != nil {
		delete(b.own.selects, q)
		c.drop(b.own)
	}
	for d := range b.rules {
		for i, m := range b.rules[d] {
			for _, s := range m.selectors {
				delete(s.unions, m)
				delete(s.rules, RuleOf{q, Direction(d), i})
				c.drop(s)
			}
		}
	}
}

// Policy returns the policy of that name, or nil.
func (c *Cluster) Policy(namespace, name string) *Policy {
	policies := c.PoliciesIn(namespace)
	i, found := slices.BinarySearchFunc(policies, &Policy{Namespace: namespace, Name: name}, byName)
	if !found {
		return nil
	}
	return policies[i]
}

// PoliciesIn returns the policies of a namespace, ordered by name. The slice
// must not be changed.
func (c *Cluster) PoliciesIn(namespace string) []*Policy {
	if sp, ok := c.spaces[namespace]; ok {
		return sp.policies
	}
	return nil
}

// Unreadable implements World.
func (c *Cluster) Unreadable(namespace string) []*Policy {
	if sp, ok := c.spaces[namespace]; ok {
		return sp.unreadable
	}
	return nil
}

// Selecting implements World.
func (c *Cluster) Selecting(p *Pod) []*Policy {
	if l := c.setOf(p); l != nil {
		return c.selectingSet(l)
	}
	return Selecting(c.PoliciesIn(p.Namespace), p)
}

// Meaning implements World.
func (c *Cluster) Meaning(p *Pod) []RuleOf {
	if l := c.setOf(p); l != nil {
		return c.meaningSet(l)
	}
	sp, ok := c.spaces[p.Namespace]
	if !ok {
		return nil
	}
	out := sp.openRules(func(port PortName) bool {
		_, has := p.named(port.Name, port.Protocol)
		return has
	})
	collect := func(selectors map[string]*selector) {
		for _, s := range selectors {
			if len(s.rules) > 0 && !p.HostNetwork && s.pods.Matches(p.Labels) {
				for r := range s.rules {
					out = append(out, r)
				}
			}
		}
	}
	collect(sp.fixed)
	for r := range sp.reached {
		collect(r.selectors)
	}
	return sortRules(out)
}

// Naming returns every policy that means p as a peer, ordered by namespace and
// name.
func (c *Cluster) Naming(p *Pod) []*Policy { return policiesOf(c.Meaning(p)) }

// Sharing returns the policies that kube-router cannot tell from q, without q.
func (c *Cluster) Sharing(q *Policy) []*Policy {
	if c.sharing[q.concatenation()] < 2 {
		return nil
	}
	return c.splits(q)
}

// splits returns the policies of other namespaces with the concatenation of q.
func (c *Cluster) splits(q *Policy) []*Policy {
	var out []*Policy
	whole := q.concatenation()
	for i := 1; i < len(whole); i++ {
		other := c.Policy(whole[:i], whole[i:])
		if other != nil && other.Namespace != q.Namespace {
			out = append(out, other)
		}
	}
	return out
}

func byName(a, b *Policy) int {
	if order := strings.Compare(a.Namespace, b.Namespace); order != 0 {
		return order
	}
	return strings.Compare(a.Name, b.Name)
}
