// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package world

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
)

// Options are what a World is made of.
type Options struct {
	// Seed makes delays: equal seeds give equal ones.
	Seed uint64
	// Least and Most bound the delay until a node realizes a version.
	Least, Most time.Duration
	// Rewrite is how far apart a node's rewrites of its rules are. A large
	// cluster always has something to write. 0: a second.
	Rewrite time.Duration
	Clock   clock.PassiveClock
}

// World is the truth. Its methods may be called from any goroutine; changes of
// one object must come in order. It keeps nothing of the objects it is given.
type World struct {
	delays  delays
	rewrite time.Duration
	clock   clock.PassiveClock
	started time.Time

	mu   sync.RWMutex // guards what follows
	pods map[types.UID]*podHistory
	// live are the Pods that are peers, in no order, for sampling.
	live []*podHistory
	// byAddr has every Pod that some node may still believe to be there.
	byAddr map[netip.Addr][]*podHistory
	byNS   map[string]map[*podHistory]struct{}
	// pauses are by the namespace of Pods.
	pauses     map[string]*pause
	namespaces map[string]*namespaceHistory
	policies   map[types.UID]*policyHistory
	policiesIn map[string][]*policyHistory
	// reaching are the policies that name Pods of other namespaces.
	reaching map[*policyHistory]struct{}
	// gone are the histories to forget once every node has noticed the end.
	gone []departure
}

type podHistory struct {
	history[pod]
	uid types.UID
	// place is the index in World.live, or -1.
	place int
	// addresses that byAddr leads from, and the namespace.
	addresses []netip.Addr
	namespace string
}

type namespaceHistory struct {
	history[namespace]
}

type policyHistory struct {
	history[policy]
	namespace, name string
}

type departure struct {
	at     time.Time
	forget func()
}

// New returns a World with nothing in it.
func New(o Options) *World {
	if o.Rewrite <= 0 {
		o.Rewrite = time.Second
	}
	return &World{
		delays:     delays{seed: o.Seed, least: o.Least, most: o.Most},
		rewrite:    o.Rewrite,
		clock:      o.Clock,
		started:    o.Clock.Now(),
		pods:       map[types.UID]*podHistory{},
		byAddr:     map[netip.Addr][]*podHistory{},
		byNS:       map[string]map[*podHistory]struct{}{},
		pauses:     map[string]*pause{},
		namespaces: map[string]*namespaceHistory{},
		policies:   map[types.UID]*policyHistory{},
		policiesIn: map[string][]*policyHistory{},
		reaching:   map[*policyHistory]struct{}{},
	}
}

// Most returns after what time every node has realized a version.
func (w *World) Most() time.Duration { return w.delays.most }

// Pause has no node realize, from now on until Resume, that a Pod of the
// namespace comes or changes. It may be called once for a namespace.
func (w *World) Pause(namespace string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &pause{began: w.clock.Now()}
	w.pauses[namespace] = p
	for h := range w.byNS[namespace] {
		h.pause = p
	}
}

// Resume ends what Pause began: every node realizes what it has missed, after
// its delay. Without Pause before it does nothing.
func (w *World) Resume(namespace string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p := w.pauses[namespace]; p != nil && p.ended.IsZero() {
		p.ended = w.clock.Now()
	}
}

