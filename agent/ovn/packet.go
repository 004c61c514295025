// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/policygate/policygate/api/flow"
)

const (
	// noMAC stands for a hardware address that is not known; without port
	// security nobody asks for it.
	noMAC     = "00:00:00:00:00:00"
	broadcast = "ff:ff:ff:ff:ff:ff"
	// stranger is the hardware address of a peer behind a tunnel, a locally
	// administered one.
	stranger = "02:00:00:00:00:01"
	// ephemeral is the source port of new connections.
	ephemeral = 40000
	// unusedPort stands for the logical port of a peer behind a tunnel. The
	// key has 15 bits, and OVN counts from 1.
	unusedPort = 0x7ffe
)

// way is how a packet comes into the integration bridge.
type way struct {
	in int64
	// key of the destination, if it comes by a Geneve tunnel.
	key keys
	// from and to are the hardware addresses; "" is not known.
	from, to string
}

// keys are those of a logical port and of its switch, as OVN's registers hold
// them.
type keys struct{ datapath, port uint64 }

func (k keys) known() bool { return k.datapath != 0 && k.port != 0 }

// String returns the way's part of a flow.
func (w way) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, ",in_port=%d", w.in)
	if w.key.known() {
		fmt.Fprintf(&b, ",tun_id=%#x,tun_metadata0=%#x", w.key.datapath, uint64(unusedPort)<<16|w.key.port)
	}
	fmt.Fprintf(&b, ",dl_src=%s,dl_dst=%s", orNone(w.from), orNone(w.to))
	return b.String()
}

func orNone(mac string) string {
	if mac == "" {
		return noMAC
	}
	return mac
}

// first returns the first packet of a new connection.
func first(w way, f flow.Flow) string {
	name := f.Protocol.String()
	text := fmt.Sprintf("%s,nw_src=%s,nw_dst=%s", w, f.Src, f.Dst)
	kind := name
	if f.Src.Is6() {
		kind, text = name+"6", fmt.Sprintf("%s,ipv6_src=%s,ipv6_dst=%s", w, f.Src, f.Dst)
	}
	text = fmt.Sprintf("%s%s,nw_ttl=64,%s_src=%d,%s_dst=%d", kind, text, name, ephemeral, name, f.Port)
	if f.Protocol == flow.TCP {
		text += ",tcp_flags=syn"
	}
	return text
}

// neighbourReply returns a packet that no NetworkPolicy judges: its ACLs are of
// IP, and OVN puts neighbour discovery before them.
func neighbourReply(w way, src, dst netip.Addr) string {
	if src.Is4() {
		return fmt.Sprintf("arp%s,arp_op=2,arp_sha=%s,arp_spa=%s,arp_tpa=%s", w, orNone(w.from), src, dst)
	}
	return fmt.Sprintf("icmp6%s,ipv6_src=%s,ipv6_dst=%s,nw_ttl=255,icmpv6_type=136,icmpv6_code=0,nd_target=%s", w, src, dst, src)
}

// neighbourRequest returns src's question who has dst.
func neighbourRequest(w way, src, dst netip.Addr) string {
	if src.Is4() {
		w.to = broadcast
		return fmt.Sprintf("arp%s,arp_op=1,arp_sha=%s,arp_spa=%s,arp_tpa=%s", w, orNone(w.from), src, dst)
	}
	// The solicited-node multicast address, RFC 4291 section 2.7.1, and its
	// Ethernet address, RFC 2464 section 7.
	last := dst.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], last[13:])
	w.to = net.HardwareAddr{0x33, 0x33, 0xff, last[13], last[14], last[15]}.String()
	return fmt.Sprintf("icmp6%s,ipv6_src=%s,ipv6_dst=%s,nw_ttl=255,icmpv6_type=135,icmpv6_code=0,nd_target=%s,nd_sll=%s",
		w, src, netip.AddrFrom16(group), dst, orNone(w.from))
}

// answered returns the hardware address with which the switch, or a router at
// it, answered a neighbourRequest for the address; "" if none did.
func answered(r reading, asked netip.Addr) string {
	s := r.sections[len(r.sections)-1]
	if asked.Is4() {
		if s.final["arp_op"] != "2" || s.final["arp_spa"] != asked.String() {
			return ""
		}
		return hardwareAddress(s.final["dl_src"])
	}
	// ovn-controller makes the answer as the packet's user data say.
	if len(s.controllers) != 1 {
		return ""
	}
	return advertised(s.controllers[0])
}

// Opcodes of what is sent to ovn-controller, ovn/actions.h; their numbers are
// kept over versions.
const (
	opcodeND       = 3
	opcodeLog      = 7
	opcodeNDRouter = 12
)

// opcode returns that of user data, -1 if there is none.
func opcode(data string) int {
	raw, err := hex.DecodeString(strings.ReplaceAll(data, ".", ""))
	if err != nil || len(raw) < 4 {
		return -1
	}
	// Four bytes of number, four of padding: struct action_header has the
	// number in network order.
	return int(raw[0])<<24 | int(raw[1])<<16 | int(raw[2])<<8 | int(raw[3])
}

// setsSource is the beginning of an OpenFlow 1.5 action that sets the Ethernet
// source: OFPAT_SET_FIELD of 16 bytes, and the OXM header of OXM_OF_ETH_SRC.
const setsSource = "\x00\x19\x00\x10\x80\x00\x08\x06"

// advertised returns the hardware address that a neighbour advertisement is
// sent from.
func advertised(data string) string {
	if op := opcode(data); op != opcodeND && op != opcodeNDRouter {
		return ""
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(data, ".", ""))
	if err != nil {
		return ""
	}
	_, behind, ok := strings.Cut(string(raw), setsSource)
	if !ok || len(behind) < 6 {
		return ""
	}
	return hardwareAddress(net.HardwareAddr(behind[:6]).String())
}
