// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
)

// pod is what the ledger keeps of a gated Pod.
type pod struct {
	uid             types.UID
	namespace, name string
	node            string
	resourceVersion string
	generation      int64
	// ips are the Pod's addresses, sorted.
	ips []netip.Addr
	// held is when the hold started, zero if it did not.
	held time.Time
	// holding is true while the hold runs, as far as the kubelet has said.
	holding  bool
	settings v1alpha1.Settings
	// annotation is the value of policygate.io/programmed.
	annotation string
	// condition is the gate's, or zero.
	condition corev1.PodCondition
	// ended is true for a Pod that is finished or being deleted: nobody waits
	// for its gate.
	ended bool
}

// Gated reports whether p has the readiness gate of that type. Readiness
// gates never change.
func Gated(p *corev1.Pod, conditionType corev1.PodConditionType) bool {
	return slices.ContainsFunc(p.Spec.ReadinessGates, func(g corev1.PodReadinessGate) bool {
		return g.ConditionType == conditionType
	})
}

// newPod returns what the ledger keeps of p. The error names what cannot be
// understood: such a Pod is never released.
func newPod(p *corev1.Pod, conditionType corev1.PodConditionType) (pod, error) {
	out := pod{
		uid: p.UID, namespace: p.Namespace, name: p.Name, node: p.Spec.NodeName,
		resourceVersion: p.ResourceVersion,
		generation:      p.Generation,
		annotation:      p.Annotations[v1alpha1.KeyProgrammed],
		ended: p.DeletionTimestamp != nil || p.Spec.HostNetwork ||
			p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
	if _, err := strconv.ParseUint(p.ResourceVersion, 10, 64); err != nil {
		return pod{}, fmt.Errorf("resourceVersion %q: want a decimal number: %w", p.ResourceVersion, err)
	}
	for _, ip := range p.Status.PodIPs {
		addr, err := netip.ParseAddr(ip.IP)
		if err != nil {
			return pod{}, fmt.Errorf("status.podIPs: %w", err)
		}
		out.ips = append(out.ips, addr.Unmap())
	}
	slices.SortFunc(out.ips, netip.Addr.Compare)
	out.ips = slices.Compact(out.ips)
	for _, s := range p.Status.InitContainerStatuses {
		switch {
		case s.Name != v1alpha1.HoldContainerName:
		case s.State.Running != nil:
			out.held, out.holding = s.State.Running.StartedAt.Time, true
		case s.State.Terminated != nil:
			out.held = s.State.Terminated.StartedAt.Time
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == conditionType {
			out.condition = c
		}
	}
	// The webhook admits no malformed value; one that came in without it
	// means the default.
	out.settings, _ = v1alpha1.ParseSettings(p.Annotations)
	return out, nil
}

// open reports whether the gate is open for the Pod's present addresses and
// its node's boot. An empty bootID is not known, and not compared.
func (p *pod) open(bootID string) bool {
	return p.condition.Status == corev1.ConditionTrue && p.programmed(bootID)
}

// outlived reports whether the gate stands open since before the hold that runs
// began, by the clock of their node. It was opened for an earlier sandbox, then,
// whose rules may be gone, though the new one got the same addresses; or for
// this one before its hold could be started. Either way the hold waits for it to
// be opened anew. A hold that has ended waits for nothing.
func (p *pod) outlived() bool {
	return p.holding && p.condition.Status == corev1.ConditionTrue && p.held.After(p.condition.LastTransitionTime.Time)
}

// Outlived reports whether p's gate stands open since before its hold began,
// which runs: it waits for the gate to be opened anew.
func Outlived(p *corev1.Pod, conditionType corev1.PodConditionType) bool {
	view, err := newPod(p, conditionType)
	return err == nil && view.outlived()
}

// moved reports whether the gate was opened for something else than the Pod's
// present addresses and its node's boot.
func (p *pod) moved(bootID string) bool {
	return len(p.ips) > 0 && !p.programmed(bootID) &&
		(p.condition.Status == corev1.ConditionTrue || p.annotation != "")
}

// programmed reports whether the annotation names the Pod as it is now.
func (p *pod) programmed(bootID string) bool {
	id := programmed.Identity{UID: string(p.uid), IPs: p.ips, BootID: bootID}
	if bootID == "" {
		return id.MatchesAnyBoot(p.annotation)
	}
	return id.Matches(p.annotation)
}
