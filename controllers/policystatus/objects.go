// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"context"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/policygate/policygate/api/v1alpha1"
)

// fieldOwner is what the API server notes beside each field that is written.
const fieldOwner = client.FieldOwner("policygate-manager")

// Keeps an object per NetworkPolicy that says whether it is in force, and
// removes one whose policy is gone without the garbage collector's noticing.
// +kubebuilder:rbac:groups=policygate.io,resources=policystatuses,verbs=list;watch;create;delete,roleName=policygate-manager

// Says whether a policy is in force.
// +kubebuilder:rbac:groups=policygate.io,resources=policystatuses/status,verbs=update,roleName=policygate-manager

// APIObjects is a client as Statuses consumes it. Its scheme has the kinds of
// package v1alpha1.
type APIObjects struct{ Client client.Client }

var _ Objects = APIObjects{}

// Create implements Objects.
func (a APIObjects) Create(ctx context.Context, o *v1alpha1.PolicyStatus) (*v1alpha1.PolicyStatus, error) {
	if err := a.Client.Create(ctx, o, fieldOwner); err != nil {
		return nil, err
	}
	return o, nil
}

// UpdateStatus implements Objects.
func (a APIObjects) UpdateStatus(ctx context.Context, o *v1alpha1.PolicyStatus) (*v1alpha1.PolicyStatus, error) {
	if err := a.Client.Status().Update(ctx, o, fieldOwner); err != nil {
		return nil, err
	}
	return o, nil
}

// Delete implements Objects.
func (a APIObjects) Delete(ctx context.Context, o *v1alpha1.PolicyStatus) error {
	return a.Client.Delete(ctx, &v1alpha1.PolicyStatus{ObjectMeta: o.ObjectMeta}, client.Preconditions{
		UID: new(o.UID), ResourceVersion: new(o.ResourceVersion),
	})
}
