// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package explain answers a person's question what would become of a new
// connection: it finds out whether the person may ask, which addresses and
// nodes the question is about, and asks the agents of those nodes.
//
// It knows no rules: the agents read them, and package tracev1 joins what they
// say. Nothing that it does is seen by gates.
//
// # Who may ask
//
// The answer shows rules of every namespace, so it is for administrators. A
// request carries a bearer token issued for tracev1.Audience; a TokenReview
// says whose it is, and a SubjectAccessReview whether that user may "create"
// "traces" of the group policygate.io. The token is good for nothing else, so
// nobody's own credential comes here.
//
// # Where it listens
//
// On the loopback of the manager's Pod: a port-forward, which the API server
// guards, ends there, and other Pods cannot reach it. TLS and the token are
// asked for all the same.
package explain
