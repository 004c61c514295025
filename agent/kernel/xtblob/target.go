// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"github.com/policygate/policygate/agent/ruleset"
)

// Target returns what an extension's target does. One that it does not know,
// or finds malformed, is a ruleset.UnknownTarget with the Name set. The
// verdicts of the standard target are the caller's.
func Target(_ ruleset.Family, name string, revision uint8, data []byte) ruleset.Target {
	t := ruleset.Target{Kind: ruleset.UnknownTarget, Name: name}
	switch name {
	case "REJECT":
		t.Kind = ruleset.Drop
	case "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "CHECKSUM", "CLASSIFY", "DSCP", "ECN", "IDLETIMER",
		"LED", "RATEEST", "SECMARK", "CONNSECMARK", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS":
		// They write what the model's matches never read, and go on.
		t.Kind = ruleset.Continue
	case "HL", "TTL":
		t.Kind = hopsTarget(revision, data)
	case "NOTRACK":
		t.Kind = ruleset.NoTrack
	case "DNAT", "REDIRECT", "DNPT":
		t.Kind = ruleset.NewDestination
	case "SNAT", "MASQUERADE", "SNPT":
		t.Kind = ruleset.NewSource
	case "MARK":
		return markTarget(t, revision, data)
	case "CONNMARK":
		return connmarkTarget(t, revision, data)
	case "CT":
		return ctTarget(t, revision, data)
	}
	// Of the rest another program decides, or what they do depends on more
	// than the model holds.
	return t
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
// helpers, timeouts and events leave a new connection new.
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
	switch {
	case flags&^ctKnown != 0:
	case flags&ctNoTrack != 0:
		t.Kind = ruleset.NoTrack
	default:
		t.Kind = ruleset.Continue
	}
	return t
}
