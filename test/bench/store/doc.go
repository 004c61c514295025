// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package store is the API server's part in a simulation: it keeps objects,
// numbers every change with one resourceVersion, tells watchers in order,
// answers consistent LISTs and applies the status patches that the manager and
// the agents send.
//
// It validates, admits and defaults nothing, and knows only the four kinds
// that the manager watches.
package store
