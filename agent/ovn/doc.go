// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ovn answers for flows of Pods on logical ports of OVN, by traces of
// the OpenFlow tables that are installed on this node.
//
// It knows nothing of OVN's own tables, whose numbers and contents differ from
// version to version: it asks ovs-vswitchd what it would do with a packet
// (ofproto/trace), and reads where that ends. It sends no packet, changes
// nothing, and decides nothing about policies. Of the northbound database it
// knows nothing either.
//
// # Which packets
//
//   - What a Pod of this node sends is traced from its port, to the hardware
//     address that the switch's ARP responder gives for the destination, or
//     else to the router's. The router's is read from a packet that the node
//     would send to the Pod by ovn0.
//   - What comes to a Pod of this node from elsewhere is traced as it would come
//     by a Geneve tunnel, in which OVN carries the keys of the switch and of the
//     logical port. They are read from the registers of any packet from the
//     port. A node that has no tunnel is asked for what comes by ovn0.
//   - Between two Pods of this node the whole way is traced.
//
// # Which verdict
//
// A flow is Allowed if the packet is sent to exactly one port, or into one
// tunnel; if the destination is local, to its port. It is Denied if the packet
// is dropped within the switch of the source before a way out is chosen, or at
// the logical port of the destination, and if afterwards a packet that no
// NetworkPolicy judges (ARP, or a neighbour advertisement) gets through there:
// a bridge without flows, as after a restart of vswitchd, drops everything.
//
// Whatever else a trace says is Inconclusive, in the trace's own words: a copy
// for ovn-controller, unless it is for the log of an ACL, several outputs, a
// way that the trace does not follow to its end, like a load balancer's, a drop
// by a router, rewritten addresses. So is what is asked about an address that
// two interfaces have, about a Pod with several logical ports, or about a port
// of which ovn-controller has not said that its flows are installed. What
// ovn-controller acknowledges (nb_cfg, ovn-installed) never makes anything
// conclusive: it is what it was while vswitchd has lost all flows.
//
// # When it counts
//
// Traces go through the OpenFlow tables and run ahead of the cache of megaflows,
// from which packets are forwarded. An answer that is new, or has changed, is
// Inconclusive until vswitchd's revalidators have gone through the cache once
// since: within half a second, or a second on a busy node. One wait serves all
// answers. What is known is forgotten when vswitchd or the connection to the
// database is another; for a single port, when its row changes.
//
// # What it costs
//
// A trace runs in the loop of vswitchd in which flows are installed. All of
// them together take at most 5 % of the time, 250 ms at once. An Allowed takes
// one trace, a Denied two; what is learned of ports and peers is used for 30 s.
package ovn
