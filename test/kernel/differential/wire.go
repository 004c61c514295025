// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/api/flow"
)

// mac is a link layer address.
type mac [6]byte

// arrival is what is recognised of a packet where it arrives: its number,
// which no rewriting touches, and the addresses that it has by then.
type arrival struct {
	number   uint32
	src, dst netip.Addr
	port     uint16
}

const (
	ethernetHeader = 14
	ipv4Header     = 20
	ipv6Header     = 40
)

// frame returns the first packet of a connection with its Ethernet header.
func frame(from, to mac, f flow.Flow, port uint16, number uint32) []byte {
	kind := uint16(unix.ETH_P_IPV6)
	if f.Dst.Is4() {
		kind = unix.ETH_P_IP
	}
	b := append(append(make([]byte, 0, 128), to[:]...), from[:]...)
	return append(binary.BigEndian.AppendUint16(b, kind), packet(f, port, number)...)
}

// packet returns the first packet of a connection with right checksums: of
// one with others the kernel's connection tracking would make an INVALID one.
func packet(f flow.Flow, port uint16, number uint32) []byte {
	body := transport(f, port, number)
	b := make([]byte, 0, 128)
	if f.Dst.Is4() {
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(ipv4Header+len(body)))
		// An identification, no fragment, 64 hops, the checksum's place.
		b = append(b, byte(number>>8), byte(number), 0x40, 0, 64, byte(f.Protocol), 0, 0)
		b = append(append(b, f.Src.AsSlice()...), f.Dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[10:], fold(sum(0, b)))
		return append(b, body...)
	}
	b = append(b, 0x60, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, byte(f.Protocol), 64)
	b = append(append(b, f.Src.AsSlice()...), f.Dst.AsSlice()...)
	return append(b, body...)
}

// transport returns a SYN, a datagram or an INIT with its header. The number
// is the sequence number, the payload or the initiate tag.
func transport(f flow.Flow, port uint16, number uint32) []byte {
	b := binary.BigEndian.AppendUint16(nil, port)
	b = binary.BigEndian.AppendUint16(b, f.Port)
	at := 16
	switch f.Protocol {
	case flow.TCP:
		b = binary.BigEndian.AppendUint32(b, number)
		b = append(b, 0, 0, 0, 0, 6<<4, tcpSYN, 0xff, 0xff, 0, 0, 0, 0)
		// The maximum segment size, as every SYN has it.
		b = append(b, 2, 4, 5, 0xb4)
	case flow.UDP:
		b = append(b, 0, 12, 0, 0)
		b = binary.BigEndian.AppendUint32(b, number)
		at = 6
	case flow.SCTP:
		// Tag 0 and the checksum's place, then a chunk INIT of 20 bytes.
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20)
		b = binary.BigEndian.AppendUint32(b, number)
		b = append(b, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1)
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	}
	pseudo := append(f.Src.AsSlice(), f.Dst.AsSlice()...)
	pseudo = append(pseudo, 0, byte(f.Protocol), byte(len(b)>>8), byte(len(b)))
	check := fold(sum(sum(0, pseudo), b))
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b[at:], check)
	return b
}

const tcpSYN = 2

func sum(start uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	return start
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// parse recognises a packet that begins with its IP header; what transport
// did not make is not ok.
func parse(b []byte) (a arrival, ok bool) {
	if len(b) < ipv4Header {
		return a, false
	}
	protocol := b[9]
	var body []byte
	switch {
	case b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4:
		a.src, _ = netip.AddrFromSlice(b[12:16])
		a.dst, _ = netip.AddrFromSlice(b[16:20])
		body = b[int(b[0]&15)*4:]
	case b[0]>>4 == 6 && len(b) >= ipv6Header:
		a.src, _ = netip.AddrFromSlice(b[8:24])
		a.dst, _ = netip.AddrFromSlice(b[24:40])
		protocol, body = b[6], b[ipv6Header:]
	default:
		return a, false
	}
	number, port, ok := parseTransport(flow.Protocol(protocol), body)
	a.number, a.port = number, port
	return a, ok
}

func parseTransport(protocol flow.Protocol, b []byte) (number uint32, port uint16, ok bool) {
	at := map[flow.Protocol]int{flow.TCP: 4, flow.UDP: 8, flow.SCTP: 16}[protocol]
	if at == 0 || len(b) < at+4 {
		return 0, 0, false
	}
	if protocol == flow.TCP && (len(b) < 20 || b[13]&0x3f != tcpSYN) {
		return 0, 0, false
	}
	if protocol == flow.SCTP && b[12] != 1 {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(b[at:]), binary.BigEndian.Uint16(b[2:]), true
}
