// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/cmd/kubectl-policygate/doctor"
)

const (
	// webhookName is that of the MutatingWebhookConfiguration, webhookSuffix
	// what the names of its webhooks end in.
	webhookName   = "policygate"
	webhookSuffix = ".inject.policygate.io"
	// webhookRole lets a person read it.
	webhookRole = "policygate-webhook-viewer"
	// deploymentName and daemonSetName are the manager's and the agents'.
	deploymentName = "policygate-manager"
	daemonSetName  = "policygate-agent"
	// trialImage is never pulled.
	trialImage = "registry.k8s.io/pause:3.10"
)

// unread says why something could not be seen, and what would allow it.
func unread(err error, grant string) *doctor.Unread {
	u := &doctor.Unread{Why: err.Error()}
	if apierrors.IsForbidden(err) {
		u.Grant = grant
	}
	return u
}

// seeWebhook reads the MutatingWebhookConfiguration.
func seeWebhook(ctx context.Context, client kubernetes.Interface) doctor.Webhook {
	c, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, webhookName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return doctor.Webhook{}
	case err != nil:
		return doctor.Webhook{Unread: unread(err, "The ClusterRole "+webhookRole+" allows it: ask for it to be bound to you.")}
	}
	w := doctor.Webhook{Found: true}
	for i := range c.Webhooks {
		name := c.Webhooks[i].Name
		w.Entries = append(w.Entries, name)
		if len(c.Webhooks[i].ClientConfig.CABundle) == 0 {
			w.Bare = append(w.Bare, name)
		}
	}
	return w
}

// seeManager reads the manager's Deployment.
func (a *asking) seeManager(ctx context.Context, client kubernetes.Interface) doctor.Workload {
	d, err := client.AppsV1().Deployments(a.installNamespace).Get(ctx, deploymentName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return doctor.Workload{}
	case err != nil:
		return doctor.Workload{Unread: unread(err, sentence(a.grant()))}
	}
	w := doctor.Workload{Found: true, Desired: 1, Ready: d.Status.ReadyReplicas, Current: d.Status.UpdatedReplicas}
	if d.Spec.Replicas != nil {
		w.Desired = *d.Spec.Replicas
	}
	return w
}

// seeAgents reads the agents' DaemonSet.
func (a *asking) seeAgents(ctx context.Context, client kubernetes.Interface) doctor.Workload {
	d, err := client.AppsV1().DaemonSets(a.installNamespace).Get(ctx, daemonSetName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return doctor.Workload{}
	case err != nil:
		return doctor.Workload{Unread: unread(err, sentence(a.grant()))}
	}
	s := d.Status
	return doctor.Workload{Found: true, Desired: s.DesiredNumberScheduled, Ready: s.NumberReady, Current: s.UpdatedNumberScheduled}
}

// tryPod creates a Pod that asks for a gate, as a dry run, to see whether the
// API server reaches the webhook: where it does not, it lets Pods pass ungated
// and says nothing.
func tryPod(ctx context.Context, client kubernetes.Interface, namespace string) doctor.Trial {
	t := doctor.Trial{Namespace: namespace}
	pod, err := client.CoreV1().Pods(namespace).Create(ctx, trialPod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil {
		t.Injected = slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == v1alpha1.HoldContainerName })
		return t
	}
	switch text := err.Error(); {
	case strings.Contains(text, webhookSuffix) && strings.Contains(text, "denied the request"):
		t.Denied = text
	case strings.Contains(text, webhookSuffix) && strings.Contains(text, "failed calling webhook"):
		t.Unreached = text
	case apierrors.IsForbidden(err) && strings.Contains(text, "cannot create resource"):
		t.Unread = &doctor.Unread{Why: text, Grant: fmt.Sprintf(
			"It takes the right to create Pods in namespace %s: choose one where you have it by --namespace.", namespace)}
	default:
		t.Unread = &doctor.Unread{Why: text, Grant: "Choose a namespace that takes a plain Pod by --namespace."}
	}
	return t
}

// trialPod is a Pod that asks for a gate and a hold and that every Pod Security
// level admits.
func trialPod() *corev1.Pod {
	small := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("1m"), corev1.ResourceMemory: resource.MustParse("8Mi"),
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: "policygate-doctor-",
			Annotations:  map[string]string{v1alpha1.KeyInject: v1alpha1.ValueTrue, v1alpha1.KeyHold: v1alpha1.ValueTrue},
		},
		Spec: corev1.PodSpec{
			RestartPolicy:                corev1.RestartPolicyNever,
			AutomountServiceAccountToken: new(false),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), RunAsUser: new(int64(65532)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "trial", Image: trialImage,
				Resources: corev1.ResourceRequirements{Requests: small, Limits: small},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// sentence makes one of words that stand in parentheses elsewhere.
func sentence(words string) string { return strings.ToUpper(words[:1]) + words[1:] + "." }
