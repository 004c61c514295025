// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Kind is a kind of objects.
type Kind string

// The kinds that are kept.
const (
	Pods            Kind = "Pod"
	Namespaces      Kind = "Namespace"
	NetworkPolicies Kind = "NetworkPolicy"
	Nodes           Kind = "Node"
)

// Event is one change, or at the beginning of a watch an object that is there.
// Neither it nor the object must be changed.
type Event struct {
	Kind    Kind
	Deleted bool
	Object  client.Object
	// Data is the object in protobuf.
	Data []byte
}

// Version is an object in a LIST of metadata.
type Version struct {
	UID             types.UID
	ResourceVersion uint64
}

// Store keeps the objects. Its methods may be called from any goroutine.
// Objects that it is given or returns must not be changed.
type Store struct {
	clock clock.PassiveClock

	mu       sync.Mutex // guards what follows
	version  uint64
	uids     uint64
	objects  map[Kind]map[types.NamespacedName]client.Object
	watchers map[int]func(Event)
	watches  int
}

// New returns an empty Store.
func New(c clock.PassiveClock) *Store {
	s := &Store{clock: c, objects: map[Kind]map[types.NamespacedName]client.Object{}, watchers: map[int]func(Event){}}
	for _, kind := range []Kind{Pods, Namespaces, NetworkPolicies, Nodes} {
		s.objects[kind] = map[types.NamespacedName]client.Object{}
	}
	return s
}

// Watch calls handle for every object that is there, then for every change,
// in order, until the returned function is called. handle is called with the
// store locked: it must neither block nor call back.
func (s *Store) Watch(handle func(Event)) (stop func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range []Kind{Nodes, Namespaces, NetworkPolicies, Pods} {
		for _, o := range s.objects[kind] {
			handle(newEvent(kind, o, false))
		}
	}
	s.watches++
	id := s.watches
	s.watchers[id] = handle
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, id)
	}
}

// List returns the versions of all objects of a kind as of now.
func (s *Store) List(kind Kind) []Version {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Version, 0, len(s.objects[kind]))
	for _, o := range s.objects[kind] {
		out = append(out, Version{o.GetUID(), parseVersion(o.GetResourceVersion())})
	}
	return out
}

// Create adds an object with a new UID and returns what was stored. One of the
// same name is replaced, as if it had been deleted.
func (s *Store) Create(o client.Object) client.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind, key := kindOf(o), client.ObjectKeyFromObject(o)
	if _, there := s.objects[kind][key]; there {
		s.remove(kind, key)
	}
	s.uids++
	o.SetUID(types.UID(fmt.Sprintf("%08x-0000-4000-8000-000000000000", s.uids)))
	o.SetGeneration(1)
	o.SetCreationTimestamp(metav1.NewTime(s.clock.Now()))
	s.put(kind, key, o)
	return o
}

// UpdatePod changes a copy of a Pod and stores it. It returns nil and does
// nothing if there is none of that UID.
func (s *Store) UpdatePod(key types.NamespacedName, uid types.UID, change func(*corev1.Pod)) *corev1.Pod {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.objects[Pods][key].(*corev1.Pod)
	if !ok || p.UID != uid {
		return nil
	}
	p = p.DeepCopy()
	change(p)
	s.put(Pods, key, p)
	return p
}

// UpdatePolicy changes a copy of a NetworkPolicy, its generation included. It
// does nothing if there is none.
func (s *Store) UpdatePolicy(key types.NamespacedName, change func(*networkingv1.NetworkPolicy)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if np, ok := s.objects[NetworkPolicies][key].(*networkingv1.NetworkPolicy); ok {
		np = np.DeepCopy()
		change(np)
		np.Generation++
		s.put(NetworkPolicies, key, np)
	}
}

// UpdateNamespace changes a copy of a Namespace. It does nothing if there is
// none.
func (s *Store) UpdateNamespace(name string, change func(*corev1.Namespace)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := types.NamespacedName{Name: name}
	if ns, ok := s.objects[Namespaces][key].(*corev1.Namespace); ok {
		ns = ns.DeepCopy()
		change(ns)
		s.put(Namespaces, key, ns)
	}
}

// Delete removes an object; one that is not there is no error.
func (s *Store) Delete(kind Kind, key types.NamespacedName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(kind, key)
}

func (s *Store) put(kind Kind, key types.NamespacedName, o client.Object) {
	s.version++
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	s.objects[kind][key] = o
	s.tell(newEvent(kind, o, false))
}

func (s *Store) remove(kind Kind, key types.NamespacedName) {
	o, ok := s.objects[kind][key]
	if !ok {
		return
	}
	delete(s.objects[kind], key)
	last, ok := o.DeepCopyObject().(client.Object)
	if !ok {
		return
	}
	s.version++
	last.SetResourceVersion(strconv.FormatUint(s.version, 10))
	s.tell(newEvent(kind, last, true))
}

func (s *Store) tell(e Event) {
	for _, handle := range s.watchers {
		handle(e)
	}
}

// encoded is what every type of the API is.
type encoded interface {
	Marshal() ([]byte, error)
}

func newEvent(kind Kind, o client.Object, deleted bool) Event {
	e := Event{Kind: kind, Deleted: deleted, Object: o}
	if m, ok := o.(encoded); ok {
		// Encoding what was made in memory does not fail.
		e.Data, _ = m.Marshal()
	}
	return e
}

func kindOf(o client.Object) Kind {
	switch o.(type) {
	case *corev1.Namespace:
		return Namespaces
	case *networkingv1.NetworkPolicy:
		return NetworkPolicies
	case *corev1.Node:
		return Nodes
	}
	return Pods
}

func parseVersion(text string) uint64 {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
