// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/policygate/policygate/controllers/ungated"
)

// index is told what expectations are computed from.
type index interface { //nolint:interfacebloat // two methods for each kind of object, and one for the end of the first list
	Listed()
	SetPod(p *corev1.Pod)
	DeletePod(uid types.UID)
	SetNamespace(ns *corev1.Namespace)
	DeleteNamespace(ns *corev1.Namespace)
	SetPolicy(np *networkingv1.NetworkPolicy)
	DeletePolicy(np *networkingv1.NetworkPolicy)
	SetNode(n *corev1.Node)
	DeleteNode(name string)
	SetService(s *corev1.Service)
	DeleteService(s *corev1.Service)
}

// ledger is told of Pods and nodes, and of policies that are gone, after the
// index.
type ledger interface {
	PodChanged(p *corev1.Pod)
	PodDeleted(uid types.UID)
	NodeChanged(name, bootID string)
	NodeDeleted(name string)
	PolicyDeleted(namespace, name string)
}

// feed passes the events of the caches on, to the index first.
type feed struct {
	// index is nil for objects that it does not know.
	index  index
	ledger ledger
	// ungated is told of Pods and namespaces.
	ungated *ungated.Index
	// counter counts what is passed on, by kind.
	counter *prometheus.CounterVec
	// services is set if Services are watched as well.
	services bool
	// synced are those that must be true before the first gate is opened.
	synced []toolscache.InformerSynced
}

// Computes from these what must be confirmed. All is read from caches, which
// need no right to get.
// +kubebuilder:rbac:groups="",resources=pods;nodes,verbs=list;watch,roleName=policygate-manager

// Computes from these what must be confirmed.
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=list;watch,roleName=policygate-manager

// Computes from these what must be confirmed.
// +kubebuilder:rbac:groups=networking.k8s.io,resources=networkpolicies,verbs=list;watch,roleName=policygate-manager

// Kube-OVN up to 1.15 writes policies anew when a Service changes.
// +kubebuilder:rbac:groups="",resources=services,verbs=list;watch,roleName=policygate-manager-services

// watch adds the handlers to the caches, which need not have started.
func (f *feed) watch(ctx context.Context, informers cache.Informers) error {
	errs := []error{
		add(ctx, f, informers, kindPod, &corev1.Pod{}, f.setPod, f.deletePod),
		add(ctx, f, informers, kindNamespace, &corev1.Namespace{}, f.setNamespace, f.deleteNamespace),
		add(ctx, f, informers, kindNetworkPolicy, &networkingv1.NetworkPolicy{}, f.index.SetPolicy, f.deletePolicy),
		add(ctx, f, informers, kindNode, &corev1.Node{}, f.setNode, f.deleteNode),
	}
	if f.services {
		errs = append(errs, add(ctx, f, informers, kindService, &corev1.Service{}, f.index.SetService, f.index.DeleteService))
	}
	return errors.Join(errs...)
}

// add adds the handler of one kind.
func add[T client.Object](ctx context.Context, f *feed, informers cache.Informers, kind string, of T, set, del func(T)) error {
	informer, err := informers.GetInformer(ctx, of, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch %T: %w", of, err)
	}
	count := f.counter.WithLabelValues(kind)
	counted := func(tell func(T)) func(T) {
		return func(o T) {
			count.Inc()
			tell(o)
		}
	}
	registration, err := informer.AddEventHandler(handler(counted(set), counted(del)))
	if err != nil {
		return fmt.Errorf("watch %T: %w", of, err)
	}
	f.synced = append(f.synced, registration.HasSynced)
	return nil
}

// handler passes events on to set and del. A watch that was interrupted shows
// a deletion and a creation under one name as a change; set then hears of the
// new object only after del heard of the old one.
func handler[T client.Object](set, del func(T)) toolscache.ResourceEventHandler {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if o, ok := obj.(T); ok {
				set(o)
			}
		},
		UpdateFunc: func(before, after any) {
			b, okBefore := before.(T)
			a, okAfter := after.(T)
			if okBefore && okAfter && b.GetUID() != a.GetUID() {
				del(b)
			}
			if okAfter {
				set(a)
			}
		},
		DeleteFunc: func(obj any) {
			if unknown, ok := obj.(toolscache.DeletedFinalStateUnknown); ok {
				obj = unknown.Obj
			}
			if o, ok := obj.(T); ok {
				del(o)
			}
		},
	}
}

func (f *feed) setPod(p *corev1.Pod) {
	f.index.SetPod(p)
	f.ledger.PodChanged(p)
	f.ungated.SetPod(p)
}

func (f *feed) deletePod(p *corev1.Pod) {
	f.index.DeletePod(p.UID)
	f.ledger.PodDeleted(p.UID)
	f.ungated.DeletePod(p)
}

func (f *feed) setNamespace(ns *corev1.Namespace) {
	f.index.SetNamespace(ns)
	f.ungated.SetNamespace(ns)
}

func (f *feed) deleteNamespace(ns *corev1.Namespace) {
	f.index.DeleteNamespace(ns)
	f.ungated.DeleteNamespace(ns)
}

func (f *feed) setNode(n *corev1.Node) {
	f.index.SetNode(n)
	f.ledger.NodeChanged(n.Name, n.Status.NodeInfo.BootID)
}

func (f *feed) deleteNode(n *corev1.Node) {
	f.index.DeleteNode(n.Name)
	f.ledger.NodeDeleted(n.Name)
}

func (f *feed) deletePolicy(np *networkingv1.NetworkPolicy) {
	f.index.DeletePolicy(np)
	f.ledger.PolicyDeleted(np.Namespace, np.Name)
}

// ready returns nil once every handler has been given what was there at the
// start.
func (f *feed) ready() error {
	for _, synced := range f.synced {
		if !synced() {
			return errors.New("the caches are not complete yet")
		}
	}
	return nil
}

// after returns a runnable that waits for the handlers before it runs r, on
// every replica: what is opened before that is opened without knowing all.
func (f *feed) after(r manager.Runnable) manager.Runnable { return &afterFeed{f, r} }

type afterFeed struct {
	feed *feed
	run  manager.Runnable
}

func (a *afterFeed) NeedLeaderElection() bool { return false }

func (a *afterFeed) Start(ctx context.Context) error {
	if !toolscache.WaitForCacheSync(ctx.Done(), a.feed.synced...) {
		return nil
	}
	if a.feed.index != nil { // the feed of PolicyStatus objects has none
		a.feed.index.Listed()
	}
	return a.run.Start(ctx)
}
