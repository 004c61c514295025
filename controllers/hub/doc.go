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
// session ends when its token expires, so that the agent proves itself anew,
// and within ten minutes of when the API server ceases to accept the token,
// as it does of a Pod that is gone. An API server that does not answer ends no
// session.
//
// The agent of OVN's northbound database is known by its ServiceAccount, not by
// the node that it runs on. It has a name that no node can have,
// hubv1.Northbound, and is served as a node's agent is: it hears and answers
// what is assigned to that name alone. There is none unless Accounts has one.
//
// # Strangers and liars
//
// Every Pod can reach the port. Connections that have proved no identity are
// few, of which none of several sources can have all; their handshakes and the
// reviews of their tokens are taken by turns of the sources; each has little
// time, may send little, and gets one review. What a token says of itself is
// looked at before, so that most that are no agent's cost none. Sources are
// addresses: who shares an agent's shares its turn.
//
// Who has proved to be a node's agent can say what he wants of that node, and
// of no other: a report counts if it answers what is assigned to the node, in
// this session. How often he connects, how much he sends and what it takes to
// decode is bounded, so that it does not keep other nodes' agents waiting.
//
// # Sessions
//
// There is one per node: a newer one replaces an older. What waits to be sent
// is coalesced by uid, so that a queue never grows beyond the assignments, and
// is put into words when it is sent: what is superseded costs nothing. Releases
// go first, and namespaces take turns, so that a burst of one tenant's delays
// nobody else's Pod. An agent that does not read for half a minute is cut off;
// it connects again and is synced in full.
//
// The subjects of assignments are Pods and NetworkPolicies. What is of policies
// waits for all that is of Pods.
//
// What an agent tells of its node's dataplane as a whole is kept, also after its
// session, and passed on when it changes.
//
// # Descriptions
//
// Thousands of Pods under one policy need the same of a node but for their own
// addresses. That much is a Description: encoded once, shared by all nodes and
// sessions, and sent to an agent when an assignment first needs it. A session
// has its own small ids for them. One that no assignment names any more is kept
// for the next Pod of a Job, up to a bound; then the agent forgets it, too.
//
// # Storms
//
// When a replica goes, its agents all turn to the next. Each is told with
// Synced how long the agents of a cluster may take to connect, by the number of
// nodes that the hub has heard of, and draws a moment of that time. Whoever
// comes in spite of it waits for his turn, or is told to come again.
//
// # Questions
//
// A person's trace is asked on the same session, behind everything else that
// waits and in bounded number. It reads the answer of one agent and knows of
// no sink, assignment or gate.
package hub
