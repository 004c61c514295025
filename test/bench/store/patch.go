// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/json"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// patch is what the manager and the agents write of a Pod.
type patch struct {
	Metadata struct {
		UID             types.UID         `json:"uid"`
		ResourceVersion string            `json:"resourceVersion"`
		Annotations     map[string]string `json:"annotations"`
	} `json:"metadata"`
	Status struct {
		Conditions []corev1.PodCondition `json:"conditions"`
	} `json:"status"`
}

// PatchStatus applies a strategic merge patch to a Pod's status subresource:
// annotations and conditions, with the UID and the resourceVersion as
// preconditions. The errors are the API server's. A patch that changes nothing
// makes no version and tells nobody; changed says so.
func (s *Store) PatchStatus(namespace, name string, data []byte) (changed bool, err error) {
	var in patch
	if err := json.Unmarshal(data, &in); err != nil {
		return false, apierrors.NewBadRequest(fmt.Sprintf("patch of pod %s/%s: %v", namespace, name, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := types.NamespacedName{Namespace: namespace, Name: name}
	p, ok := s.objects[Pods][key].(*corev1.Pod)
	switch {
	case !ok:
		return false, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name)
	case in.Metadata.UID != "" && in.Metadata.UID != p.UID:
		return false, apierrors.NewInvalid(schema.GroupKind{Kind: "Pod"}, name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "uid"), in.Metadata.UID, "field is immutable"),
		})
	case in.Metadata.ResourceVersion != "" && in.Metadata.ResourceVersion != p.ResourceVersion:
		return false, apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, name, fmt.Errorf("the object has been modified"))
	}
	next := p.DeepCopy()
	for key, value := range in.Metadata.Annotations {
		if p.Annotations[key] != value {
			if next.Annotations = maps.Clone(next.Annotations); next.Annotations == nil {
				next.Annotations = map[string]string{}
			}
			next.Annotations[key] = value
			changed = true
		}
	}
	for _, c := range in.Status.Conditions {
		changed = setCondition(&next.Status, c) || changed
	}
	if changed {
		s.put(Pods, key, next)
	}
	return changed, nil
}

// setCondition merges a condition by its type and reports whether it differs.
func setCondition(status *corev1.PodStatus, c corev1.PodCondition) bool {
	for i := range status.Conditions {
		if have := &status.Conditions[i]; have.Type == c.Type {
			same := have.Status == c.Status && have.Reason == c.Reason && have.Message == c.Message &&
				have.ObservedGeneration == c.ObservedGeneration && have.LastTransitionTime.Equal(&c.LastTransitionTime)
			*have = c
			return !same
		}
	}
	status.Conditions = append(status.Conditions, c)
	return true
}
