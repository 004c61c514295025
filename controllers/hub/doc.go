// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package hub is the manager's end of the agents' sessions: it proves which
// node an agent speaks for, hands every agent the assignments of its node, and
// passes on what they report. The rules of order are hub.proto's.
//
// It decides nothing about gates, computes no expectation and keeps no report:
// package gate does. It keeps the assignments of every node, connected or not,
// so that a session begins with a full sync and goes on with deltas.
//
// # Identity
//
// An agent presents a ServiceAccount token of the hub's audience as a bearer
// token. A TokenReview says whose it is and, in an extra, on which node the
// agent's Pod runs; nothing that the agent says of itself is believed. A
// session ends when its token expires, so that the agent proves itself anew.
//
// # Sessions
//
// There is one per node: a newer one replaces an older. What waits to be sent
// is coalesced by uid, so that a queue never grows beyond the assignments. An
// agent that does not read for half a minute is cut off; it connects again and
// is synced in full.
//
// # Questions
//
// A person's trace is asked on the same session, behind everything else that
// waits and in bounded number. It reads the answer of one agent and knows of
// no sink, assignment or gate.
package hub
