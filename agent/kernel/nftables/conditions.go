// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

// fieldBytes is the longest field: an IPv6 address or an interface's name.
const fieldBytes = 16

// comparison asks for the value that a field has under a mask.
type comparison struct {
	field       ruleset.Field
	mask, value [fieldBytes]byte
}

// compared returns the comparisons that are all to hold for the cells to be
// data; never if they cannot; and false if a cell is not known.
func compared(cells []cell, data []byte) (all []comparison, never, ok bool) {
	for i, c := range cells {
		if !c.Known {
			return nil, false, false
		}
		want := data[i] ^ c.Xor
		// What the mask hides cannot be asked for. A mark's match can say so
		// itself, as iptables' --mark 0x5/0x1.
		if isMark := c.Field == ruleset.PacketMark || c.Field == ruleset.ConnMark; !isMark {
			never = never || want&^c.Mask != 0
			if c.Mask == 0 {
				continue
			}
		}
		at := slices.IndexFunc(all, func(other comparison) bool { return other.field == c.Field })
		if at < 0 {
			all = append(all, comparison{field: c.Field})
			at = len(all) - 1
		}
		if all[at].mask[c.Index] != 0 {
			// One byte in two places.
			return nil, false, false
		}
		all[at].mask[c.Index], all[at].value[c.Index] = c.Mask, want
	}
	return all, never, true
}

func (m *machine) cmp(a *attrs) {
	operation, ok := a.number(unix.NFTA_CMP_OP)
	data, ok2 := a.data(unix.NFTA_CMP_DATA)
	cells, ok3 := m.get(a, unix.NFTA_CMP_SREG, len(data))
	if !ok || !ok2 || !ok3 || !a.only(unix.NFTA_CMP_SREG, unix.NFTA_CMP_OP, unix.NFTA_CMP_DATA) {
		m.unknown("cmp")
		return
	}
	zero, most := make([]byte, len(data)), bytes.Repeat([]byte{0xff}, len(data))
	switch operation {
	case unix.NFT_CMP_EQ, unix.NFT_CMP_NEQ:
		m.equal(cells, data, operation == unix.NFT_CMP_NEQ)
	case unix.NFT_CMP_LT:
		m.ordered(cells, data, most, true)
	case unix.NFT_CMP_LTE:
		m.ordered(cells, zero, data, false)
	case unix.NFT_CMP_GT:
		m.ordered(cells, zero, data, true)
	case unix.NFT_CMP_GTE:
		m.ordered(cells, data, most, false)
	default:
		m.unknown("cmp")
	}
}

// equal adds the condition that the cells are data or, negated, are not. It
// says so in the words that people know if they are enough.
func (m *machine) equal(cells []cell, data []byte, not bool) {
	all, never, ok := compared(cells, data)
	switch {
	case !ok:
		m.compare(cells, data, data, not)
		return
	case never != not && (never || len(all) == 0):
		m.impossible()
		return
	case never, len(all) == 0:
		// Always so.
		return
	case not && len(all) > 1:
		m.compare(cells, data, data, not)
		return
	}
	matches := make([]ruleset.Match, len(all))
	for i, c := range all {
		if matches[i], ok = c.match(m.family, not); !ok {
			m.compare(cells, data, data, not)
			return
		}
	}
	for i, match := range matches {
		m.match(match)
		m.flags = m.flags || all[i].field == ruleset.TCPFlagBits
	}
}

// compare adds the condition that the cells are between two values.
func (m *machine) compare(cells []cell, from, to []byte, not bool) {
	value := m.value(cells)
	if known := func(b ruleset.Byte) bool { return b.Known && b.Mask|b.Xor != 0 }; slices.ContainsFunc(value, known) ||
		!slices.Contains(value, ruleset.Byte{}) {
		m.match(ruleset.Compare{Value: value, From: bytes.Clone(from), To: bytes.Clone(to), Not: not})
		return
	}
	// Nothing is known: the name of what was loaded says more to people.
	text := "cmp"
	for _, c := range cells {
		if what := c.what.String(); what != "" {
			text = what
			break
		}
	}
	m.unknown(text)
}

