// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"github.com/policygate/policygate/agent/ruleset"
)

// linux/netfilter/ipset/ip_set.h: bit 0 of a set's flags inverts the match,
// bit n says that dimension n is the source.
const (
	setInverted   = 1 << 0
	setDimensions = 6
)

// setMatch reads xt_set_info_match_v1, v3 and v4 of linux/netfilter/xt_set.h;
// revision 2 has the struct of revision 1. In revisions 3 and 4 conditions on
// the counters and flags follow.
func setMatch(revision uint8, data []byte, sets Sets) ([]ruleset.Match, error) {
	size, operations := 4, [2]int{}
	switch revision {
	case 1, 2:
	case 3:
		size, operations = 44, [2]int{8, 24}
	case 4:
		size, operations = 44, [2]int{16, 32}
	default:
		return nil, errRevision
	}
	b, err := sized(data, size)
	if err != nil {
		return nil, err
	}
	if size == 44 && (b[operations[0]] != 0 || b[operations[1]] != 0 || b.u32(40) != 0) {
		return nil, errFlags
	}
	dims, flags := int(b[2]), b[3]
	if dims == 0 || dims > setDimensions || flags>>(dims+1) != 0 {
		return nil, errFlags
	}
	m := ruleset.Set{Not: flags&setInverted != 0}
	for i := range dims {
		dir := ruleset.Dst
		if flags&(1<<(i+1)) != 0 {
			dir = ruleset.Src
		}
		m.Dims = append(m.Dims, dir)
	}
	if m.Name, err = sets.SetName(b.u16(0)); err != nil {
		return nil, err
	}
	return []ruleset.Match{m}, nil
}

// markMatch reads xt_mark_mtinfo1 of linux/netfilter/xt_mark.h, and its twin
// xt_connmark_mtinfo1 of xt_connmark.h.
func markMatch(conn bool, revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 1, data, 12)
	if err != nil {
		return nil, err
	}
	not, err := b.boolean(8)
	if err != nil {
		return nil, err
	}
	return []ruleset.Match{ruleset.Mark{Conn: conn, Value: b.u32(0), Mask: b.u32(4), Not: not}}, nil
}

// linux/netfilter/xt_conntrack.h: the flag of a condition on the state, and
// the one that says that the rule was written as "-m state".
const (
	conntrackState      = 1 << 0
	conntrackStateAlias = 1 << 13
)

// conntrackMatch reads xt_conntrack_mtinfo1, 2 and 3 of
// linux/netfilter/xt_conntrack.h. Beside its state, conntrack's conditions ask
// for what the connection was before any rewriting, and on an untracked packet
// they are skipped: only the state alone is understood.
func conntrackMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	size := map[uint8]int{1: 152, 2: 156, 3: 164}[revision]
	if size == 0 {
		return nil, errRevision
	}
	b, err := sized(data, size)
	if err != nil {
		return nil, err
	}
	flags, inverted := b.u16(146), b.u16(148)
	if flags&^conntrackStateAlias != conntrackState || inverted&^conntrackState != 0 {
		return nil, errFlags
	}
	states := uint16(b[150])
	if revision > 1 {
		states = b.u16(150)
	}
	// XT_CONNTRACK_STATE_SNAT, _DNAT and _UNTRACKED are bits 6, 7 and 8.
	return ctStates(uint32(states), [7]int{0, 1, 2, 3, 8, 6, 7}, inverted != 0)
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

// addrtypeKnown has the types of the model, whose bits are the kernel's.
const addrtypeKnown = uint16(ruleset.Prohibit<<1 - 1)

// addrtypeMatch reads xt_addrtype_info and xt_addrtype_info_v1 of
// linux/netfilter/xt_addrtype.h. Revision 1's flags that limit what LOCAL
// means to an interface are not understood.
func addrtypeMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	var b blob
	var err error
	var notSrc, notDst bool
	switch revision {
	case 0:
		if b, err = sized(data, 12); err != nil {
			return nil, err
		}
		notSrc, notDst = b.u32(4) != 0, b.u32(8) != 0
	case 1:
		if b, err = sized(data, 8); err != nil {
			return nil, err
		}
		flags := b.u32(4)
		if flags&^3 != 0 {
			return nil, errFlags
		}
		notSrc, notDst = flags&1 != 0, flags&2 != 0
	default:
		return nil, errRevision
	}
	src, dst := b.u16(0), b.u16(2)
	if src|dst == 0 || (src|dst)&^addrtypeKnown != 0 || (src == 0 && notSrc) || (dst == 0 && notDst) {
		return nil, errFlags
	}
	var all []ruleset.Match
	if src != 0 {
		all = append(all, ruleset.AddrType{Dir: ruleset.Src, Types: ruleset.AddrTypes(src), Not: notSrc})
	}
	if dst != 0 {
		all = append(all, ruleset.AddrType{Dir: ruleset.Dst, Types: ruleset.AddrTypes(dst), Not: notDst})
	}
	return all, nil
}

// physdevBridged is XT_PHYSDEV_OP_BRIDGED.
const physdevBridged = 0x04

// physdevMatch reads xt_physdev_info of linux/netfilter/xt_physdev.h and
// understands --physdev-is-bridged alone.
func physdevMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 0, data, 66)
	if err != nil {
		return nil, err
	}
	inverted, asked := b[64], b[65]
	if asked != physdevBridged || inverted&^physdevBridged != 0 {
		return nil, errFlags
	}
	return []ruleset.Match{ruleset.Bridged{Not: inverted != 0}}, nil
}

// iprangeMatch reads xt_iprange_mtinfo of linux/netfilter/xt_iprange.h.
func iprangeMatch(family ruleset.Family, revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 1, data, 68)
	if err != nil {
		return nil, err
	}
	flags := b[64]
	if flags&3 == 0 || flags&^0x33 != 0 || (flags>>4)&^flags != 0 {
		return nil, errFlags
	}
	var all []ruleset.Match
	for i, dir := range []ruleset.Direction{ruleset.Src, ruleset.Dst} {
		if flags&(1<<i) == 0 {
			continue
		}
		all = append(all, ruleset.AddrRange{
			Dir: dir, From: b.address(family, 32*i), To: b.address(family, 32*i+16), Not: flags&(0x10<<i) != 0,
		})
	}
	return all, nil
}
