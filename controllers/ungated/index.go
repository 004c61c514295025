// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ungated knows the Pods that should have a readiness gate and have
// none: they were created before their namespace was labelled, or while no
// webhook answered, which lets Pods in.
//
// An Index is fed the events of Pods and namespaces and counts as it goes. It
// mirrors which Pods config/webhook sends to be gated. A Notifier has those that
// were missed told once. The package changes nothing, and knows nothing of Pods that are gated.
package ungated

import (
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/webhook/inject"
)

// Index holds the Pods without a gate. Its methods may be called from any
// goroutine; events about one object must come in order.
type Index struct {
	conditionType corev1.PodConditionType
	exempt        []string

	mu         sync.Mutex
	namespaces map[string]*namespace
	count      int
}

// namespace has the Pods without a gate that are neither opted out nor of a
// kind that cannot be gated.
type namespace struct {
	labelled bool
	// asking are the Pods that are annotated to be injected, silent the others,
	// by name.
	asking, silent map[string]Pod
	// gatedSince is when the oldest Pod with a gate was created that was seen
	// here; zero if none was.
	gatedSince time.Time
}

// Pod is one that should have a gate and has none.
type Pod struct {
	Namespace, Name string
	UID             types.UID
	Created         time.Time
	// Asks is set if it is annotated to be injected, and not only its namespace
	// labelled.
	Asks bool
	// Missed is set if it was to have a gate when it was created already: it
	// asks, or is younger than one of its namespace that has a gate. One that is
	// older than its namespace's label is not missed, and who labels a namespace
	// knows of it.
	Missed bool
}

// New returns an Index that holds nothing. Pods of the exempt namespaces never
// get a gate of that type.
func New(conditionType corev1.PodConditionType, exempt ...string) *Index {
	return &Index{conditionType: conditionType, exempt: exempt, namespaces: map[string]*namespace{}}
}

// SetPod takes a Pod that was added or changed. It keeps its name.
func (x *Index) SetPod(p *corev1.Pod) {
	if slices.Contains(x.exempt, p.Namespace) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	asks, wanted := x.asks(p)
	created := p.CreationTimestamp.Time
	x.update(p.Namespace, func(n *namespace) {
		delete(n.asking, p.Name)
		delete(n.silent, p.Name)
		switch {
		case x.gated(p):
			if n.gatedSince.IsZero() || created.Before(n.gatedSince) {
				n.gatedSince = created
			}
		case !wanted:
		case asks:
			n.asking[p.Name] = identity(p, true)
		default:
			n.silent[p.Name] = identity(p, false)
		}
	})
}

// DeletePod takes a Pod that is gone.
func (x *Index) DeletePod(p *corev1.Pod) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.update(p.Namespace, func(n *namespace) {
		delete(n.asking, p.Name)
		delete(n.silent, p.Name)
	})
}

// SetNamespace takes a namespace that was added or changed.
func (x *Index) SetNamespace(ns *corev1.Namespace) {
	if slices.Contains(x.exempt, ns.Name) {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.update(ns.Name, func(n *namespace) {
		n.labelled = ns.Labels[v1alpha1.KeyInject] == v1alpha1.InjectNamespace
	})
}

// DeleteNamespace takes a namespace that is gone.
func (x *Index) DeleteNamespace(ns *corev1.Namespace) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.update(ns.Name, func(n *namespace) { n.labelled, n.gatedSince = false, time.Time{} })
}

// Len returns how many Pods should have a gate and have none.
func (x *Index) Len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.count
}

// List returns the first of them by namespace and name, at most limit.
func (x *Index) List(limit int) []types.NamespacedName {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []types.NamespacedName
	for _, name := range slices.Sorted(maps.Keys(x.namespaces)) {
		n := x.namespaces[name]
		pods := slices.Collect(maps.Keys(n.asking))
		if n.labelled {
			pods = slices.AppendSeq(pods, maps.Keys(n.silent))
		}
		slices.Sort(pods)
		for _, pod := range pods {
			if len(out) >= limit {
				return out
			}
			out = append(out, types.NamespacedName{Namespace: name, Name: pod})
		}
	}
	return out
}

// All returns all of them, in no order.
func (x *Index) All() []Pod {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]Pod, 0, x.count)
	for _, n := range x.namespaces {
		for _, p := range n.asking {
			p.Missed = true
			out = append(out, p)
		}
		if !n.labelled {
			continue
		}
		for _, p := range n.silent {
			p.Missed = !n.gatedSince.IsZero() && p.Created.After(n.gatedSince)
			out = append(out, p)
		}
	}
	return out
}

func identity(p *corev1.Pod, asks bool) Pod {
	return Pod{Namespace: p.Namespace, Name: p.Name, UID: p.UID, Created: p.CreationTimestamp.Time, Asks: asks}
}

func (x *Index) gated(p *corev1.Pod) bool {
	return slices.Contains(p.Spec.ReadinessGates, corev1.PodReadinessGate{ConditionType: x.conditionType})
}

// asks reports whether p is annotated to be injected, and whether it would be
// gated at all if its namespace were labelled. As for the webhook, any value
// but "false" asks.
func (x *Index) asks(p *corev1.Pod) (asks, wanted bool) {
	value, annotated := p.Annotations[v1alpha1.KeyInject]
	if annotated && value == v1alpha1.ValueFalse || p.DeletionTimestamp != nil ||
		p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || !inject.Gateable(p) {
		return false, false
	}
	return annotated, !x.gated(p)
}

// update changes what is held of a namespace, and counts.
func (x *Index) update(name string, change func(*namespace)) {
	n := x.namespaces[name]
	if n == nil {
		n = &namespace{asking: map[string]Pod{}, silent: map[string]Pod{}}
		x.namespaces[name] = n
	}
	x.count -= n.count()
	change(n)
	x.count += n.count()
	if !n.labelled && n.gatedSince.IsZero() && len(n.asking)+len(n.silent) == 0 {
		delete(x.namespaces, name)
	}
}

// count returns how many of the namespace's Pods should have a gate.
func (n *namespace) count() int {
	if n.labelled {
		return len(n.asking) + len(n.silent)
	}
	return len(n.asking)
}
