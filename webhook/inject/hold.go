// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

// HoldCommand is where the image keeps the hold's binary.
const HoldCommand = "/hold"

const (
	// mountPath lies under /run, which images do not populate; the image is
	// read-only for the hold anyway.
	mountPath = "/run/policygate"
	fileName  = "programmed"
)

// holdUser runs the hold where the Pod says 0, which runAsNonRoot refuses. It
// is also the USER of the image, "nonroot" of the distroless images.
const holdUser = 65532

// putHold makes the hold the first of the init containers and gives the Pod
// the volume it reads.
func putHold(pod *corev1.Pod, settings v1alpha1.Settings, options Options) {
	hold := newHold(pod, settings, options)
	if i := slices.IndexFunc(pod.Spec.InitContainers, isHold); i >= 0 {
		keepForeign(&hold, &pod.Spec.InitContainers[i])
	}
	volume := newVolume()
	if i := slices.IndexFunc(pod.Spec.Volumes, isHoldVolume); i >= 0 {
		pod.Spec.Volumes[i] = volume
	} else {
		pod.Spec.Volumes = append(pod.Spec.Volumes, volume)
	}
	others := slices.DeleteFunc(pod.Spec.InitContainers, isHold)
	pod.Spec.InitContainers = slices.Insert(others, 0, hold)
}

// dropHold removes a hold that an earlier call has put or that came with a
// copied Pod.
func dropHold(pod *corev1.Pod) {
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, isHold)
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, isHoldVolume)
}

func isHold(c corev1.Container) bool { return c.Name == v1alpha1.HoldContainerName }

func isHoldVolume(v corev1.Volume) bool { return v.Name == v1alpha1.HoldVolumeName }

func newHold(pod *corev1.Pod, settings v1alpha1.Settings, options Options) corev1.Container {
	return corev1.Container{
		Name:    v1alpha1.HoldContainerName,
		Image:   options.Image,
		Command: []string{HoldCommand},
		Args: []string{
			"-timeout=" + settings.Timeout.String(),
			"-on-timeout=" + settings.OnTimeout,
			"-file=" + mountPath + "/" + fileName,
		},
		Env: []corev1.EnvVar{
			fieldEnv("POD_UID", "metadata.uid"),
			fieldEnv("POD_IPS", "status.podIPs"),
		},
		Resources: resources(pod),
		VolumeMounts: []corev1.VolumeMount{{
			Name:      v1alpha1.HoldVolumeName,
			MountPath: mountPath,
			ReadOnly:  true,
		}},
		TerminationMessagePath: corev1.TerminationMessagePathDefault,
		// The hold's last lines say why it gave up.
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		ImagePullPolicy:          options.PullPolicy,
		SecurityContext:          securityContext(pod),
	}
}

// resources returns the first app container's requests and limits. Then the
// Pod's QoS class and effective request are what they were, and a LimitRange
// or a quota that admits the app container admits the hold. Claims for devices
// are left out.
func resources(pod *corev1.Pod) corev1.ResourceRequirements {
	if len(pod.Spec.Containers) == 0 {
		return corev1.ResourceRequirements{}
	}
	first := pod.Spec.Containers[0].Resources.DeepCopy()
	return corev1.ResourceRequirements{Limits: first.Limits, Requests: first.Requests}
}

// securityContext returns one that Pod Security "restricted" admits whatever
// the Pod says. The user is left to the Pod and to the image, since a policy
// may demand one of a range, unless the Pod says root.
func securityContext(pod *corev1.Pod) *corev1.SecurityContext {
	sc := &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		ReadOnlyRootFilesystem:   new(true),
		RunAsNonRoot:             new(true),
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	if p := pod.Spec.SecurityContext; p != nil && p.RunAsUser != nil && *p.RunAsUser == 0 {
		sc.RunAsUser = new(int64(holdUser))
	}
	return sc
}

func fieldEnv(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: fieldRef(path)}}
}

// fieldRef spells out the API's default version, so that a second injection of
// the defaulted Pod changes nothing.
func fieldRef(path string) *corev1.ObjectFieldSelector {
	return &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}
}

// newVolume returns the volume whose one file holds the annotation: empty
// until it is written. Any user may read it, since the hold's is not known.
func newVolume() corev1.Volume {
	return corev1.Volume{
		Name: v1alpha1.HoldVolumeName,
		VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{{
				Path:     fileName,
				FieldRef: fieldRef("metadata.annotations['" + v1alpha1.KeyProgrammed + "']"),
			}},
			DefaultMode: new(corev1.DownwardAPIVolumeSourceDefaultMode),
		}},
	}
}

// keepForeign keeps in hold what other admission has added to the hold of an
// earlier call in the same admission. AlwaysPullImages would refuse a Pod whose
// pull policy is set back, and a registry's mirror or a digest would be lost.
// A hold with other arguments is of another admission, and so is its image.
func keepForeign(hold, earlier *corev1.Container) {
	if slices.Equal(hold.Args, earlier.Args) && slices.Equal(hold.Command, earlier.Command) {
		hold.Image = earlier.Image
		hold.ImagePullPolicy = earlier.ImagePullPolicy
	}
	for _, env := range earlier.Env {
		if !slices.ContainsFunc(hold.Env, func(e corev1.EnvVar) bool { return e.Name == env.Name }) {
			hold.Env = append(hold.Env, env)
		}
	}
	for _, mount := range earlier.VolumeMounts {
		if mount.Name != v1alpha1.HoldVolumeName && mount.MountPath != mountPath {
			hold.VolumeMounts = append(hold.VolumeMounts, mount)
		}
	}
}
