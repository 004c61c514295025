// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package engine is a NetworkPolicy engine for tests only. It programs one
// node the way kube-router 2.11 does in its iptables mode, and misbehaves on
// request in the ways that kube-router was seen to.
//
// It watches Pods, Namespaces and NetworkPolicies and makes one full sync at a
// time. An event requests a sync through a channel of one slot, so that a
// burst during a sync costs one more; nothing is debounced. A sync takes a
// snapshot of the watched objects, then
//
//  1. saves the filter table of each family,
//  2. restores the ipsets of each family, each swapped in,
//  3. restores the whole filter table of each family in one transaction,
//     other tools' chains and rules included,
//  4. destroys the sets that nothing uses any more.
//
// Between 2 and 3 old rules run with new sets, as in the original. A sync
// that fails is tried again after a second, where kube-router would wait for
// the next event.
//
// What rules a node gets is package rules; this one has the informers, the
// order of things and the switches of Control. It is no example of a good
// engine and has nothing for production: no metrics, no cleanup when it ends.
package engine
