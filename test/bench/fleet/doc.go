// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package fleet runs many agents in one process: the real session.Client,
// confirm.Confirmer and reporter.Reporter of each, wired as cmd/agent wires
// them, with a kernel that is asked of a world in place of the node's own.
//
// It makes no token, finds no replica and writes to no API server by itself:
// these come from outside. It measures what agents see: how long after a
// node's last report the release arrives.
package fleet
