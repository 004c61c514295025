// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package packet asks with a real packet whether a node lets a connection
// through: it sends a SYN out of a Pod's network namespace and says what came
// back.
//
// A connection that is made by the kernel cannot tell a port where nobody
// listens (the destination's RST: the packet was let in) from a rule that
// rejects (an ICMP error): both are "connection refused". The packets can, so
// nobody has to listen, and a Pod can be asked while its hold still runs.
//
// It knows IPv4 only, sends a SYN once and judges nothing.
package packet
