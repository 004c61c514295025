// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package oracle holds controllers/expect against an independent
// implementation of NetworkPolicy: the matcher of
// github.com/mattfenwick/cyclonus, which the Kubernetes network policy
// conformance tools are built on. It has no product code, and a module of its
// own so that the matcher's dependencies stay out of the product's.
//
// Random small clusters, made of API objects that the API server admits, are
// given to both. What is compared:
//
//   - the semantics: expect's Cluster.Admission and Cluster.Demand for
//     connections between all addresses of the cluster and some outside of it,
//     seen from every node
//   - the expectations: every flow that Cluster.Expect asks of a node
//   - that they are complete: where a rule means both the subject and an older
//     Pod, one of its flows is asked of the node that judges it
//   - that replicas which learn of the same objects in different orders expect
//     the same
//
// # Where the two differ
//
// The table differences names every way in which the two are known to differ,
// why, and which of them does what the API's documentation says. Each row is a
// correction of what the matcher is told. With all of them the matcher must
// give expect's answer every time; without any one of them it must not, at
// least once in a run. So a difference that has no row fails a test, and so
// does a row that is no longer true.
//
// The table abstentions names likewise why expect may say that nothing can be
// demanded, or that a demand is one that an engine is known not to meet. Those
// are no differences: but for an abstention that has no row, expect could
// agree with anything.
//
// # Running it
//
// ORACLE_WORLDS is how many clusters each test makes up, ORACLE_SEED the first
// one's seed. A failure names its seed and prints the cluster as YAML, after
// everything was removed from it that the failure does not need.
//
// # What it does not do
//
// It shows that two readings of the API agree, not that an engine realizes
// them: packets through real kernels are the business of test/kernel and
// test/e2e. Not compared are objects that the API server does not admit, a
// connection between a Pod and itself, policies that expect could not read,
// rules that mean more Pods than kube-router's sets hold, and what the
// answers cost.
package oracle
