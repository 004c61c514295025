// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package replica runs the manager's part of a simulation as a process of its
// own: the real coverage index, barrier, gate ledger, messages and hub, wired
// as cmd/manager wires them. Apart, its memory and processor time can be told
// from those of a thousand agents, and it can be killed.
//
// The process is the calling binary, started again by Start; whoever calls
// Start calls Main first. In place of informers and clients it has one
// connection to its driver: events come in, the barrier's LISTs and the
// patches of conditions go out. It computes no statistics: it tells what it
// timed, and the driver reads /proc.
package replica
