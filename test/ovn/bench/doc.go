// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bench measures, on a real OVN of two nodes, what lies between a commit
// to the northbound database and a node's answer: beside the packet whose fate
// the commit changes, in the same run, so that ratios hold on any machine.
//
// The northbound database has unix sockets, no TLS and no replicas, and the
// datapath is the one in userspace: times are lower bounds of those of a cluster.
package bench
