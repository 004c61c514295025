// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"

	"github.com/policygate/policygate/controllers/gate"
)

const (
	// reportingController says who writes the Events.
	reportingController = "policygate.io/manager"
	// confirming is what the manager was doing when it met what it warns of.
	confirming = "Confirming"
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
