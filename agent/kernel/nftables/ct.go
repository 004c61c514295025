// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

func (m *machine) ct(a *attrs) {
	key, ok := a.number(unix.NFTA_CT_KEY)
	switch {
	case ok && a.only(unix.NFTA_CT_KEY, unix.NFTA_CT_SREG) && a.values[unix.NFTA_CT_SREG] != nil:
		m.ctSet(a, key)
	case ok && a.only(unix.NFTA_CT_KEY, unix.NFTA_CT_DREG, unix.NFTA_CT_DIRECTION):
		m.ctLoad(a, key)
	case a.values[unix.NFTA_CT_SREG] != nil:
		m.spoil("ct set")
	default:
		m.unknown("ct")
		m.forget(origin{text: "ct"})
	}
}

func (m *machine) ctSet(a *attrs, key uint32) {
	switch key {
	case unix.NFT_CT_MARK:
		m.setMark(a, unix.NFTA_CT_SREG, ruleset.ConnMark)
	case unix.NFT_CT_LABELS, unix.NFT_CT_SECMARK, unix.NFT_CT_EVENTMASK:
		// No match of the model reads them.
	default:
		m.spoil(fmt.Sprintf("ct key %d set", key))
	}
}

// tracked adds the condition that the packet belongs to a connection, without
// which most of what ct loads ends the rule.
func (m *machine) tracked() {
	c := ruleset.Match(ruleset.CTState{States: ruleset.Invalid | ruleset.Untracked, Not: true})
	if m.acted || !slices.Contains(m.rule.Matches, c) {
		m.match(c)
	}
}

// originalDirection is IP_CT_DIR_ORIGINAL, the direction of the first packet.
const originalDirection = 0

// ctLoad loads what net/netfilter/nft_ct.c does. For the first packet the
// connection's original direction is the packet's, and what it was before its
// destination was rewritten is what it is, for no rewritten destination is
// followed.
func (m *machine) ctLoad(a *attrs, key uint32) {
	what := origin{"ct key", key, true}
	direction, directed := uint32(0), a.values[unix.NFTA_CT_DIRECTION] != nil
	if directed {
		// One byte.
		value := a.values[unix.NFTA_CT_DIRECTION]
		if len(value) != 1 {
			m.unknown(what.String())
			m.forget(what)
			return
		}
		direction = uint32(value[0])
	}
	var cells []cell
	switch {
	case key == unix.NFT_CT_STATE && !directed:
		m.load(a, unix.NFTA_CT_DREG, whole(ruleset.ConnState, 4), what)
		return
	case key == unix.NFT_CT_MARK && !directed:
		// Every condition on it asks for a connection by itself.
		m.load(a, unix.NFTA_CT_DREG, whole(ruleset.ConnMark, 4), what)
		return
	case key == unix.NFT_CT_STATUS && !directed:
		cells = whole(ruleset.ConnStatus, 4)
	case key == unix.NFT_CT_DIRECTION && !directed:
		cells = constant(originalDirection)
	default:
		size := m.ctSize(key)
		if size < 0 {
			// An address of the other family ends the rule.
			m.impossible()
			return
		}
		if size == 0 {
			m.unknown(what.String())
			m.forget(what)
			return
		}
		if cells = ctTuple(key, size); cells == nil || (directed && direction != originalDirection) || (!directed && isTuple(key)) {
			// What the other direction is may yet be rewritten.
			cells = unknownCells(size, what)
		}
		if !isTuple(key) && key != unix.NFT_CT_L3PROTOCOL && key != unix.NFT_CT_PROTOCOL {
			m.unknown(what.String())
		}
	}
	m.tracked()
	m.load(a, unix.NFTA_CT_DREG, cells, what)
}

// isTuple reports whether a key is of one direction of the connection.
func isTuple(key uint32) bool {
	switch key {
	case unix.NFT_CT_SRC, unix.NFT_CT_DST, unix.NFT_CT_PROTO_SRC, unix.NFT_CT_PROTO_DST,
		unix.NFT_CT_SRC_IP, unix.NFT_CT_DST_IP, unix.NFT_CT_SRC_IP6, unix.NFT_CT_DST_IP6:
		return true
	}
	return false
}

// ctTuple returns what the original direction has; nil for other keys.
func ctTuple(key uint32, size int) []cell {
	switch key {
	case unix.NFT_CT_SRC, unix.NFT_CT_SRC_IP, unix.NFT_CT_SRC_IP6:
		return whole(ruleset.SrcAddr, size)
	case unix.NFT_CT_DST, unix.NFT_CT_DST_IP, unix.NFT_CT_DST_IP6:
		return whole(ruleset.DstAddr, size)
	case unix.NFT_CT_PROTO_SRC:
		return whole(ruleset.SrcPort, size)
	case unix.NFT_CT_PROTO_DST:
		return whole(ruleset.DstPort, size)
	case unix.NFT_CT_PROTOCOL:
		return whole(ruleset.L4Proto, size)
	}
	return nil
}

// ctSize returns how many bytes a key loads, 0 for one that is not known and -1
// for an address of the other family.
func (m *machine) ctSize(key uint32) int {
	address := 4
	if m.family == ruleset.IPv6 {
		address = 16
	}
	switch key {
	case unix.NFT_CT_SRC, unix.NFT_CT_DST:
		return address
	case unix.NFT_CT_SRC_IP, unix.NFT_CT_DST_IP:
		if address != 4 {
			return -1
		}
		return 4
	case unix.NFT_CT_SRC_IP6, unix.NFT_CT_DST_IP6:
		if address != 16 {
			return -1
		}
		return 16
	case unix.NFT_CT_L3PROTOCOL, unix.NFT_CT_PROTOCOL:
		return 1
	case unix.NFT_CT_PROTO_SRC, unix.NFT_CT_PROTO_DST, unix.NFT_CT_ZONE:
		return 2
	case unix.NFT_CT_SECMARK, unix.NFT_CT_EXPIRATION, unix.NFT_CT_EVENTMASK, unix.NFT_CT_ID:
		return 4
	case unix.NFT_CT_PKTS, unix.NFT_CT_BYTES, unix.NFT_CT_AVGPKT:
		return 8
	case unix.NFT_CT_LABELS, unix.NFT_CT_HELPER:
		return 16
	}
	return 0
}
