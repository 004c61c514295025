// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package jsonrpc speaks JSON-RPC 1.0 as OVSDB (RFC 7047 section 4) and the
// control sockets of Open vSwitch's daemons do: JSON objects one after the
// other on a stream. A Conn sends calls, gives what the other side tells
// unasked to its user, and answers echo requests.
//
// What is malformed ends the connection with an error that says what it was.
// The package knows none of the methods but echo, and which may be called is
// decided by those who import it.
package jsonrpc
