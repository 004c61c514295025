// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policy holds the admission policies that limit what the agents and
// the manager may write of a Pod, and the test that keeps them complete. It
// has no code of its own.
package policy
