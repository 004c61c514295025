// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gate decides when a Pod's gate opens, and what is said while it does
// not.
//
// A Ledger holds one entry per gated Pod. It has the coverage index say what
// must be confirmed, hands that to the nodes of the span through the hub,
// collects their answers, and, behind the barrier and once nobody is awaited,
// sends the release to the agent on the Pod's node, which alone writes True.
// Every replica has a Ledger and releases by itself. Messages writes False and
// what is awaited, on the elected replica only.
//
// The decision itself is the pure function decide. The Ledger is one goroutine
// around it: what others tell it goes through an inbox in order. What that
// costs follows what has happened, not how many Pods wait: what is stale, what
// is to be decided and what is due by time are queues. Reports that may open a
// gate are decided before anything is computed, and namespaces take turns.
//
// Rules that a node's engine does not realize, for older Pods neither, are
// learned from reports (package deviation), and nobody waits for them again. A
// node that confirms nothing while Pods wait for it is in quarantine. Both are
// a replica's own: one that has just started finds out anew, which holds a Pod
// for its timeout, or two minutes, at the most.
//
// Three things tell people. Messages go into Pods' conditions and Warnings into
// Events, both few and by the elected replica; an Account is for the
// administrator who asks for it. Names of other namespaces' policies, their
// addresses and rules never get into a condition or an Event, nor does a node's
// text into what a Pod's owner sees.
//
// The package computes no expectation, opens no connection and reads no
// object from the API.
package gate
