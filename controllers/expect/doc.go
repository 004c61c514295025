// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package expect turns NetworkPolicy semantics into expectations: what every
// node must do with which new connections before one gated Pod, the subject,
// may start.
//
// A Cluster holds the Pods, Namespaces, NetworkPolicies and Nodes that are
// read; Cluster.Expect computes one subject. The semantics themselves are
// Isolated, Selecting and Cluster.Admission.
//
// The package computes values from values. It does not watch, does not know
// which Pods are gated or held, and asks no kernel. Nothing in it is safe for
// concurrent use; package coverage adds the lock.
//
// # What a node judges
//
// Node N judges the ingress side of a connection only if its destination runs
// on N, and the egress side only if its source does; both, if both do. Every
// expectation is the verdict of exactly the sides that its node judges, so a
// connection can be expected Allowed by one node and Denied by another.
//
// # What makes an expectation worth asking
//
// An Allowed that a stranger would get too proves nothing. So every Allowed
// that an isolated Pod's policies grant stands beside a Denied for a stranger
// of that Pod, in the same node's list.
package expect
