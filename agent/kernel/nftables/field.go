// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

// source is a field of the packet, or of what the kernel knows of it, that a
// register can hold.
type source uint8

const (
	sourceAddress source = iota + 1
	destinationAddress
	protocolNumber
	fragmentOffset
	sourcePort
	destinationPort
	tcpFlags
	inputName
	outputName
	packetMark
	connMark
	connState
)

// fieldBytes is the longest field: an IPv6 address or an interface's name.
const fieldBytes = 16

// size returns the field's length in bytes.
func (s source) size(family ruleset.Family) int {
	switch s {
	case sourceAddress, destinationAddress:
		if family == ruleset.IPv6 {
			return 16
		}
		return 4
	case inputName, outputName:
		return unix.IFNAMSIZ
	case packetMark, connMark, connState:
		return 4
	case fragmentOffset, sourcePort, destinationPort:
		return 2
	case protocolNumber, tcpFlags:
	}
	return 1
}

// cells returns the register that holds the whole field.
func (s source) cells(family ruleset.Family) []cell {
	cells := make([]cell, s.size(family), registersSize)
	for i := range cells {
		cells[i] = cell{known: true, source: s, index: uint8(i), mask: 0xff}
	}
	return cells
}

func constant(values ...byte) []cell {
	cells := make([]cell, len(values), registersSize)
	for i, b := range values {
		cells[i] = cell{known: true, xor: b}
	}
	return cells
}

func (m *machine) meta(a *attrs) {
	key, ok := a.number(unix.NFTA_META_KEY)
	switch {
	case ok && a.only(unix.NFTA_META_KEY, unix.NFTA_META_SREG):
		m.metaSet(a, key)
	case ok && a.only(unix.NFTA_META_KEY, unix.NFTA_META_DREG):
		m.metaLoad(a, key)
	default:
		m.spoil("meta")
		m.forget()
	}
}

func (m *machine) metaSet(a *attrs, key uint32) {
	switch key {
	case unix.NFT_META_MARK:
		m.setMark(a, unix.NFTA_META_SREG, packetMark, ruleset.Target{Kind: ruleset.SetMark, Name: "MARK"})
	case unix.NFT_META_NFTRACE:
		if !m.acted {
			m.rule.Target.Name = "TRACE"
		}
	case unix.NFT_META_PRIORITY, unix.NFT_META_SECMARK:
		// No match of the model reads them.
	default:
		m.spoil(fmt.Sprintf("meta key %d set", key))
	}
}

func (m *machine) metaLoad(a *attrs, key uint32) {
	var cells []cell
	switch key {
	case unix.NFT_META_L4PROTO:
		cells = protocolNumber.cells(m.family)
	case unix.NFT_META_MARK:
		cells = packetMark.cells(m.family)
	case unix.NFT_META_IIFNAME:
		cells = inputName.cells(m.family)
	case unix.NFT_META_OIFNAME:
		cells = outputName.cells(m.family)
	case unix.NFT_META_NFPROTO:
		cells = constant(unix.NFPROTO_IPV4)
		if m.family == ruleset.IPv6 {
			cells = constant(unix.NFPROTO_IPV6)
		}
	case unix.NFT_META_PROTOCOL:
		cells = constant(unix.ETH_P_IP>>8, unix.ETH_P_IP&0xff)
		if m.family == ruleset.IPv6 {
			cells = constant(unix.ETH_P_IPV6>>8, unix.ETH_P_IPV6&0xff)
		}
	default:
		m.unknown(fmt.Sprintf("meta key %d", key))
		m.forget()
		return
	}
	m.load(a, unix.NFTA_META_DREG, cells, "meta")
}

// payloadField is a header field that can be read, and where it is.
type payloadField struct {
	source source
	base   uint32
	offset int
}

// payloadFields returns those of a family.
func payloadFields(family ruleset.Family) []payloadField {
	const network, transport = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER
	ports := []payloadField{{sourcePort, transport, 0}, {destinationPort, transport, 2}, {tcpFlags, transport, 13}}
	if family == ruleset.IPv6 {
		// The next header is the protocol of a packet without extension
		// headers, as the first one of a flow is.
		return append(ports, payloadField{protocolNumber, network, 6}, payloadField{sourceAddress, network, 8}, payloadField{destinationAddress, network, 24})
	}
	return append(ports, payloadField{fragmentOffset, network, 6}, payloadField{protocolNumber, network, 9},
		payloadField{sourceAddress, network, 12}, payloadField{destinationAddress, network, 16})
}

