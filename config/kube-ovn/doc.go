// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package kubeovn holds what is installed otherwise, and beside, where Kube-OVN
// enforces policies, and the test of what it takes there. It has no code of its
// own.
package kubeovn
