// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/gate"
	"github.com/policygate/policygate/controllers/ungated"
)

const (
	// reportingController says who writes the Events.
	reportingController = "policygate.io/manager"
	// confirming is what the manager was doing when it met what it warns of.
	confirming = "Confirming"
	// reasonUngated: the Pod should have a gate and has none.
	reasonUngated = "Ungated"
)

// Warns of timeouts at the Pods that met them, of policies at these, and of
// nodes at theirs, whose Events are in the namespace default. An Event may be
// about anything, but says who wrote it. One that repeats is patched.
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch,roleName=policygate-manager

// eventRecorder is the manager's recorder as package gate consumes it. It is
// controller-runtime's, which writes events.k8s.io, makes a series of what
// repeats, and is stopped behind all that may still use it; client-go's own
// broadcaster underneath would be a second one of each process, as leader
// election has the manager's already.
type eventRecorder struct{ events.EventRecorder }

// Warn implements gate.Recorder.
func (r eventRecorder) Warn(w gate.Warning) {
	r.Eventf(&w.Object, nil, corev1.EventTypeWarning, w.Reason, confirming, "%s", w.Note)
}

// ungatedTeller warns at Pods that have no gate.
type ungatedTeller struct{ warnings *gate.Warnings }

var _ ungated.Teller = ungatedTeller{}

// TellUngated implements ungated.Teller.
func (u ungatedTeller) TellUngated(p ungated.Pod) {
	why := "its namespace has the label " + v1alpha1.KeyInject + "=" + v1alpha1.InjectNamespace
	if p.Asks {
		why = "it has the annotation " + v1alpha1.KeyInject
	}
	u.warnings.Warn(gate.Warning{
		Object: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Reason: reasonUngated,
		Note: "This Pod has no readiness gate, though " + why + ": it was created while Policy Gate could not be asked. " +
			"It did not and does not wait for network policies. Create it anew to have it gated.",
	})
}
