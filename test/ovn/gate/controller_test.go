// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/policygate/policygate/test/ovn/engine"
)

// controller is kube-ovn-controller: it writes what the API has into the
// northbound database, whenever it is told that something changed.
type controller struct {
	*engine.Engine
	api     client.Client
	changed chan struct{}

	mu  sync.Mutex // guards what follows
	lag func(engine.Step) time.Duration
	// noticed and written count notices, and those that a pass has heard of that
	// has ended.
	noticed, written int
}

// startController runs one until the test's end.
func startController(t *testing.T, api client.Client, northbound engine.Northbound, shape engine.Shape) *controller {
	t.Helper()
	k := &controller{api: api, changed: make(chan struct{}, 1)}
	k.Engine = engine.New(northbound, engine.Options{Shape: shape, Lag: func(s engine.Step) time.Duration {
		k.mu.Lock()
		lag := k.lag
		k.mu.Unlock()
		if lag == nil {
			return 0
		}
		return lag(s)
	}})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-k.changed:
			}
			k.mu.Lock()
			noticed := k.noticed
			k.mu.Unlock()
			if err := k.reconcile(ctx); err != nil && ctx.Err() == nil {
				t.Errorf("kube-ovn-controller: %v", err)
			}
			k.mu.Lock()
			k.written = noticed
			k.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return k
}

// notice has everything written again, at least once from now on.
func (k *controller) notice() {
	k.mu.Lock()
	k.noticed++
	k.mu.Unlock()
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// rests reports whether all that it was told of is written.
func (k *controller) rests() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.written == k.noticed
}

// delay has every step wait from now on; nil ends it.
func (k *controller) delay(lag func(engine.Step) time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lag = lag
}

// freezeBefore freezes the queue when it comes to a step that is so.
func (k *controller) freezeBefore(so func(engine.Step) bool) {
	k.delay(func(s engine.Step) time.Duration {
		if so(s) {
			k.Freeze()
		}
		return 0
	})
}

// thaw lets the queue move, whatever held it.
func (k *controller) thaw() {
	k.delay(nil)
	k.Thaw()
}

func (k *controller) reconcile(ctx context.Context) error {
	var policies networkingv1.NetworkPolicyList
	var pods corev1.PodList
	var namespaces corev1.NamespaceList
	var services corev1.ServiceList
	var nodes corev1.NodeList
	for _, list := range []client.ObjectList{&policies, &pods, &namespaces, &services, &nodes} {
		if err := k.api.List(ctx, list); err != nil {
			return fmt.Errorf("list: %w", err)
		}
	}
	return k.Sync(ctx, engine.Cluster{
		Policies: pointers(policies.Items), Pods: pointers(pods.Items), Namespaces: pointers(namespaces.Items),
		Services: pointers(services.Items), Nodes: pointers(nodes.Items),
	})
}

func pointers[T any](items []T) []*T {
	all := make([]*T, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}
