// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// byAddress is the name of the index of Pods and nodes by their addresses.
const byAddress = "address"

// CachedCluster is a Cluster and an Inventory that reads a cache of Pods, nodes
// and namespaces, to which IndexAddresses was applied.
type CachedCluster struct{ Reader client.Reader }

var (
	_ Cluster   = CachedCluster{}
	_ Inventory = CachedCluster{}
)

// IndexAddresses makes a cache find Pods and nodes by their addresses.
func IndexAddresses(ctx context.Context, indexer client.FieldIndexer) error {
	if err := indexer.IndexField(ctx, &corev1.Pod{}, byAddress, addresses); err != nil {
		return fmt.Errorf("index Pods by address: %w", err)
	}
	if err := indexer.IndexField(ctx, &corev1.Node{}, byAddress, addresses); err != nil {
		return fmt.Errorf("index nodes by address: %w", err)
	}
	return nil
}

// addresses returns the addresses of a Pod or a node in their one form.
func addresses(o client.Object) []string {
	var texts []string
	switch o := o.(type) {
	case *corev1.Pod:
		for _, ip := range o.Status.PodIPs {
			texts = append(texts, ip.IP)
		}
	case *corev1.Node:
		for _, a := range o.Status.Addresses {
			texts = append(texts, a.Address)
		}
	}
	var found []string
	for _, text := range texts {
		// A node's names stand among its addresses.
		if addr, err := tracev1.ParseAddr(text); err == nil {
			found = append(found, addr.String())
		}
	}
	return found
}

// Pod implements Cluster.
func (c CachedCluster) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	var pod corev1.Pod
	if err := c.Reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &pod); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return &pod, nil
}

// PodsAt implements Cluster.
func (c CachedCluster) PodsAt(ctx context.Context, addr netip.Addr) ([]corev1.Pod, error) {
	var pods corev1.PodList
	if err := c.Reader.List(ctx, &pods, client.MatchingFields{byAddress: addr.String()}); err != nil {
		return nil, err
	}
	return pods.Items, nil
}

// NodesAt implements Cluster.
func (c CachedCluster) NodesAt(ctx context.Context, addr netip.Addr) ([]string, error) {
	var nodes corev1.NodeList
	if err := c.Reader.List(ctx, &nodes, client.MatchingFields{byAddress: addr.String()}); err != nil {
		return nil, err
	}
	var names []string
	for i := range nodes.Items {
		names = append(names, nodes.Items[i].Name)
	}
	return names, nil
}

// Nodes implements Inventory.
func (c CachedCluster) Nodes(ctx context.Context) ([]corev1.Node, error) {
	var nodes corev1.NodeList
	if err := c.Reader.List(ctx, &nodes); err != nil {
		return nil, err
	}
	return nodes.Items, nil
}

// Namespace implements Inventory.
func (c CachedCluster) Namespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	var namespace corev1.Namespace
	if err := c.Reader.Get(ctx, client.ObjectKey{Name: name}, &namespace); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return &namespace, nil
}
