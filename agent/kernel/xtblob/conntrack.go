// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"encoding/binary"
	"math"

	"github.com/policygate/policygate/agent/ruleset"
)

// What a condition of linux/netfilter/xt_conntrack.h asks for. ctStateAlias
// says that the rule was written as "-m state".
const (
	ctState       = 1 << 0
	ctProto       = 1 << 1
	ctOrigSrc     = 1 << 2
	ctOrigDst     = 1 << 3
	ctStatus      = 1 << 6
	ctOrigSrcPort = 1 << 8
	ctOrigDstPort = 1 << 9
	ctDirection   = 1 << 12
	ctStateAlias  = 1 << 13

	ctDecided = ctState | ctProto | ctOrigSrc | ctOrigDst | ctStatus | ctOrigSrcPort | ctOrigDstPort | ctDirection
)

// ctStatusFlags are those that iptables has a name for: IPS_EXPECTED,
// _SEEN_REPLY, _ASSURED and _CONFIRMED of
// linux/netfilter/nf_conntrack_common.h. No first packet's connection has any,
// unless another one expected it.
const ctStatusFlags = 0x0f

// later is what a packet is that is no connection's first.
const later = ruleset.Established | ruleset.Related

// conntrackMatch reads xt_conntrack_mtinfo1, 2 and 3 of
// linux/netfilter/xt_conntrack.h.
//
// Beside its state, its conditions ask for what the connection was before any
// rewriting, which is what the flow is: a walk on which the destination is
// rewritten decides nothing. Of a packet without a connection the kernel looks
// at the state alone and, if that is not asked for, matches never.
func conntrackMatch(family ruleset.Family, revision uint8, data []byte) ([]ruleset.Match, error) {
	size := map[uint8]int{1: 152, 2: 156, 3: 164}[revision]
	if size == 0 {
		return nil, errRevision
	}
	b, err := sized(data, size)
	if err != nil {
		return nil, err
	}
	asked, inverted := b.u16(146)&^ctStateAlias, b.u16(148)
	if asked == 0 || asked&^ctDecided != 0 || inverted&^asked != 0 {
		return nil, errFlags
	}
	tracked := ruleset.CTState{States: ruleset.Invalid | ruleset.Untracked, Not: true}
	all := []ruleset.Match{tracked}
	if asked&ctState != 0 {
		states := uint16(b[150])
		if revision > 1 {
			states = b.u16(150)
		}
		// XT_CONNTRACK_STATE_SNAT, _DNAT and _UNTRACKED are bits 6, 7 and 8.
		if all, err = ctStates(uint32(states), [7]int{0, 1, 2, 3, 8, 6, 7}, inverted&ctState != 0); err != nil {
			return nil, err
		}
		m, _ := all[0].(ruleset.CTState)
		if asked != ctState && (m.States&tracked.States != 0) != m.Not {
			// It can match a packet without a connection, whatever else it asks.
			return nil, errFlags
		}
	}
	more, err := b.connection(family, revision, asked, inverted)
	return append(all, more...), err
}

// connection reads the conditions on the connection but for its state.
func (b blob) connection(family ruleset.Family, revision uint8, asked, inverted uint16) ([]ruleset.Match, error) {
	var all []ruleset.Match
	if asked&ctProto != 0 {
		number := b.u16(136)
		if number > math.MaxUint8 {
			return nil, errRange
		}
		all = append(all, ruleset.Proto{Number: uint8(number), Not: inverted&ctProto != 0})
	}
	for _, end := range []struct {
		flag uint16
		dir  ruleset.Direction
		at   int
	}{{ctOrigSrc, ruleset.Src, 0}, {ctOrigDst, ruleset.Dst, 32}} {
		if asked&end.flag != 0 {
			all = append(all, ruleset.Addr{
				Dir: end.dir, Addr: b.address(family, end.at), Mask: b.address(family, end.at+16), Not: inverted&end.flag != 0,
			})
		}
	}
	for _, end := range []struct {
		flag     uint16
		dir      ruleset.Direction
		at, high int
	}{{ctOrigSrcPort, ruleset.Src, 138, 154}, {ctOrigDstPort, ruleset.Dst, 140, 156}} {
		if asked&end.flag == 0 {
			continue
		}
		// One port in network order or, since revision 3, two in the host's.
		r := ruleset.PortRange{From: binary.BigEndian.Uint16(b[end.at:])}
		r.To = r.From
		if revision > 2 {
			r.From, r.To = b.u16(end.at), b.u16(end.high)
		}
		if r.From > r.To {
			return nil, errRange
		}
		all = append(all, ruleset.Ports{Dir: end.dir, Ranges: []ruleset.PortRange{r}, Not: inverted&end.flag != 0})
	}
	if asked&ctStatus != 0 {
		status := uint16(b[151])
		if revision > 1 {
			status = b.u16(152)
		}
		if status&^ctStatusFlags != 0 {
			return nil, errFlags
		}
		if inverted&ctStatus == 0 {
			all = append(all, ruleset.CTState{States: later})
		}
	}
	if asked&ctDirection != 0 && inverted&ctDirection != 0 {
		// The reply's direction. Before Linux 3.14 the kernel had it the
		// other way round.
		all = append(all, ruleset.CTState{States: later})
	}
	return all, nil
}

// stateMatch reads xt_state_info of linux/netfilter/xt_state.h.
func stateMatch(data []byte) ([]ruleset.Match, error) {
	b, err := sized(data, 4)
	if err != nil {
		return nil, err
	}
	// XT_STATE_UNTRACKED is bit 6, and there are no others.
	return ctStates(b.u32(0), [7]int{0, 1, 2, 3, 6, -1, -1}, false)
}

// ctStates translates a mask of states; bits has the bit of every state of the
// model, lowest first, -1 where there is none.
func ctStates(mask uint32, bits [7]int, not bool) ([]ruleset.Match, error) {
	m := ruleset.CTState{Not: not}
	for i, bit := range bits {
		if bit >= 0 && mask&(1<<bit) != 0 {
			m.States |= 1 << i
			mask &^= 1 << bit
		}
	}
	if mask != 0 {
		return nil, errFlags
	}
	return []ruleset.Match{m}, nil
}
