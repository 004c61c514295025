// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package verdict holds the verdicts of agent/ovn against real packets of a real
// OVN: over policies of each kind, and where flows, acknowledgements and packets
// say different things.
package verdict
