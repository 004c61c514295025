// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

func FuzzPod(f *testing.F) {
	for _, pod := range []string{
		`{"spec":{"restartPolicy":"Never","containers":[{"name":"app","image":"app:1"}]}}`,
		`{"metadata":{"annotations":{"policygate.io/programmed":"forged","policygate.io/hold":"true","policygate.io/timeout":"5s"}},
		  "spec":{"activeDeadlineSeconds":30,"initContainers":[{"name":"first"},{"name":"policygate-hold","image":"evil","args":["x"],
		  "env":[{"name":"POD_UID","value":"u"},{"name":"A"}],"volumeMounts":[{"name":"v","mountPath":"/run/policygate"},{"name":"w","mountPath":"/w"}]},
		  {"name":"policygate-hold"},{"name":"sidecar","restartPolicy":"Always"}],
		  "volumes":[{"name":"policygate-programmed","emptyDir":{}},{"name":"w"}],
		  "readinessGates":[{"conditionType":"policygate.io/PolicyProgrammed"},{"conditionType":"other"}],
		  "securityContext":{"runAsUser":0},"containers":[{"name":"a","resources":{"limits":{"cpu":"1"},"claims":[{"name":"gpu"}]}},{"name":"b"}]}}`,
		`{"metadata":{"annotations":{"policygate.io/inject":"false","policygate.io/timeout":"never"}},"spec":{"initContainers":[{"name":"policygate-hold"}]}}`,
		`{"metadata":{"annotations":{"policygate.io/hold":"false"}},"spec":{"restartPolicy":"OnFailure","initContainers":[{"name":"policygate-hold"}]}}`,
		`{"metadata":{"annotations":{"kubernetes.io/config.mirror":"h"}},"spec":{"hostNetwork":true,"os":{"name":"windows"},"containers":[]}}`,
		`{"spec":{"activeDeadlineSeconds":-1,"nodeSelector":{"kubernetes.io/os":"windows"}}}`,
	} {
		f.Add([]byte(pod), []byte(`{"policygate.io/timeout":"90s","policygate.io/scope":"local"}`))
		f.Add([]byte(pod), []byte(`{"policygate.io/hold":"yes","policygate.io/on-timeout":"fail"}`))
	}
	f.Fuzz(func(t *testing.T, podText, annotations []byte) {
		var pod corev1.Pod
		namespace := Namespace{Name: "shop"}
		if json.Unmarshal(podText, &pod) != nil || json.Unmarshal(annotations, &namespace.Annotations) != nil {
			return
		}
		injectRightly(t, &pod, namespace)
	})
}

// FuzzAdmissionChain has Pods pass through what users and other webhooks do to
// them, before and between injections, as the API server calls webhooks again.
func FuzzAdmissionChain(f *testing.F) {
	all := edits()
	inject := len(all)
	f.Add([]byte{byte(inject), byte(inject)})
	every := []byte{}
	for i := range inject {
		every = append(every, byte(i), byte(inject))
		f.Add([]byte{byte(i), byte(inject), byte(i), byte(inject)})
	}
	f.Add(every)
	slices.Reverse(every)
	f.Add(every)
	f.Fuzz(func(t *testing.T, steps []byte) {
		// Longer ones show nothing that shorter ones do not.
		steps = steps[:min(len(steps), 64)]
		pod, namespace := jobPod(), Namespace{Name: "shop"}
		for _, step := range steps {
			if n := int(step) % (len(all) + 1); n < len(all) {
				all[n](pod, &namespace)
				continue
			}
			injectRightly(t, pod, namespace)
		}
	})
}

// edits are what may become of a Pod or of its namespace, always in one order.
func edits() []func(*corev1.Pod, *Namespace) {
	var all []func(*corev1.Pod, *Namespace)
	for _, e := range []func(*corev1.Pod){
		restart(""), restart(corev1.RestartPolicyAlways), restart(corev1.RestartPolicyNever),
		deadline(0), deadline(1), deadline(30), deadline(1 << 62),
		inits("first"), inits("policygate-hold"), inits("policygate-hold", "policygate-hold"),
		func(p *corev1.Pod) { p.Spec.Containers = nil },
		func(p *corev1.Pod) { p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "more"}) },
		func(p *corev1.Pod) { p.Spec.HostNetwork = !p.Spec.HostNetwork },
		func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
		func(p *corev1.Pod) { p.Spec.OS = nil },
		func(p *corev1.Pod) { p.Annotations = nil },
		func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64)} },
		func(p *corev1.Pod) { p.Spec.ReadinessGates = nil },
		func(p *corev1.Pod) {
			p.Spec.ReadinessGates = append(p.Spec.ReadinessGates, corev1.PodReadinessGate{ConditionType: "other"})
		},
		func(p *corev1.Pod) {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "data"}, corev1.Volume{Name: v1alpha1.HoldVolumeName})
		},
		func(p *corev1.Pod) { p.Spec.Volumes = nil },
		func(p *corev1.Pod) { slices.Reverse(p.Spec.InitContainers) },
		// What other webhooks do to every container.
		func(p *corev1.Pod) {
			for i := range p.Spec.InitContainers {
				c := &p.Spec.InitContainers[i]
				c.Image, c.ImagePullPolicy = "mirror/"+c.Image, corev1.PullAlways
				c.Env = append(c.Env, corev1.EnvVar{Name: "POD_UID", Value: "u"}, corev1.EnvVar{Name: "ZONE"})
				c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: "/data"},
					corev1.VolumeMount{Name: "data", MountPath: mountPath})
				c.SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
			}
		},
		func(p *corev1.Pod) {
			for i := range p.Spec.InitContainers {
				p.Spec.InitContainers[i].Args = append(p.Spec.InitContainers[i].Args, "-v")
				p.Spec.InitContainers[i].RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
			}
		},
	} {
		all = append(all, func(p *corev1.Pod, _ *Namespace) { e(p) })
	}
	values := map[string][]string{
		v1alpha1.KeyInject:               {"true", "false", ""},
		v1alpha1.KeyHold:                 {"auto", "true", "false", "yes"},
		v1alpha1.KeyScope:                {"peers", "local", "all"},
		v1alpha1.KeyTimeout:              {"1s", "90s", "10m", "0", "\x00"},
		v1alpha1.KeyOnTimeout:            {"start", "fail", "stop"},
		v1alpha1.KeyProgrammed:           {"forged"},
		corev1.MirrorPodAnnotationKey:    {"hash"},
		"example.com/of-somebody-else's": {"x"},
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		for _, value := range values[key] {
			all = append(all, func(p *corev1.Pod, _ *Namespace) { annotated(key, value)(p) },
				func(_ *corev1.Pod, n *Namespace) {
					n.Annotations = maps.Clone(n.Annotations)
					if n.Annotations == nil {
						n.Annotations = map[string]string{}
					}
					n.Annotations[key] = value
				})
		}
	}
	return all
}