// value returns the cells as the model has them, and adds what has to hold for
// them to have been loaded.
func (m *machine) value(cells []cell) ruleset.Value {
	value := make(ruleset.Value, len(cells))
	for i, c := range cells {
		value[i] = c.Byte
		switch {
		case !c.Known:
			value[i] = ruleset.Byte{}
		case c.Mask == 0:
			value[i] = ruleset.Byte{Known: true, Xor: c.Xor}
		case c.Field == hasRoute, c.Field == anyRoute:
			value[i] = ruleset.Byte{}
		case c.Field == ruleset.FragOff && c.Index == 0 && c.Mask&0xe0 != 0:
			// The flags: whether it may be fragmented is the sender's choice.
			value[i] = ruleset.Byte{}
		case c.Field == ruleset.TCPFlagBits:
			if m.flags = true; c.Mask&0xc0 != 0 {
				// The two upper bits are ECN's, which a first packet may have
				// or not.
				value[i] = ruleset.Byte{}
			}
		case c.Field == ruleset.ConnMark:
			m.tracked()
		}
	}
	return value
}

// match returns the condition; false if the model has none for it.
func (c comparison) match(family ruleset.Family, not bool) (ruleset.Match, bool) {
	mask16, value16 := binary.BigEndian.Uint16(c.mask[:]), binary.BigEndian.Uint16(c.value[:])
	mask32, value32 := binary.NativeEndian.Uint32(c.mask[:]), binary.NativeEndian.Uint32(c.value[:])
	switch c.field {
	case ruleset.SrcAddr, ruleset.DstAddr:
		size := 4
		if family == ruleset.IPv6 {
			size = 16
		}
		value, _ := netip.AddrFromSlice(c.value[:size])
		mask, _ := netip.AddrFromSlice(c.mask[:size])
		return ruleset.Addr{Dir: direction(c.field), Addr: value, Mask: mask, Not: not}, true
	case ruleset.L4Proto:
		return ruleset.Proto{Number: c.value[0], Not: not}, c.mask[0] == 0xff
	case ruleset.FragOff:
		// Not of a fragment: the offset, without the three flags, is 0.
		return ruleset.Fragment{Not: !not}, mask16 == 0x1fff && value16 == 0
	case ruleset.SrcPort, ruleset.DstPort:
		return ruleset.Ports{Dir: direction(c.field), Ranges: []ruleset.PortRange{{From: value16, To: value16}}, Not: not}, mask16 == 0xffff
	case ruleset.TCPFlagBits:
		// As in value.
		return ruleset.TCPFlags{Mask: c.mask[0], Set: c.value[0], Not: not}, c.mask[0]&0xc0 == 0
	case ruleset.InName, ruleset.OutName:
		return c.iface(not)
	case ruleset.PacketMark, ruleset.ConnMark:
		return ruleset.Mark{Conn: c.field == ruleset.ConnMark, Value: value32, Mask: mask32, Not: not}, true
	case ruleset.ConnState:
		return stateMatch(mask32, value32, not)
	case hasRoute, anyRoute:
		return ruleset.ReversePath{Loose: c.field == anyRoute, Not: (c.value[0] == 0) != not}, c.mask[0]&1 == 1 && c.value[0] <= 1
	case ruleset.Constant, ruleset.InIndex, ruleset.OutIndex, ruleset.ConnStatus, ruleset.SrcType, ruleset.DstType, ruleset.ReverseIndex:
	}
	return nil, false
}

func direction(f ruleset.Field) ruleset.Direction {
	if f == ruleset.SrcAddr || f == ruleset.SrcPort {
		return ruleset.Src
	}
	return ruleset.Dst
}

