// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/test/engine/rules"
)

// errNoSync is returned if the informers end before they have synced.
var errNoSync = errors.New("watches ended before the first list was complete")

// watch holds the informers, and since when each address is known.
type watch struct {
	clock      clock.Clock
	event      func()
	nodeIPs    []string
	pods       corelisters.PodLister
	namespaces corelisters.NamespaceLister
	policies   networkinglisters.NetworkPolicyLister

	// mu guards known.
	mu    sync.Mutex
	known map[podAddress]time.Time
}

// podAddress is what PodLag and HalfProgrammed count from: the same Pod with
// another address is another one.
type podAddress struct {
	uid types.UID
	ip  string
}

func addressOf(p *corev1.Pod) podAddress { return podAddress{p.UID, p.Status.PodIP} }

// startWatch waits for the node object and for the first lists. It ends with
// the context.
func startWatch(ctx context.Context, client kubernetes.Interface, node string, c clock.Clock, event func()) (*watch, error) {
	w := &watch{clock: c, event: event, known: map[podAddress]time.Time{}}
	if err := w.readNode(ctx, client, node); err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	w.pods = factory.Core().V1().Pods().Lister()
	w.namespaces = factory.Core().V1().Namespaces().Lister()
	w.policies = factory.Networking().V1().NetworkPolicies().Lister()
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		factory.Core().V1().Pods().Informer():                  w.podHandler(),
		factory.Core().V1().Namespaces().Informer():            w.namespaceHandler(),
		factory.Networking().V1().NetworkPolicies().Informer(): w.policyHandler(),
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("watch: %w", err)
		}
	}
	factory.StartWithContext(ctx)
	for _, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return nil, errNoSync
		}
	}
	return w, nil
}

// readNode waits for the node to register. Like kube-router it reads the
// addresses once.
func (w *watch) readNode(ctx context.Context, client kubernetes.Interface, name string) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, time.Second, true, func(ctx context.Context) (bool, error) {
		node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if last = err; err != nil {
			return false, nil //nolint:nilerr // the node may not have registered yet; last tells what it waited for
		}
		for _, a := range node.Status.Addresses {
			if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
				w.nodeIPs = append(w.nodeIPs, a.Address)
			}
		}
		return len(w.nodeIPs) > 0, nil
	})
	if err != nil {
		return fmt.Errorf("addresses of node %s: %w", name, errors.Join(err, last))
	}
	return nil
}

func (w *watch) podHandler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			p, ok := o.(*corev1.Pod)
			if ok && rules.Actionable(p) {
				w.learn(p)
				w.event()
			}
		},
		UpdateFunc: func(before, after any) {
			a, okA := before.(*corev1.Pod)
			b, okB := after.(*corev1.Pod)
			if okA && okB && podChanged(a, b) {
				w.learn(b)
				w.event()
			}
		},
		DeleteFunc: func(any) { w.event() },
	}
}

func podChanged(a, b *corev1.Pod) bool {
	return a.UID != b.UID || a.Status.Phase != b.Status.Phase || a.Status.PodIP != b.Status.PodIP ||
		!slices.Equal(a.Status.PodIPs, b.Status.PodIPs) || a.Status.HostIP != b.Status.HostIP ||
		!maps.Equal(a.Labels, b.Labels)
}

func (w *watch) namespaceHandler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { w.event() },
		DeleteFunc: func(any) { w.event() },
		UpdateFunc: func(before, after any) {
			a, okA := before.(*corev1.Namespace)
			b, okB := after.(*corev1.Namespace)
			if okA && okB && !maps.Equal(a.Labels, b.Labels) {
				w.event()
			}
		},
	}
}

func (w *watch) policyHandler() cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { w.event() },
		DeleteFunc: func(any) { w.event() },
		UpdateFunc: func(_, after any) {
			if _, ok := after.(*networkingv1.NetworkPolicy); ok {
				w.event()
			}
		},
	}
}

func (w *watch) learn(p *corev1.Pod) {
	if p.Status.PodIP == "" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.known[addressOf(p)]; !ok {
		w.known[addressOf(p)] = w.clock.Now()
	}
}

// snapshot is the state of the watches at one moment.
type snapshot struct {
	taken time.Time
	input rules.Input
	// next is when the next Pod that was left out because of its lag is to be
	// seen. Zero means that none was.
	next time.Time
}

// snapshot reads the watches. The objects in it are shared with them.
func (w *watch) snapshot(podLag time.Duration) (snapshot, error) {
	s := snapshot{taken: w.clock.Now(), input: rules.Input{NodeAddresses: w.nodeIPs}}
	// The lists are not of one moment, as they are not in kube-router.
	policies, err := w.policies.List(labels.Everything())
	if err != nil {
		return snapshot{}, fmt.Errorf("list policies: %w", err)
	}
	namespaces, err := w.namespaces.List(labels.Everything())
	if err != nil {
		return snapshot{}, fmt.Errorf("list namespaces: %w", err)
	}
	pods, err := w.pods.List(labels.Everything())
	if err != nil {
		return snapshot{}, fmt.Errorf("list pods: %w", err)
	}
	s.input.Policies, s.input.Namespaces = policies, namespaces

	w.mu.Lock()
	defer w.mu.Unlock()
	live := map[podAddress]time.Time{}
	for _, p := range pods {
		if p.Status.PodIP == "" {
			continue
		}
		since, ok := w.known[addressOf(p)]
		if !ok {
			// The store is ahead of the handler.
			since = s.taken
		}
		live[addressOf(p)] = since
		if due := since.Add(podLag); due.After(s.taken) {
			if s.next.IsZero() || due.Before(s.next) {
				s.next = due
			}
			continue
		}
		s.input.Pods = append(s.input.Pods, p)
	}
	w.known = live
	return s, nil
}
