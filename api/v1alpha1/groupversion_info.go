// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// What controller-gen reads of the package:
//
// +kubebuilder:object:generate=true
// +groupName=policygate.io
//
// The types that are no part of the API say so themselves.

// GroupVersion is that of the kinds in this package. It is not to be written to.
var GroupVersion = schema.GroupVersion{Group: "policygate.io", Version: "v1alpha1"}

// AddToScheme adds the kinds of this package to s. It returns nil: the error is
// there for the functions that take it along with those of other packages.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &PolicyStatus{}, &PolicyStatusList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
