// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
)

// decode returns a Pod as a watch gives it: nothing of it is shared.
func decode(t testing.TB, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	text, err := p.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	out := &corev1.Pod{}
	if err := out.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	return out
}

func sharedTrim(t testing.TB, s *sharing, p *corev1.Pod) *corev1.Pod {
	t.Helper()
	got, err := s.trim(decode(t, p))
	if err != nil {
		t.Fatal(err)
	}
	return got.(*corev1.Pod)
}

func TestSharing(t *testing.T) {
	sameMap := func(a, b map[string]string) bool { return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() }
	sameText := func(a, b string) bool { return unsafe.StringData(a) == unsafe.StringData(b) }
	base := realisticPod(0)
	for name, tc := range map[string]struct {
		change func(p *corev1.Pod)
		// what of the changed Pod is held once
		labels, containers, node, uid, addresses bool
	}{
		"the same Pod at another version": {
			func(p *corev1.Pod) { p.ResourceVersion = "8" }, true, true, true, true, true,
		},
		"the same Pod with another address": {
			func(p *corev1.Pod) { p.Status.PodIPs[0].IP = "10.9.9.9" }, true, true, true, true, false,
		},
		"another Pod of the workload on the same node": {
			func(p *corev1.Pod) { p.UID, p.Name = "other", "other" }, true, true, true, false, false,
		},
		"another Pod of the workload elsewhere": {
			func(p *corev1.Pod) { p.UID, p.Spec.NodeName = "other", "elsewhere" }, true, true, false, false, false,
		},
		"a Pod with another label": {
			func(p *corev1.Pod) { p.UID, p.Labels["app"] = "other", "other" }, false, true, true, false, false,
		},
		"a Pod with another port": {
			func(p *corev1.Pod) { p.UID, p.Spec.Containers[0].Ports[0].ContainerPort = "other", 1 }, true, false, true, false, false,
		},
		"a Pod of another namespace": {
			func(p *corev1.Pod) { p.UID, p.Namespace = "other", "other" }, false, true, true, false, false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSharing()
			first := sharedTrim(t, s, base)
			changed := base.DeepCopy()
			tc.change(changed)
			second := sharedTrim(t, s, changed)
			want, err := trim(decode(t, changed))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, second); diff != "" {
				t.Errorf("shared (-trimmed +got):\n%s", diff)
			}
			for what, held := range map[string][2]bool{
				"labels":     {sameMap(first.Labels, second.Labels), tc.labels},
				"containers": {&first.Spec.Containers[0] == &second.Spec.Containers[0], tc.containers},
				"node":       {sameText(first.Spec.NodeName, second.Spec.NodeName), tc.node},
				"uid":        {sameText(string(first.UID), string(second.UID)), tc.uid},
				"addresses":  {&first.Status.PodIPs[0] == &second.Status.PodIPs[0], tc.addresses},
			} {
				if held[0] != held[1] {
					t.Errorf("%s held once: %v, want %v", what, held[0], held[1])
				}
			}
		})
	}
}

func TestSharingKeepsNothingAlive(t *testing.T) {
	s := newSharing()
	for i := range 10 * sweepFirst {
		p := realisticPod(i)
		p.Labels["pod"] = p.Name // no two are alike
		sharedTrim(t, s, p)
		if i%sweepFirst == 0 {
			runtime.GC()
		}
	}
	if n := len(s.byUID.pods); n > 4*sweepFirst {
		t.Errorf("%d Pods are remembered, want no more than a few sweeps' worth: none is alive", n)
	}
}

func TestSharingFromManyGoroutines(t *testing.T) {
	s := newSharing()
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				if p := sharedTrim(t, s, realisticPod(i)); p.Name != fmt.Sprintf("shop-7d9c5b8f6d-%05d", i) {
					t.Errorf("goroutine %d: pod %d came out as %s", g, i, p.Name)
				}
			}
		})
	}
	wg.Wait()
}

