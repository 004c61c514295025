// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// links lead from the parts of a cluster to the subjects of one kind, held Pods
// or policies, in whose last footprint they are.
type links[S comparable] struct {
	everything subjects[S]
	sets       linksOf[*expect.LabelSet, S]
	pods       linksOf[types.UID, S]
	addresses  linksOf[netip.Addr, S]
	nodes      linksOf[string, S]
	ranges     subjects[S]
	ports      linksOf[expect.PortName, S]
	policies   linksOf[types.NamespacedName, S]
}

func newLinks[S comparable]() links[S] {
	return links[S]{
		sets:      linksOf[*expect.LabelSet, S]{},
		pods:      linksOf[types.UID, S]{},
		addresses: linksOf[netip.Addr, S]{},
		nodes:     linksOf[string, S]{},
		ports:     linksOf[expect.PortName, S]{},
		policies:  linksOf[types.NamespacedName, S]{},
	}
}

// add makes f, what the last assignment of s was made of, lead to s.
func (l *links[S]) add(f *expect.Footprint, s S) {
	if f.Everything {
		l.everything.add(s)
	}
	if f.Ranges {
		l.ranges.add(s)
	}
	l.sets.add(f.Sets, s)
	l.pods.add(f.Pods, s)
	l.addresses.add(f.Addresses, s)
	l.nodes.add(f.Nodes, s)
	l.ports.add(f.Ports, s)
	l.policies.add(f.Policies, s)
}

// remove undoes add, which had the same arguments.
func (l *links[S]) remove(f *expect.Footprint, s S) {
	l.everything.remove(s)
	l.ranges.remove(s)
	l.sets.remove(f.Sets, s)
	l.pods.remove(f.Pods, s)
	l.addresses.remove(f.Addresses, s)
	l.nodes.remove(f.Nodes, s)
	l.ports.remove(f.Ports, s)
	l.policies.remove(f.Policies, s)
}

// meeting calls do, perhaps more than once, with each subject whose footprint
// meets f. f must not be Everything.
func (l *links[S]) meeting(f *expect.Footprint, do func(S)) {
	l.everything.each(do)
	if f.Ranges {
		l.ranges.each(do)
	}
	l.sets.each(f.Sets, do)
	l.pods.each(f.Pods, do)
	l.addresses.each(f.Addresses, do)
	l.nodes.each(f.Nodes, do)
	l.ports.each(f.Ports, do)
	l.policies.each(f.Policies, do)
}

// empty reports whether nothing leads anywhere.
func (l *links[S]) empty() bool {
	return l.everything.empty() && l.ranges.empty() &&
		len(l.sets)+len(l.pods)+len(l.addresses)+len(l.nodes)+len(l.ports)+len(l.policies) == 0
}

// linksOf lead from keys of one kind to subjects.
type linksOf[K, S comparable] map[K]*subjects[S]

func (l linksOf[K, S]) add(keys []K, s S) {
	for _, key := range keys {
		list := l[key]
		if list == nil {
			list = &subjects[S]{}
			l[key] = list
		}
		list.add(s)
	}
}

func (l linksOf[K, S]) remove(keys []K, s S) {
	for _, key := range keys {
		list := l[key]
		if list == nil {
			continue
		}
		if list.remove(s); list.empty() {
			delete(l, key)
		}
	}
}

func (l linksOf[K, S]) each(keys []K, do func(S)) {
	for _, key := range keys {
		if list := l[key]; list != nil {
			list.each(do)
		}
	}
}

// fewSubjects is up to how many a list is smaller and faster than a map. Most
// keys are addresses and Pods, which lead to one subject or two.
const fewSubjects = 16

// subjects is a set. The zero value is empty.
type subjects[S comparable] struct {
	few []S
	// many replaces few once there were too many for it.
	many map[S]struct{}
}

func (l *subjects[S]) add(s S) {
	switch {
	case l.many != nil:
		l.many[s] = struct{}{}
	case slices.Contains(l.few, s):
	case len(l.few) < fewSubjects:
		l.few = append(l.few, s)
	default:
		l.many = make(map[S]struct{}, 2*fewSubjects)
		for _, other := range l.few {
			l.many[other] = struct{}{}
		}
		l.many[s] = struct{}{}
		l.few = nil
	}
}

func (l *subjects[S]) remove(s S) {
	if l.many != nil {
		delete(l.many, s)
		return
	}
	if i := slices.Index(l.few, s); i >= 0 {
		last := len(l.few) - 1
		var none S
		l.few[i], l.few[last] = l.few[last], none
		l.few = l.few[:last]
	}
}

func (l *subjects[S]) empty() bool { return len(l.few) == 0 && len(l.many) == 0 }

func (l *subjects[S]) each(do func(S)) {
	for _, s := range l.few {
		do(s)
	}
	for s := range l.many {
		do(s)
	}
}
