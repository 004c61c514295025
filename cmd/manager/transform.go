// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/webhook/inject"
)

// keyPrefix is what our annotations begin with.
const keyPrefix = "policygate.io/"

// trim reduces an object to what the manager reads, before a cache keeps it: a
// cluster's Pods are most of what the manager holds in memory. Objects of other
// kinds stay as they are.
func trim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		trimPod(o)
	case *corev1.Node:
		o.ObjectMeta = meta(&o.ObjectMeta)
		o.Spec = corev1.NodeSpec{PodCIDRs: o.Spec.PodCIDRs, Taints: o.Spec.Taints}
		status := corev1.NodeStatus{
			Addresses: o.Status.Addresses,
			NodeInfo:  corev1.NodeSystemInfo{BootID: o.Status.NodeInfo.BootID, OperatingSystem: o.Status.NodeInfo.OperatingSystem},
		}
		for _, c := range o.Status.Conditions {
			if c.Type == corev1.NodeReady {
				// Heartbeats change every few seconds and say nothing.
				c.LastHeartbeatTime = metav1.Time{}
				status.Conditions = append(status.Conditions, c)
			}
		}
		o.Status = status
	case *corev1.Namespace:
		labels := o.Labels
		o.ObjectMeta = meta(&o.ObjectMeta)
		o.Labels = labels
	case *networkingv1.NetworkPolicy:
		o.ObjectMeta = meta(&o.ObjectMeta)
	case *v1alpha1.PolicyStatus:
		owners := o.OwnerReferences
		o.ObjectMeta = meta(&o.ObjectMeta)
		o.OwnerReferences = owners
	case *corev1.Service:
		o.ObjectMeta = meta(&o.ObjectMeta)
		o.Spec = corev1.ServiceSpec{Selector: o.Spec.Selector, ClusterIPs: o.Spec.ClusterIPs}
		o.Status = corev1.ServiceStatus{}
	}
	return obj, nil
}

// meta returns what of an object's metadata is read, without labels.
func meta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Namespace: m.Namespace, Name: m.Name, UID: m.UID,
		ResourceVersion: m.ResourceVersion, Generation: m.Generation,
		CreationTimestamp: m.CreationTimestamp, DeletionTimestamp: m.DeletionTimestamp,
	}
	for key, value := range m.Annotations {
		if strings.HasPrefix(key, keyPrefix) {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[key] = value
		}
	}
	return out
}

func trimPod(p *corev1.Pod) {
	labels, gateable := p.Labels, inject.Gateable(p)
	mirror, mirrors := p.Annotations[corev1.MirrorPodAnnotationKey]
	p.ObjectMeta = meta(&p.ObjectMeta)
	p.Labels = labels
	if mirrors {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[corev1.MirrorPodAnnotationKey] = mirror
	}
	var os *corev1.PodOS
	if !gateable && !mirrors && !p.Spec.HostNetwork {
		// Maybe it said so by its nodeSelector.
		os = &corev1.PodOS{Name: corev1.Windows}
	}
	p.Spec = corev1.PodSpec{
		OS:             os,
		NodeName:       p.Spec.NodeName,
		HostNetwork:    p.Spec.HostNetwork,
		ReadinessGates: p.Spec.ReadinessGates,
		Containers:     trimContainers(p.Spec.Containers),
		InitContainers: trimContainers(p.Spec.InitContainers),
	}
	status := corev1.PodStatus{Phase: p.Status.Phase, PodIPs: p.Status.PodIPs}
	for _, c := range p.Status.Conditions {
		for _, g := range p.Spec.ReadinessGates {
			if c.Type == g.ConditionType {
				status.Conditions = append(status.Conditions, c)
			}
		}
	}
	for _, s := range p.Status.InitContainerStatuses {
		if s.Name == v1alpha1.HoldContainerName {
			if ended := s.State.Terminated; ended != nil {
				s.State.Terminated = &corev1.ContainerStateTerminated{StartedAt: ended.StartedAt}
			}
			status.InitContainerStatuses = append(status.InitContainerStatuses,
				corev1.ContainerStatus{Name: s.Name, State: s.State})
		}
	}
	p.Status = status
}

// trimContainers keeps those that declare ports, and of them what named ports
// are resolved from. Even an empty container takes half a kilobyte.
func trimContainers(containers []corev1.Container) []corev1.Container {
	var out []corev1.Container
	for i := range containers {
		if len(containers[i].Ports) > 0 {
			out = append(out, corev1.Container{
				Name:          containers[i].Name,
				Ports:         containers[i].Ports,
				RestartPolicy: containers[i].RestartPolicy,
			})
		}
	}
	return slices.Clip(out)
}
