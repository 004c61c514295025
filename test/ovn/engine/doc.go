// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package engine writes NetworkPolicies into OVN's northbound database as
// kube-ovn-controller does, for tests only: the same rows by the same names,
// in the same order, in as many transactions. In between it waits for as long
// as a test says, so that what a policy half written does can be looked at.
//
// Plan says what rows a cluster has, and is pure. Apply writes them:
//
//  1. the port group is made,
//  2. the logical ports of the Pods that are allocated are put into it,
//  3. for each rule of ingress the two address sets are made and filled,
//  4. one transaction takes all ACLs of ingress away and adds them again,
//  5. the same two steps for egress,
//  6. for IPv6, the ACLs for neighbour discovery are added.
//
// So a Pod is open until step 4 of its first policy, and a Pod that is not in
// the port group yet is open until step 2 of the next pass.
//
// There is no queue and there are no watches: a pass is made when it is asked
// for. Left out are logging and its meters, admin policies, security groups,
// subnets' own ACLs and the annotation that binds a policy to some networks.
package engine