// iface reads a name, with the zero that ends it, or only its beginning.
func (c comparison) iface(not bool) (ruleset.Match, bool) {
	length := 0
	for length < fieldBytes && c.mask[length] == 0xff {
		length++
	}
	if length == 0 || !zeros(c.mask[length:]) {
		return nil, false
	}
	end := bytes.IndexByte(c.value[:length], 0)
	m := ruleset.Iface{Out: c.field == ruleset.OutName, Prefix: end < 0, Not: not}
	if m.Prefix {
		end = length
	}
	m.Name = string(c.value[:end])
	return m, zeros(c.value[end:length]) && (!m.Prefix || length < unix.IFNAMSIZ)
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// stateMatch reads "state & mask == 0", or "!= 0", or the comparison with a
// single state. The register always holds exactly one.
func stateMatch(mask, value uint32, not bool) (ruleset.Match, bool) {
	if value == 0 {
		states, ok := ctStates(mask)
		return ruleset.CTState{States: states, Not: !not}, ok
	}
	states, ok := ctStates(value)
	return ruleset.CTState{States: states, Not: not}, ok && bits.OnesCount32(value) == 1 && value&mask == value
}

// ctStates reads the bits of nf_conntrack_common.h.
func ctStates(have uint32) (ruleset.CTStates, bool) {
	var states ruleset.CTStates
	for bit, state := range map[uint32]ruleset.CTStates{
		1: ruleset.Invalid, 2: ruleset.Established, 4: ruleset.Related, 8: ruleset.New, 64: ruleset.Untracked,
	} {
		if have&bit != 0 {
			states |= state
			have &^= bit
		}
	}
	return states, have == 0
}

func (m *machine) between(a *attrs) {
	operation, ok := a.number(unix.NFTA_RANGE_OP)
	from, ok2 := a.data(unix.NFTA_RANGE_FROM_DATA)
	to, ok3 := a.data(unix.NFTA_RANGE_TO_DATA)
	cells, ok4 := m.get(a, unix.NFTA_RANGE_SREG, len(from))
	if !ok || !ok2 || !ok3 || !ok4 || len(from) != len(to) || operation > unix.NFT_RANGE_NEQ ||
		!a.only(unix.NFTA_RANGE_SREG, unix.NFTA_RANGE_OP, unix.NFTA_RANGE_FROM_DATA, unix.NFTA_RANGE_TO_DATA) {
		m.unknown("range")
		return
	}
	m.ordered(cells, from, to, operation == unix.NFT_RANGE_NEQ)
}

// ordered adds the condition that the cells are between two values, both
// included.
func (m *machine) ordered(cells []cell, from, to []byte, not bool) {
	if bytes.Compare(from, to) > 0 {
		if !not {
			m.impossible()
		}
		return
	}
	of := cells[0].Field
	for i, c := range cells {
		if !c.Known || c.Field != of || int(c.Index) != i || c.Mask != 0xff || c.Xor != 0 {
			m.compare(cells, from, to, not)
			return
		}
	}
	switch {
	case (of == ruleset.SrcPort || of == ruleset.DstPort) && len(cells) == 2:
		ports := ruleset.PortRange{From: binary.BigEndian.Uint16(from), To: binary.BigEndian.Uint16(to)}
		m.match(ruleset.Ports{Dir: direction(of), Ranges: []ruleset.PortRange{ports}, Not: not})
	case (of == ruleset.SrcAddr || of == ruleset.DstAddr) && len(cells) == m.addressSize():
		a, _ := netip.AddrFromSlice(from)
		b, _ := netip.AddrFromSlice(to)
		m.match(ruleset.AddrRange{Dir: direction(of), From: a, To: b, Not: not})
	default:
		m.compare(cells, from, to, not)
	}
}

// addressSize returns how many bytes an address of the family has.
func (m *machine) addressSize() int {
	if m.family == ruleset.IPv6 {
		return 16
	}
	return 4
}