// injectRightly injects into a Pod and fails if it was not to be changed so.
func injectRightly(t *testing.T, pod *corev1.Pod, namespace Namespace) {
	t.Helper()
	before := pod.DeepCopy()
	if errs := Pod(pod, namespace, options()); len(errs) > 0 {
		if text(t, before) != text(t, pod) {
			t.Fatalf("a refused Pod (%v) was changed:\n%s\n%s", errs.ToAggregate(), text(t, before), text(t, pod))
		}
		return
	}
	if _, forged := pod.Annotations[v1alpha1.KeyProgrammed]; forged {
		t.Fatal("a ready-made annotation was left")
	}
	nothingIsLost(t, before, pod)
	wanted, _ := v1alpha1.WantsInjection(before.Annotations)
	if !Gateable(before) || !wanted {
		delete(before.Annotations, v1alpha1.KeyProgrammed)
		if text(t, before) != text(t, pod) {
			t.Fatalf("a Pod that is left alone was changed:\n%s\n%s", text(t, before), text(t, pod))
		}
		return
	}
	gatedRightly(t, pod)
	once := text(t, pod)
	if errs := Pod(pod, namespace, options()); len(errs) > 0 {
		t.Fatalf("injected again: %v", errs.ToAggregate())
	}
	if again := text(t, pod); again != once {
		t.Fatalf("a second injection changed the Pod:\n%s\n%s", once, again)
	}
}

// text compares Pods as the API server sees them: nil and empty are the same.
func text(t *testing.T, pod *corev1.Pod) string {
	t.Helper()
	out, err := json.Marshal(pod)
	if err != nil {
		t.Fatalf("a Pod that was read cannot be written: %v", err)
	}
	return string(out)
}

// nothingIsLost fails if anything of before, but for a hold and its volume, is
// not in after, in its place.
func nothingIsLost(t *testing.T, before, after *corev1.Pod) {
	t.Helper()
	for key, value := range before.Annotations {
		if got, ok := after.Annotations[key]; key != v1alpha1.KeyProgrammed && (!ok || got != value) {
			t.Fatalf("annotation %q is %q: want %q", key, got, value)
		}
	}
	if gates := before.Spec.ReadinessGates; !slices.Equal(gates, after.Spec.ReadinessGates[:len(gates)]) {
		t.Fatalf("readiness gates were %v and are %v", gates, after.Spec.ReadinessGates)
	}
	rest := func(pod *corev1.Pod) string {
		pod = pod.DeepCopy()
		pod.Annotations, pod.Spec.ReadinessGates = nil, nil
		pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, isHold)
		pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, isHoldVolume)
		return text(t, pod)
	}
	if want, got := rest(before), rest(after); want != got {
		t.Fatalf("the rest of the Pod was changed:\n%s\n%s", want, got)
	}
}

// gatedRightly fails if a Pod that is to be gated is not, or has not one hold
// before everything or none at all.
func gatedRightly(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	if !slices.Contains(pod.Spec.ReadinessGates, corev1.PodReadinessGate{ConditionType: options().ConditionType}) {
		t.Fatal("the gate is missing")
	}
	settings, err := v1alpha1.ParseSettings(pod.Annotations)
	if err != nil {
		t.Fatalf("what was written does not parse: %v", err)
	}
	holds := slices.Collect(func(yield func(int) bool) {
		for i := range pod.Spec.InitContainers {
			if isHold(pod.Spec.InitContainers[i]) && !yield(i) {
				return
			}
		}
	})
	volume := slices.ContainsFunc(pod.Spec.Volumes, isHoldVolume)
	switch {
	case len(holds) == 0:
		if volume || settings.Hold == v1alpha1.ValueTrue {
			t.Fatalf("there is no hold, with hold %q and the volume there: %t", settings.Hold, volume)
		}
	case !slices.Equal(holds, []int{0}) || !volume:
		t.Fatalf("holds are at %v, with the volume there: %t; want one at 0 with its volume", holds, volume)
	default:
		hold := pod.Spec.InitContainers[0]
		if hold.RestartPolicy != nil || !slices.Equal(hold.Command, []string{HoldCommand}) ||
			!slices.Contains(hold.Args, "-timeout="+settings.Timeout.String()) ||
			!slices.Contains(hold.Args, "-on-timeout="+settings.OnTimeout) {
			t.Fatalf("the hold is %+v: want one that waits %s and then does %s", hold, settings.Timeout, settings.OnTimeout)
		}
	}
}
