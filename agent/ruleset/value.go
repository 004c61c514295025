// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset

import "strings"

// Field is something about a packet that a register of nf_tables can hold, in
// the bytes and the byte order that the kernel puts there
// (include/uapi/linux/netfilter/nf_tables.h).
type Field uint8

// Fields. The zero Field is none: a constant.
const (
	Constant Field = iota
	// SrcAddr and DstAddr have 4 or 16 bytes, in network order.
	SrcAddr
	DstAddr
	// L4Proto has 1 byte.
	L4Proto
	// FragOff has 2 bytes in network order: three flags and the offset.
	FragOff
	// SrcPort and DstPort have 2 bytes in network order.
	SrcPort
	DstPort
	// TCPFlagBits has 1 byte: that of the header of TCP, and an unknown one of
	// other protocols.
	TCPFlagBits
	// InName and OutName have 16 bytes, the rest of which is zero; InIndex and
	// OutIndex have 4 in host order, 0 where the hook has no such interface.
	InName
	OutName
	InIndex
	OutIndex
	// PacketMark and ConnMark have 4 bytes in host order.
	PacketMark
	ConnMark
	// ConnState has 4 bytes in host order with exactly one bit set, that of
	// NF_CT_STATE_BIT; before the connection is looked up it is the invalid one.
	ConnState
	// ConnStatus has 4 bytes in host order: the bits of enum ip_conntrack_status.
	ConnStatus
	// SrcType and DstType have 4 bytes in host order: the address's RTN_ type
	// as the node's routing tables have it (fib type).
	SrcType
	DstType
	// ReverseIndex has 4 bytes in host order: the index of the input interface
	// if the source has a route back by it, else 0 (fib saddr . iif oif).
	ReverseIndex
)

// Byte is what is known of one byte of a register: byte Index of Field under
// Mask, and then flipped by Xor. Of a Constant, Mask is 0 and Xor its value.
// The zero Byte, which is not Known, may be anything.
type Byte struct {
	Known     bool
	Field     Field
	Index     uint8
	Mask, Xor byte
}

// Value is a run of bytes of the registers.
type Value []Byte

// Compare matches a value that lies between From and To, both of its length
// and included, compared byte by byte from the first. For equality both are
// the same.
type Compare struct {
	Value    Value
	From, To []byte
	Not      bool
}

// NativeSet is a set or map of nf_tables.
type NativeSet struct {
	Table string
	Name  string
	// KeyLength is in bytes.
	KeyLength int
	// Verdicts: it is a map whose data are verdicts.
	Verdicts bool
	// Volatile: elements come and go without a commit, by timeouts or by the
	// packets themselves. An answer holds for the moment only.
	Volatile bool
	// Get asks for the element that a key falls into, an interval or the
	// catch-all element included. It is safe for concurrent use and returns
	// an error if it cannot be told.
	Get func(key []byte) (Element, error)
}

// Anonymous reports whether the set is part of a rule and has no name that
// anybody gave it. All tools of nftables have the kernel number these names.
func (s *NativeSet) Anonymous() bool {
	return strings.HasPrefix(s.Name, "__set") || strings.HasPrefix(s.Name, "__map")
}

// Element is what a key is found to be in a NativeSet.
type Element struct {
	// In reports whether there is an element for the key. If not, the others
	// are not set.
	In bool
	// Verdict is set for an element of a map of verdicts, with Chain where it
	// leads to one.
	Verdict Target
	// Unknown, if not empty, says what else decides whether the element
	// matches, such as a limit of its own.
	Unknown string
}

// Lookup matches a key that is in a set, or that a map has. Set is never nil.
type Lookup struct {
	Set *NativeSet
	Key Value
	Not bool
}
