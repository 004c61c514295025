// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bench is the simulation of a large cluster: the manager's real
// coverage, barrier, gate ledger and hub over real gRPC with TLS, and up to a
// thousand real agents whose kernels are simulated.
//
// Its rooms: world is what is true in the cluster and what each node's kernel
// says by when; store is the API server's part; replica is the manager as a
// process of its own; fleet is the agents; simulate has the scenarios, and
// cmd/simulate prints what they cost. apiserver runs agents and manager against
// a real API server.
package bench
