// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package uninstall opens every gate that is shut, so that nobody stays held
// when Policy Gate is removed.
//
// It acts with an administrator's rights, after the webhook, which would gate
// further Pods, and the admission policies, which forbid everybody but the
// agents to open gates, are gone. It confirms nothing.
package uninstall

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/gate"
)

const (
	// interval is the pause between two rounds. Pods that have no address yet
	// get one within seconds.
	interval = time.Second
	// page bounds the answers of a large cluster.
	page = 500
)

// Options are what ReleaseHeld needs; all fields but Log are required.
type Options struct {
	Client kubernetes.Interface
	// ConditionType is the type of the readiness gate.
	ConditionType corev1.PodConditionType
	// Timeout is how long to wait for Pods that cannot be let go yet, such as
	// those that have no address.
	Timeout time.Duration
	Clock   clock.Clock
	Log     logr.Logger
}

// ReleaseHeld opens the gate of every Pod whose gate is shut and returns how
// many it opened, once none is left. It returns an error that names the Pods
// that are left when the timeout is over, and one if ctx ends or if it may not
// do what it has to.
func ReleaseHeld(ctx context.Context, o Options) (int, error) {
	deadline := o.Clock.Now().Add(o.Timeout)
	released := 0
	for {
		n, left, err := round(ctx, o)
		released += n
		switch {
		case ctx.Err() != nil:
			return released, fmt.Errorf("release held pods: %w", ctx.Err())
		case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
			return released, err
		case err == nil && n == 0 && len(left) == 0:
			return released, nil
		case !o.Clock.Now().Before(deadline):
			return released, errors.Join(err, leftError(left, o.Timeout))
		case err != nil:
			o.Log.Error(err, "round failed, trying again")
		case len(left) > 0:
			o.Log.Info("waiting for pods that cannot be let go yet", "pods", left)
		}
		timer := o.Clock.NewTimer(interval)
		select {
		case <-ctx.Done():
		case <-timer.C():
		}
		timer.Stop()
	}
}

// leftError names the Pods that are still held, or is nil if there are none.
func leftError(left []string, timeout time.Duration) error {
	if len(left) == 0 {
		return nil
	}
	return fmt.Errorf("%d pods are still held after %s, delete them or try again: %s",
		len(left), timeout, strings.Join(left, ", "))
}

// round opens what can be opened now. It returns how many gates it opened, and
// which Pods are held still.
func round(ctx context.Context, o Options) (released int, left []string, err error) {
	boots, err := bootIDs(ctx, o.Client)
	if err != nil {
		return 0, nil, err
	}
	list := metav1.ListOptions{Limit: page}
	var errs []error
	for {
		pods, err := o.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, list)
		if err != nil {
			return released, left, fmt.Errorf("list pods: %w", err)
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			opened, err := release(ctx, o, p, boots[p.Spec.NodeName])
			switch {
			case err != nil:
				errs = append(errs, err)
				left = append(left, p.Namespace+"/"+p.Name)
			case opened:
				released++
			case held(p, o.ConditionType, boots[p.Spec.NodeName]):
				left = append(left, p.Namespace+"/"+p.Name)
			}
		}
		if pods.Continue == "" {
			return released, left, errors.Join(errs...)
		}
		list.Continue = pods.Continue
	}
}

// bootIDs returns the boot id of every node.
func bootIDs(ctx context.Context, client kubernetes.Interface) (map[string]string, error) {
	boots := map[string]string{}
	list := metav1.ListOptions{Limit: page}
	for {
		nodes, err := client.CoreV1().Nodes().List(ctx, list)
		if err != nil {
			return nil, fmt.Errorf("list nodes: %w", err)
		}
		for i := range nodes.Items {
			boots[nodes.Items[i].Name] = nodes.Items[i].Status.NodeInfo.BootID
		}
		if nodes.Continue == "" {
			return boots, nil
		}
		list.Continue = nodes.Continue
	}
}

// held reports whether somebody waits for p's gate.
func held(p *corev1.Pod, conditionType corev1.PodConditionType, bootID string) bool {
	if p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return false
	}
	if !gate.Gated(p, conditionType) {
		return false
	}
	open := slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == conditionType && c.Status == corev1.ConditionTrue
	})
	id, err := identity(p, bootID)
	return !open || err != nil || !id.Matches(p.Annotations[v1alpha1.KeyProgrammed]) || gate.Outlived(p, conditionType)
}

func identity(p *corev1.Pod, bootID string) (programmed.Identity, error) {
	ips := make([]string, len(p.Status.PodIPs))
	for i, ip := range p.Status.PodIPs {
		ips[i] = ip.IP
	}
	return programmed.New(string(p.UID), ips, bootID)
}

// release opens p's gate if p is held and has what its identity is made of. A
// Pod that is gone by then is no error.
func release(ctx context.Context, o Options, p *corev1.Pod, bootID string) (bool, error) {
	if !held(p, o.ConditionType, bootID) {
		return false, nil
	}
	id, err := identity(p, bootID)
	if err != nil {
		// It has no address or no node yet: it is looked at again.
		return false, nil //nolint:nilerr // the next round is the answer
	}
	value := id.String()
	if value == p.Annotations[v1alpha1.KeyProgrammed] {
		// A hold that found it when it started waits for another.
		value = id.Again(1)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{
			"uid":         p.UID,
			"annotations": map[string]string{v1alpha1.KeyProgrammed: value},
		},
		"status": map[string]any{"conditions": []corev1.PodCondition{{
			Type:               o.ConditionType,
			Status:             corev1.ConditionTrue,
			ObservedGeneration: p.Generation,
			Reason:             v1alpha1.ReasonUninstalled,
			Message:            "Policy Gate was removed while the Pod was held: nothing was confirmed",
			LastTransitionTime: metav1.NewTime(o.Clock.Now()),
		}}},
	})
	if err != nil {
		return false, fmt.Errorf("encode patch of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	_, err = o.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldManager: "policygate-uninstall"}, "status")
	if apierrors.IsNotFound(err) || isOtherPod(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the gate of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	o.Log.Info("gate opened", "pod", p.Namespace+"/"+p.Name)
	return true, nil
}

// isOtherPod reports whether the API server refused a patch because a Pod of
// another UID has the name now, which it answers as Invalid or Conflict.
// Admission policies that are still there answer Invalid as well, but name
// themselves.
func isOtherPod(err error) bool {
	return (apierrors.IsInvalid(err) || apierrors.IsConflict(err)) && strings.Contains(err.Error(), "uid")
}
