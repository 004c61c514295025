// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ovsdb keeps a copy of some tables of an OVSDB server (RFC 7047): the
// Open vSwitch database of a node, or OVN's northbound database, standalone or
// a raft cluster, over unix sockets, TCP or TLS.
//
// A Client connects, finds out what the server's schema has, monitors the
// tables that it was asked for, and applies what the server tells. View gives
// the rows as of one transaction of one connection, or an error that says why
// there are none: while the client is not in sync there is no view, and an old
// one never passes for a new one. A connection that is silent is asked after 5
// s whether it is still there, and given up 5 s later.
//
// What a server says of itself is believed. The leader of a raft cluster that is
// cut off from the others does not know it for the time of an election, and
// its rows may be old for that long; an Increment does not pass then.
//
// There is no way to write but Increment, which adds one to a counter of a
// table of one row. The methods that are ever sent are in methods.go.
//
// The package does not know OVN: what rows mean is the callers' business.
package ovsdb
