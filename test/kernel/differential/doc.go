// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package differential holds verdicts against the kernel: it loads random
// rules into a network namespace, sends the first packets of new connections
// through it and demands that what is Allowed arrives and what is Denied does
// not.
//
// Rules are made by tables of constructs, one line each, in the languages of
// iptables (both of its backends), nft and ipset; what a verdict cannot foresee
// is among them, but rare. A ruleset and its packets come from one number, the
// seed, and can be tried again alone.
//
// A node is a network namespace with a bridge, routed interfaces and two
// uplinks. Everybody else is an interface in another namespace that answers
// nothing. Packets are made here, with right checksums, and sent from one
// processor, so that a frame sent after them tells when all of them are done.
package differential
