// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"maps"

	"k8s.io/apimachinery/pkg/labels"
)

// Namespace is what expectations need of a Namespace.
type Namespace struct {
	Name   string
	Labels labels.Set
	// Inject is set if the namespace asks for gates: only then do its policies
	// bind Pods of other namespaces.
	Inject bool
}

// SetNamespace adds or replaces a namespace.
func (c *Cluster) SetNamespace(ns *Namespace) Footprint {
	f := c.newChange()
	c.replaceNamespace(f, c.space(f, ns.Name), ns)
	return f.footprint
}

// DeleteNamespace removes a namespace; one that is not there is no error.
func (c *Cluster) DeleteNamespace(name string) Footprint {
	f := c.newChange()
	if sp, ok := c.spaces[name]; ok && sp.object != nil {
		c.replaceNamespace(f, sp, nil)
		c.leave(f, sp)
	}
	return f.footprint
}

// Namespace returns the namespace of that name, or nil.
func (c *Cluster) Namespace(name string) *Namespace {
	if sp, ok := c.spaces[name]; ok {
		return sp.object
	}
	return nil
}

// replaceNamespace puts object, nil if it is gone, in the place of what there
// was. Only namespaceSelectors that match now and did not, or the other way
// round, change anything.
func (c *Cluster) replaceNamespace(f *change, sp *space, object *Namespace) {
	before := sp.object
	sp.object = object
	if injects(before) != injects(object) {
		for _, q := range sp.policies {
			f.whomMeans(c.bound[q])
		}
	}
	if before != nil && object != nil && maps.Equal(before.Labels, object.Labels) {
		return
	}
	for _, r := range c.reaches {
		_, was := sp.reached[r]
		is := object != nil && r.selector.Matches(object.Labels)
		if was == is {
			continue
		}
		f.set(sp.absent)
		if is {
			sp.reached[r] = struct{}{}
			r.namespaces[sp.name] = struct{}{}
		} else {
			delete(sp.reached, r)
			delete(r.namespaces, sp.name)
		}
		for _, s := range r.selectors {
			c.flip(f, s, sp, is)
		}
	}
}

func injects(ns *Namespace) bool { return ns != nil && ns.Inject }

// flip has s reach a namespace, or no longer.
func (c *Cluster) flip(f *change, s *selector, sp *space, reached bool) {
	changed := false
	for _, l := range sp.sets {
		switch _, was := s.sets[l]; {
		case reached && s.pods.Matches(l.labels):
			s.match(f, l)
		case !reached && was:
			s.unmatch(f, l)
		default:
			continue
		}
		changed = true
		f.set(l)
	}
	if !changed {
		return
	}
	for r := range s.rules {
		f.whomSelects(c.bound[r.Policy])
	}
}
