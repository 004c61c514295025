// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ruleset is the neutral model of a node's packet filter rules, and
// how a rule reads as text.
//
// The model knows no policy engine. What a reader does not understand stays
// in it as an Unknown match, an Unknown target or an Opaque chain, with the
// text that was not understood: nothing is ever left out. The package decides
// nothing, reads no kernel and imports no client; agent/trace evaluates it.
//
// A table is not changed once it is built and may be read by many goroutines.
package ruleset

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
)

// Family is the protocol family whose packets a table sees.
type Family uint8

// Families. Bridge and Netdev see packets of both IP families. A reader adds a
// table of nftables' inet family once for IPv4 and once for IPv6.
const (
	IPv4 Family = iota + 1
	IPv6
	Bridge
	Netdev
)

// String returns the name that nft uses.
func (f Family) String() string {
	switch f {
	case IPv4:
		return "ip"
	case IPv6:
		return "ip6"
	case Bridge:
		return "bridge"
	case Netdev:
		return "netdev"
	}
	return fmt.Sprintf("family %d", uint8(f))
}

// Backend is the kernel subsystem that holds a table.
type Backend uint8

// Backends: both can be loaded at once and then both see every packet.
const (
	Legacy Backend = iota + 1
	NFT
)

// String returns "legacy" or "nft".
func (b Backend) String() string {
	switch b {
	case Legacy:
		return "legacy"
	case NFT:
		return "nft"
	}
	return fmt.Sprintf("backend %d", uint8(b))
}

// Hook is a point of the packet's way through the kernel.
type Hook uint8

// Hooks in the order in which a packet can meet them.
const (
	Ingress Hook = iota + 1
	Prerouting
	Input
	Forward
	Output
	Postrouting
)

// String returns the name that nft uses.
func (h Hook) String() string {
	switch h {
	case Ingress:
		return "ingress"
	case Prerouting:
		return "prerouting"
	case Input:
		return "input"
	case Forward:
		return "forward"
	case Output:
		return "output"
	case Postrouting:
		return "postrouting"
	}
	return fmt.Sprintf("hook %d", uint8(h))
}

// Table is a table of one family and backend with all its chains.
type Table struct {
	Family  Family
	Backend Backend
	Name    string
	// Chains holds the base chains and, for the record, the others; jumps
	// point to the chains themselves.
	Chains []*Chain
}

// Chain is a list of rules. It is not copied once it is in use, and not changed
// once it was walked.
type Chain struct {
	Name string
	// Base is nil for a chain that only a jump reaches.
	Base  *Base
	Rules []Rule
	// Read, if not nil, is asked for the rules in place of Rules, when a walk
	// first gets here. It returns the same for as long as the table is in
	// use, is safe for concurrent use, and on an error a packet that gets
	// here may meet any fate.
	Read func() ([]Rule, error)
	// Opaque, if not empty, says that the chain's rules could not be read:
	// a packet that gets here may meet any fate.
	Opaque string

	listing atomic.Pointer[Listing]
}

// List returns the chain's rules, read if they have to be.
func (c *Chain) List() ([]Rule, error) {
	if c.Read != nil {
		return c.Read()
	}
	return c.Rules, nil
}

// Base is what ties a chain to a hook.
type Base struct {
	Hook Hook
	// Priority orders the base chains of a hook: lower is earlier.
	Priority int
	// Drop is the policy: what happens at the end of the chain.
	Drop bool
	// NAT chains see tracked connections only.
	NAT bool
}

// Rule matches if all its matches do.
type Rule struct {
	// Matches are in an order that is cheap to evaluate, sets last.
	Matches []Match
	Target  Target
	// Comment is the rule's comment or "".
	Comment string
	// Raw is the rule as text for people: Render's, if the reader had none.
	Raw string
}

// Order puts the conditions that cost a question to the kernel after those that
// are free, and changes nothing else in their order.
func Order(matches []Match) {
	slices.SortStableFunc(matches, func(a, b Match) int { return cost(a) - cost(b) })
}

func cost(m Match) int {
	switch m.(type) {
	case Set, Lookup:
		return 1
	}
	return 0
}

// Match is one condition of a rule: Addr, AddrRange, Iface, Proto, Ports,
// TCPFlags, Fragment, Set, Mark, CTState, AddrType, Bridged, BridgePort,
// ReversePath, Compare, Lookup or Unknown.
type Match interface{ match() }

// Direction says which end of the flow a match looks at.
type Direction uint8

// Directions. Either is for ports alone: source or destination.
const (
	Src Direction = iota + 1
	Dst
	Either
)

// String returns "src", "dst" or "either".
func (d Direction) String() string {
	switch d {
	case Src:
		return "src"
	case Dst:
		return "dst"
	case Either:
		return "either"
	}
	return fmt.Sprintf("direction %d", uint8(d))
}

// Addr matches an address under a mask, which need not be contiguous.
type Addr struct {
	Dir        Direction
	Addr, Mask netip.Addr
	Not        bool
}

