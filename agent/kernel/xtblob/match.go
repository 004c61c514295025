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

	// setQuiet are the flags that keep counters from being updated
	// (IPSET_FLAG_SKIP_COUNTER_UPDATE and _SUBCOUNTER_UPDATE), which says
	// nothing about the match.
	setQuiet = 1<<3 | 1<<4
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
	if size == 44 && (b[operations[0]] != 0 || b[operations[1]] != 0 || b.u32(40)&^setQuiet != 0) {
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