// realisticPod is the i-th Pod of a cluster in which 25 Pods make a workload
// and 50 run on a node.
func realisticPod(i int) *corev1.Pod {
	workload, node := i/25, i%1000
	now := metav1.NewTime(time.Unix(1_700_000_000+int64(i), 0))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprintf("team-%03d", workload/20), Name: fmt.Sprintf("shop-7d9c5b8f6d-%05d", i),
			GenerateName: "shop-7d9c5b8f6d-",
			UID:          types.UID(fmt.Sprintf("7c9e6679-7425-40de-944b-%012d", i)), ResourceVersion: fmt.Sprint(100000 + i), Generation: 1,
			CreationTimestamp: now,
			Labels:            map[string]string{"app": fmt.Sprintf("shop-%d", workload), "pod-template-hash": "7d9c5b8f6d"},
			Annotations: map[string]string{
				v1alpha1.KeyProgrammed:              fmt.Sprintf("uid=7c9e6679-7425-40de-944b-%012d;ips=10.1.2.3;boot=0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0", i),
				"kubectl.kubernetes.io/restartedAt": "2026-01-01T00:00:00Z", "prometheus.io/scrape": "true",
			},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "shop-7d9c5b8f6d", UID: "0f1e2d3c"}},
		},
		Spec: corev1.PodSpec{
			NodeName: fmt.Sprintf("node-%04d.example.internal", node), ServiceAccountName: "shop", SchedulerName: "default-scheduler",
			ReadinessGates: []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}},
			Tolerations: []corev1.Toleration{
				{Key: "node.kubernetes.io/not-ready", Operator: "Exists", Effect: "NoExecute"},
				{Key: "node.kubernetes.io/unreachable", Operator: "Exists", Effect: "NoExecute"},
			},
		},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: "192.0.2.1", PodIP: address(i), PodIPs: []corev1.PodIP{{IP: address(i)}}, StartTime: &now, QOSClass: "Burstable",
		},
	}
	for l := range 8 {
		p.Labels[fmt.Sprintf("app.kubernetes.io/label-%d", l)] = fmt.Sprintf("value-%d-of-workload-%d", l, workload)
	}
	for v := range 4 {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: fmt.Sprintf("volume-%d", v), VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: fmt.Sprintf("config-%d", v)}},
		}})
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady, v1alpha1.ConditionProgrammed} {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: kind, Status: "True", LastTransitionTime: now})
	}
	for c, name := range []string{"app", "proxy"} {
		p.Spec.Containers = append(p.Spec.Containers, realisticContainer(name, 8080+int32(c)))
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: name, Image: "registry.example.com/shop/" + name + ":1.2.3", ImageID: "sha256:" + strings.Repeat("ab", 32),
			ContainerID: "containerd://" + strings.Repeat("cd", 32), Ready: true,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
		})
	}
	p.Spec.InitContainers = []corev1.Container{{Name: v1alpha1.HoldContainerName, Image: "policygate", Command: []string{"/hold"}}}
	p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
		Name: v1alpha1.HoldContainerName, Ready: true,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{StartedAt: now, FinishedAt: now}},
	}}
	for _, manager := range []string{"kube-controller-manager", "kubelet"} {
		p.ManagedFields = append(p.ManagedFields, metav1.ManagedFieldsEntry{
			Manager: manager, Operation: "Update", APIVersion: "v1", Time: &now, FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(strings.Repeat(`{"f:metadata":{"f:labels":{".":{},"f:app":{}}}},`, 24)),
		})
	}
	return p
}

func address(i int) string { return fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255) }

func realisticContainer(name string, port int32) corev1.Container {
	c := corev1.Container{
		Name: name, Image: "registry.example.com/shop/" + name + ":1.2.3", Command: []string{"/bin/" + name},
		Ports: []corev1.ContainerPort{{Name: name, ContainerPort: port, Protocol: "TCP"}},
		Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi"),
		}},
		LivenessProbe:  &corev1.Probe{PeriodSeconds: 10},
		ReadinessProbe: &corev1.Probe{PeriodSeconds: 5},
	}
	for e := range 12 {
		c.Env = append(c.Env, corev1.EnvVar{Name: fmt.Sprintf("SETTING_NUMBER_%d", e), Value: "a value of some length"})
	}
	for v := range 4 {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: fmt.Sprintf("volume-%d", v), MountPath: fmt.Sprintf("/etc/volume-%d", v)})
	}
	return c
}

// BenchmarkPodMemory is what a Pod takes in the cache, and in the index beside
// it, at 50,000 Pods of 2,000 workloads on 1,000 nodes: as decoded, trimmed, and
// trimmed and shared. Each Pod comes twice, as its status changes.
func BenchmarkPodMemory(b *testing.B) {
	const count, versions = 50_000, 2
	raw := func(obj any) (any, error) { return obj, nil }
	for _, tc := range []struct {
		name      string
		transform func(any) (any, error)
	}{{"whole", raw}, {"trimmed", trim}, {"shared", newSharing().trim}} {
		b.Run(tc.name, func(b *testing.B) {
			for b.Loop() {
				before := heap()
				var manager struct {
					cached []*corev1.Pod
					index  *coverage.Index
				}
				manager.cached = make([]*corev1.Pod, count)
				manager.index = coverage.New(coverage.DefaultOptions())
				for version := range versions {
					for i := range manager.cached {
						p := realisticPod(i)
						p.ResourceVersion = fmt.Sprintf("%d%06d", version, i)
						got, err := tc.transform(decode(b, p))
						if err != nil {
							b.Fatal(err)
						}
						manager.cached[i] = got.(*corev1.Pod)
						manager.index.SetPod(manager.cached[i])
					}
				}
				both := heap()
				runtime.KeepAlive(manager.index)
				manager.index = nil
				alone := heap()
				runtime.KeepAlive(&manager)
				b.ReportMetric(float64(alone-before)/count, "cache-bytes/pod")
				b.ReportMetric(float64(both-alone)/count, "index-bytes/pod")
				b.ReportMetric(float64(both-before)/count, "bytes/pod")
			}
		})
	}
}

// heap returns the bytes that are alive.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // what only weak pointers held is gone after the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