// Contains reports whether ip, masked, is Addr, masked. An address of another
// family is not contained.
func (a Addr) Contains(ip netip.Addr) bool {
	if ip.Is4() != a.Addr.Is4() {
		return false
	}
	have, want, mask := ip.As16(), a.Addr.As16(), a.Mask.As16()
	from := 0
	if ip.Is4() {
		from = 12
	}
	for i := from; i < 16; i++ {
		if (have[i]^want[i])&mask[i] != 0 {
			return false
		}
	}
	return true
}

// AddrRange matches an address between two, both included.
type AddrRange struct {
	Dir      Direction
	From, To netip.Addr
	Not      bool
}

// Iface matches an interface by name or, with Prefix, by the start of its name.
type Iface struct {
	// Out is the output interface, else the input one.
	Out    bool
	Name   string
	Prefix bool
	Not    bool
}

// Proto matches the protocol number.
type Proto struct {
	Number uint8
	Not    bool
}

// PortRange is a range of ports, both ends included.
type PortRange struct{ From, To uint16 }

// Ports matches a port in any of the ranges.
type Ports struct {
	Dir    Direction
	Ranges []PortRange
	Not    bool
}

// TCP flags as bits of the header's byte 13.
const (
	FIN uint8 = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
)

// TCPFlags matches if the flags in Mask are exactly Set.
type TCPFlags struct {
	Mask, Set uint8
	Not       bool
}

// Fragment matches second and later fragments.
type Fragment struct{ Not bool }

// Set asks an ipset, one direction for each dimension.
type Set struct {
	Name string
	Dims []Direction
	Not  bool
}

// Mark matches the packet's mark or, with Conn, the connection's.
type Mark struct {
	Conn        bool
	Value, Mask uint32
	Not         bool
}

// CTStates is a set of connection tracking states.
type CTStates uint8

// Connection tracking states that a rule can name.
const (
	Invalid CTStates = 1 << iota
	Established
	Related
	New
	Untracked
	SNATed
	DNATed
)

// CTState matches if the connection has any of the states.
type CTState struct {
	States CTStates
	Not    bool
}

// AddrTypes is a set of address types as the routing tables know them.
type AddrTypes uint16

// Address types.
const (
	Unspec AddrTypes = 1 << iota
	Unicast
	Local
	Broadcast
	Anycast
	Multicast
	Blackhole
	Unreachable
	Prohibit
)

// AddrType matches if the address is of one of the types.
type AddrType struct {
	Dir   Direction
	Types AddrTypes
	Not   bool
}

// Bridged matches a packet that is bridged, not routed.
type Bridged struct{ Not bool }

// BridgePort matches the port by which a packet enters or leaves a bridge, by
// name or, with Prefix, by the start of its name. A packet that is not bridged
// has no port of that side; as it does in the kernel, it then compares as the
// empty name.
type BridgePort struct {
	// Out is the output port, else the input one.
	Out    bool
	Name   string
	Prefix bool
	Not    bool
}

// ReversePath matches a packet whose source has a route back (rpfilter): by the
// interface that it came in by or, if Loose, by any.
type ReversePath struct{ Loose, Not bool }

// Unknown is a match that the reader does not understand. It may or may not
// match.
type Unknown struct{ Text string }

func (Compare) match()     {}
func (Lookup) match()      {}
func (BridgePort) match()  {}
func (ReversePath) match() {}
func (Addr) match()        {}
func (AddrRange) match()   {}
func (Iface) match()       {}
func (Proto) match()       {}
func (Ports) match()       {}
func (TCPFlags) match()    {}
func (Fragment) match()    {}
func (Set) match()         {}
func (Mark) match()        {}
func (CTState) match()     {}
func (AddrType) match()    {}
func (Bridged) match()     {}
func (Unknown) match()     {}

// TargetKind says what a rule does with a packet that it matches.
type TargetKind uint8

// Target kinds. The zero kind is UnknownTarget, so that a target that a reader
// forgot to fill decides nothing.
const (
	// UnknownTarget may do anything.
	UnknownTarget TargetKind = iota
	// Continue goes on with the next rule: no target, logging, or one that
	// changes only what no match of this model reads.
	Continue
	Accept
	// Drop covers every kind of refusal.
	Drop
	Return
	Jump
	Goto
	// SetMark makes the packet's mark (mark &^ Mask) ^ Value.
	SetMark
	// SetConnMark does the same to the connection's mark.
	SetConnMark
	// SaveMark makes the connection's mark
	// (connmark &^ CTMask) ^ (mark & Mask).
	SaveMark
	// RestoreMark makes the packet's mark (mark &^ Mask) ^ (connmark & CTMask).
	RestoreMark
	// NoTrack takes the packet out of connection tracking.
	NoTrack
	// Decide looks the target up in Map by Key: one of the other kinds, or
	// the next rule if there is none.
	Decide
	// NewDestination rewrites the destination.
	NewDestination
	// NewSource rewrites the source.
	NewSource
)

// Target is what a rule does.
type Target struct {
	Kind TargetKind
	// Chain is set for Jump and Goto only, and never nil then.
	Chain *Chain
	// Map and Key are set for Decide only, and Map is never nil then.
	Map *NativeSet
	Key Value
	// Value, Mask and CTMask belong to the mark targets.
	Value, Mask, CTMask uint32
	// Name is the target's name as written, "" if the rule has none.
	Name string
}
