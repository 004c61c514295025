// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package world is what is true in a simulated cluster over time, and what
// every node's kernel makes of it.
//
// It keeps the last versions of Pods, Namespaces and NetworkPolicies. A node's
// policy engine realizes each version after a delay that is drawn from a seed,
// the node, the object and the version; so what a node's kernel says of a flow
// at a moment follows from the shared truth, without a copy per node. Nothing
// of it is the product's: the semantics of NetworkPolicies are written down
// here a second time, plainly, so that World.Opened can judge whether a gate
// was opened rightly.
//
// It makes no objects, sends none, and knows of no manager and no agent.
package world