func (m *machine) payload(a *attrs) {
	if a.values[unix.NFTA_PAYLOAD_SREG] != nil {
		m.spoil("payload written")
		return
	}
	base, ok := a.number(unix.NFTA_PAYLOAD_BASE)
	offset, ok2 := a.number(unix.NFTA_PAYLOAD_OFFSET)
	length, ok3 := a.number(unix.NFTA_PAYLOAD_LEN)
	if !ok || !ok2 || !ok3 || length == 0 || length > registersSize ||
		!a.only(unix.NFTA_PAYLOAD_DREG, unix.NFTA_PAYLOAD_BASE, unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN) {
		m.unknown("payload")
		m.forget()
		return
	}
	what := fmt.Sprintf("%s header at %d", headerName(base), offset)
	cells := make([]cell, length, registersSize)
	for _, f := range payloadFields(m.family) {
		if f.base != base {
			continue
		}
		for i := range f.source.size(m.family) {
			at := int64(f.offset) + int64(i) - int64(offset)
			if at >= 0 && at < int64(length) {
				cells[at] = cell{known: true, source: f.source, index: uint8(i), mask: 0xff}
			}
		}
	}
	for _, c := range cells {
		if !c.known {
			m.unknown(what)
			break
		}
	}
	m.load(a, unix.NFTA_PAYLOAD_DREG, cells, what)
}

func headerName(base uint32) string {
	switch base {
	case unix.NFT_PAYLOAD_LL_HEADER:
		return "link layer"
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		return "network"
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		return "transport"
	}
	return "inner"
}

func (m *machine) ct(a *attrs) {
	key, ok := a.number(unix.NFTA_CT_KEY)
	switch {
	case ok && key == unix.NFT_CT_MARK && a.only(unix.NFTA_CT_KEY, unix.NFTA_CT_SREG):
		m.setMark(a, unix.NFTA_CT_SREG, connMark, ruleset.Target{Kind: ruleset.SetConnMark, Name: "CONNMARK"})
	case a.values[unix.NFTA_CT_SREG] != nil:
		m.spoil(fmt.Sprintf("ct key %d set", key))
	case ok && key == unix.NFT_CT_STATE && a.only(unix.NFTA_CT_KEY, unix.NFTA_CT_DREG):
		m.load(a, unix.NFTA_CT_DREG, connState.cells(m.family), "ct")
	case ok && key == unix.NFT_CT_MARK && a.only(unix.NFTA_CT_KEY, unix.NFTA_CT_DREG):
		m.load(a, unix.NFTA_CT_DREG, connMark.cells(m.family), "ct")
	default:
		m.unknown(fmt.Sprintf("ct key %d", key))
		m.forget()
	}
}

// comparison asks for the value that a field has under a mask.
type comparison struct {
	source      source
	mask, value [fieldBytes]byte
}

// compared returns the comparisons that are all to hold for the cells to be
// data; never if they cannot; and false if a cell is not known.
func compared(cells []cell, data []byte) (all []comparison, never, ok bool) {
	for i, c := range cells {
		if !c.known {
			return nil, false, false
		}
		want := data[i] ^ c.xor
		// What the mask hides cannot be asked for. A mark's match can say so
		// itself, as iptables' --mark 0x5/0x1.
		if isMark := c.source == packetMark || c.source == connMark; !isMark {
			never = never || want&^c.mask != 0
			if c.mask == 0 {
				continue
			}
		}
		at := -1
		for j := range all {
			if all[j].source == c.source {
				at = j
			}
		}
		if at < 0 {
			all = append(all, comparison{source: c.source})
			at = len(all) - 1
		}
		if all[at].mask[c.index] != 0 {
			// One byte in two places.
			return nil, false, false
		}
		all[at].mask[c.index], all[at].value[c.index] = c.mask, want
	}
	return all, never, true
}

