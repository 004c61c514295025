// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package expect turns NetworkPolicy semantics into expectations: what every
// node must do with which new connections before one gated Pod, the subject,
// may start.
//
// A Cluster holds the Pods, Namespaces, NetworkPolicies and Nodes that are
// read; Cluster.Expect computes one subject. Cluster.ExpectPolicy computes what
// must be confirmed for a policy to be in force, whoever waits for it. The semantics themselves are
// Isolated, Selecting and Cluster.Admission. A computation reads a World, which
// Cluster is one of; package scan, for tests, is the other.
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
// # What it costs
//
// No event costs what the cluster has, and no computation what a namespace
// has. Label sets and selectors are interned and matched with each other, Pods
// with nothing. A rule's peers are read newest first, only as far as the budget
// has flows for. What a computation looked at is its Footprint, and each change
// returns the footprint of what it changed: where the two do not meet, the
// result stands.
//
// # Whose flows come first
//
// A subject's own namespace's policies come before all others. Those of other
// namespaces share what is left of the budget, and the foreign nodes that are
// awaited, in turn: however many policies and Pods one of them has, it takes
// nothing from the others.
//
// # What makes an expectation worth asking
//
// An Allowed that a stranger would get too proves nothing. So every Allowed
// that an isolated Pod's policies grant stands beside a Denied for a stranger
// of that Pod, in the same node's list.
//
// # When a policy is in force
//
// A policy is asked about by a few of its Pods on each node, drawn by lot: that
// their strangers are refused, that they are allowed what its rules say, and
// that they are refused what they were allowed before it was edited. Pods that
// came a moment ago do not count: those are what gates are for.
package expect
