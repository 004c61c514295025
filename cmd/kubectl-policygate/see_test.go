// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/cmd/kubectl-policygate/doctor"
)

// failing is a clientset of which every request fails.
func failing(err error) *fake.Clientset {
	client := fake.NewClientset()
	client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, err })
	return client
}

func forbidden() error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: "things"}, "x", errors.New("no"))
}

func TestSeeWebhook(t *testing.T) {
	object := &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "policygate"},
		Webhooks: []admissionregistrationv1.MutatingWebhook{
			{Name: "a", ClientConfig: admissionregistrationv1.WebhookClientConfig{CABundle: []byte("x")}}, {Name: "b"},
		},
	}
	for name, tc := range map[string]struct {
		client *fake.Clientset
		want   doctor.Webhook
	}{
		"there":     {fake.NewClientset(object), doctor.Webhook{Found: true, Entries: []string{"a", "b"}, Bare: []string{"b"}}},
		"not there": {fake.NewClientset(), doctor.Webhook{}},
		"no right": {failing(forbidden()), doctor.Webhook{Unread: &doctor.Unread{
			Why: forbidden().Error(), Grant: "The ClusterRole policygate-webhook-viewer allows it: ask for it to be bound to you.",
		}}},
		"down": {failing(errors.New("down")), doctor.Webhook{Unread: &doctor.Unread{Why: "down"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, seeWebhook(t.Context(), tc.client)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestSeeWorkloads(t *testing.T) {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: namespace, Name: name} }
	there := fake.NewClientset(
		&appsv1.Deployment{ObjectMeta: meta("policygate-manager"), Spec: appsv1.DeploymentSpec{Replicas: new(int32(3))},
			Status: appsv1.DeploymentStatus{ReadyReplicas: 2, UpdatedReplicas: 1}},
		&appsv1.DaemonSet{ObjectMeta: meta("policygate-agent"),
			Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 5, NumberReady: 4, UpdatedNumberScheduled: 3}},
	)
	defaulted := fake.NewClientset(&appsv1.Deployment{ObjectMeta: meta("policygate-manager")})
	a := &asking{role: "policygate-doctor-user", installNamespace: namespace}
	refused := doctor.Workload{Unread: &doctor.Unread{
		Why: forbidden().Error(), Grant: "The Role policygate-doctor-user in namespace policygate-system allows it: ask for it to be bound to you.",
	}}
	for name, tc := range map[string]struct {
		got, want doctor.Workload
	}{
		"the manager":              {a.seeManager(t.Context(), there), doctor.Workload{Found: true, Desired: 3, Ready: 2, Current: 1}},
		"the manager by default":   {a.seeManager(t.Context(), defaulted), doctor.Workload{Found: true, Desired: 1}},
		"no manager":               {a.seeManager(t.Context(), fake.NewClientset()), doctor.Workload{}},
		"no right for the manager": {a.seeManager(t.Context(), failing(forbidden())), refused},
		"the agents":               {a.seeAgents(t.Context(), there), doctor.Workload{Found: true, Desired: 5, Ready: 4, Current: 3}},
		"no agents":                {a.seeAgents(t.Context(), fake.NewClientset()), doctor.Workload{}},
		"no right for the agents":  {a.seeAgents(t.Context(), failing(forbidden())), refused},
	} {
		if diff := cmp.Diff(tc.want, tc.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestTryPod(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for name, tc := range map[string]struct {
		inject bool
		err    error
		want   doctor.Trial
	}{
		"a hold":    {inject: true, want: doctor.Trial{Injected: true}},
		"none":      {want: doctor.Trial{}},
		"a denial":  {err: errors.New(`admission webhook "pod.inject.policygate.io" denied the request: no`), want: doctor.Trial{Denied: `admission webhook "pod.inject.policygate.io" denied the request: no`}},
		"no answer": {err: errors.New(`failed calling webhook "namespace.inject.policygate.io": timeout`), want: doctor.Trial{Unreached: `failed calling webhook "namespace.inject.policygate.io": timeout`}},
		"no right": {
			err: apierrors.NewForbidden(pods, "", errors.New(`User "u" cannot create resource "pods" in API group "" in the namespace "shop"`)),
			want: doctor.Trial{Unread: &doctor.Unread{
				Why:   `pods is forbidden: User "u" cannot create resource "pods" in API group "" in the namespace "shop"`,
				Grant: "It takes the right to create Pods in namespace shop: choose one where you have it by --namespace.",
			}},
		},
		"another's refusal": {
			err: apierrors.NewForbidden(pods, "", errors.New("exceeded quota")),
			want: doctor.Trial{Unread: &doctor.Unread{
				Why: "pods is forbidden: exceeded quota", Grant: "Choose a namespace that takes a plain Pod by --namespace.",
			}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
				create := action.(clienttesting.CreateActionImpl)
				if got := create.GetCreateOptions().DryRun; len(got) != 1 || got[0] != metav1.DryRunAll || create.GetNamespace() != "shop" {
					t.Errorf("created in %s with dryRun %v, want a dry run in shop", create.GetNamespace(), got)
				}
				pod := create.GetObject().(*corev1.Pod).DeepCopy()
				if pod.Annotations[v1alpha1.KeyInject] != v1alpha1.ValueTrue {
					t.Error("the Pod does not ask for a gate")
				}
				if tc.inject {
					pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: v1alpha1.HoldContainerName})
				}
				return true, pod, tc.err
			})
			tc.want.Namespace = "shop"
			if diff := cmp.Diff(tc.want, tryPod(t.Context(), client, "shop")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// replies answers for the first replica alone.
type replies struct{}

func (replies) ask(_ context.Context, m manager, _, answer any) error {
	if m.name != "a" {
		return errors.New("down")
	}
	answer.(*explainv1.Diagnosis).Version = "v1"
	return nil
}

func TestEveryReplicaIsAsked(t *testing.T) {
	got := askAll(t.Context(), replies{}, []manager{{name: "a"}, {name: "b"}})
	want := []doctor.Replica{
		{Pod: "a", Diagnosis: &explainv1.Diagnosis{Version: "v1"}},
		{Pod: "b", Unread: &doctor.Unread{Why: "down"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
