// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package flow holds the two values that manager and agents exchange and that
// every decision is made of: a Flow, the first packet of a new connection, and
// a Verdict, what a node does with it.
//
// It knows nothing of Kubernetes objects, of rules or of the wire format.
package flow

import (
	"fmt"
	"net/netip"
)

// Protocol is an IANA assigned internet protocol number.
type Protocol uint8

// The protocols that a NetworkPolicy can name.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the lower-case name, or "protocol N" for one that no
// NetworkPolicy can name.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// Flow is the first packet of a new connection. Src and Dst are of one family
// and never 4-in-6 mapped. The source port is any ephemeral one.
type Flow struct {
	Protocol Protocol
	Src, Dst netip.Addr
	// Port is the destination port, 1 to 65535.
	Port uint16
}

// String returns "tcp 10.0.0.1 -> 10.0.0.2:3306".
func (f Flow) String() string {
	return fmt.Sprintf("%s %s -> %s", f.Protocol, f.Src, netip.AddrPortFrom(f.Dst, f.Port))
}

// Validate returns an error that names the field that makes f unusable, or nil.
func (f Flow) Validate() error {
	switch {
	case f.Protocol != TCP && f.Protocol != UDP && f.Protocol != SCTP:
		return fmt.Errorf("flow protocol %d: want tcp (6), udp (17) or sctp (132)", uint8(f.Protocol))
	case !f.Src.IsValid() || f.Src.Is4In6() || f.Src.Zone() != "":
		return fmt.Errorf("flow source %q: want an IPv4 or IPv6 address without zone", f.Src)
	case !f.Dst.IsValid() || f.Dst.Is4In6() || f.Dst.Zone() != "":
		return fmt.Errorf("flow destination %q: want an IPv4 or IPv6 address without zone", f.Dst)
	case f.Src.Is4() != f.Dst.Is4():
		return fmt.Errorf("flow from %s to %s: want two addresses of one family", f.Src, f.Dst)
	case f.Port == 0:
		return fmt.Errorf("flow destination port 0: want 1 to 65535")
	}
	return nil
}

// Answer is one of three: only Allowed and Denied are conclusive.
type Answer uint8

// The zero Answer is Inconclusive, so that a forgotten one opens no gate.
const (
	Inconclusive Answer = iota
	Allowed
	Denied
)

// String returns "inconclusive", "allowed" or "denied".
func (a Answer) String() string {
	switch a {
	case Inconclusive:
		return "inconclusive"
	case Allowed:
		return "allowed"
	case Denied:
		return "denied"
	}
	return fmt.Sprintf("answer %d", uint8(a))
}

// How the reason of an Inconclusive begins where its cause is a common one.
const (
	// NoRoute: the node has no route for the flow, so none of its rules judges it.
	NoRoute = "NoRoute"
	// SourceRewritten: what leaves the node has another source than the flow.
	SourceRewritten = "SourceRewritten"
	// DestinationRewritten: what leaves the node has another destination.
	DestinationRewritten = "DestinationRewritten"
)

// Verdict is what one node does with one flow.
type Verdict struct {
	Answer Answer
	// Reason says what made an Inconclusive so, or which rule decided. It may
	// hold text from the kernel: sanitize it before it leaves the node.
	Reason string
}

// String returns the answer, with the reason in parentheses if there is one.
func (v Verdict) String() string {
	if v.Reason == "" {
		return v.Answer.String()
	}
	return v.Answer.String() + " (" + v.Reason + ")"
}
