// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e is the end-to-end tests: Policy Gate as `make deploy` installs it,
// on real Kubernetes, with a policy engine that is late or wrong on purpose, or
// with the real kube-router (ENGINE, KUBE_ROUTER: see package testbed). What a
// gate promises is checked from outside, with packets.
package e2e
