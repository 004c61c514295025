// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gate tests a gate from end to end where a real OVN enforces: from the
// creation of a Pod to the first packet that it sends or is sent.
//
// Real are: API server and etcd with the admission policies, definitions and
// roles that config/overlays/kube-ovn installs; the product's commands as
// processes, each with a token of its own that is bound to a Pod: manager with
// its webhook, northbound, and an agent for each node, which runs in the node's
// network namespace as an ordinary user without any capability; OVN and Open
// vSwitch, by package fixture; and the packets.
//
// The test plays what is left, and none of it is Policy Gate's:
//
//   - kube-ovn-controller is package engine, told by the API of what there is;
//     its queue can be frozen before any step,
//   - kube-ovn-cni is package fixture,
//   - the kubelets are the test itself: a Pod that has its port is given its
//     address and a hold that runs, and is taken to start its containers once
//     the annotation that the hold reads names it. Nobody runs the hold, and
//     what listens in a Pod listens from its start on, so that a packet tells
//     what the network does, whatever the hold does,
//   - the Service network is a proxy in each node's namespace, since API server
//     and manager listen on the test's loopback.
//
// The tests need root, what package fixture needs, and KUBEBUILDER_ASSETS with
// etcd, kube-apiserver and kubectl; they are built with the tag apiserver.
package gate
