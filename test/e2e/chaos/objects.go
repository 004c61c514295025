// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/testbed"
)

const (
	// strangersNamespace holds Pods that no policy concerns, and is not gated.
	strangersNamespace = "chaos-strangers"
	containerName      = "probe"
)

// podSpec describes a Pod of one probe container.
type podSpec struct {
	namespace, name, node, unit string
	role                        Role
	annotations                 map[string]string
	args                        []string
	restart                     corev1.RestartPolicy
}

func (s podSpec) template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{
			Labels:      map[string]string{runLabel: "yes", roleLabel: string(s.role), unitLabel: s.unit},
			Annotations: maps.Clone(s.annotations),
		},
		Spec: corev1.PodSpec{
			RestartPolicy: s.restart,
			NodeSelector:  map[string]string{corev1.LabelHostname: s.node},
			Containers: []corev1.Container{{
				Name: containerName, Image: testbed.ProbeImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: s.args,
			}},
			TerminationGracePeriodSeconds: new(int64(0)),
			AutomountServiceAccountToken:  new(false),
			EnableServiceLinks:            new(false),
		},
	}
}

func (s podSpec) pod() *corev1.Pod {
	t := s.template()
	t.Name, t.Namespace = s.name, s.namespace
	return &corev1.Pod{ObjectMeta: t.ObjectMeta, Spec: t.Spec}
}

// job is a Job of one try: its first dial has to do.
func (s podSpec) job() *batchv1.Job {
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: s.name, Namespace: s.namespace},
		Spec:       batchv1.JobSpec{BackoffLimit: new(int32(0)), Template: s.template()},
	}
}

func (s podSpec) deployment(replicas int32) *appsv1.Deployment {
	t := s.template()
	// Wherever the scheduler likes.
	t.Spec.NodeSelector = nil
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: s.name, Namespace: s.namespace},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Template: t,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{unitLabel: s.unit}},
		},
	}
}

func serves() []string { return []string{"serve", fmt.Sprintf(":%d", servedPort)} }

// newStranger returns a stranger of a node. Kind "a" is who tries to get in,
// "b" whom everybody gets to.
func newStranger(node, kind string) *corev1.Pod {
	return podSpec{
		namespace: strangersNamespace, name: "stranger-" + kind + "-" + node, node: node, unit: kind, role: Stranger,
		args: serves(), restart: corev1.RestartPolicyAlways,
	}.pod()
}

func newNamespace(name string, injected bool) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if injected {
		ns.Labels = map[string]string{v1alpha1.KeyInject: v1alpha1.InjectNamespace}
	}
	return ns
}
