// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package coverage keeps what expectations are computed from, knows which
// gated Pods still wait for their gate, and says which of them, and which
// policies, an event may concern.
//
// An Index is fed with the events of the watches. It marks the held subjects
// that an event can affect and computes an assignment when it is asked for one,
// from all that it holds at that time. It computes nothing by itself: a Pod
// that is not gated, or whose gate is open, costs its entry and nothing more.
//
// Every computation says what it was made of, and every event what it changed:
// see expect.Footprint. An event touches the subjects whose footprint it meets,
// which are found by following links, and no others: no event looks at all
// Pods, at all policies or at all subjects. An assignment that nothing has
// touched stands: the newest state that was applied is what it rests on, and
// nobody has to compute it again.
//
// NetworkPolicies are subjects, too, for as long as they are there. An event
// marks a policy as changed in its meaning if it meets the footprint of its last
// assignment, and else, if a Pod of it comes or goes, as changed in its number,
// which is counted by label sets. Nothing is kept of a policy that nobody asks
// for.
//
// What no footprint knows, the index minds itself: what a Pod says of its own
// gate, in which boot its node is, for how long a node has not been ready, and
// whose a Pod's addresses were before.
//
// The package knows no client, no agent and no gate: whether an assignment is
// confirmed, and what then happens, is not its business.
package coverage
