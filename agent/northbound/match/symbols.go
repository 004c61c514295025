// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package match

import (
	"slices"
	"strings"

	"github.com/policygate/policygate/api/flow"
)

// meaning is what a symbol stands for.
type meaning struct {
	field  field
	needs  needs
	source bool
	side   Side
}

// meaningOf returns what a symbol stands for. documented is false for one that
// ovn-sb(5) does not have: OVN refuses a text with a symbol that it does not
// know. Predicates have the field always.
func meaningOf(name string) (m meaning, documented bool) {
	switch name {
	case "inport":
		return meaning{field: port, side: Inport}, true
	case "outport":
		return meaning{field: port, side: Outport}, true
	case "ip4.src", "ip4.dst":
		return meaning{field: address, needs: needs{family: 4}, source: name == "ip4.src"}, true
	case "ip6.src", "ip6.dst":
		return meaning{field: address, needs: needs{family: 6}, source: name == "ip6.src"}, true
	case "ip.proto":
		return meaning{field: protocol}, true
	case "ip":
		return meaning{field: always}, true
	case "ip4":
		return meaning{field: always, needs: needs{family: 4}}, true
	case "ip6":
		return meaning{field: always, needs: needs{family: 6}}, true
	}
	proto, rest, _ := strings.Cut(name, ".")
	if p, ok := protocolOf(proto); ok {
		n := needs{protocol: p}
		switch rest {
		case "":
			return meaning{field: always, needs: n}, true
		case "dst":
			return meaning{field: number, needs: n}, true
		case "src":
			return meaning{needs: n}, true
		case "flags":
			return meaning{needs: n}, p == flow.TCP
		}
		return meaning{needs: n}, false
	}
	if neverOf(name) {
		return meaning{field: always, needs: needs{never: true}}, true
	}
	return meaning{needs: implied(name)}, documentedField(name)
}

func protocolOf(name string) (flow.Protocol, bool) {
	switch name {
	case "tcp":
		return flow.TCP, true
	case "udp":
		return flow.UDP, true
	case "sctp":
		return flow.SCTP, true
	}
	return 0, false
}

// neverOf returns whether it is a predicate that holds of no packet of TCP, UDP
// or SCTP.
func neverOf(name string) bool {
	return slices.Contains([]string{"icmp", "icmp4", "icmp6", "arp", "rarp", "nd", "nd_ns", "nd_na", "nd_rs", "nd_ra"}, name)
}

// implied returns what a field needs whose value is not known.
func implied(name string) needs {
	prefix, _, _ := strings.Cut(name, ".")
	switch prefix {
	case "icmp4", "icmp6", "arp", "rarp", "nd":
		return needs{never: true}
	case "ip4":
		return needs{family: 4}
	case "ip6":
		return needs{family: 6}
	}
	return needs{}
}

// documentedField returns whether ovn-sb(5) has the symbol, among those whose
// value is not known.
func documentedField(name string) bool {
	switch name {
	case "ip4.src_mcast", "ip4.mcast", "ip6.mcast", "ip6.label", "ip.dscp", "ip.ecn", "ip.ttl", "ip.frag",
		"eth.src", "eth.dst", "eth.type", "eth.bcast", "eth.mcast", "vlan.tci", "vlan.vid", "vlan.pcp", "vlan.present",
		"arp.op", "arp.spa", "arp.tpa", "arp.sha", "arp.tha", "rarp.op", "rarp.spa", "rarp.tpa", "rarp.sha", "rarp.tha",
		"icmp4.type", "icmp4.code", "icmp6.type", "icmp6.code", "nd.target", "nd.sll", "nd.tll",
		"pkt.mark", "flags.loopback", "ct_mark", "ct_label", "ct_state",
		"ct.trk", "ct.new", "ct.est", "ct.rel", "ct.rpl", "ct.inv", "ct.dnat", "ct.snat", "is_chassis_resident":
		return true
	}
	return false
}
