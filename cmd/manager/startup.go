// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/policygate/policygate/controllers/startup"
)

// newStartup adds what removes the start-up taint from nodes, and returns it to
// be told of sessions. Without a taint it does and returns nothing, so that
// nothing in the manager writes to nodes.
func newStartup(ctx context.Context, mgr manager.Manager, o *options, log logr.Logger) (sinks, error) {
	if o.startupTaint == "" {
		return nil, nil
	}
	taints := startup.New(startup.Options{
		Key: o.startupTaint, Nodes: startup.ClientNodes{Client: mgr.GetClient()}, Clock: clock.RealClock{}, Log: log,
	})
	informer, err := mgr.GetCache().GetInformer(ctx, &corev1.Node{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	// A node that is deleted takes its taint along.
	deleted := func(*corev1.Node) {}
	if _, err := informer.AddEventHandler(handler(taints.NodeChanged, deleted)); err != nil {
		return nil, fmt.Errorf("watch nodes: %w", err)
	}
	if err := mgr.Add(taints); err != nil {
		return nil, fmt.Errorf("add to the manager: %w", err)
	}
	return sinks{taints}, nil
}
