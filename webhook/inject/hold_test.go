// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/policygate/policygate/api/v1alpha1"
)

func resourceList(cpu, memory, cpuLimit, memoryLimit string) corev1.ResourceRequirements {
	list := func(cpu, memory string) corev1.ResourceList {
		out := corev1.ResourceList{}
		if cpu != "" {
			out[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			out[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		if len(out) == 0 {
			return nil
		}
		return out
	}
	return corev1.ResourceRequirements{Requests: list(cpu, memory), Limits: list(cpuLimit, memoryLimit)}
}

// qosClass is the rule of the Kubernetes documentation, over init and app
// containers alike.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	guaranteed, some := true, false
	containers := append(append([]corev1.Container{}, pod.Spec.InitContainers...), pod.Spec.Containers...)
	for i := range containers {
		r := containers[i].Resources
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			some = some || !request.IsZero() || !limit.IsZero()
			guaranteed = guaranteed && !limit.IsZero() && request.Cmp(limit) == 0
		}
	}
	switch {
	case !some:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

func TestHoldKeepsTheQOSClass(t *testing.T) {
	tests := map[string]struct {
		containers []corev1.ResourceRequirements
		want       corev1.PodQOSClass
	}{
		"no requests at all": {
			containers: []corev1.ResourceRequirements{{}, {}},
			want:       corev1.PodQOSBestEffort,
		},
		"limits equal to requests everywhere": {
			containers: []corev1.ResourceRequirements{
				resourceList("1", "1Gi", "1", "1Gi"), resourceList("100m", "64Mi", "100m", "64Mi"),
			},
			want: corev1.PodQOSGuaranteed,
		},
		"requests below limits": {
			containers: []corev1.ResourceRequirements{resourceList("100m", "64Mi", "1", "64Mi")},
			want:       corev1.PodQOSBurstable,
		},
		"the first container guaranteed, the second not": {
			containers: []corev1.ResourceRequirements{resourceList("1", "1Gi", "1", "1Gi"), {}},
			want:       corev1.PodQOSBurstable,
		},
		"the first container without requests, the second guaranteed": {
			containers: []corev1.ResourceRequirements{{}, resourceList("1", "1Gi", "1", "1Gi")},
			want:       corev1.PodQOSBurstable,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			pod := jobPod(func(p *corev1.Pod) {
				p.Spec.Containers = nil
				for _, r := range tc.containers {
					p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Resources: r})
				}
			})
			if got := qosClass(pod); got != tc.want {
				t.Fatalf("QoS class before = %s, want %s", got, tc.want)
			}
			if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
				t.Fatalf("Pod: %v", errs.ToAggregate())
			}
			if got := qosClass(pod); got != tc.want {
				t.Errorf("QoS class after = %s, want %s", got, tc.want)
			}
			if diff := cmp.Diff(tc.containers[0], pod.Spec.InitContainers[0].Resources); diff != "" {
				t.Errorf("resources of the hold (-first app container +hold):\n%s", diff)
			}
		})
	}
}

func TestHoldDoesNotShareTheAppContainersResources(t *testing.T) {
	pod := jobPod(func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources = resourceList("1", "1Gi", "", "")
		p.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "gpu"}}
	})
	if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
		t.Fatalf("Pod: %v", errs.ToAggregate())
	}
	hold := pod.Spec.InitContainers[0]
	if hold.Resources.Claims != nil {
		t.Errorf("claims of the hold = %v, want none", hold.Resources.Claims)
	}
	hold.Resources.Requests[corev1.ResourceCPU] = resource.MustParse("2")
	if got := pod.Spec.Containers[0].Resources.Requests.Cpu().String(); got != "1" {
		t.Errorf("a change of the hold's request changed the app container's to %s", got)
	}
}

func TestHoldOfAPodWithoutContainers(t *testing.T) {
	pod := jobPod(func(p *corev1.Pod) { p.Spec.Containers = nil })
	if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
		t.Fatalf("Pod: %v, want the API server's validation to refuse it", errs.ToAggregate())
	}
}

func TestHoldPassesPodSecurityRestricted(t *testing.T) {
	restricted := corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		ReadOnlyRootFilesystem:   new(true),
		RunAsNonRoot:             new(true),
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	tests := map[string]struct {
		pod      *corev1.PodSecurityContext
		wantUser *int64
	}{
		"a pod that says nothing leaves the user to the image": {},
		"a pod that names no user":                             {pod: &corev1.PodSecurityContext{}},
		"a pod's own user holds for the hold too":              {pod: &corev1.PodSecurityContext{RunAsUser: new(int64(1000))}},
		"a pod that runs as root":                              {pod: &corev1.PodSecurityContext{RunAsUser: new(int64(0))}, wantUser: new(int64(65532))},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			pod := jobPod(func(p *corev1.Pod) { p.Spec.SecurityContext = tc.pod })
			if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
				t.Fatalf("Pod: %v", errs.ToAggregate())
			}
			want := restricted
			want.RunAsUser = tc.wantUser
			if diff := cmp.Diff(&want, pod.Spec.InitContainers[0].SecurityContext); diff != "" {
				t.Errorf("security context (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHoldReadsTheAnnotationFromItsVolume(t *testing.T) {
	pod := jobPod()
	if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
		t.Fatalf("Pod: %v", errs.ToAggregate())
	}
	wantVolumes := []corev1.Volume{{
		Name: "policygate-programmed",
		VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			DefaultMode: new(int32(0o644)),
			Items: []corev1.DownwardAPIVolumeFile{{
				Path: "programmed",
				FieldRef: &corev1.ObjectFieldSelector{
					APIVersion: "v1", FieldPath: "metadata.annotations['policygate.io/programmed']",
				},
			}},
		}},
	}}
	if diff := cmp.Diff(wantVolumes, pod.Spec.Volumes); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
	hold := pod.Spec.InitContainers[0]
	wantMounts := []corev1.VolumeMount{{Name: "policygate-programmed", MountPath: "/run/policygate", ReadOnly: true}}
	if diff := cmp.Diff(wantMounts, hold.VolumeMounts); diff != "" {
		t.Errorf("mounts of the hold (-want +got):\n%s", diff)
	}
	if len(pod.Spec.Containers[0].VolumeMounts) != 0 {
		t.Errorf("mounts of the app container = %v, want none", pod.Spec.Containers[0].VolumeMounts)
	}
	wantEnv := map[string]string{"POD_UID": "metadata.uid", "POD_IPS": "status.podIPs"}
	env := map[string]string{}
	for _, e := range hold.Env {
		env[e.Name] = e.ValueFrom.FieldRef.FieldPath
	}
	if diff := cmp.Diff(wantEnv, env); diff != "" {
		t.Errorf("environment of the hold (-want +got):\n%s", diff)
	}
	if hold.Image != options().Image || hold.ImagePullPolicy != corev1.PullIfNotPresent ||
		hold.Name != v1alpha1.HoldContainerName || hold.Command[0] != HoldCommand {
		t.Errorf("hold = %s %s %s %v, want the options' image and policy", hold.Name, hold.Image, hold.ImagePullPolicy, hold.Command)
	}
}
