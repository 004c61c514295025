// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package unixctl asks ovs-vswitchd by its control socket: what its flows do
// with a packet (ofproto/trace), and when its flow cache was last gone through
// (revalidator/wait).
//
// The socket gives whoever may connect every right, to stop the daemon and to
// send packets among them. So the commands that are ever sent are listed in
// one place, and their arguments are checked: nothing that begins with a dash
// is an option here. The package does not know what a trace means.
package unixctl
