// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package explain answers a person's three questions: what would become of a
// new connection (a trace), why a Pod is held (an explanation), and what this
// replica of the manager sees of the installation (a diagnosis). It finds out
// whether the person may ask, puts together what the ledger, the hub and the
// caches know, and asks the agents of the nodes that it is about.
//
// It knows no rules: the agents read them, and package tracev1 joins what they
// say. Nor does it judge an installation: that is the plugin's. Nothing that it
// does is seen by gates.
//
// # Who may ask
//
// The answers show rules and names of every namespace, so they are for
// administrators. A request carries a bearer token issued for tracev1.Audience;
// a TokenReview says whose it is, and a SubjectAccessReview whether that user
// may "create" the question's resource of the group policygate.io: "traces",
// "explanations" or "diagnoses". There is one audience, as there is one that
// answers; what a token is good for beyond that is its user's, and there is a
// ServiceAccount for each question. The token is good for nothing else, so
// nobody's own credential comes here.
//
// # Where it listens
//
// On the loopback of the manager's Pod: a port-forward, which the API server
// guards, ends there, and other Pods cannot reach it. TLS and the token are
// asked for all the same.
package explain
