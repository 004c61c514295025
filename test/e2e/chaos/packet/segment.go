// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Flags of a TCP header, struct tcphdr in linux/tcp.h.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

const (
	protocolTCP = 6
	// headerLength is that of a TCP header without options.
	headerLength = 20
	// unreachable is ICMP_DEST_UNREACH in linux/icmp.h.
	unreachable = 3
)

// syn returns a TCP segment that opens a connection.
func syn(from, to netip.AddrPort, sequence uint32) []byte {
	segment := make([]byte, headerLength)
	binary.BigEndian.PutUint16(segment[0:], from.Port())
	binary.BigEndian.PutUint16(segment[2:], to.Port())
	binary.BigEndian.PutUint32(segment[4:], sequence)
	segment[12] = headerLength / 4 << 4
	segment[13] = flagSYN
	binary.BigEndian.PutUint16(segment[14:], 65535) // the window
	binary.BigEndian.PutUint16(segment[16:], checksum(from.Addr(), to.Addr(), segment))
	return segment
}

// checksum is that of RFC 9293 over the pseudo header and a segment whose own
// checksum is zero. The addresses are IPv4.
func checksum(from, to netip.Addr, segment []byte) uint16 {
	sum := uint32(protocolTCP) + uint32(len(segment))
	add := func(b []byte) {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	source, destination := from.As4(), to.As4()
	add(source[:])
	add(destination[:])
	add(segment)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// connection is a SYN that was sent, by what its answers say of it.
type connection struct {
	to   netip.AddrPort
	port uint16
}

// answerOf reads a TCP segment that came from an address. ok is false if it
// answers no SYN.
func answerOf(from netip.Addr, segment []byte) (c connection, a Answer, ok bool) {
	if len(segment) < headerLength {
		return connection{}, Answer{}, false
	}
	c = connection{
		to:   netip.AddrPortFrom(from, binary.BigEndian.Uint16(segment[0:])),
		port: binary.BigEndian.Uint16(segment[2:]),
	}
	switch flags := segment[13]; {
	case flags&flagRST != 0:
		return c, Answer{Verdict: Admitted, Detail: "RST"}, true
	case flags&(flagSYN|flagACK) == flagSYN|flagACK:
		return c, Answer{Verdict: Admitted, Detail: "SYN-ACK"}, true
	}
	return connection{}, Answer{}, false
}

// refusalOf reads an ICMP message that came from an address. ok is false if it
// refuses no SYN.
func refusalOf(from netip.Addr, message []byte) (c connection, a Answer, ok bool) {
	const header = 8 // of ICMP; then the packet that it is about, its IP header first
	if len(message) < header+20 || message[0] != unreachable {
		return connection{}, Answer{}, false
	}
	about := message[header:]
	length := int(about[0]&0xf) * 4
	if about[0]>>4 != 4 || length < 20 || len(about) < length+4 || about[9] != protocolTCP {
		return connection{}, Answer{}, false
	}
	to, _ := netip.AddrFromSlice(about[16:20])
	c = connection{
		to:   netip.AddrPortFrom(to, binary.BigEndian.Uint16(about[length+2:])),
		port: binary.BigEndian.Uint16(about[length:]),
	}
	return c, Answer{Verdict: Refused, Detail: fmt.Sprintf("ICMP 3/%d from %s", message[1], from)}, true
}
