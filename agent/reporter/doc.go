// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package reporter opens gates: for a release that is not stale, and whose
// subject this node still confirms on one more look, it writes the Pod's
// condition and annotation in one patch of pods/status.
//
// It writes nothing but True, reads no Pod, and needs no permission but to
// patch pods/status. The patch carries the Pod's UID, so that it cannot open
// the gate of another Pod of the same name.
package reporter
