// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// service is what the index keeps of a Service.
type service struct {
	uid       types.UID
	selector  labels.Set
	addresses []string
}

func newService(s *corev1.Service) service {
	return service{uid: s.UID, selector: s.Spec.Selector, addresses: s.Spec.ClusterIPs}
}

func (s service) same(b service) bool {
	return s.uid == b.uid && maps.Equal(s.selector, b.selector) && slices.Equal(s.addresses, b.addresses)
}

// SetService takes a Service that was added or changed. Kube-OVN up to 1.15
// keeps the ClusterIPs of Services among the peers of policies, so an event of
// a Service has it write each policy anew that selects, or means as a peer, a
// Pod that the Service selects; a Service without a selector counts as one that
// selects every Pod of its namespace. Engines that do not know Services need
// not be told of any: see Options.Services.
//
// What must be confirmed is the same after that. But what a node confirmed of
// a subject that depends on such a policy may be gone for a moment while the
// engine writes, and an agent that has looked twice has no reason to look
// again. So such a subject is touched and demands, from then on, that the
// engine rest: see Assignment.Settle. It does so once: what more Services
// follow changes nothing, or whoever makes Services without end would hold the
// Pods of others without end. One that is no longer held is left alone.
func (x *Index) SetService(s *corev1.Service) {
	if !x.options.Services {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	key := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	before, known := x.services[key]
	next := newService(s)
	x.services[key] = next
	switch {
	case known && next.same(before):
		return // its status, labels, ports
	case known:
		x.touchService(key.Namespace, before)
	case !x.listed:
		return // what the first list says is no event
	}
	x.touchService(key.Namespace, next)
}

// DeleteService takes a Service that is gone; one that is not held is no
// error.
func (x *Index) DeleteService(s *corev1.Service) {
	if !x.options.Services {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	key := types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	before, known := x.services[key]
	if !known || before.uid != s.UID {
		return
	}
	delete(x.services, key)
	x.touchService(key.Namespace, before)
}

// touchService marks the subjects of the policies that an event of s makes an
// engine write anew.
func (x *Index) touchService(namespace string, s service) {
	seen := map[*expect.Policy]bool{}
	unsettle := func(policies []*expect.Policy) {
		for _, q := range policies {
			if seen[q] {
				continue
			}
			seen[q] = true
			x.dependents.each([]types.NamespacedName{{Namespace: q.Namespace, Name: q.Name}}, x.unsettle)
		}
	}
	for _, set := range x.cluster.SetsMatching(namespace, labels.SelectorFromSet(s.selector)) {
		selecting, naming := x.cluster.PoliciesMeaning(set)
		unsettle(selecting)
		unsettle(naming)
	}
}

// unsettle has a subject demand that the engine rest.
func (x *Index) unsettle(h *held) {
	if !h.settle {
		h.settle = true
		x.touch(h)
	}
}
