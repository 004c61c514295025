// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package webhook answers the API server's admission requests for Pods: it
// turns a request into a call of package inject and what that refuses into a
// denial that says what would be valid.
//
// It asks the API server for nothing while a request waits, has no effects
// beside its answer, and so is safe for dry runs. Which requests come here is
// written in config/webhook.
package webhook

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/policygate/policygate/webhook/inject"
)

// Path is where the webhook is served; config/webhook names it. The default
// of controller-runtime for the core group has two dashes, "/mutate--v1-pod".
const Path = "/mutate-v1-pod"

const (
	// namespaceWait bounds the wait for a namespace that was created just
	// before its first Pod. It leaves half of the configuration's
	// timeoutSeconds, beyond which the API server would let the Pod in ungated.
	namespaceWait = time.Second
	// namespacePoll is short against a watch's delay, and asks only memory.
	namespacePoll = 10 * time.Millisecond
)

// Namespaces is what this process has heard of namespaces. It answers from
// memory and is safe for concurrent use.
type Namespaces interface {
	// Annotations returns those of the named namespace, which are not to be
	// changed, and whether the namespace is known at all.
	Annotations(ctx context.Context, name string) (annotations map[string]string, known bool, err error)
}

// PodDefaulter injects the gate and the hold into Pods at creation. All fields
// are required; Options must be valid.
type PodDefaulter struct {
	Namespaces Namespaces
	Options    inject.Options
	Metrics    *Metrics
	Clock      clock.WithTicker
}

var _ admission.Defaulter[*corev1.Pod] = (*PodDefaulter)(nil)

// SetupWithManager registers d at the manager's webhook server under
// Path, or returns an error that says what of d is not usable.
func (d *PodDefaulter) SetupWithManager(mgr manager.Manager) error {
	if err := d.Options.Validate(); err != nil {
		return fmt.Errorf("options of the pod webhook: %w", err)
	}
	return builder.WebhookManagedBy(mgr, &corev1.Pod{}).WithDefaulter(d).WithDefaulterCustomPath(Path).Complete()
}

// Default changes pod as inject.Pod does. An error is an API status and so a
// denial, which failurePolicy Ignore does not let through: Invalid for a
// malformed annotation; ServiceUnavailable while the namespace, whose
// annotations are the Pod's defaults, is not known here.
func (d *PodDefaulter) Default(ctx context.Context, pod *corev1.Pod) error {
	began := d.Clock.Now()
	err := d.inject(ctx, pod)
	result := resultPassed
	switch {
	case apierrors.IsInvalid(err):
		result = resultDenied
	case err != nil:
		result = resultError
	case slices.Contains(pod.Spec.ReadinessGates, corev1.PodReadinessGate{ConditionType: d.Options.ConditionType}):
		result = resultGated
	}
	d.Metrics.answered(result, d.Clock.Since(began))
	return err
}

// inject is Default without its metrics.
func (d *PodDefaulter) inject(ctx context.Context, pod *corev1.Pod) error {
	name := pod.Namespace
	if req, err := admission.RequestFromContext(ctx); err == nil {
		name = req.Namespace
	}
	annotations, err := d.namespaceAnnotations(ctx, name)
	if err != nil {
		return apierrors.NewServiceUnavailable(err.Error())
	}
	if errs := inject.Pod(pod, inject.Namespace{Name: name, Annotations: annotations}, d.Options); len(errs) > 0 {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Pod").GroupKind(), displayName(pod), errs)
	}
	log.FromContext(ctx).V(1).Info("Answered for a Pod", "generateName", pod.GenerateName)
	return nil
}

// namespaceAnnotations waits for a namespace that the watch has not delivered
// yet. To take the cluster's defaults instead could start a container whose
// namespace says that it must not.
func (d *PodDefaulter) namespaceAnnotations(ctx context.Context, name string) (map[string]string, error) {
	timeout := d.Clock.NewTimer(namespaceWait)
	defer timeout.Stop()
	poll := d.Clock.NewTicker(namespacePoll)
	defer poll.Stop()
	for {
		annotations, known, err := d.Namespaces.Annotations(ctx, name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("look up namespace %q: %w", name, err)
		case known:
			return annotations, nil
		}
		select {
		case <-poll.C():
		case <-timeout.C():
			return nil, fmt.Errorf(
				"namespace %q and its policygate.io annotations are not known to this replica after %s: try again",
				name, namespaceWait)
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for namespace %q: %w", name, ctx.Err())
		}
	}
}

// displayName returns what a user recognises a Pod by before it has a name.
func displayName(pod *corev1.Pod) string {
	if pod.Name == "" {
		return pod.GenerateName
	}
	return pod.Name
}
