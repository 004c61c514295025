// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"github.com/policygate/policygate/agent/ruleset"
)

// Target returns what an extension's target does. One that it does not know,
// or finds malformed, is a ruleset.UnknownTarget with the Name set. The
// verdicts of the standard target are the caller's.
//
// Of these another program decides, or what they do depends on more than the
// model holds: NFQUEUE and QUEUE, SYNPROXY, TPROXY, CLUSTERIP, HMARK (a mark
// from a hash), NETMAP (either end, by hook), SNPT (which goes on), and SET,
// as later rules can ask for what it has put into a set.
func Target(family ruleset.Family, name string, revision uint8, data []byte) ruleset.Target {
	t := ruleset.Target{Kind: ruleset.UnknownTarget, Name: name}
	switch name {
	case "MARK":
		return markTarget(t, revision, data)
	case "CONNMARK":
		return connmarkTarget(t, revision, data)
	case "CT":
		return ctTarget(t, revision, data)
	case "TTL", "HL":
		t.Kind = hopsTarget(revision, data)
		return t
	}
	kind, size := plainTarget(family, name, revision)
	if kind == ruleset.UnknownTarget {
		return t
	}
	if _, err := sized(data, size); err == nil {
		t.Kind = kind
	}
	return t
}

// plainTarget returns what a target does whatever its struct says, and the
// size of that.
func plainTarget(family ruleset.Family, name string, revision uint8) (ruleset.TargetKind, int) {
	// sizes are those of the revisions, 0 first; -1 for one that never was.
	kind, sizes := ruleset.Continue, []int(nil)
	switch name {
	case "REJECT": // ipt_reject_info, linux/netfilter_ipv4/ipt_REJECT.h, and its twin for IPv6
		kind, sizes = ruleset.Drop, []int{4}
	case "NOTRACK": // xt_CT.c
		kind, sizes = ruleset.NoTrack, []int{0}
	case "DNAT": // nf_nat_ipv4_multi_range_compat, nf_nat_range, nf_nat_range2, linux/netfilter/nf_nat.h
		kind, sizes = ruleset.NewDestination, []int{20, 40, 44}
	case "SNAT":
		kind, sizes = ruleset.NewSource, []int{20, 40, 44}
	case "MASQUERADE", "REDIRECT":
		kind = ruleset.NewDestination
		if name == "MASQUERADE" {
			kind = ruleset.NewSource
		}
		// One revision, of another struct in each family.
		sizes = []int{20}
		if family == ruleset.IPv6 {
			sizes = []int{40}
		}
	case "DNPT": // ip6t_npt_tginfo, linux/netfilter_ipv6/ip6t_NPT.h
		kind, sizes = ruleset.NewDestination, []int{36}

	// The rest write what the model's matches never read, and go on.
	case "LOG": // xt_log_info, linux/netfilter/xt_LOG.h
		sizes = []int{32}
	case "NFLOG": // xt_nflog_info, xt_NFLOG.h
		sizes = []int{76}
	case "TRACE": // xt_TRACE.c
		sizes = []int{0}
	case "AUDIT": // xt_audit_info, xt_AUDIT.h
		sizes = []int{1, 1}
	case "CHECKSUM": // xt_CHECKSUM_info, xt_CHECKSUM.h
		sizes = []int{1}
	case "CLASSIFY": // xt_classify_target_info, xt_CLASSIFY.h
		sizes = []int{4}
	case "DSCP": // xt_DSCP_info, xt_DSCP.h
		sizes = []int{1}
	case "TOS": // xt_tos_target_info, xt_DSCP.h
		sizes = []int{-1, 2}
	case "ECN": // ipt_ECN_info, linux/netfilter_ipv4/ipt_ECN.h
		sizes = []int{3}
	case "TCPMSS": // xt_tcpmss_info, xt_TCPMSS.h
		sizes = []int{2}
	case "TCPOPTSTRIP": // xt_tcpoptstrip_target_info, xt_TCPOPTSTRIP.h
		sizes = []int{32}
	case "TEE": // xt_tee_tginfo, xt_TEE.h
		sizes = []int{-1, 40}
	case "IDLETIMER": // idletimer_tg_info and its v1, xt_IDLETIMER.h
		sizes = []int{40, 48}
	case "LED": // xt_led_info, xt_LED.h
		sizes = []int{40}
	case "RATEEST": // xt_rateest_target_info, xt_RATEEST.h
		sizes = []int{32}
	case "SECMARK": // xt_secmark_target_info and its v1, xt_SECMARK.h
		sizes = []int{264, 264}
	case "CONNSECMARK": // xt_connsecmark_target_info, xt_CONNSECMARK.h
		sizes = []int{1}
	}
	if int(revision) >= len(sizes) || sizes[revision] < 0 {
		return ruleset.UnknownTarget, 0
	}
	return kind, sizes[revision]
}

