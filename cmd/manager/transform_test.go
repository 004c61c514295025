// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

func TestTrim(t *testing.T) {
	const gate = v1alpha1.ConditionProgrammed
	now := metav1.NewTime(time.Unix(1000, 0))
	meta := func(trimmed, labels bool) metav1.ObjectMeta {
		m := metav1.ObjectMeta{
			Namespace: "shop", Name: "x", UID: "u", ResourceVersion: "7", Generation: 2,
			CreationTimestamp: now, DeletionTimestamp: &now,
			Annotations: map[string]string{v1alpha1.KeyTimeout: "1m"},
		}
		if labels {
			m.Labels = map[string]string{"app": "x"}
		}
		if !trimmed {
			m.Labels = map[string]string{"app": "x"}
			m.Annotations["other"] = "long"
			m.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
			m.OwnerReferences = []metav1.OwnerReference{{Name: "rs"}}
		}
		return m
	}
	always := corev1.ContainerRestartPolicyAlways
	ports := []corev1.ContainerPort{{Name: "db", ContainerPort: 3306}}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
	cases := map[string]struct{ in, want any }{
		"a Pod keeps what its gate and its peers need": {
			in: &corev1.Pod{
				ObjectMeta: meta(false, true),
				Spec: corev1.PodSpec{
					NodeName: "n1", HostNetwork: true, ServiceAccountName: "default",
					ReadinessGates: []corev1.PodReadinessGate{{ConditionType: gate}},
					Containers: []corev1.Container{
						{Name: "db", Image: "mariadb", Ports: ports, Env: []corev1.EnvVar{{Name: "A"}}},
						{Name: "logs", Image: "fluent"},
					},
					InitContainers: []corev1.Container{{Name: "mesh", Ports: ports, RestartPolicy: &always, Command: []string{"x"}}},
					Volumes:        []corev1.Volume{{Name: "v"}},
				},
				Status: corev1.PodStatus{
					Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
					Conditions: []corev1.PodCondition{{Type: corev1.PodReady}, {Type: gate, Message: "m"}},
					InitContainerStatuses: []corev1.ContainerStatus{
						{Name: "mesh", State: running}, {Name: v1alpha1.HoldContainerName, State: running, Image: "policygate"},
					},
				},
			},
			want: &corev1.Pod{
				ObjectMeta: meta(true, true),
				Spec: corev1.PodSpec{
					NodeName: "n1", HostNetwork: true,
					ReadinessGates: []corev1.PodReadinessGate{{ConditionType: gate}},
					Containers:     []corev1.Container{{Name: "db", Ports: ports}},
					InitContainers: []corev1.Container{{Name: "mesh", Ports: ports, RestartPolicy: &always}},
				},
				Status: corev1.PodStatus{
					Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}},
					Conditions:            []corev1.PodCondition{{Type: gate, Message: "m"}},
					InitContainerStatuses: []corev1.ContainerStatus{{Name: v1alpha1.HoldContainerName, State: running}},
				},
			},
		},
		"a mirror of a static Pod stays one": {
			in: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
				corev1.MirrorPodAnnotationKey: "hash", "kubernetes.io/config.source": "file",
			}}},
			want: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "hash"}}},
		},
		"a Pod for Windows says so in one way": {
			in:   &corev1.Pod{Spec: corev1.PodSpec{NodeSelector: map[string]string{corev1.LabelOSStable: "windows", "disk": "ssd"}}},
			want: &corev1.Pod{Spec: corev1.PodSpec{OS: &corev1.PodOS{Name: corev1.Windows}}},
		},
		"one for Linux says nothing of it": {
			in:   &corev1.Pod{Spec: corev1.PodSpec{OS: &corev1.PodOS{Name: corev1.Linux}}},
			want: &corev1.Pod{},
		},
		"a Node keeps its addresses, boot, readiness and taints": {
			in: &corev1.Node{
				ObjectMeta: meta(false, false),
				Spec:       corev1.NodeSpec{PodCIDR: "10.0.0.0/24", PodCIDRs: []string{"10.0.0.0/24"}, ProviderID: "p", Taints: []corev1.Taint{{Key: "t"}}},
				Status: corev1.NodeStatus{
					Addresses:  []corev1.NodeAddress{{Address: "192.0.2.1"}},
					NodeInfo:   corev1.NodeSystemInfo{BootID: "b", KernelVersion: "6.18", OperatingSystem: "linux"},
					Images:     []corev1.ContainerImage{{Names: []string{"many"}}},
					Conditions: []corev1.NodeCondition{{Type: corev1.NodeDiskPressure}, {Type: corev1.NodeReady, LastHeartbeatTime: now, LastTransitionTime: now}},
				},
			},
			want: &corev1.Node{
				ObjectMeta: meta(true, false),
				Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.0.0.0/24"}, Taints: []corev1.Taint{{Key: "t"}}},
				Status: corev1.NodeStatus{
					Addresses:  []corev1.NodeAddress{{Address: "192.0.2.1"}},
					NodeInfo:   corev1.NodeSystemInfo{BootID: "b", OperatingSystem: "linux"},
					Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, LastTransitionTime: now}},
				},
			},
		},
		"a Namespace keeps its labels and our annotations": {
			in:   &corev1.Namespace{ObjectMeta: meta(false, true)},
			want: &corev1.Namespace{ObjectMeta: meta(true, true)},
		},
		"a NetworkPolicy keeps its whole spec": {
			in: &networkingv1.NetworkPolicy{
				ObjectMeta: meta(false, false),
				Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress"}},
			},
			want: &networkingv1.NetworkPolicy{
				ObjectMeta: meta(true, false),
				Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress"}},
			},
		},
		"a Service keeps its selector and addresses": {
			in: &corev1.Service{
				ObjectMeta: meta(false, true),
				Spec: corev1.ServiceSpec{
					Selector: map[string]string{"app": "x"}, ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"},
					Ports: []corev1.ServicePort{{Port: 80}},
				},
				Status: corev1.ServiceStatus{Conditions: []metav1.Condition{{Type: "x"}}},
			},
			want: &corev1.Service{
				ObjectMeta: meta(true, false),
				Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "x"}, ClusterIPs: []string{"10.96.0.1"}},
			},
		},
		"another kind stays as it is": {
			in:   &corev1.Secret{ObjectMeta: meta(false, true)},
			want: &corev1.Secret{ObjectMeta: meta(false, true)},
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := trim(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("trimmed (-want +got):\n%s", diff)
			}
		})
	}
}
