// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

// options returns valid options.
func options() Options {
	return Options{
		ConditionType: v1alpha1.ConditionProgrammed,
		Image:         "registry.example/policygate:v1",
		PullPolicy:    corev1.PullIfNotPresent,
		Defaults:      v1alpha1.DefaultSettings(),
	}
}

// jobPod returns the Pod of a Job, with one app container, changed by edit.
func jobPod(edit ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever,
		Containers:    []corev1.Container{{Name: "app", Image: "app:1"}},
	}}
	for _, e := range edit {
		e(pod)
	}
	return pod
}

func annotated(pairs ...string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		for i := 0; i < len(pairs); i += 2 {
			pod.Annotations[pairs[i]] = pairs[i+1]
		}
	}
}

func deadline(seconds int64) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Spec.ActiveDeadlineSeconds = &seconds }
}

func restart(p corev1.RestartPolicy) func(*corev1.Pod) {
	return func(pod *corev1.Pod) { pod.Spec.RestartPolicy = p }
}

func inits(names ...string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		for _, n := range names {
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, corev1.Container{Name: n})
		}
	}
}

func containerNames(containers []corev1.Container) []string {
	var names []string
	for i := range containers {
		names = append(names, containers[i].Name)
	}
	return names
}

func TestPodIsLeftAlone(t *testing.T) {
	tests := map[string]func(*corev1.Pod){
		"a hostNetwork pod has the node's address": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"a mirror pod has started already":         annotated(corev1.MirrorPodAnnotationKey, "hash"),
		"a pod for Windows by its os": func(p *corev1.Pod) {
			p.Spec.OS = &corev1.PodOS{Name: corev1.Windows}
		},
		"a pod for Windows by its node selector": func(p *corev1.Pod) {
			p.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "windows"}
		},
		"a pod that opts out": annotated(v1alpha1.KeyInject, "false"),
		"a pod that opts out, though other values are malformed": annotated(
			v1alpha1.KeyInject, "false", v1alpha1.KeyTimeout, "soon"),
		"a hostNetwork pod, whatever it is annotated with": func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			annotated(v1alpha1.KeyInject, "true", v1alpha1.KeyHold, "yes")(p)
		},
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			want := jobPod(edit)
			got := want.DeepCopy()
			if errs := Pod(got, Namespace{Name: "shop"}, options()); len(errs) > 0 {
				t.Fatalf("Pod: %v", errs.ToAggregate())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("pod changed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPodGateAndHold(t *testing.T) {
	tests := map[string]struct {
		pod       *corev1.Pod
		namespace map[string]string
		defaults  func(*v1alpha1.Settings)
		wantInits []string
		// wantArgs are the hold's, if there is to be one.
		wantArgs        []string
		wantAnnotations map[string]string
	}{
		"a job's pod gets gate, hold and what is effective": {
			pod:       jobPod(),
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=1m0s", "-on-timeout=start", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "1m0s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"a pod that restarts always gets the gate only": {
			pod:       jobPod(restart(corev1.RestartPolicyAlways), inits("migrate")),
			wantInits: []string{"migrate"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "1m0s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"an empty restartPolicy is Always": {
			pod: jobPod(restart("")),
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "1m0s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"a pod that restarts on failure is held": {
			pod:       jobPod(restart(corev1.RestartPolicyOnFailure)),
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=1m0s", "-on-timeout=start", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "1m0s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"a pod may ask for a hold and keeps its spelling": {
			pod: jobPod(restart(corev1.RestartPolicyAlways),
				annotated(v1alpha1.KeyHold, "true", v1alpha1.KeyTimeout, "90s", v1alpha1.KeyOnTimeout, "fail")),
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=1m30s", "-on-timeout=fail", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyHold: "true", v1alpha1.KeyTimeout: "90s", v1alpha1.KeyOnTimeout: "fail",
				v1alpha1.KeyScope: "peers",
			},
		},
		"a job's pod may do without a hold": {
			pod: jobPod(annotated(v1alpha1.KeyHold, "false")),
			wantAnnotations: map[string]string{
				v1alpha1.KeyHold: "false", v1alpha1.KeyTimeout: "1m0s", v1alpha1.KeyOnTimeout: "start",
				v1alpha1.KeyScope: "peers",
			},
		},
		"the namespace overrides the cluster and the pod the namespace": {
			pod: jobPod(annotated(v1alpha1.KeyScope, "peers")),
			namespace: map[string]string{
				v1alpha1.KeyScope: "local", v1alpha1.KeyOnTimeout: "fail", v1alpha1.KeyInject: "no concern of ours",
			},
			defaults: func(s *v1alpha1.Settings) {
				s.OnTimeout, s.Timeout = v1alpha1.OnTimeoutStart, 2*time.Minute
			},
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=2m0s", "-on-timeout=fail", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "2m0s", v1alpha1.KeyOnTimeout: "fail",
			},
		},
		"the hold goes before others, sidecars included": {
			pod:       jobPod(inits("istio-init", "istio-proxy"), annotated(v1alpha1.KeyInject, "true")),
			wantInits: []string{"policygate-hold", "istio-init", "istio-proxy"},
			wantArgs:  []string{"-timeout=1m0s", "-on-timeout=start", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyInject: "true",
				v1alpha1.KeyScope:  "peers", v1alpha1.KeyTimeout: "1m0s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"a ready-made annotation is stripped": {
			pod:       jobPod(annotated(v1alpha1.KeyProgrammed, "uid=x;ips=10.0.0.1;boot=y")),
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=1m0s", "-on-timeout=start", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "1m0s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"a default timeout gives way to the pod's deadline": {
			pod:       jobPod(deadline(30)),
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=30s", "-on-timeout=start", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "30s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"a timeout may be as long as the pod's deadline": {
			pod:       jobPod(deadline(30), annotated(v1alpha1.KeyTimeout, "30s")),
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=30s", "-on-timeout=start", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "30s", v1alpha1.KeyOnTimeout: "start",
			},
		},
		"a deadline of centuries does not overflow": {
			pod:       jobPod(deadline(1<<62), annotated(v1alpha1.KeyTimeout, "10m")),
			wantInits: []string{"policygate-hold"},
			wantArgs:  []string{"-timeout=10m0s", "-on-timeout=start", "-file=/run/policygate/programmed"},
			wantAnnotations: map[string]string{
				v1alpha1.KeyScope: "peers", v1alpha1.KeyTimeout: "10m", v1alpha1.KeyOnTimeout: "start",
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := options()
			if tc.defaults != nil {
				tc.defaults(&o.Defaults)
			}
			namespace := Namespace{Name: "shop", Annotations: tc.namespace}
			if errs := Pod(tc.pod, namespace, o); len(errs) > 0 {
				t.Fatalf("Pod: %v", errs.ToAggregate())
			}
			wantGates := []corev1.PodReadinessGate{{ConditionType: "policygate.io/PolicyProgrammed"}}
			if diff := cmp.Diff(wantGates, tc.pod.Spec.ReadinessGates); diff != "" {
				t.Errorf("readiness gates (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantInits, containerNames(tc.pod.Spec.InitContainers)); diff != "" {
				t.Errorf("init containers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantAnnotations, tc.pod.Annotations); diff != "" {
				t.Errorf("annotations (-want +got):\n%s", diff)
			}
			var args []string
			if tc.wantArgs != nil {
				args = tc.pod.Spec.InitContainers[0].Args
			}
			if diff := cmp.Diff(tc.wantArgs, args); diff != "" {
				t.Errorf("arguments of the hold (-want +got):\n%s", diff)
			}
			if got, want := len(tc.pod.Spec.Volumes) == 1, tc.wantArgs != nil; got != want {
				t.Errorf("has the hold's volume = %t, want %t", got, want)
			}
			if _, err := v1alpha1.ParseSettings(tc.pod.Annotations); err != nil {
				t.Errorf("what was written does not parse: %v", err)
			}

			again := tc.pod.DeepCopy()
			if errs := Pod(again, namespace, o); len(errs) > 0 {
				t.Fatalf("second Pod: %v", errs.ToAggregate())
			}
			if diff := cmp.Diff(tc.pod, again); diff != "" {
				t.Errorf("a second injection changed the pod (-first +second):\n%s", diff)
			}
		})
	}
}

func TestPodRefuses(t *testing.T) {
	tests := map[string]struct {
		pod       *corev1.Pod
		namespace map[string]string
		want      []string
	}{
		"a malformed value of each key": {
			pod: jobPod(annotated(v1alpha1.KeyInject, "yes", v1alpha1.KeyHold, "no", v1alpha1.KeyScope, "all",
				v1alpha1.KeyTimeout, "1 minute", v1alpha1.KeyOnTimeout, "stop")),
			want: []string{
				`metadata.annotations[policygate.io/inject]: Unsupported value: "yes": supported values: "true", "false"`,
				`metadata.annotations[policygate.io/hold]: Unsupported value: "no": supported values: "auto", "true", "false"`,
				`metadata.annotations[policygate.io/scope]: Unsupported value: "all": supported values: "peers", "local"`,
				`metadata.annotations[policygate.io/timeout]: Invalid value: "1 minute": want a duration from 1s to 10m0s, like 90s or 2m30s`,
				`metadata.annotations[policygate.io/on-timeout]: Unsupported value: "stop": supported values: "start", "fail"`,
			},
		},
		"a timeout beyond the pod's deadline": {
			pod: jobPod(deadline(30), annotated(v1alpha1.KeyTimeout, "31s")),
			want: []string{
				`metadata.annotations[policygate.io/timeout]: Invalid value: "31s": ` +
					`the time a Pod is held counts toward spec.activeDeadlineSeconds: want a duration from 1s to 30s`,
			},
		},
		"a malformed value of the namespace names it": {
			pod:       jobPod(),
			namespace: map[string]string{v1alpha1.KeyOnTimeout: "Fail"},
			want: []string{
				`namespace(shop).metadata.annotations[policygate.io/on-timeout]: Unsupported value: "Fail": supported values: "start", "fail"`,
			},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			before := tc.pod.DeepCopy()
			errs := Pod(tc.pod, Namespace{Name: "shop", Annotations: tc.namespace}, options())
			got := map[string]bool{}
			for _, err := range errs {
				got[err.Error()] = true
			}
			want := map[string]bool{}
			for _, text := range tc.want {
				want[text] = true
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, tc.pod); diff != "" {
				t.Errorf("a refused pod was changed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOptionsValidate(t *testing.T) {
	if err := options().Validate(); err != nil {
		t.Errorf("valid options: %v", err)
	}
	tests := map[string]struct {
		edit func(*Options)
		want string
	}{
		"no condition type":   {func(o *Options) { o.ConditionType = "" }, "conditionType"},
		"no image":            {func(o *Options) { o.Image = "" }, "holdImage"},
		"unknown pull policy": {func(o *Options) { o.PullPolicy = "Sometimes" }, `"Sometimes"`},
		"malformed defaults":  {func(o *Options) { o.Defaults.Timeout = time.Hour }, "1h0m0s"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			o := options()
			tc.edit(&o)
			if err := o.Validate(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Validate() = %v, want an error that says %s", err, tc.want)
			}
		})
	}
}

func TestConditionTypeIsAnOption(t *testing.T) {
	pod := jobPod(func(p *corev1.Pod) {
		p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/other"}}
	})
	o := options()
	o.ConditionType = "example.com/network-ready"
	if errs := Pod(pod, Namespace{}, o); len(errs) > 0 {
		t.Fatalf("Pod: %v", errs.ToAggregate())
	}
	want := []corev1.PodReadinessGate{
		{ConditionType: "example.com/other"}, {ConditionType: "example.com/network-ready"},
	}
	if diff := cmp.Diff(want, pod.Spec.ReadinessGates); diff != "" {
		t.Errorf("readiness gates (-want +got):\n%s", diff)
	}
}

func TestHoldIsRebuilt(t *testing.T) {
	// What the author of a Pod calls policygate-hold must not stand in for it.
	pod := jobPod(func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{
			{Name: "first"},
			{
				Name: v1alpha1.HoldContainerName, Image: "evil:1", Command: []string{"/bin/true"},
				RestartPolicy:   new(corev1.ContainerRestartPolicyAlways),
				SecurityContext: &corev1.SecurityContext{Privileged: new(true)},
				Env:             []corev1.EnvVar{{Name: "POD_IPS", Value: "10.0.0.1"}},
			},
			{Name: v1alpha1.HoldContainerName},
		}
		p.Spec.Volumes = []corev1.Volume{{
			Name:         v1alpha1.HoldVolumeName,
			VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		}}
	})
	fresh := jobPod()
	for _, p := range []*corev1.Pod{pod, fresh} {
		if errs := Pod(p, Namespace{}, options()); len(errs) > 0 {
			t.Fatalf("Pod: %v", errs.ToAggregate())
		}
	}
	if diff := cmp.Diff([]string{"policygate-hold", "first"}, containerNames(pod.Spec.InitContainers)); diff != "" {
		t.Errorf("init containers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(fresh.Spec.InitContainers[0], pod.Spec.InitContainers[0]); diff != "" {
		t.Errorf("hold (-fresh +rebuilt):\n%s", diff)
	}
	if diff := cmp.Diff(fresh.Spec.Volumes, pod.Spec.Volumes); diff != "" {
		t.Errorf("volumes (-fresh +rebuilt):\n%s", diff)
	}
}

func TestHoldIsRemovedFromACopyThatAsksForNone(t *testing.T) {
	pod := jobPod(inits("migrate"))
	for range 2 {
		if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
			t.Fatalf("Pod: %v", errs.ToAggregate())
		}
		annotated(v1alpha1.KeyHold, "false")(pod)
	}
	if diff := cmp.Diff([]string{"migrate"}, containerNames(pod.Spec.InitContainers)); diff != "" {
		t.Errorf("init containers (-want +got):\n%s", diff)
	}
	if len(pod.Spec.Volumes) != 0 {
		t.Errorf("volumes = %v, want none", pod.Spec.Volumes)
	}
}

func TestReinvocationMovesTheHoldAndKeepsWhatOthersDid(t *testing.T) {
	pod := jobPod()
	if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
		t.Fatalf("first Pod: %v", errs.ToAggregate())
	}

	// The API server runs the other admission plugins and webhooks after ours,
	// then ours again.
	hold := &pod.Spec.InitContainers[0]
	hold.Image = "mirror.example/policygate@sha256:0123"
	hold.ImagePullPolicy = corev1.PullAlways
	hold.Env = append(hold.Env, corev1.EnvVar{Name: "CLUSTER", Value: "east"})
	hold.VolumeMounts = append(hold.VolumeMounts, corev1.VolumeMount{
		Name: "kube-api-access", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true,
	})
	want := hold.DeepCopy()
	pod.Spec.InitContainers = append([]corev1.Container{{Name: "mesh-init"}}, pod.Spec.InitContainers...)
	// A vertical autoscaler changes what is copied.
	pod.Spec.Containers[0].Resources = resourceList("100m", "64Mi", "", "")
	want.Resources = *pod.Spec.Containers[0].Resources.DeepCopy()

	if errs := Pod(pod, Namespace{}, options()); len(errs) > 0 {
		t.Fatalf("second Pod: %v", errs.ToAggregate())
	}
	if diff := cmp.Diff([]string{"policygate-hold", "mesh-init"}, containerNames(pod.Spec.InitContainers)); diff != "" {
		t.Errorf("init containers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, &pod.Spec.InitContainers[0]); diff != "" {
		t.Errorf("hold (-want +got):\n%s", diff)
	}
}