// SetPod takes a Pod that was added or changed.
func (w *World) SetPod(p *corev1.Pod) {
	next := newPod(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire()
	h := w.pods[p.UID]
	if h == nil {
		h = &podHistory{uid: p.UID, place: -1, namespace: p.Namespace}
		h.key, h.pause = keyOf(string(p.UID)), w.pauses[p.Namespace]
		w.pods[p.UID] = h
		if w.byNS[p.Namespace] == nil {
			w.byNS[p.Namespace] = map[*podHistory]struct{}{}
		}
		w.byNS[p.Namespace][h] = struct{}{}
	}
	if before := h.latest(); before != nil && before.same(next) {
		return
	}
	h.set(w.clock.Now(), next, w.delays.most)
	for _, ip := range next.ips {
		if !slices.Contains(h.addresses, ip) {
			h.addresses = append(h.addresses, ip)
			w.byAddr[ip] = append(w.byAddr[ip], h)
		}
	}
	w.placePod(h)
}

// DeletePod takes a Pod that is gone; one that never was is no error.
func (w *World) DeletePod(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire()
	h := w.pods[uid]
	if h.latestOf() == nil {
		return
	}
	h.set(w.clock.Now(), nil, w.delays.most)
	w.placePod(h)
	w.depart(func() {
		delete(w.pods, uid)
		delete(w.byNS[h.namespace], h)
		for _, ip := range h.addresses {
			w.byAddr[ip] = slices.DeleteFunc(w.byAddr[ip], func(o *podHistory) bool { return o == h })
			if len(w.byAddr[ip]) == 0 {
				delete(w.byAddr, ip)
			}
		}
	})
}

func (h *podHistory) latestOf() *pod {
	if h == nil {
		return nil
	}
	return h.latest()
}

// placePod keeps h among the live ones if it is one.
func (w *World) placePod(h *podHistory) {
	now := h.latest()
	is := now != nil && now.peer()
	switch {
	case is && h.place < 0:
		h.place = len(w.live)
		w.live = append(w.live, h)
	case !is && h.place >= 0:
		last := w.live[len(w.live)-1]
		w.live[h.place], last.place = last, h.place
		w.live = w.live[:len(w.live)-1]
		h.place = -1
	}
}

// SetNamespace takes a Namespace that was added or changed.
func (w *World) SetNamespace(ns *corev1.Namespace) {
	next := newNamespace(ns)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire()
	h := w.namespaces[ns.Name]
	if h == nil {
		h = &namespaceHistory{}
		h.key = keyOf("namespace/" + ns.Name)
		w.namespaces[ns.Name] = h
	}
	if before := h.latest(); before != nil && before.same(next) {
		return
	}
	h.set(w.clock.Now(), next, w.delays.most)
}

// DeleteNamespace takes a Namespace that is gone.
func (w *World) DeleteNamespace(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.namespaces[name]; h != nil && h.latest() != nil {
		h.set(w.clock.Now(), nil, w.delays.most)
	}
}

// SetPolicy takes a NetworkPolicy that was added or changed. It returns an
// error, and takes nothing, if that cannot be understood.
func (w *World) SetPolicy(np *networkingv1.NetworkPolicy) error {
	next, err := newPolicy(np)
	if err != nil {
		return fmt.Errorf("network policy %s/%s: %w", np.Namespace, np.Name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire()
	h := w.policies[np.UID]
	if h == nil {
		h = &policyHistory{namespace: np.Namespace, name: np.Name}
		h.key = keyOf(string(np.UID))
		w.policies[np.UID] = h
		w.policiesIn[np.Namespace] = append(w.policiesIn[np.Namespace], h)
	}
	if before := h.latest(); before != nil && before.generation == next.generation {
		return nil
	}
	h.set(w.clock.Now(), next, w.delays.most)
	delete(w.reaching, h)
	if next.reaches {
		w.reaching[h] = struct{}{}
	}
	return nil
}

// DeletePolicy takes a NetworkPolicy that is gone; one that never was is no
// error.
func (w *World) DeletePolicy(uid types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expire()
	h := w.policies[uid]
	if h == nil || h.latest() == nil {
		return
	}
	h.set(w.clock.Now(), nil, w.delays.most)
	delete(w.reaching, h)
	w.depart(func() {
		delete(w.policies, uid)
		w.policiesIn[h.namespace] = slices.DeleteFunc(w.policiesIn[h.namespace],
			func(o *policyHistory) bool { return o == h })
	})
}

// depart has forget called once every node has noticed what ends now.
func (w *World) depart(forget func()) {
	w.gone = append(w.gone, departure{w.clock.Now(), forget})
}

// expire forgets what every node has noticed the end of.
func (w *World) expire() {
	now := w.clock.Now()
	n := 0
	for n < len(w.gone) && now.Sub(w.gone[n].at) > w.delays.most {
		w.gone[n].forget()
		w.gone[n] = departure{}
		n++
	}
	w.gone = w.gone[n:]
}

// Rewrites returns how often the node has rewritten its rules by then.
func (w *World) Rewrites(node string, at time.Time) uint64 {
	phase := time.Duration(mix(keyOf(node)) % uint64(w.rewrite))
	return uint64(max(at.Sub(w.started)+phase, 0) / w.rewrite)
}
