// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/types"
)

// maxChangedSets is how many label sets a change names one by one. What
// concerns more of them concerns nearly everybody.
const maxChangedSets = 4096

// change collects the footprint of one event.
type change struct {
	cluster   *Cluster
	footprint Footprint

	sets      map[*LabelSet]struct{}
	ports     map[PortName]struct{}
	selectors map[*selector]struct{}
	selected  map[*bound]struct{}
	meant     map[*bound]struct{}
	subjects  map[types.NamespacedName]struct{}
}

func (c *Cluster) newChange() *change { return &change{cluster: c} }

func (f *change) everything() { f.footprint = Footprint{Everything: true} }

func (f *change) set(l *LabelSet) {
	if f.footprint.Everything {
		return
	}
	if f.sets == nil {
		f.sets = map[*LabelSet]struct{}{}
	}
	note(f.sets, &f.footprint.Sets, l)
	if len(f.footprint.Sets) > maxChangedSets {
		f.everything()
	}
}

func (f *change) pod(uid types.UID) {
	if !f.footprint.Everything {
		f.footprint.Pods = append(f.footprint.Pods, uid)
	}
}

func (f *change) node(name string) {
	if !f.footprint.Everything {
		f.footprint.Nodes = append(f.footprint.Nodes, name)
	}
}

func (f *change) addr(addr netip.Addr) {
	if !f.footprint.Everything {
		f.footprint.Addresses = append(f.footprint.Addresses, addr)
	}
}

func (f *change) port(name PortName) {
	if f.footprint.Everything {
		return
	}
	if f.ports == nil {
		f.ports = map[PortName]struct{}{}
	}
	note(f.ports, &f.footprint.Ports, name)
}

// of names the sets that s matches, and the namespaces that it reaches.
func (f *change) of(s *selector) {
	if f.selectors == nil {
		f.selectors = map[*selector]struct{}{}
	}
	if _, ok := f.selectors[s]; ok || f.footprint.Everything {
		return
	}
	f.selectors[s] = struct{}{}
	if s.reach == nil {
		f.set(f.cluster.absent(s.space))
	} else {
		for name := range s.reach.namespaces {
			f.set(f.cluster.absent(name))
		}
	}
	if len(s.sets) > maxChangedSets {
		f.everything()
	}
	for l := range s.sets {
		if f.footprint.Everything {
			return
		}
		f.set(l)
	}
}

// whomSelects names the Pods whose own policy b is: all of the namespace, if
// it was not understood.
func (f *change) whomSelects(b *bound) {
	if f.selected == nil {
		f.selected = map[*bound]struct{}{}
	}
	if _, ok := f.selected[b]; ok {
		return
	}
	f.selected[b] = struct{}{}
	f.set(f.cluster.absent(b.policy.Namespace))
	if b.policy.Err == nil {
		f.of(b.own)
		return
	}
	for _, l := range f.cluster.spaces[b.policy.Namespace].sets {
		f.set(l)
	}
}

// whomMeans names the Pods that the rules of b mean as peers.
func (f *change) whomMeans(b *bound) {
	if f.meant == nil {
		f.meant = map[*bound]struct{}{}
	}
	if _, ok := f.meant[b]; ok {
		return
	}
	f.meant[b] = struct{}{}
	for _, rules := range b.rules {
		for _, m := range rules {
			for _, s := range m.selectors {
				f.of(s)
			}
		}
	}
	if names := b.policy.everyonesNames(); len(names) > 0 {
		f.set(f.cluster.absent(b.policy.Namespace))
		for _, l := range f.cluster.spaces[b.policy.Namespace].sets {
			if l.hasAny(names) {
				f.set(l)
			}
		}
	}
}

// policy names all for whom b is of consequence.
func (f *change) policy(b *bound) {
	f.whomSelects(b)
	f.whomMeans(b)
	f.subject(b.policy)
	if b.policy.Err == nil {
		return
	}
	for _, q := range f.cluster.PoliciesIn(b.policy.Namespace) {
		f.subject(q)
	}
}

// subject names q as a subject.
func (f *change) subject(q *Policy) {
	if f.footprint.Everything {
		return
	}
	if f.subjects == nil {
		f.subjects = map[types.NamespacedName]struct{}{}
	}
	note(f.subjects, &f.footprint.Policies, q.key())
}

// populated names the ports of which it was looked at whether anybody whom s
// matches has them, since s has got its first Pod or lost its last; only one,
// unless it is zero, if that is of Pods with this port.
func (f *change) populated(s *selector, only PortName) {
	name := func(rule *Rule) {
		for _, port := range rule.portNames() {
			if only == (PortName{}) || port == only {
				f.port(port)
			}
		}
	}
	for q := range s.selects {
		for i := range q.Rules[Ingress] {
			name(&q.Rules[Ingress][i])
		}
	}
	for r := range s.rules {
		name(r.rule())
	}
}
