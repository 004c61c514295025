// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"github.com/policygate/policygate/agent/ruleset"
)

// ports returns the condition on one port, none if every port will do.
func ports(dir ruleset.Direction, from, to uint16, not bool) ([]ruleset.Match, error) {
	if from > to {
		return nil, errRange
	}
	if from == 0 && to == 65535 && !not {
		return nil, nil
	}
	return []ruleset.Match{ruleset.Ports{Dir: dir, Ranges: []ruleset.PortRange{{From: from, To: to}}, Not: not}}, nil
}

// bothPorts reads two ranges, the source's at src and the destination's at
// dst. Bits 0 and 1 of inverted negate them.
func (b blob) bothPorts(src, dst int, inverted byte) ([]ruleset.Match, error) {
	from, err := ports(ruleset.Src, b.u16(src), b.u16(src+2), inverted&1 != 0)
	if err != nil {
		return nil, err
	}
	to, err := ports(ruleset.Dst, b.u16(dst), b.u16(dst+2), inverted&2 != 0)
	return append(from, to...), err
}

// tcpFlags are the flags that a rule can name: not the two of ECN.
const tcpFlags = ruleset.FIN | ruleset.SYN | ruleset.RST | ruleset.PSH | ruleset.ACK | ruleset.URG

// tcpMatch reads xt_tcp of linux/netfilter/xt_tcpudp.h.
func tcpMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 0, data, 12)
	if err != nil {
		return nil, err
	}
	option, mask, set, inverted := b[8], b[9], b[10], b[11]
	notFlags := inverted&4 != 0
	if option != 0 || inverted&^7 != 0 || (mask|set)&^tcpFlags != 0 {
		return nil, errFlags
	}
	all, err := b.bothPorts(0, 4, inverted)
	if mask|set != 0 || notFlags {
		all = append(all, ruleset.TCPFlags{Mask: mask, Set: set, Not: notFlags})
	}
	return all, err
}

// udpMatch reads xt_udp of linux/netfilter/xt_tcpudp.h.
func udpMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 0, data, 10)
	if err != nil {
		return nil, err
	}
	if b[8]&^3 != 0 {
		return nil, errFlags
	}
	return b.bothPorts(0, 4, b[8])
}

// sctpMatch reads xt_sctp_info of linux/netfilter/xt_sctp.h, where a map of
// chunks takes 256 bytes. Conditions on chunks are not understood.
func sctpMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 0, data, 292)
	if err != nil {
		return nil, err
	}
	// XT_SCTP_SRC_PORTS is 1, XT_SCTP_DEST_PORTS 2.
	asked, inverted := b.u32(284), b.u32(288)
	if asked&^3 != 0 || inverted&^asked != 0 {
		return nil, errFlags
	}
	var all []ruleset.Match
	for i, dir := range []ruleset.Direction{ruleset.Src, ruleset.Dst} {
		if asked&(1<<i) == 0 {
			continue
		}
		// The destination's range comes first.
		at := 4 - 4*i
		m, err := ports(dir, b.u16(at), b.u16(at+2), inverted&(1<<i) != 0)
		if err != nil {
			return nil, err
		}
		all = append(all, m...)
	}
	return all, nil
}

// multiportMost is XT_MULTI_PORTS.
const multiportMost = 15

// multiportMatch reads xt_multiport_v1 of linux/netfilter/xt_multiport.h: a
// port with a flag begins a range that the next one ends.
func multiportMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 1, data, 48)
	if err != nil {
		return nil, err
	}
	kind, count := b[0], int(b[1])
	not, err := b.boolean(47)
	if err != nil {
		return nil, err
	}
	if kind > 2 || count == 0 || count > multiportMost {
		return nil, errFlags
	}
	m := ruleset.Ports{Dir: []ruleset.Direction{ruleset.Src, ruleset.Dst, ruleset.Either}[kind], Not: not}
	for i := 0; i < count; i++ {
		r := ruleset.PortRange{From: b.u16(2 + 2*i), To: b.u16(2 + 2*i)}
		if b[32+i] != 0 {
			if i++; i == count {
				return nil, errRange
			}
			r.To = b.u16(2 + 2*i)
		}
		if r.From > r.To {
			return nil, errRange
		}
		m.Ranges = append(m.Ranges, r)
	}
	return []ruleset.Match{m}, nil
}
