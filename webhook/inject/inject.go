// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inject adds the readiness gate and the hold to a Pod.
//
// It is pure: it looks nothing up and changes nothing but the Pod it is given.
// Which requests reach it is the business of the webhook's configuration; it
// repeats only those exclusions that can be read from the Pod itself.
//
// Injection is idempotent: the hold of an earlier call is rebuilt in place of
// a second one and moved to the front again, because other webhooks prepend
// init containers of their own after ours has run.
package inject

import (
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/policygate/policygate/api/v1alpha1"
)

// Options are the cluster's. All but Defaults are required.
type Options struct {
	// ConditionType is the type of the readiness gate.
	ConditionType corev1.PodConditionType
	// Image is the image that holds the binary HoldCommand.
	Image string
	// PullPolicy is that of the hold, ordinarily IfNotPresent.
	PullPolicy corev1.PullPolicy
	// Defaults apply where neither the namespace nor the Pod says otherwise.
	Defaults v1alpha1.Settings
}

// Validate returns an error that names the option that is missing or
// malformed, or nil.
func (o Options) Validate() error {
	var errs field.ErrorList
	if o.ConditionType == "" {
		errs = append(errs, field.Required(field.NewPath("conditionType"), "the type of the readiness gate"))
	}
	if o.Image == "" {
		errs = append(errs, field.Required(field.NewPath("holdImage"), "the image that holds "+HoldCommand))
	}
	valid := []corev1.PullPolicy{corev1.PullIfNotPresent, corev1.PullAlways, corev1.PullNever}
	if !slices.Contains(valid, o.PullPolicy) {
		errs = append(errs, field.NotSupported(field.NewPath("holdPullPolicy"), o.PullPolicy, valid))
	}
	if len(errs) > 0 {
		return errs.ToAggregate()
	}
	return o.Defaults.Validate()
}

// Namespace is what of a Pod's namespace matters here.
type Namespace struct {
	Name        string
	Annotations map[string]string
}

// Pod strips a ready-made v1alpha1.KeyProgrammed and, unless the Pod is one
// that is never gated or opts out, adds the readiness gate, the effective
// scope, timeout and on-timeout as annotations, and the hold with its volume
// if the Pod is to have one. Without annotations for hold, a Pod has one if
// its restartPolicy is other than Always.
//
// The errors name each malformed annotation of the Pod or of its namespace,
// its value and what is valid; the Pod is unchanged then. options must be
// valid.
func Pod(pod *corev1.Pod, namespace Namespace, options Options) field.ErrorList {
	path := field.NewPath("metadata", "annotations")
	wanted, malformed := v1alpha1.WantsInjection(pod.Annotations)
	settings, errs := effective(pod, namespace, options.Defaults, path)
	if malformed != nil {
		errs = append(errs, malformed)
	}
	if !Gateable(pod) || (malformed == nil && !wanted) {
		delete(pod.Annotations, v1alpha1.KeyProgrammed)
		return nil
	}
	if len(errs) > 0 {
		return errs
	}

	delete(pod.Annotations, v1alpha1.KeyProgrammed)
	annotate(pod, settings)
	gate := corev1.PodReadinessGate{ConditionType: options.ConditionType}
	if !slices.Contains(pod.Spec.ReadinessGates, gate) {
		pod.Spec.ReadinessGates = append(pod.Spec.ReadinessGates, gate)
	}
	if held(pod, settings.Hold) {
		putHold(pod, settings, options)
	} else {
		dropHold(pod)
	}
	return nil
}

// Gateable reports whether a Pod is of a kind that a policy gate can serve. It
// is not if its addresses are the node's, if it has started already when the
// API server hears of it, or if the hold's binary does not run on its node.
func Gateable(pod *corev1.Pod) bool {
	_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	windows := pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows) ||
		(pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows)
	return !pod.Spec.HostNetwork && !mirror && !windows
}

// effective returns the cluster's settings overlaid by the namespace's and the
// Pod's, with the timeout kept within the Pod's activeDeadlineSeconds.
func effective(pod *corev1.Pod, namespace Namespace, defaults v1alpha1.Settings, path *field.Path,
) (v1alpha1.Settings, field.ErrorList) {
	where := field.NewPath(fmt.Sprintf("namespace(%s)", namespace.Name), "metadata", "annotations")
	settings, errs := defaults.Overlay(namespace.Annotations, where)
	settings, own := settings.Overlay(pod.Annotations, path)
	errs = append(errs, own...)

	deadline := pod.Spec.ActiveDeadlineSeconds
	if deadline == nil || *deadline < 1 || *deadline >= int64(v1alpha1.MaxTimeout/time.Second) {
		// Below 1 is for the API server's validation to refuse.
		return settings, errs
	}
	limit := time.Duration(*deadline) * time.Second
	text, asked := pod.Annotations[v1alpha1.KeyTimeout]
	switch {
	case settings.Timeout <= limit:
	case asked:
		errs = append(errs, field.Invalid(path.Key(v1alpha1.KeyTimeout), text, fmt.Sprintf(
			"the time a Pod is held counts toward spec.activeDeadlineSeconds: want a duration from %s to %s",
			v1alpha1.MinTimeout, limit)))
	default:
		// A default must not refuse a Pod whose author never heard of it.
		settings.Timeout = limit
	}
	return settings, errs
}

// annotate writes what is effective now on the Pod, where it stands when the
// namespace's annotations or the cluster's flags change later. What the Pod
// says itself keeps its spelling.
func annotate(pod *corev1.Pod, settings v1alpha1.Settings) {
	all := settings.Annotations()
	// Whether a Pod is held shows in its spec; "auto" would be wrong for a
	// copy of the Pod with another restartPolicy.
	delete(all, v1alpha1.KeyHold)
	maps.DeleteFunc(all, func(key, _ string) bool {
		_, own := pod.Annotations[key]
		return own
	})
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	maps.Copy(pod.Annotations, all)
}

// held returns whether the Pod gets a hold. An empty restartPolicy is Always,
// the API's default.
func held(pod *corev1.Pod, hold string) bool {
	switch hold {
	case v1alpha1.ValueTrue:
		return true
	case v1alpha1.ValueFalse:
		return false
	}
	return pod.Spec.RestartPolicy != "" && pod.Spec.RestartPolicy != corev1.RestartPolicyAlways
}
