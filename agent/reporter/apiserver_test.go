// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package reporter

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/controlplane"
)

// TestAPIServer tries the patch on a real API server, which alone knows what a
// strategic merge patch of a status does and how it refuses another UID.
func TestAPIServer(t *testing.T) {
	config := controlplane.Start(t).Config
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	// The controller that makes it does not run here.
	pods := client.CoreV1().Pods(metav1.NamespaceDefault)
	created, err := pods.Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:        "backup",
			Labels:      map[string]string{"app": "backup"},
			Annotations: map[string]string{"team": "db"},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: new(bool),
			Containers:                   []corev1.Container{{Name: "main", Image: "example.org/main"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create the Pod: %v", err)
	}
	created.Status.Conditions = append(created.Status.Conditions,
		corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: "ReadinessGatesNotReady"},
		corev1.PodCondition{Type: v1alpha1.ConditionProgrammed, Status: corev1.ConditionFalse, Reason: v1alpha1.ReasonWaiting, Message: "n2"})
	before, err := pods.UpdateStatus(t.Context(), created, metav1.UpdateOptions{})
	if err != nil {
		t.Fatalf("set the Pod's conditions: %v", err)
	}
	opening := func(uid string) []byte {
		r := release()
		r.Subject = &hubv1.Subject{
			Uid: uid, Namespace: before.Namespace, Name: before.Name, Ips: []string{"10.0.0.5"}, Generation: before.Generation,
		}
		patch, _, err := patchOf(r, v1alpha1.ConditionProgrammed, "b-1", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return patch
	}
	patch := func(body []byte) outcome {
		err := ClientPods(client.CoreV1().RESTClient()).PatchStatus(t.Context(), before.Namespace, before.Name, body)
		t.Logf("patch: %v", err)
		return outcomeOf(err)
	}
	read := func() *corev1.Pod {
		pod, err := pods.Get(t.Context(), before.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}

	if got := patch(opening("another-uid")); got != gone {
		t.Errorf("another UID: %v, want %v", got, gone)
	}
	if diff := cmp.Diff(before, read()); diff != "" {
		t.Errorf("after another UID's patch (-want +got):\n%s", diff)
	}

	body := opening(string(before.UID))
	if got := patch(body); got != written {
		t.Fatalf("own UID: %v, want %v", got, written)
	}
	after := read()
	if diff := cmp.Diff(before.Labels, after.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	wantAnnotations := map[string]string{"team": "db", v1alpha1.KeyProgrammed: "uid=" + string(before.UID) + ";ips=10.0.0.5;boot=b-1"}
	if diff := cmp.Diff(wantAnnotations, after.Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before.Spec, after.Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	conditions := map[corev1.PodConditionType]corev1.PodCondition{}
	for _, c := range after.Status.Conditions {
		conditions[c.Type] = c
	}
	ours := conditions[v1alpha1.ConditionProgrammed]
	if ours.Status != corev1.ConditionTrue || ours.Reason != v1alpha1.ReasonConfirmed || ours.ObservedGeneration != before.Generation {
		t.Errorf("our condition is %v", ours)
	}
	if len(after.Status.Conditions) != len(before.Status.Conditions) || conditions[corev1.PodReady].Status != corev1.ConditionFalse {
		t.Errorf("conditions are %v, want the others untouched", after.Status.Conditions)
	}

	if got := patch(body); got != written {
		t.Errorf("the same again: %v, want %v", got, written)
	}
	if again := read(); again.ResourceVersion != after.ResourceVersion {
		t.Errorf("the same again was written: resourceVersion %s, then %s", after.ResourceVersion, again.ResourceVersion)
	}
	if err := pods.Delete(t.Context(), before.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	if got := patch(body); got != gone {
		t.Errorf("a Pod that is deleted: %v, want %v", got, gone)
	}
}
