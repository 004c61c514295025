// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// links lead from the parts of a cluster to the held subjects in whose last
// footprint they are.
type links struct {
	everything subjects
	sets       linksOf[*expect.LabelSet]
	pods       linksOf[types.UID]
	addresses  linksOf[netip.Addr]
	nodes      linksOf[string]
	ranges     subjects
	ports      linksOf[expect.PortName]
	// policies are those that a subject depends on, see expect.Result.Policies:
	// only if Services are watched.
	policies linksOf[types.NamespacedName]
}

func newLinks() links {
	return links{
		sets:      linksOf[*expect.LabelSet]{},
		pods:      linksOf[types.UID]{},
		addresses: linksOf[netip.Addr]{},
		nodes:     linksOf[string]{},
		ports:     linksOf[expect.PortName]{},
		policies:  linksOf[types.NamespacedName]{},
	}
}

// add makes what h's last assignment was made of lead to h.
func (l *links) add(h *held) {
	f := &h.madeOf.footprint
	if f.Everything {
		l.everything.add(h)
	}
	if f.Ranges {
		l.ranges.add(h)
	}
	l.sets.add(f.Sets, h)
	l.pods.add(f.Pods, h)
	l.addresses.add(f.Addresses, h)
	l.nodes.add(f.Nodes, h)
	l.ports.add(f.Ports, h)
	l.policies.add(h.madeOf.policies, h)
}

// remove undoes add. It must be called before that is replaced.
func (l *links) remove(h *held) {
	f := &h.madeOf.footprint
	l.everything.remove(h)
	l.ranges.remove(h)
	l.sets.remove(f.Sets, h)
	l.pods.remove(f.Pods, h)
	l.addresses.remove(f.Addresses, h)
	l.nodes.remove(f.Nodes, h)
	l.ports.remove(f.Ports, h)
	l.policies.remove(h.madeOf.policies, h)
}

// meeting calls do, perhaps more than once, with each subject whose footprint
// meets f. f must not be Everything.
func (l *links) meeting(f expect.Footprint, do func(*held)) {
	if len(f.Sets)+len(f.Pods)+len(f.Addresses)+len(f.Nodes)+len(f.Ports) == 0 && !f.Ranges {
		return // nothing changed
	}
	l.everything.each(do)
	if f.Ranges {
		l.ranges.each(do)
	}
	l.sets.each(f.Sets, do)
	l.pods.each(f.Pods, do)
	l.addresses.each(f.Addresses, do)
	l.nodes.each(f.Nodes, do)
	l.ports.each(f.Ports, do)
}

// linksOf lead from keys of one kind to subjects.
type linksOf[K comparable] map[K]*subjects

func (l linksOf[K]) add(keys []K, h *held) {
	for _, key := range keys {
		s := l[key]
		if s == nil {
			s = &subjects{}
			l[key] = s
		}
		s.add(h)
	}
}

func (l linksOf[K]) remove(keys []K, h *held) {
	for _, key := range keys {
		s := l[key]
		if s == nil {
			continue
		}
		if s.remove(h); s.empty() {
			delete(l, key)
		}
	}
}

func (l linksOf[K]) each(keys []K, do func(*held)) {
	for _, key := range keys {
		if s := l[key]; s != nil {
			s.each(do)
		}
	}
}

// fewSubjects is up to how many a list is smaller and faster than a map. Most
// keys are addresses and Pods, which lead to one subject or two.
const fewSubjects = 16

// subjects is a set of held subjects. The zero value is empty.
type subjects struct {
	few []*held
	// many replaces few once there were too many for it.
	many map[*held]struct{}
}

func (s *subjects) add(h *held) {
	switch {
	case s.many != nil:
		s.many[h] = struct{}{}
	case slices.Contains(s.few, h):
	case len(s.few) < fewSubjects:
		s.few = append(s.few, h)
	default:
		s.many = make(map[*held]struct{}, 2*fewSubjects)
		for _, other := range s.few {
			s.many[other] = struct{}{}
		}
		s.many[h] = struct{}{}
		s.few = nil
	}
}

func (s *subjects) remove(h *held) {
	if s.many != nil {
		delete(s.many, h)
		return
	}
	if i := slices.Index(s.few, h); i >= 0 {
		last := len(s.few) - 1
		s.few[i], s.few[last] = s.few[last], nil
		s.few = s.few[:last]
	}
}

func (s *subjects) empty() bool { return len(s.few) == 0 && len(s.many) == 0 }

func (s *subjects) each(do func(*held)) {
	for _, h := range s.few {
		do(h)
	}
	for h := range s.many {
		do(h)
	}
}