// markTarget reads xt_mark_tginfo2 of linux/netfilter/xt_mark.h.
func markTarget(t ruleset.Target, revision uint8, data []byte) ruleset.Target {
	b, err := one(revision, 2, data, 8)
	if err != nil {
		return t
	}
	t.Kind, t.Value, t.Mask = ruleset.SetMark, b.u32(0), b.u32(4)
	return t
}

// connmarkTarget reads xt_connmark_tginfo1 and 2 of
// linux/netfilter/xt_connmark.h. Revision 2 can shift, which is not understood.
func connmarkTarget(t ruleset.Target, revision uint8, data []byte) ruleset.Target {
	b, err := sized(data, 16)
	if err != nil || (revision != 1 && revision != 2) {
		return t
	}
	mode := b[12]
	if revision == 2 {
		if b[13] != 0 {
			return t
		}
		mode = b[14]
	}
	ctMark, ctMask, nfMask := b.u32(0), b.u32(4), b.u32(8)
	switch mode {
	case 0: // XT_CONNMARK_SET
		t.Kind, t.Value, t.Mask = ruleset.SetConnMark, ctMark, ctMask
	case 1: // XT_CONNMARK_SAVE
		t.Kind, t.Mask, t.CTMask = ruleset.SaveMark, nfMask, ctMask
	case 2: // XT_CONNMARK_RESTORE
		t.Kind, t.Mask, t.CTMask = ruleset.RestoreMark, nfMask, ctMask
	}
	return t
}

// hopsTarget reads ipt_TTL_info and ip6t_HL_info of
// linux/netfilter_ipv4/ipt_TTL.h and linux/netfilter_ipv6/ip6t_HL.h, which are
// alike. A packet that has too few hops left is not routed: what makes them
// fewer by some may do that.
func hopsTarget(revision uint8, data []byte) ruleset.TargetKind {
	const set, increase = 0, 1 // IPT_TTL_SET, IPT_TTL_INC
	b, err := one(revision, 0, data, 2)
	if err == nil && (b[0] == increase || b[0] == set && b[1] > 1) {
		return ruleset.Continue
	}
	return ruleset.UnknownTarget
}

// linux/netfilter/xt_CT.h: what takes a packet out of tracking, and the flag
// that says that the rule was written as "-j NOTRACK". The others pick a zone.
const (
	ctNoTrack      = 1 << 0
	ctNoTrackAlias = 1 << 1
	ctKnown        = 1<<5 - 1
)

// ctTarget reads xt_ct_target_info and, for revisions 1 and 2, its v1. Zones,
// helpers, timeouts and events are not understood: they leave a new connection
// new, but give the packet one before conntrack does (a template), which
// conditions on connections then find and which NOTRACK does not take away.
func ctTarget(t ruleset.Target, revision uint8, data []byte) ruleset.Target {
	size := 72
	if revision == 0 {
		size = 40
	}
	b, err := sized(data, size)
	if err != nil || revision > 2 {
		return t
	}
	flags := b.u16(0)
	if flags&ctNoTrackAlias != 0 {
		t.Name = "NOTRACK"
	}
	if flags&^ctKnown == 0 && flags&ctNoTrack != 0 {
		t.Kind = ruleset.NoTrack
	}
	return t
}
