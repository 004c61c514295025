// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/bench/world"
)

// Gated is the story of one gated Pod, as a watch sees it.
type Gated struct {
	Namespace, Name string
	// Addressed is when the Pod got its address, Opened when its condition
	// became True. Both are zero until then.
	Addressed, Opened time.Time
	// Messages counts the writes of the condition as False, Openings those
	// that made it True or wrote the annotation.
	Messages, Openings int
	// Held is whether the Pod has the hold, Ready whether it was seen Ready.
	Held, Ready bool
	// Reason and Message are the condition's last ones.
	Reason, Message string
}

// Latency is how long the Pod waited; it is 0 while its gate is shut.
func (g *Gated) Latency() time.Duration {
	if g.Opened.IsZero() {
		return 0
	}
	return g.Opened.Sub(g.Addressed)
}

// watcher follows all that matters, tells the world of it and keeps the stories
// of gated Pods.
type watcher struct {
	world *world.World

	mu       sync.Mutex // guards the following fields
	gated    map[types.UID]*Gated
	standing map[types.UID]bool // Pods without a gate that run
	errs     []error
}

// watch begins to follow the cluster of c, until done is closed. It returns once
// all that is there is known; ctx bounds that.
func (c *controlPlane) watch(ctx context.Context, done <-chan struct{}, w *world.World) (*watcher, error) {
	out := &watcher{world: w, gated: make(map[types.UID]*Gated), standing: make(map[types.UID]bool)}
	factory := informers.NewSharedInformerFactoryWithOptions(c.client, 0, informers.WithTransform(func(obj any) (any, error) {
		if o, ok := obj.(metav1.Object); ok {
			o.SetManagedFields(nil)
		}
		return obj, nil
	}))
	_, err1 := factory.Core().V1().Namespaces().Informer().AddEventHandler(handle(
		func(_, ns *corev1.Namespace) { w.SetNamespace(ns) },
		func(ns *corev1.Namespace) { w.DeleteNamespace(ns.Name) }))
	_, err2 := factory.Networking().V1().NetworkPolicies().Informer().AddEventHandler(handle(
		func(_, np *networkingv1.NetworkPolicy) { out.failed(w.SetPolicy(np)) },
		func(np *networkingv1.NetworkPolicy) { w.DeletePolicy(np.UID) }))
	_, err3 := factory.Core().V1().Pods().Informer().AddEventHandler(handle(out.setPod, out.deletePod))
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("watch the cluster: %w", err)
	}
	factory.Start(done)
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return nil, fmt.Errorf("watch %s: %w", kind, ctx.Err())
		}
	}
	return out, nil
}

// handle calls set with the object before, or nil, and after each change.
func handle[T any](set func(before, after T), del func(T)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			var none T
			if o, ok := obj.(T); ok {
				set(none, o)
			}
		},
		UpdateFunc: func(before, after any) {
			b, okBefore := before.(T)
			a, okAfter := after.(T)
			if okBefore && okAfter {
				set(b, a)
			}
		},
		DeleteFunc: func(obj any) {
			if unknown, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			if o, ok := obj.(T); ok {
				del(o)
			}
		},
	}
}

func (w *watcher) failed(err error) {
	if err == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errs = append(w.errs, err)
}

func (w *watcher) setPod(before, after *corev1.Pod) {
	now := time.Now()
	w.world.SetPod(after)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.ContainsFunc(after.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool {
		return g.ConditionType == v1alpha1.ConditionProgrammed
	}) {
		if len(after.Status.PodIPs) > 0 {
			w.standing[after.UID] = true
		}
		return
	}
	g := w.gated[after.UID]
	if g == nil {
		g = &Gated{Namespace: after.Namespace, Name: after.Name, Held: len(after.Spec.InitContainers) > 0}
		w.gated[after.UID] = g
	}
	if g.Addressed.IsZero() && len(after.Status.PodIPs) > 0 {
		g.Addressed = now
	}
	was, is := gateOf(before), gateOf(after)
	g.Reason, g.Message = is.Reason, is.Message
	if is.Status == corev1.ConditionTrue && g.Opened.IsZero() {
		g.Opened = now
	}
	g.Ready = g.Ready || conditionOf(after, corev1.PodReady).Status == corev1.ConditionTrue
	rewritten := before != nil && before.Annotations[v1alpha1.KeyProgrammed] != after.Annotations[v1alpha1.KeyProgrammed]
	switch {
	case is.Status == corev1.ConditionFalse && is != was:
		g.Messages++
	case is.Status == corev1.ConditionTrue && (is != was || rewritten):
		g.Openings++
	}
}

func (w *watcher) deletePod(p *corev1.Pod) { w.world.DeletePod(p.UID) }

// gateOf returns the gate's condition, or the zero condition.
func gateOf(p *corev1.Pod) corev1.PodCondition {
	return conditionOf(p, v1alpha1.ConditionProgrammed)
}

func conditionOf(p *corev1.Pod, kind corev1.PodConditionType) corev1.PodCondition {
	if p != nil {
		for _, c := range p.Status.Conditions {
			if c.Type == kind {
				return c
			}
		}
	}
	return corev1.PodCondition{}
}

// running returns how many Pods without a gate have an address.
func (w *watcher) running() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.standing)
}

// stories returns copies of those of the Pods whose UIDs are given; a Pod that
// was let in without a gate has none.
func (w *watcher) stories(uids []types.UID) []Gated {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make([]Gated, 0, len(uids))
	for _, uid := range uids {
		if g := w.gated[uid]; g != nil {
			out = append(out, *g)
		}
	}
	return out
}

// err returns what could not be understood.
func (w *watcher) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.errs...)
}
