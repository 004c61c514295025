// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rules computes the ipsets and the filter table that kube-router
// 2.11 in its iptables mode holds on one node for given objects: the same
// chains, rule order and set names, as text for ipset restore and
// iptables-restore.
//
// It is written for tests and imitates deliberately what a correct engine
// would not do: a named port that nobody has opens all ports, an egress
// ipBlock with a named port gets no rule, chain names change at every sync,
// the set of a named port depends on an order that is random in the original.
// Left out are default-deny, the NFLOG prefixes of the k3s fork and the native
// nftables mode.
//
// Everything here is a pure function of its arguments: nothing is read from
// the cluster, the kernel or a clock, and nothing is changed in the objects.
package rules
