// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package startup takes a start-up taint off a node once the node's agent is
// there: kubelets register their nodes with it, and until it is gone no Pod is
// scheduled there that would have to wait for the agent.
//
// It never adds a taint, and knows nothing of gates: a node whose agent goes
// away later keeps its Pods and takes new ones, whose gates wait.
package startup
