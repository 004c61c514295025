// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package reporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	// maxMessage bounds the condition's message. It says a few numbers and
	// node names; Kubernetes would take 32 KiB.
	maxMessage = 1024
	// maxReason is the bound of a condition's reason.
	maxReason = 128
	// fieldManager names the writer in managedFields.
	fieldManager = "policygate-agent"
)

// Pods patches statuses of Pods.
type Pods interface {
	// PatchStatus applies a strategic merge patch to the Pod's status
	// subresource. Errors of the API server are those of
	// k8s.io/apimachinery/pkg/api/errors.
	PatchStatus(ctx context.Context, namespace, name string, patch []byte) error
}

// Opens gates: one patch of the condition and the annotation. The admission
// policy policygate-status-writers narrows it to those two, on Pods of the
// agent's own node. Never bind this role without that policy.
// +kubebuilder:rbac:groups="",resources=pods/status,verbs=patch,roleName=policygate-agent

// ClientPods returns Pods of the cluster of coreV1, a client of core/v1. It
// need not know the type of Pods: what the API server returns of one is dropped.
func ClientPods(coreV1 rest.Interface) Pods { return clientPods{coreV1: coreV1} }

type clientPods struct{ coreV1 rest.Interface }

func (p clientPods) PatchStatus(ctx context.Context, namespace, name string, patch []byte) error {
	return p.coreV1.Patch(types.StrategicMergePatchType).
		Namespace(namespace).Resource("pods").Name(name).SubResource("status").
		VersionedParams(&metav1.PatchOptions{FieldManager: fieldManager}, metav1.ParameterCodec).
		Body(patch).Do(ctx).Error()
}

// statusPatch is the patch. Maps and structs of just these fields, because
// the types of the API write zero values of others.
type statusPatch struct {
	Metadata struct {
		// UID is not a change but a precondition.
		UID         string            `json:"uid"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Status struct {
		// Conditions are merged by their type.
		Conditions []condition `json:"conditions"`
	} `json:"status"`
}

type condition struct {
	Type               corev1.PodConditionType `json:"type"`
	Status             corev1.ConditionStatus  `json:"status"`
	Reason             string                  `json:"reason"`
	Message            string                  `json:"message"`
	LastTransitionTime metav1.Time             `json:"lastTransitionTime"`
	ObservedGeneration int64                   `json:"observedGeneration,omitempty"`
}

// gate is what a release opens: one of several replicas' releases for the same
// gate is enough.
type gate struct {
	identity, reason string
}

// patchOf returns the patch that opens the gate of r's subject. It returns an
// error that names what r lacks.
func patchOf(r *hubv1.Release, conditionType corev1.PodConditionType, bootID string, now time.Time) ([]byte, gate, error) {
	subject := r.GetSubject()
	if subject.GetNamespace() == "" || subject.GetName() == "" {
		return nil, gate{}, fmt.Errorf("subject %q in namespace %q: want both names", subject.GetName(), subject.GetNamespace())
	}
	if r.GetReason() == "" {
		return nil, gate{}, errors.New("reason is empty: want one for the condition")
	}
	identity, err := programmed.New(subject.GetUid(), subject.GetIps(), bootID)
	if err != nil {
		return nil, gate{}, err
	}
	var patch statusPatch
	patch.Metadata.UID = subject.GetUid()
	patch.Metadata.Annotations = map[string]string{v1alpha1.KeyProgrammed: identity.Again(r.GetAgain())}
	patch.Status.Conditions = []condition{{
		Type:               conditionType,
		Status:             corev1.ConditionTrue,
		Reason:             printable(r.GetReason(), maxReason),
		Message:            printable(r.GetMessage(), maxMessage),
		LastTransitionTime: metav1.NewTime(now),
		ObservedGeneration: subject.GetGeneration(),
	}}
	data, err := json.Marshal(patch)
	if err != nil {
		return nil, gate{}, fmt.Errorf("marshal patch: %w", err)
	}
	return data, gate{identity: identity.String(), reason: r.GetReason()}, nil
}

// outcome is what became of a patch.
type outcome int

const (
	// failed: worth another try soon.
	failed outcome = iota
	// refused: worth another try only if somebody changes a permission.
	refused
	// gone: there is no such Pod any more.
	gone
	// written: the gate is open.
	written
)

func (o outcome) String() string {
	return [...]string{"failed", "refused", "gone", "written"}[o]
}

// outcomeOf sorts the errors of the API server.
func outcomeOf(err error) outcome {
	var status apierrors.APIStatus
	switch {
	case err == nil:
		return written
	case apierrors.IsNotFound(err):
		return gone
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err), apierrors.IsBadRequest(err):
		return refused
	case !errors.As(err, &status):
		return failed
	}
	s := status.Status()
	if s.Code != http.StatusUnprocessableEntity {
		return failed
	}
	// Another UID is an attempt to change it, which is invalid. So is, by its
	// default reason, what an admission policy refuses.
	if s.Details != nil {
		for _, cause := range s.Details.Causes {
			if cause.Field == "metadata.uid" {
				return gone
			}
		}
	}
	return refused
}

// printable reduces text to printable ASCII of at most limit bytes.
func printable(text string, limit int) string {
	out := make([]byte, 0, min(len(text), limit))
	for _, r := range text {
		if len(out) == limit {
			break
		}
		if r < ' ' || r > '~' {
			r = '?'
		}
		out = append(out, byte(r))
	}
	return string(out)
}
