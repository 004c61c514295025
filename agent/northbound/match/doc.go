// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package match reads the language of OVN's matches (ovn-sb(5), column match of
// Logical_Flow), in which ACLs of the northbound database say whom they judge,
// and answers whether the first packet of a flow matches.
//
// There are three answers. A symbol, or a way to use one, that the package does
// not understand is Unknown, and that makes an expression Unknown only if it can
// change its value. A text that OVN would refuse is in force nowhere, and a text
// that is not understood as a whole may be such a one: neither is ever True.
//
// Negation is pushed down to comparisons when a text is read, as OVN does. That
// matters since a comparison implies what its field needs: for a packet of IPv6
// both ip4.src == 10.0.0.1 and !(ip4.src == 10.0.0.1) are false.
//
// The package knows no ACLs and no rows: address sets and groups of ports are
// asked of a World.
package match
