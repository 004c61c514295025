// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package demand turns a node's expectations into what is sent to its agent,
// and keeps of them what is needed to understand the agent's report: which
// rule each flow belongs to, and what may be told of it to whom.
//
// It decides nothing: what a report means for a Pod is package gate's
// business, what it means for a policy package policystatus's.
package demand
