// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package startup

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// fieldManager names the writer in managedFields.
const fieldManager = "policygate-manager"

// Removes the start-up taint. The admission policy policygate-node-writers
// forbids it everything else.
// +kubebuilder:rbac:groups="",resources=nodes,verbs=patch,roleName=policygate-manager-startup-taint

// ClientNodes are the Nodes of a client, whose reads may come from a cache.
type ClientNodes struct{ Client client.Client }

// Node implements Nodes.
func (c ClientNodes) Node(ctx context.Context, name string) (*corev1.Node, error) {
	var n corev1.Node
	if err := c.Client.Get(ctx, types.NamespacedName{Name: name}, &n); err != nil {
		return nil, err
	}
	return &n, nil
}

// Patch implements Nodes.
func (c ClientNodes) Patch(ctx context.Context, name string, patch []byte) error {
	return c.Client.Patch(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}},
		client.RawPatch(types.JSONPatchType, patch), client.FieldOwner(fieldManager))
}
