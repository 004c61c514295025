// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"weak"

	corev1 "k8s.io/api/core/v1"
)

// sharing has Pods that say the same hold it once: Pods of one workload have
// the same labels and ports, those of a node its name, and each version of a
// Pod most of what the version before said. What is read from a watch holds all
// of it anew.
//
// It finds the other Pod by weak pointers, so it keeps nothing alive: what is
// shared goes with the last Pod that has it. What is shared must not be
// changed, as nothing in a cache must.
type sharing struct {
	seed maphash.Seed

	mu sync.Mutex // guards what follows
	// The newest Pod of each UID, with each set of labels, each list of
	// containers and on each node, by the hash of that.
	byUID, byLabels, byContainers, byNode newest
}

func newSharing() *sharing {
	return &sharing{
		seed:  maphash.MakeSeed(),
		byUID: newNewest(), byLabels: newNewest(), byContainers: newNewest(), byNode: newNewest(),
	}
}

// trim is a cache's transform: the package's trim, and for Pods sharing.
func (s *sharing) trim(obj any) (any, error) {
	obj, err := trim(obj)
	if p, ok := obj.(*corev1.Pod); ok && err == nil {
		s.share(p)
	}
	return obj, err
}

// share replaces what p has in common with other Pods by what they hold.
func (s *sharing) share(p *corev1.Pod) {
	uid := maphash.String(s.seed, string(p.UID))
	labels := s.hashLabels(p)
	containers := s.hashContainers(p)
	node := maphash.String(s.seed, p.Spec.NodeName)

	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.byUID.swap(uid, p); q != nil && q.UID == p.UID {
		p.UID, p.Name, p.Namespace = q.UID, q.Name, q.Namespace // a UID has one of each
		if maps.Equal(p.Annotations, q.Annotations) {
			p.Annotations = q.Annotations
		}
		if slices.Equal(p.Status.PodIPs, q.Status.PodIPs) {
			p.Status.PodIPs = q.Status.PodIPs
		}
	}
	if q := s.byLabels.swap(labels, p); q != nil && q.Namespace == p.Namespace {
		p.Namespace = q.Namespace
		if maps.Equal(p.Labels, q.Labels) {
			p.Labels = q.Labels
		}
	}
	if q := s.byContainers.swap(containers, p); q != nil {
		if slices.EqualFunc(p.Spec.Containers, q.Spec.Containers, sameContainer) {
			p.Spec.Containers = q.Spec.Containers
		}
		if slices.EqualFunc(p.Spec.InitContainers, q.Spec.InitContainers, sameContainer) {
			p.Spec.InitContainers = q.Spec.InitContainers
		}
		if slices.Equal(p.Spec.ReadinessGates, q.Spec.ReadinessGates) {
			p.Spec.ReadinessGates = q.Spec.ReadinessGates
		}
	}
	if q := s.byNode.swap(node, p); q != nil && q.Spec.NodeName == p.Spec.NodeName {
		p.Spec.NodeName = q.Spec.NodeName
	}
}

func (s *sharing) hashLabels(p *corev1.Pod) uint64 {
	sum := maphash.String(s.seed, p.Namespace)
	for key, value := range p.Labels {
		sum += maphash.Comparable(s.seed, [2]string{key, value}) // in any order
	}
	return sum
}

func (s *sharing) hashContainers(p *corev1.Pod) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			maphash.WriteComparable(&h, list[i].Name)
			for _, port := range list[i].Ports {
				maphash.WriteComparable(&h, port)
			}
		}
		maphash.WriteComparable(&h, len(list))
	}
	return h.Sum64()
}

// sameContainer compares what trimContainers keeps.
func sameContainer(a, b corev1.Container) bool {
	policy := func(c corev1.Container) corev1.ContainerRestartPolicy {
		if c.RestartPolicy == nil {
			return ""
		}
		return *c.RestartPolicy
	}
	return a.Name == b.Name && slices.Equal(a.Ports, b.Ports) && policy(a) == policy(b)
}

// newest leads from a hash to the newest Pod that has it, as long as that
// lives. It is made by newNewest.
type newest struct {
	pods map[uint64]weak.Pointer[corev1.Pod]
	// sweep is how many there may be before the dead are looked for.
	sweep int
}

// sweepFirst is the least number of entries that are worth a sweep.
const sweepFirst = 1024

func newNewest() newest {
	return newest{pods: map[uint64]weak.Pointer[corev1.Pod]{}, sweep: sweepFirst}
}

// swap makes p the newest of its hash and returns who was, or nil. Different
// things may have one hash.
func (n *newest) swap(hash uint64, p *corev1.Pod) *corev1.Pod {
	before := n.pods[hash].Value()
	n.pods[hash] = weak.Make(p)
	if len(n.pods) > n.sweep {
		maps.DeleteFunc(n.pods, func(_ uint64, w weak.Pointer[corev1.Pod]) bool { return w.Value() == nil })
		n.sweep = max(sweepFirst, 2*len(n.pods))
	}
	return before
}
