// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policystatus says of each NetworkPolicy whether it is in force, and
// where, in the PolicyStatus of its name.
//
// A Ledger holds one entry per policy. It has the coverage index say what the
// nodes that host the policy's Pods must confirm, hands that to them through
// the hub, and collects their answers. What these mean is the pure function
// decide. Every replica knows which nodes are connected and which objects there
// are; the elected one alone asks, decides and writes.
//
// # Pace
//
// A policy whose meaning changed is computed within a tenth of a second; Pods
// that come and go beside, and the turn of every policy each minute, wait for a
// rate that leaves the index to the gates. Statuses writes: a transition at
// most once a second per object, numbers every ten, twenty writes a second in
// all, the namespaces in turn. What an object says already is not written.
//
// # What does not flicker
//
// Who edits a policy so that nothing else is asked, restarts an agent or has
// another replica elected sees nothing of it: a status that was True is kept
// for the moment that the answers to a new question take, a node's answer for
// the time in which its agent comes back, and an elected replica keeps what it
// finds until the nodes had time to answer it. What is kept is about the
// generation that observedGeneration names.
//
// The package computes no expectation and opens no gate. Its texts name no
// object of another namespace than the policy's, and hold no text of a node.
package policystatus
