// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package barrier

import (
	"context"
	"fmt"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
)

// Lists them consistently before a Pod is released.
// +kubebuilder:rbac:groups=networking.k8s.io,resources=networkpolicies,verbs=list,roleName=policygate-manager

// Lists them consistently before a Pod is released.
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=list,roleName=policygate-manager

// MetadataListers returns a Lister for each kind that asks the API server for
// metadata only.
func MetadataListers(client metadata.Interface) []Lister {
	return []Lister{
		metadataLister{
			kind:     NetworkPolicies,
			resource: schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"},
			client:   client,
		},
		metadataLister{
			kind:     Namespaces,
			resource: schema.GroupVersionResource{Version: "v1", Resource: "namespaces"},
			client:   client,
		},
	}
}

type metadataLister struct {
	kind     Kind
	resource schema.GroupVersionResource
	client   metadata.Interface
}

// Kind implements Lister.
func (l metadataLister) Kind() Kind { return l.kind }

// List leaves the resourceVersion unset, which makes the LIST consistent, and
// sets no limit, which lets the API server answer it from its watch cache once
// that has caught up.
func (l metadataLister) List(ctx context.Context) ([]Version, error) {
	list, err := l.client.Resource(l.resource).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", l.resource.Resource, err)
	}
	if list.GetContinue() != "" {
		return nil, fmt.Errorf("list %s: the answer is cut short though no limit was set", l.resource.Resource)
	}
	versions := make([]Version, 0, len(list.Items))
	for i := range list.Items {
		item := &list.Items[i]
		rv, err := strconv.ParseUint(item.GetResourceVersion(), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s %s/%s: resourceVersion %q: want a decimal number: %w",
				l.kind, item.GetNamespace(), item.GetName(), item.GetResourceVersion(), err)
		}
		versions = append(versions, Version{Kind: l.kind, UID: item.GetUID(), ResourceVersion: rv})
	}
	return versions, nil
}
