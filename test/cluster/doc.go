// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a real Kubernetes cluster on one Linux machine, for tests.
//
// It is: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, and per node a
// containerd with runc, a kubelet and a kube-proxy, all unmodified, each node with a network
// and a mount namespace of its own. Policy engines, agents and Pods see what they would see
// on separate machines: their own netfilter rules, their own /run/xtables.lock, their own
// /var/lib/kubelet, real node identities under the Node authorizer.
//
// It is not: a way to run Kubernetes for anything but tests. Nothing is durable (etcd does
// not sync its files), the nodes share one kernel, clock and file system, there is no DNS, no
// registry (see Cluster.LoadImage) and no way out to other networks.
//
// # Network
//
// A bridge in a namespace of its own joins the control plane, the nodes and, by one veth
// pair, the namespace that called Start, so that tests there reach the API server, node
// addresses and Pods, and Pods reach tests. Static routes between the nodes' pod ranges stand
// in for a router. Everything derives from a slot number, see Plan, so that several clusters
// can run at once.
//
//	              ┌──────────── switch ────────────┐
//	host (.1) ────┤  control plane (.2)            │
//	              │  n1 (.11) ── kube-bridge ── Pods of the first /24
//	              │  n2 (.12) ── kube-bridge ── Pods of the second /24
//	              └────────────────────────────────┘
//
// # Faults
//
// What fails in real clusters can be made to fail: processes of the cluster and of containers
// (Process.Kill, Freeze and Thaw), sandboxes (Cluster.KillSandbox), the network between nodes
// (Cluster.Cut) and nodes as a whole (Cluster.StopNode, StartNode, Reboot). None of it touches
// what another part has in its kernel: whoever is not the target finds out by itself.
//
// # What it leaves behind
//
// Every process of a cluster lives in the cluster's cgroup or in its container's, and every
// mount in the private mount namespace of a node. Stop kills what is in those; the kernel then drops the
// mounts, and Stop removes the namespaces and the files. The same works from another process
// for a cluster whose owner was killed, see Cleanup.
//
// It needs root, Linux 5.3 or later (bridge netfilter settings per namespace), and the
// commands that InstallPackages installs.
package cluster