func (m *machine) cmp(a *attrs) {
	operation, ok := a.number(unix.NFTA_CMP_OP)
	data, ok2 := a.data(unix.NFTA_CMP_DATA)
	if !ok || !ok2 || !a.only(unix.NFTA_CMP_SREG, unix.NFTA_CMP_OP, unix.NFTA_CMP_DATA) {
		m.unknown("cmp")
		return
	}
	cells, ok := m.get(a, unix.NFTA_CMP_SREG, len(data))
	if !ok {
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

// equal adds the condition that the cells are data or, negated, are not.
func (m *machine) equal(cells []cell, data []byte, not bool) {
	all, never, ok := compared(cells, data)
	switch {
	case !ok:
		m.unknown("cmp")
		return
	case never && not, len(all) == 0 && !never && !not:
		// Always so.
		return
	case never, len(all) == 0, not && len(all) > 1:
		m.unknown("cmp")
		return
	}
	for _, c := range all {
		match, ok := c.match(m.family, not)
		if !ok {
			m.unknown("cmp")
			continue
		}
		m.flags = m.flags || c.source == tcpFlags
		m.match(match)
	}
}

// match returns the condition; false if the model has none for it.
func (c comparison) match(family ruleset.Family, not bool) (ruleset.Match, bool) {
	mask16, value16 := binary.BigEndian.Uint16(c.mask[:]), binary.BigEndian.Uint16(c.value[:])
	mask32, value32 := binary.NativeEndian.Uint32(c.mask[:]), binary.NativeEndian.Uint32(c.value[:])
	switch c.source {
	case sourceAddress, destinationAddress:
		size := c.source.size(family)
		value, _ := netip.AddrFromSlice(c.value[:size])
		mask, _ := netip.AddrFromSlice(c.mask[:size])
		return ruleset.Addr{Dir: c.source.direction(), Addr: value, Mask: mask, Not: not}, true
	case protocolNumber:
		return ruleset.Proto{Number: c.value[0], Not: not}, c.mask[0] == 0xff
	case fragmentOffset:
		// Not of a fragment: the offset, without the three flags, is 0.
		return ruleset.Fragment{Not: !not}, mask16 == 0x1fff && value16 == 0
	case sourcePort, destinationPort:
		return ruleset.Ports{Dir: c.source.direction(), Ranges: []ruleset.PortRange{{From: value16, To: value16}}, Not: not}, mask16 == 0xffff
	case tcpFlags:
		// The two upper bits are ECN's, which a first packet may have or not.
		return ruleset.TCPFlags{Mask: c.mask[0], Set: c.value[0], Not: not}, c.mask[0]&0xc0 == 0
	case inputName, outputName:
		return c.iface(not)
	case packetMark, connMark:
		return ruleset.Mark{Conn: c.source == connMark, Value: value32, Mask: mask32, Not: not}, true
	case connState:
		return stateMatch(mask32, value32, not)
	}
	return nil, false
}

func (s source) direction() ruleset.Direction {
	if s == sourceAddress || s == sourcePort {
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
	m := ruleset.Iface{Out: c.source == outputName, Prefix: end < 0, Not: not}
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
	if !ok || !ok2 || !ok3 || len(from) != len(to) || operation > unix.NFT_RANGE_NEQ ||
		!a.only(unix.NFTA_RANGE_SREG, unix.NFTA_RANGE_OP, unix.NFTA_RANGE_FROM_DATA, unix.NFTA_RANGE_TO_DATA) {
		m.unknown("range")
		return
	}
	cells, ok := m.get(a, unix.NFTA_RANGE_SREG, len(from))
	if !ok {
		m.unknown("range")
		return
	}
	m.ordered(cells, from, to, operation == unix.NFT_RANGE_NEQ)
}

// ordered adds the condition that the cells, which must be one whole port or
// address, are between two values, both included.
func (m *machine) ordered(cells []cell, from, to []byte, not bool) {
	of := cells[0].source
	if len(cells) != of.size(m.family) || bytes.Compare(from, to) > 0 {
		m.unknown("range")
		return
	}
	for i, c := range cells {
		if !c.known || c.source != of || int(c.index) != i || c.mask != 0xff || c.xor != 0 {
			m.unknown("range")
			return
		}
	}
	if of == sourcePort || of == destinationPort {
		ports := ruleset.PortRange{From: binary.BigEndian.Uint16(from), To: binary.BigEndian.Uint16(to)}
		m.match(ruleset.Ports{Dir: of.direction(), Ranges: []ruleset.PortRange{ports}, Not: not})
		return
	}
	if of == sourceAddress || of == destinationAddress {
		a, _ := netip.AddrFromSlice(from)
		b, _ := netip.AddrFromSlice(to)
		m.match(ruleset.AddrRange{Dir: of.direction(), From: a, To: b, Not: not})
		return
	}
	m.unknown("range")
}
