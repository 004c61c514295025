// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package apiserver runs the product's own manager, one or more processes of
// it, against a real API server and etcd with many fake nodes and Pods, and
// counts what that costs and how long gates take to open.
//
// Real are: API server, etcd, the manager's binary with its role, leader
// election, certificates and webhook, the admission policies, the agents'
// tokens and their reviews, their sessions, their confirmation of assignments
// and the one patch of each Pod. Simulated are the nodes and the lifecycle of
// their Pods, by kwok, and the kernels, by package fleet. There is no
// scheduler and there are no controllers: Pods are created with their node,
// and those of Jobs without the Job.
//
// The executables of API server and etcd, and kubectl, are those that
// KUBEBUILDER_ASSETS names; kwok is built at the version of hack/kwok.mod.
// Everything listens on the loopback, and ends when its Close is called or, but
// for API server and etcd, when this process ends.
package apiserver
