// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// The attributes of an element, linux/netfilter/ipset/ip_set.h.
const (
	ipsetAttrIP    = 1
	ipsetAttrPort  = 4
	ipsetAttrProto = 7
	ipsetAttrMark  = 10
	ipsetAttrName  = 18
	ipsetAttrIP2   = 20
	ipsetAttrIface = 23

	ipsetAttrIPv4 = 1
	ipsetAttrIPv6 = 2
)

// elementSpace holds the largest element that is asked for: two addresses of
// IPv6, a port and its protocol.
const elementSpace = 128

// element appends the attributes of the element to test to b, or returns nil
// and the answer that needs no test.
//
// Which field of the packet a dimension stands for is up to the set's type
// (the kadt functions of net/netfilter/ipset). Where these give up, as for an
// interface that the hook does not have, nothing is in the set.
func (d description) element(b []byte, dims []ruleset.Direction, p trace.Packet) (element []byte, answer trace.Ternary, why string) {
	family := uint8(unix.NFPROTO_IPV6)
	if p.Flow.Dst.Is4() {
		family = unix.NFPROTO_IPV4
	}
	if len(d.fields) == 0 {
		return nil, trace.Unknown, "sets of type " + d.kind + " are not known"
	}
	// The kernel's ip_set_test: nothing of another family, or of fewer
	// dimensions than the set has, is in it.
	if len(dims) < len(d.fields) || (d.family != unix.NFPROTO_UNSPEC && d.family != family) {
		return nil, trace.No, ""
	}
	addresses := 0
	for i, field := range d.fields {
		src := dims[i] == ruleset.Src
		switch field {
		case "ip", "net":
			if addresses++; addresses > 2 {
				return nil, trace.Unknown, "sets of type " + d.kind + " are not known"
			}
			attr := uint16(ipsetAttrIP)
			if addresses == 2 {
				attr = ipsetAttrIP2
			}
			b = address(b, attr, pick(src, p.Flow.Src, p.Flow.Dst))
		case "port":
			if src {
				return nil, trace.Unknown, "the source port is any"
			}
			b = nlconn.Attribute(b, ipsetAttrPort|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(make([]byte, 0, 2), p.Flow.Port))
			if d.kind == "bitmap:port" {
				// Ports of these two alone, whichever (ip_set_get_ip_port); TEST
				// refuses to be told the protocol.
				if p.Flow.Protocol != flow.TCP && p.Flow.Protocol != flow.UDP {
					return nil, trace.No, ""
				}
				continue
			}
			b = nlconn.Attribute(b, ipsetAttrProto, []byte{uint8(p.Flow.Protocol)})
		case "iface":
			// An element with physdev is for matches that ask for bridge ports,
			// which rules cannot.
			iface := pick(src, p.In, p.Out)
			if iface == "" {
				return nil, trace.Unknown, "the interface is not known"
			}
			b = attribute(b, ipsetAttrIface, iface+"\x00")
		case "mark":
			// The dimension's direction means nothing.
			if !p.MarkKnown {
				return nil, trace.Unknown, "the packet's mark is not known"
			}
			b = nlconn.Attribute(b, ipsetAttrMark|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint32(make([]byte, 0, 4), p.Mark))
		case "mac":
			return nil, trace.Unknown, "the packet's hardware addresses are not known"
		default:
			return nil, trace.Unknown, "sets of type " + d.kind + " are not known"
		}
	}
	return b, trace.Unknown, ""
}

func pick[T any](first bool, a, b T) T {
	if first {
		return a
	}
	return b
}

// address appends an address in its family's attribute.
func address(b []byte, kind uint16, a netip.Addr) []byte {
	var space [24]byte
	inner := uint16(ipsetAttrIPv6)
	if a.Is4() {
		inner = ipsetAttrIPv4
	}
	return nlconn.Attribute(b, kind|unix.NLA_F_NESTED, nlconn.Attribute(space[:0], inner|unix.NLA_F_NET_BYTEORDER, a.AsSlice()))
}
