// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kubeovn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// read decodes the first document of a file that has no directives of kustomize
// in it, or in which unknown fields may be.
func read(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	document, _, _ := strings.Cut(string(text), "\n---\n")
	if err := yaml.Unmarshal([]byte(document), into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// hostPaths returns the directories and files of the node that a Pod gets.
func hostPaths(p *corev1.PodSpec) []string {
	var out []string
	for _, v := range p.Volumes {
		if v.HostPath != nil {
			out = append(out, v.HostPath.Path)
		}
	}
	return out
}

func TestTheAgentOfANodeWithOVN(t *testing.T) {
	for name, tc := range map[string]struct {
		file         string
		user         int64
		nonRoot      bool
		capabilities []corev1.Capability
		paths        []string
	}{
		"has no capability and one directory of its node": {
			file: "agent.yaml", user: 65534, nonRoot: true, paths: []string{"/run/openvswitch"},
		},
		"is root with two where netfilter enforces as well": {
			file: filepath.Join("mixed-nodes", "agent.yaml"), capabilities: []corev1.Capability{"NET_ADMIN", "DAC_OVERRIDE"},
			paths: []string{"/run/xtables.lock"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var d appsv1.DaemonSet
			read(t, tc.file, &d)
			agent := d.Spec.Template.Spec.Containers[0]
			s := agent.SecurityContext
			if *s.RunAsUser != tc.user || *s.RunAsGroup != tc.user || *s.RunAsNonRoot != tc.nonRoot {
				t.Errorf("runs as %d:%d, not root %v; want %d, %v", *s.RunAsUser, *s.RunAsGroup, *s.RunAsNonRoot, tc.user, tc.nonRoot)
			}
			if diff := cmp.Diff(&corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: tc.capabilities}, s.Capabilities); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.paths, hostPaths(&d.Spec.Template.Spec)); diff != "" {
				t.Errorf("of the node (-want +got):\n%s", diff)
			}
			for _, m := range agent.VolumeMounts {
				if m.Name != "" && !m.ReadOnly {
					t.Errorf("%s is mounted for writing", m.MountPath)
				}
			}
		})
	}
}

func TestTheNorthboundDeploymentIsRestricted(t *testing.T) {
	var d appsv1.Deployment
	read(t, "deployment.yaml", &d)
	pod := &d.Spec.Template.Spec
	if pod.HostNetwork || pod.HostPID || pod.HostIPC || len(hostPaths(pod)) > 0 {
		t.Error("it has something of its node")
	}
	if s := pod.SecurityContext; !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%+v: want not root, and the runtime's seccomp profile", s)
	}
	for _, c := range pod.Containers {
		s := c.SecurityContext
		if *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || len(s.Capabilities.Add) > 0 ||
			!cmp.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: %+v", c.Name, s)
		}
	}
	// Two would end each other's sessions in turn.
	if *d.Spec.Replicas != 1 || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		t.Errorf("%d replicas, replaced by %s; want one, by Recreate", *d.Spec.Replicas, d.Spec.Strategy.Type)
	}
	var account corev1.ServiceAccount
	read(t, "service_account.yaml", &account)
	if account.Name != pod.ServiceAccountName || d.Name != account.Name {
		t.Errorf("Deployment %s runs as %s, the account is %s", d.Name, pod.ServiceAccountName, account.Name)
	}
}

func TestPrometheusReachesTheNorthboundDeployment(t *testing.T) {
	var d appsv1.Deployment
	read(t, "deployment.yaml", &d)
	var policy networkingv1.NetworkPolicy
	read(t, filepath.Join("prometheus", "networkpolicy.yaml"), &policy)
	var monitor struct {
		Spec struct {
			Selector            metav1.LabelSelector `json:"selector"`
			PodMetricsEndpoints []struct {
				Port string `json:"port"`
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	read(t, filepath.Join("prometheus", "monitor.yaml"), &monitor)
	port := d.Spec.Template.Spec.Containers[0].Ports[0]
	if got := policy.Spec.Ingress[0].Ports[0]; got.Port.IntVal != port.ContainerPort || *got.Protocol != corev1.ProtocolTCP {
		t.Errorf("the policy opens %s %s, the metrics are at %d", *got.Protocol, got.Port, port.ContainerPort)
	}
	if got := monitor.Spec.PodMetricsEndpoints[0].Port; got != port.Name {
		t.Errorf("scraped is port %q, the Deployment has %q", got, port.Name)
	}
	labels := d.Spec.Template.Labels
	if diff := cmp.Diff(labels, monitor.Spec.Selector.MatchLabels); diff != "" {
		t.Errorf("selected for scraping (-labels +selector):\n%s", diff)
	}
	if diff := cmp.Diff(labels, policy.Spec.PodSelector.MatchLabels); diff != "" {
		t.Errorf("selected by the policy (-labels +selector):\n%s", diff)
	}
}

func TestTheNorthboundAccountReadsWhereTheHubIsAndNothingElse(t *testing.T) {
	var role rbacv1.Role
	read(t, "role.yaml", &role)
	want := []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"policygate-ca"}, Verbs: []string{"list", "watch"}},
		{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}},
	}
	if diff := cmp.Diff(want, role.Rules); diff != "" || role.Namespace != "policygate-system" {
		t.Errorf("role in %q (-want +got):\n%s", role.Namespace, diff)
	}
}
