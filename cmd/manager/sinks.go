// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/hub"
)

// sinks are several that are told the same: Pods and policies are asked about
// on the same sessions. Each passes over what is not its own.
type sinks []hub.Sink

var _ hub.Sink = sinks(nil)

// Connected implements hub.Sink.
func (s sinks) Connected(node string, hello hub.Hello) {
	for _, each := range s {
		each.Connected(node, hello)
	}
}

// Disconnected implements hub.Sink.
func (s sinks) Disconnected(node string) {
	for _, each := range s {
		each.Disconnected(node)
	}
}

// Changed implements hub.Sink.
func (s sinks) Changed(node string, state hub.State) {
	for _, each := range s {
		each.Changed(node, state)
	}
}

// Reported implements hub.Sink.
func (s sinks) Reported(node string, report *hubv1.Report) {
	for _, each := range s {
		each.Reported(node, report)
	}
}
