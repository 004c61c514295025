// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

// Keys of meta that x/sys has no number for, and the length that each puts
// into a register.
const (
	metaSecpath = 25 // NFT_META_SECPATH
	metaIIFKind = 26 // NFT_META_IIFKIND
	metaOIFKind = 27 // NFT_META_OIFKIND
	metaTimeNS  = 30 // NFT_META_TIME_NS
	metaTimeDay = 31 // NFT_META_TIME_DAY
	metaHour    = 32 // NFT_META_TIME_HOUR
	metaSDIF    = 33 // NFT_META_SDIF
	metaSDName  = 34 // NFT_META_SDIFNAME
)

func (m *machine) meta(a *attrs) {
	key, ok := a.number(unix.NFTA_META_KEY)
	switch {
	case ok && a.only(unix.NFTA_META_KEY, unix.NFTA_META_SREG):
		m.metaSet(a, key)
	case ok && a.only(unix.NFTA_META_KEY, unix.NFTA_META_DREG):
		m.metaLoad(a, key)
	default:
		m.spoil("meta")
		m.forget(origin{text: "meta"})
	}
}

func (m *machine) metaSet(a *attrs, key uint32) {
	switch key {
	case unix.NFT_META_MARK:
		m.setMark(a, unix.NFTA_META_SREG, ruleset.PacketMark)
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

// metaLoad loads what net/netfilter/nft_meta.c does.
func (m *machine) metaLoad(a *attrs, key uint32) {
	what := origin{"meta key", key, true}
	cells := m.metaField(key)
	if cells == nil {
		size, breaks := metaSize(key)
		if size == 0 {
			m.unknown(what.String())
			m.forget(what)
			return
		}
		if breaks {
			m.unknown(what.String())
		}
		cells = unknownCells(size, what)
	}
	m.load(a, unix.NFTA_META_DREG, cells, what)
}

// metaField returns what the model knows, else nil. None of it can end the
// rule: interfaces that the hook does not have are an empty name or 0.
func (m *machine) metaField(key uint32) []cell {
	v6 := m.family == ruleset.IPv6
	switch key {
	case unix.NFT_META_L4PROTO:
		return whole(ruleset.L4Proto, 1)
	case unix.NFT_META_MARK:
		return whole(ruleset.PacketMark, 4)
	case unix.NFT_META_IIF:
		return whole(ruleset.InIndex, 4)
	case unix.NFT_META_OIF:
		return whole(ruleset.OutIndex, 4)
	case unix.NFT_META_IIFNAME:
		return whole(ruleset.InName, unix.IFNAMSIZ)
	case unix.NFT_META_OIFNAME:
		return whole(ruleset.OutName, unix.IFNAMSIZ)
	case unix.NFT_META_NFPROTO:
		if v6 {
			return constant(unix.NFPROTO_IPV6)
		}
		return constant(unix.NFPROTO_IPV4)
	case unix.NFT_META_PROTOCOL:
		if v6 {
			return constant(unix.ETH_P_IPV6>>8, unix.ETH_P_IPV6&0xff)
		}
		return constant(unix.ETH_P_IP>>8, unix.ETH_P_IP&0xff)
	}
	return nil
}

// metaSize returns how many bytes a key of which nothing is known loads, 0 for
// one that is not known itself, and whether it ends the rule where there is no
// interface, socket or route to ask.
func metaSize(key uint32) (size int, breaks bool) {
	switch key {
	case unix.NFT_META_LEN, unix.NFT_META_PRIORITY, unix.NFT_META_SECMARK, unix.NFT_META_CPU, unix.NFT_META_PRANDOM, metaHour:
		return 4, false
	case unix.NFT_META_PKTTYPE, metaSecpath, metaTimeDay:
		return 1, false
	case metaTimeNS:
		return 8, false
	case unix.NFT_META_IIFTYPE, unix.NFT_META_OIFTYPE:
		return 2, true
	case unix.NFT_META_SKUID, unix.NFT_META_SKGID, unix.NFT_META_RTCLASSID, unix.NFT_META_CGROUP,
		unix.NFT_META_IIFGROUP, unix.NFT_META_OIFGROUP, metaSDIF:
		return 4, true
	case metaIIFKind, metaOIFKind, metaSDName:
		return unix.IFNAMSIZ, true
	}
	return 0, false
}

// headerField is a header field that can be read, and where it is.
type headerField struct {
	field  ruleset.Field
	base   uint32
	offset int
	size   int
}

// headerFields returns those of a family.
func headerFields(family ruleset.Family) [7]headerField {
	const network, transport = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER
	fields := [7]headerField{
		{ruleset.SrcPort, transport, 0, 2}, {ruleset.DstPort, transport, 2, 2}, {ruleset.TCPFlagBits, transport, 13, 1},
		{ruleset.L4Proto, network, 9, 1}, {ruleset.SrcAddr, network, 12, 4}, {ruleset.DstAddr, network, 16, 4}, {ruleset.FragOff, network, 6, 2},
	}
	if family == ruleset.IPv6 {
		// The next header is the protocol of a packet without extension
		// headers, as the first one of a flow is.
		fields[3] = headerField{ruleset.L4Proto, network, 6, 1}
		fields[4] = headerField{ruleset.SrcAddr, network, 8, 16}
		fields[5] = headerField{ruleset.DstAddr, network, 24, 16}
		fields[6] = headerField{}
	}
	return fields
}

// headerSize returns how much of a header is in every first packet of a flow.
// A load of what is not in the packet ends the rule.
func headerSize(family ruleset.Family, base uint32) int64 {
	switch {
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER && family == ruleset.IPv6:
		return 40
	case base == unix.NFT_PAYLOAD_NETWORK_HEADER:
		return 20
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		// UDP's, the shortest; TCP's flags are looked at in seal.
		return 8
	}
	return 0
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
		m.forget(origin{text: "payload"})
		return
	}
	what := origin{headerName(base), offset, true}
	cells := unknownCells(int(length), what)
	flags := false
	for _, f := range headerFields(m.family) {
		if f.base != base {
			continue
		}
		for i := range f.size {
			at := int64(f.offset) + int64(i) - int64(offset)
			if at >= 0 && at < int64(length) {
				cells[at].Byte = ruleset.Byte{Known: true, Field: f.field, Index: uint8(i), Mask: 0xff}
				flags = flags || f.field == ruleset.TCPFlagBits
			}
		}
	}
	if length == 1 && flags {
		// As long as it is known to be TCP, which seal asks for.
		m.flags = true
	} else if int64(offset)+int64(length) > headerSize(m.family, base) {
		m.unknown(what.String())
	}
	m.load(a, unix.NFTA_PAYLOAD_DREG, cells, what)
	m.clobber(a, cells, what)
}

// clobber forgets the register after a load of whole words. Up to Linux 5.10
// nft_payload_eval clears it, later ones leave it alone.
func (m *machine) clobber(a *attrs, cells []cell, what origin) {
	number, _ := a.number(unix.NFTA_PAYLOAD_DREG)
	at, ok := register(number)
	if end := at + len(cells); ok && len(cells)%4 == 0 && end+4 <= registersSize {
		for i := range m.registers[end : end+4] {
			m.registers[end+i] = cell{what: what}
		}
	}
}

func headerName(base uint32) string {
	switch base {
	case unix.NFT_PAYLOAD_LL_HEADER:
		return "link layer header at"
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		return "network header at"
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		return "transport header at"
	}
	return "inner header at"
}

// exthdr loads an option or an extension header, which the packet may not have.
// With its flag NFT_EXTHDR_F_PRESENT it loads whether it has, and never ends
// the rule.
func (m *machine) exthdr(a *attrs) {
	what := origin{text: "exthdr"}
	if a.values[unix.NFTA_EXTHDR_SREG] != nil {
		// A rewritten option, such as the maximum segment size.
		m.unknown(what.String())
		return
	}
	flags, present := a.number(unix.NFTA_EXTHDR_FLAGS)
	if !present || flags != unix.NFT_EXTHDR_F_PRESENT {
		m.unknown(what.String())
		m.forget(what)
		return
	}
	if operation, ok := a.number(unix.NFTA_EXTHDR_OP); ok && operation > unix.NFT_EXTHDR_OP_TCPOPT {
		// Those of IPv4 and SCTP do not agree on that over the versions.
		m.unknown(what.String())
	}
	m.load(a, unix.NFTA_EXTHDR_DREG, unknownCells(4, what), what)
}

// fib loads what the routing tables say (net/ipv4/netfilter/nft_fib_ipv4.c and
// its twin). It always comes to a result.
func (m *machine) fib(a *attrs) {
	what := origin{text: "fib"}
	result, ok := a.number(unix.NFTA_FIB_RESULT)
	flags, ok2 := a.number(unix.NFTA_FIB_FLAGS)
	if !ok || !ok2 || !a.only(unix.NFTA_FIB_DREG, unix.NFTA_FIB_RESULT, unix.NFTA_FIB_FLAGS) {
		m.unknown(what.String())
		m.forget(what)
		return
	}
	const source, destination, in, present = unix.NFTA_FIB_F_SADDR, unix.NFTA_FIB_F_DADDR, unix.NFTA_FIB_F_IIF, unix.NFTA_FIB_F_PRESENT
	var cells []cell
	switch {
	case result == unix.NFT_FIB_RESULT_ADDRTYPE && flags == source:
		cells = whole(ruleset.SrcType, 4)
	case result == unix.NFT_FIB_RESULT_ADDRTYPE && flags == destination:
		cells = whole(ruleset.DstType, 4)
	case result == unix.NFT_FIB_RESULT_OIF && flags == source|in:
		cells = whole(ruleset.ReverseIndex, 4)
	case (result == unix.NFT_FIB_RESULT_OIF || result == unix.NFT_FIB_RESULT_OIFNAME) && flags&^in == source|present:
		// One bit in a number of 1 or 4 bytes, by version: on a little endian
		// host, of which alone this is true, that is the same.
		of := hasRoute
		if flags&in == 0 {
			of = anyRoute
		}
		cells = append(whole(of, 1), constant(0, 0, 0)...)
		if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
			cells = unknownCells(4, what)
		}
	case result == unix.NFT_FIB_RESULT_OIF, result == unix.NFT_FIB_RESULT_ADDRTYPE:
		cells = unknownCells(4, what)
	case result == unix.NFT_FIB_RESULT_OIFNAME && flags&present != 0:
		cells = unknownCells(4, what)
	case result == unix.NFT_FIB_RESULT_OIFNAME:
		cells = unknownCells(unix.IFNAMSIZ, what)
	default:
		m.unknown(what.String())
		m.forget(what)
		return
	}
	m.load(a, unix.NFTA_FIB_DREG, cells, what)
}
