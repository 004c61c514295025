// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package intent has only tests: what agent/northbound says of a flow is held
// against what a real OVN makes of the same northbound database, over random ACLs
// and over policies that are half written.
package intent
