// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package coverage keeps what expectations are computed from, knows which
// gated Pods still wait for their gate, and says which of them an event may
// concern.
//
// An Index is fed with the events of four watches. It marks the held subjects
// that an event can affect and computes an assignment when it is asked for one,
// from all that it holds at that time. It computes nothing by itself: a Pod
// that is not gated, or whose gate is open, costs its entry and nothing more.
//
// What an event touches is found through what the last assignment of each held
// subject was made of: the policies it depends on and the addresses in its
// flows. No event looks at every policy for every Pod.
//
// The package knows no client, no agent and no gate: whether an assignment is
// confirmed, and what then happens, is not its business.
package coverage
