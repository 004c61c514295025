// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// world is a table that has every chain but "nowhere", the sets that are given
// and no ipsets.
type world map[string]setHeader

func (world) SetName(uint16) (string, error) { return "", errors.New("no such set") }

func (world) chain(name string) *ruleset.Chain {
	if name == "nowhere" {
		return nil
	}
	return &ruleset.Chain{Name: name}
}

func (w world) set(name string) (*set, error) {
	h, ok := w[name]
	if !ok {
		return nil, errors.New("no such set")
	}
	return newSet(newView(&snapshot{}, tableKey{}, ruleset.IPv4), name, h), nil
}

func (w world) isRead(name string) (bool, error) { return w[name].flags&unix.NFT_SET_EVAL == 0, nil }

// attr is one attribute: a number of 4 bytes, a text or bytes.
func attr(kind uint16, value any) []byte {
	switch v := value.(type) {
	case int:
		return nlconn.Attribute(nil, kind, binary.BigEndian.AppendUint32(nil, uint32(v)))
	case string:
		return nlconn.Attribute(nil, kind, append([]byte(v), 0))
	case []byte:
		return nlconn.Attribute(nil, kind, v)
	}
	panic("attr: want int, string or []byte")
}

// expr is one expression of a rule with its attributes.
func expr(name string, attrs ...[]byte) []byte {
	return attr(1, slices.Concat(attr(unix.NFTA_EXPR_NAME, name), attr(unix.NFTA_EXPR_DATA, slices.Concat(attrs...))))
}

// value is an NFTA_DATA_VALUE within an attribute.
func value(kind uint16, data ...byte) []byte { return attr(kind, attr(unix.NFTA_DATA_VALUE, data)) }

func payload(reg, base, offset, length int) []byte {
	return expr("payload", attr(unix.NFTA_PAYLOAD_DREG, reg), attr(unix.NFTA_PAYLOAD_BASE, base),
		attr(unix.NFTA_PAYLOAD_OFFSET, offset), attr(unix.NFTA_PAYLOAD_LEN, length))
}

func meta(reg, key int) []byte {
	return expr("meta", attr(unix.NFTA_META_DREG, reg), attr(unix.NFTA_META_KEY, key))
}

func ct(reg, key int) []byte {
	return expr("ct", attr(unix.NFTA_CT_DREG, reg), attr(unix.NFTA_CT_KEY, key))
}

func compare(reg, op int, data ...byte) []byte {
	return expr("cmp", attr(unix.NFTA_CMP_SREG, reg), attr(unix.NFTA_CMP_OP, op), value(unix.NFTA_CMP_DATA, data...))
}

func bitwise(from, to int, mask, xor []byte, more ...[]byte) []byte {
	return expr("bitwise", append([][]byte{attr(unix.NFTA_BITWISE_SREG, from), attr(unix.NFTA_BITWISE_DREG, to), attr(unix.NFTA_BITWISE_LEN, len(mask)),
		value(unix.NFTA_BITWISE_MASK, mask...), value(unix.NFTA_BITWISE_XOR, xor...)}, more...)...)
}

func verdict(code int, chain string) []byte {
	v := attr(unix.NFTA_VERDICT_CODE, code)
	if chain != "" {
		v = append(v, attr(unix.NFTA_VERDICT_CHAIN, chain)...)
	}
	return expr("immediate", attr(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT), attr(unix.NFTA_IMMEDIATE_DATA, attr(unix.NFTA_DATA_VERDICT, v)))
}

func native32(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

// field is the register that holds a field.
func field(f ruleset.Field, size int) ruleset.Value {
	var v ruleset.Value
	for _, c := range whole(f, size) {
		v = append(v, c.Byte)
	}
	return v
}

const (
	eq, neq            = unix.NFT_CMP_EQ, unix.NFT_CMP_NEQ
	network, transport = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER
	// unclear stands for an Unknown match of whatever text.
	unclear = "unclear"
)

func TestExpressionsAreConditionsAndTargetsOrUnknown(t *testing.T) {
	source := ruleset.Addr{Dir: ruleset.Src, Addr: netip.MustParseAddr("10.0.0.1"), Mask: netip.MustParseAddr("255.255.255.255")}
	to := ruleset.Addr{Dir: ruleset.Dst, Addr: netip.MustParseAddr("10.0.0.2"), Mask: netip.MustParseAddr("255.255.255.255")}
	dport := func(from, to uint16, not bool) ruleset.Ports {
		return ruleset.Ports{Dir: ruleset.Dst, Ranges: []ruleset.PortRange{{From: from, To: to}}, Not: not}
	}
	accept, drop := verdict(1, ""), verdict(0, "")
	type list = [][]byte
	const goOn, jump, unknown = ruleset.Continue, ruleset.Jump, ruleset.UnknownTarget
	unknownMatch := ruleset.Unknown{Text: unclear}
	impossible := ruleset.Compare{Value: ruleset.Value{{Known: true}}, From: []byte{1}, To: []byte{1}}
	tracked := ruleset.CTState{States: ruleset.Invalid | ruleset.Untracked, Not: true}
	for name, c := range map[string]struct {
		expressions list
		want        []ruleset.Match
		target      ruleset.Target
	}{
		"nothing":      {nil, nil, ruleset.Target{Kind: goOn}},
		"a counter":    {list{expr("counter")}, nil, ruleset.Target{Kind: goOn}},
		"a jump":       {list{verdict(unix.NFT_JUMP, "X")}, nil, ruleset.Target{Kind: jump, Name: "X"}},
		"a goto":       {list{verdict(unix.NFT_GOTO, "X")}, nil, ruleset.Target{Kind: ruleset.Goto, Name: "X"}},
		"a return":     {list{verdict(unix.NFT_RETURN, "")}, nil, ruleset.Target{Kind: ruleset.Return, Name: "RETURN"}},
		"a queue":      {list{verdict(3, "")}, nil, ruleset.Target{Kind: unknown}},
		"a break":      {list{verdict(unix.NFT_BREAK, "")}, nil, ruleset.Target{Kind: unknown}},
		"no verdict":   {list{expr("immediate", attr(unix.NFTA_IMMEDIATE_DREG, 0))}, nil, ruleset.Target{Kind: unknown}},
		"two verdicts": {list{accept, drop}, nil, ruleset.Target{Kind: unknown}},
		"an address": {list{payload(1, network, 12, 4), compare(1, eq, 10, 0, 0, 1), drop},
			[]ruleset.Match{source}, ruleset.Target{Kind: ruleset.Drop, Name: "DROP"}},
		"both addresses in one load": {list{payload(1, network, 12, 8), compare(1, eq, 10, 0, 0, 1, 10, 0, 0, 2), accept},
			[]ruleset.Match{source, to}, ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}},
		"not both addresses": {list{payload(1, network, 12, 8), compare(1, neq, 10, 0, 0, 1, 10, 0, 0, 2), accept},
			[]ruleset.Match{ruleset.Compare{Value: slices.Concat(field(ruleset.SrcAddr, 4), field(ruleset.DstAddr, 4)), From: []byte{10, 0, 0, 1, 10, 0, 0, 2}, To: []byte{10, 0, 0, 1, 10, 0, 0, 2}, Not: true}},
			ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}},
		"one register in both numberings": {list{payload(2, network, 12, 8), compare(13, eq, 10, 0, 0, 2)}, []ruleset.Match{to}, ruleset.Target{Kind: goOn}},
		"a register overwritten in part": {list{payload(1, network, 12, 8), payload(9, transport, 2, 2), compare(8, eq, 10, 0, 0, 1, 0, 80)},
			[]ruleset.Match{source, dport(80, 80, false)}, ruleset.Target{Kind: goOn}},
		"the rest of a register after a port": {list{payload(1, transport, 2, 2), compare(1, eq, 0, 80, 0, 0)}, []ruleset.Match{dport(80, 80, false)}, ruleset.Target{Kind: goOn}},
		"a register that was not loaded":      {list{compare(1, eq, 10, 0, 0, 1)}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a register that there is not":        {list{payload(24, network, 12, 4), compare(24, eq, 10, 0, 0, 1)}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a load over the end":                 {list{payload(23, network, 12, 8)}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a load of nothing":                   {list{payload(1, network, 12, 0)}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a field that is not known":           {list{payload(1, network, 2, 2), compare(1, eq, 0, 100)}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"half a port":                         {list{payload(1, transport, 2, 1), compare(1, eq, 8)}, []ruleset.Match{ruleset.Compare{Value: field(ruleset.DstPort, 1), From: []byte{8}, To: []byte{8}}}, ruleset.Target{Kind: goOn}},
		"a value that the mask hides": {list{payload(1, network, 12, 4), bitwise(1, 1, []byte{255, 255, 255, 0}, make([]byte, 4)), compare(1, eq, 10, 0, 0, 1)},
			[]ruleset.Match{impossible}, ruleset.Target{Kind: goOn}},
		"a value that cannot be": {list{payload(1, network, 12, 4), bitwise(1, 1, []byte{255, 255, 255, 0}, make([]byte, 4)), compare(1, neq, 10, 0, 0, 1)},
			nil, ruleset.Target{Kind: goOn}},
		"a shift": {list{payload(1, network, 12, 4), bitwise(1, 1, []byte{255, 255, 255, 255}, make([]byte, 4), attr(bitwiseOperation, 1)), compare(1, eq, 10, 0, 0, 1)},
			[]ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"an attribute of a later kernel": {list{payload(1, network, 12, 4), bitwise(1, 1, []byte{255, 255, 255, 255}, make([]byte, 4), attr(7, 1)), compare(1, eq, 10, 0, 0, 1)},
			[]ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a much later attribute": {list{payload(1, network, 12, 4), expr("cmp", attr(unix.NFTA_CMP_SREG, 1), attr(unix.NFTA_CMP_OP, eq), value(unix.NFTA_CMP_DATA, 10, 0, 0, 1), attr(77, 1))},
			[]ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"ports in a range": {list{payload(1, transport, 2, 2), expr("range", attr(unix.NFTA_RANGE_SREG, 1), attr(unix.NFTA_RANGE_OP, 1), value(unix.NFTA_RANGE_FROM_DATA, 0, 1), value(unix.NFTA_RANGE_TO_DATA, 0, 80))},
			[]ruleset.Match{dport(1, 80, true)}, ruleset.Target{Kind: goOn}},
		"an empty range": {list{payload(1, transport, 2, 2), expr("range", attr(unix.NFTA_RANGE_SREG, 1), attr(unix.NFTA_RANGE_OP, 0), value(unix.NFTA_RANGE_FROM_DATA, 0, 80), value(unix.NFTA_RANGE_TO_DATA, 0, 1))},
			[]ruleset.Match{impossible}, ruleset.Target{Kind: goOn}},
		"less than":                {list{payload(1, transport, 2, 2), compare(1, unix.NFT_CMP_LT, 4, 0)}, []ruleset.Match{dport(1024, 65535, true)}, ruleset.Target{Kind: goOn}},
		"at most":                  {list{payload(1, transport, 2, 2), compare(1, unix.NFT_CMP_LTE, 4, 0)}, []ruleset.Match{dport(0, 1024, false)}, ruleset.Target{Kind: goOn}},
		"more than":                {list{payload(1, transport, 2, 2), compare(1, unix.NFT_CMP_GT, 4, 0)}, []ruleset.Match{dport(0, 1024, true)}, ruleset.Target{Kind: goOn}},
		"at least":                 {list{payload(1, transport, 2, 2), compare(1, unix.NFT_CMP_GTE, 4, 0)}, []ruleset.Match{dport(1024, 65535, false)}, ruleset.Target{Kind: goOn}},
		"a relation of a mark":     {list{meta(1, unix.NFT_META_MARK), compare(1, unix.NFT_CMP_GT, 0, 0, 0, 1)}, []ruleset.Match{ruleset.Compare{Value: field(ruleset.PacketMark, 4), From: []byte{0, 0, 0, 0}, To: []byte{0, 0, 0, 1}, Not: true}}, ruleset.Target{Kind: goOn}},
		"a relation that is none":  {list{payload(1, transport, 2, 2), compare(1, 6, 4, 0)}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a name":                   {list{meta(1, unix.NFT_META_IIFNAME), compare(1, eq, []byte("eth0\x00")...)}, []ruleset.Match{ruleset.Iface{Name: "eth0"}}, ruleset.Target{Kind: goOn}},
		"a name of 16 bytes":       {list{meta(1, unix.NFT_META_OIFNAME), compare(1, neq, []byte("eth0\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")...)}, []ruleset.Match{ruleset.Iface{Out: true, Name: "eth0", Not: true}}, ruleset.Target{Kind: goOn}},
		"a name's beginning":       {list{meta(1, unix.NFT_META_IIFNAME), compare(1, eq, []byte("veth")...)}, []ruleset.Match{ruleset.Iface{Name: "veth", Prefix: true}}, ruleset.Target{Kind: goOn}},
		"a name that is too long":  {list{meta(1, unix.NFT_META_IIFNAME), compare(1, eq, []byte("0123456789abcdef")...)}, []ruleset.Match{ruleset.Compare{Value: field(ruleset.InName, 16), From: []byte("0123456789abcdef"), To: []byte("0123456789abcdef")}}, ruleset.Target{Kind: goOn}},
		"a name with more behind":  {list{meta(1, unix.NFT_META_IIFNAME), compare(1, eq, []byte("eth0\x00x")...)}, []ruleset.Match{ruleset.Compare{Value: field(ruleset.InName, 6), From: []byte("eth0\x00x"), To: []byte("eth0\x00x")}}, ruleset.Target{Kind: goOn}},
		"this family":              {list{meta(1, unix.NFT_META_NFPROTO), compare(1, eq, unix.NFPROTO_IPV4), accept}, nil, ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}},
		"another family":           {list{meta(1, unix.NFT_META_NFPROTO), compare(1, eq, unix.NFPROTO_IPV6), accept, expr("oracle")}, []ruleset.Match{impossible}, ruleset.Target{Kind: goOn}},
		"flags of TCP":             {list{meta(1, unix.NFT_META_L4PROTO), compare(1, eq, 6), payload(1, transport, 13, 1), bitwise(1, 1, []byte{0x17}, []byte{0}), compare(1, eq, 2)}, []ruleset.Match{ruleset.Proto{Number: 6}, ruleset.TCPFlags{Mask: 0x17, Set: 2}}, ruleset.Target{Kind: goOn}},
		"flags of what is not TCP": {list{payload(1, transport, 13, 1), bitwise(1, 1, []byte{0x17}, []byte{0}), compare(1, eq, 2)}, []ruleset.Match{ruleset.TCPFlags{Mask: 0x17, Set: 2}, unknownMatch}, ruleset.Target{Kind: goOn}},
		"flags of ECN":             {list{meta(1, unix.NFT_META_L4PROTO), compare(1, eq, 6), payload(1, transport, 13, 1), compare(1, eq, 2)}, []ruleset.Match{ruleset.Proto{Number: 6}, unknownMatch}, ruleset.Target{Kind: goOn}},
		"states":                   {list{ct(1, unix.NFT_CT_STATE), bitwise(1, 1, native32(6), make([]byte, 4)), compare(1, neq, 0, 0, 0, 0)}, []ruleset.Match{ruleset.CTState{States: ruleset.Established | ruleset.Related}}, ruleset.Target{Kind: goOn}},
		"none of two states":       {list{ct(1, unix.NFT_CT_STATE), bitwise(1, 1, native32(6), make([]byte, 4)), compare(1, eq, 0, 0, 0, 0)}, []ruleset.Match{ruleset.CTState{States: ruleset.Established | ruleset.Related, Not: true}}, ruleset.Target{Kind: goOn}},
		"one state":                {list{ct(1, unix.NFT_CT_STATE), compare(1, eq, native32(8)...)}, []ruleset.Match{ruleset.CTState{States: ruleset.New}}, ruleset.Target{Kind: goOn}},
		"two states at once":       {list{ct(1, unix.NFT_CT_STATE), compare(1, eq, native32(10)...)}, []ruleset.Match{ruleset.Compare{Value: field(ruleset.ConnState, 4), From: native32(10), To: native32(10)}}, ruleset.Target{Kind: goOn}},
		"a connection's mark":      {list{ct(1, unix.NFT_CT_MARK), bitwise(1, 1, native32(7), make([]byte, 4)), compare(1, eq, native32(5)...)}, []ruleset.Match{ruleset.Mark{Conn: true, Value: 5, Mask: 7}}, ruleset.Target{Kind: goOn}},
		"a mark that cannot be":    {list{meta(1, unix.NFT_META_MARK), bitwise(1, 1, native32(1), make([]byte, 4)), compare(1, eq, native32(0x105)...)}, []ruleset.Match{ruleset.Mark{Value: 0x105, Mask: 1}}, ruleset.Target{Kind: goOn}},
		"a flipped mark":           {list{meta(8, unix.NFT_META_MARK), bitwise(1, 1, native32(3), native32(1)), compare(1, eq, native32(2)...)}, []ruleset.Match{ruleset.Mark{Value: 3, Mask: 3}}, ruleset.Target{Kind: goOn}},
		"a mark set": {list{expr("immediate", attr(unix.NFTA_IMMEDIATE_DREG, 1), value(unix.NFTA_IMMEDIATE_DATA, native32(5)...)), expr("meta", attr(unix.NFTA_META_KEY, unix.NFT_META_MARK), attr(unix.NFTA_META_SREG, 1))},
			nil, ruleset.Target{Kind: ruleset.SetMark, Value: 5, Mask: 0xffffffff, Name: "MARK"}},
		"bits of a mark set": {list{meta(1, unix.NFT_META_MARK), bitwise(1, 2, native32(0xfffffff0), native32(0x4)), expr("meta", attr(unix.NFTA_META_KEY, unix.NFT_META_MARK), attr(unix.NFTA_META_SREG, 2))},
			nil, ruleset.Target{Kind: ruleset.SetMark, Value: 4, Mask: 0xf, Name: "MARK"}},
		"a mark set to another's": {list{ct(1, unix.NFT_CT_MARK), expr("meta", attr(unix.NFTA_META_KEY, unix.NFT_META_MARK), attr(unix.NFTA_META_SREG, 1))},
			[]ruleset.Match{tracked}, ruleset.Target{Kind: ruleset.RestoreMark, Name: "CONNMARK", Mask: 0xffffffff, CTMask: 0xffffffff}},
		"a connection's mark set to another's": {list{meta(1, unix.NFT_META_MARK), bitwise(1, 1, native32(7), make([]byte, 4)), expr("ct", attr(unix.NFTA_CT_KEY, unix.NFT_CT_MARK), attr(unix.NFTA_CT_SREG, 1))},
			nil, ruleset.Target{Kind: ruleset.SaveMark, Name: "CONNMARK", Mask: 7, CTMask: 0xffffffff}},
		"a mark set to an address": {list{payload(1, network, 12, 4), expr("meta", attr(unix.NFTA_META_KEY, unix.NFT_META_MARK), attr(unix.NFTA_META_SREG, 1))}, nil, ruleset.Target{Kind: unknown}},
		"a connection's mark in a range": {list{ct(1, unix.NFT_CT_MARK), compare(1, unix.NFT_CMP_GTE, 0, 0, 0, 1)},
			[]ruleset.Match{tracked, ruleset.Compare{Value: field(ruleset.ConnMark, 4), From: []byte{0, 0, 0, 1}, To: []byte{255, 255, 255, 255}}}, ruleset.Target{Kind: goOn}},
		"a log":                        {list{expr("log", attr(1, []byte{0, 100}))}, nil, ruleset.Target{Kind: goOn, Name: "NFLOG"}},
		"a refusal":                    {list{expr("reject")}, nil, ruleset.Target{Kind: ruleset.Drop, Name: "REJECT"}},
		"a masquerade":                 {list{expr("masq")}, nil, ruleset.Target{Kind: ruleset.NewSource, Name: "MASQUERADE"}},
		"a new destination":            {list{expr("nat", attr(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT))}, nil, ruleset.Target{Kind: ruleset.NewDestination, Name: "DNAT"}},
		"one of the other family":      {list{expr("nat", attr(unix.NFTA_NAT_TYPE, unix.NFT_NAT_SNAT), attr(unix.NFTA_NAT_FAMILY, unix.NFPROTO_IPV6))}, nil, ruleset.Target{Kind: ruleset.Continue}},
		"one of its own":               {list{expr("nat", attr(unix.NFTA_NAT_TYPE, unix.NFT_NAT_SNAT), attr(unix.NFTA_NAT_FAMILY, unix.NFPROTO_IPV4))}, nil, ruleset.Target{Kind: ruleset.NewSource, Name: "SNAT"}},
		"one of both families":         {list{expr("nat", attr(unix.NFTA_NAT_TYPE, unix.NFT_NAT_DNAT), attr(unix.NFTA_NAT_FAMILY, unix.NFPROTO_INET))}, nil, ruleset.Target{Kind: ruleset.NewDestination, Name: "DNAT"}},
		"a new address of an end":      {list{expr("nat", attr(unix.NFTA_NAT_TYPE, 2))}, nil, ruleset.Target{Kind: unknown}},
		"an expression of tomorrow":    {list{expr("oracle")}, nil, ruleset.Target{Kind: unknown}},
		"an expression without a name": {list{attr(1, []byte{})}, nil, ruleset.Target{Kind: unknown}},
		"a match without a name":       {list{expr("match")}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a match of tomorrow":          {list{expr("match", attr(unix.NFTA_MATCH_NAME, "oracle"), attr(unix.NFTA_MATCH_REV, 0), attr(unix.NFTA_MATCH_INFO, []byte{1}))}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a revision that is too large": {list{expr("match", attr(unix.NFTA_MATCH_NAME, "mark"), attr(unix.NFTA_MATCH_REV, 257), attr(unix.NFTA_MATCH_INFO, make([]byte, 12)))}, []ruleset.Match{unknownMatch}, ruleset.Target{Kind: goOn}},
		"a target without a name":      {list{expr("target")}, nil, ruleset.Target{Kind: unknown}},
		"a counter of a name":          {list{expr("objref", attr(unix.NFTA_OBJREF_IMM_TYPE, unix.NFT_OBJECT_COUNTER))}, nil, ruleset.Target{Kind: goOn}},
		"an object of a name":          {list{expr("objref", attr(unix.NFTA_OBJREF_IMM_TYPE, 10))}, nil, ruleset.Target{Kind: unknown}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeRule(ruleset.IPv4, "c", slices.Concat(c.expressions...), nil, world{})
			if err != nil {
				t.Fatal(err)
			}
			for i, m := range got.Matches {
				if _, ok := m.(ruleset.Unknown); ok {
					got.Matches[i] = unknownMatch
				}
			}
			if c.target.Kind == unknown {
				got.Target.Name = ""
			}
			got.Target.Chain = nil
			if diff := cmp.Diff(ruleset.Rule{Matches: c.want, Target: c.target}, ruleset.Rule{Matches: got.Matches, Target: got.Target}, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheNextHeaderOfIPv6IsTheProtocol(t *testing.T) {
	got, err := decodeRule(ruleset.IPv6, "c", slices.Concat(payload(1, network, 6, 1), compare(1, eq, 17), payload(1, network, 8, 8), compare(1, neq, 0xfd, 0, 0, 0, 0, 0, 0, 1)), nil, world{})
	want := []ruleset.Match{ruleset.Proto{Number: 17},
		ruleset.Addr{Dir: ruleset.Src, Addr: netip.MustParseAddr("fd00:0:0:1::"), Mask: netip.MustParseAddr("ffff:ffff:ffff:ffff::"), Not: true}}
	if err != nil || !slices.Equal(got.Matches, want) {
		t.Errorf("got %v, %v; want %v", got.Matches, err, want)
	}
}

func TestACommentIsTheUserdataOfTypeZero(t *testing.T) {
	for name, c := range map[string]struct {
		userdata []byte
		want     string
	}{
		"none":              {nil, ""},
		"a comment":         {append([]byte{0, 5}, "mine\x00"...), "mine"},
		"behind another":    {append([]byte{1, 2, 7, 7, 0, 5}, "mine\x00"...), "mine"},
		"longer than it is": {append([]byte{0, 50}, "mine\x00"...), ""},
	} {
		if got := comment(c.userdata); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

// listed is a chain, or a rule, as nf_tables lists it.
func listed(family uint8, attrs ...[]byte) []byte {
	return append(nlconn.NFGenMsg(family, 0), slices.Concat(attrs...)...)
}

func TestAMessageCutShortIsAnError(t *testing.T) {
	rule := listed(unix.NFPROTO_IPV4, attr(unix.NFTA_RULE_TABLE, "filter"), attr(unix.NFTA_RULE_CHAIN, "FORWARD"),
		attr(unix.NFTA_RULE_EXPRESSIONS, slices.Concat(payload(1, network, 12, 4), compare(1, eq, 10, 0, 0, 1), verdict(1, ""))))
	whole, err := readRule(rule)
	if err != nil || whole.table != (tableKey{unix.NFPROTO_IPV4, "filter"}) || whole.chain != "FORWARD" {
		t.Fatalf("whole: got %+v, %v", whole, err)
	}
	for length := range rule {
		if got, err := readRule(rule[:length]); err == nil {
			t.Errorf("%d of %d bytes: got %+v, want an error", length, len(rule), got)
		}
	}
	if _, err := decodeRule(ruleset.IPv4, "c", whole.expressions[:len(whole.expressions)-4], nil, world{}); err == nil {
		t.Error("expressions that are cut short: want an error")
	}
	chain := listed(unix.NFPROTO_IPV4, attr(unix.NFTA_CHAIN_TABLE, "filter"), attr(unix.NFTA_CHAIN_NAME, "FORWARD"))
	for length := range chain {
		if got, err := readChain(chain[:length]); err == nil {
			t.Errorf("%d of %d bytes: got %+v, want an error", length, len(chain), got)
		}
	}
}

func TestAChainIsWhatTheKernelSays(t *testing.T) {
	hook := slices.Concat(attr(unix.NFTA_HOOK_HOOKNUM, unix.NF_INET_POST_ROUTING), attr(unix.NFTA_HOOK_PRIORITY, -5))
	got, err := readChain(listed(unix.NFPROTO_IPV6, attr(unix.NFTA_CHAIN_TABLE, "t"), attr(unix.NFTA_CHAIN_NAME, "c"), attr(unix.NFTA_CHAIN_HOOK, hook),
		attr(unix.NFTA_CHAIN_POLICY, 0), attr(unix.NFTA_CHAIN_TYPE, "nat")))
	want := nftChain{family: unix.NFPROTO_IPV6, table: "t", chain: "c", hooked: true, kind: "nat", hook: 4, priority: -5, drop: true}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
}

func TestEveryChainOfTheKernelIsInTheAnswer(t *testing.T) {
	forward := nftChain{family: unix.NFPROTO_IPV4, table: "filter", chain: "FORWARD", hooked: true, kind: "filter", hook: unix.NF_INET_FORWARD}
	other := nftChain{family: unix.NFPROTO_IPV4, table: "filter", chain: "X"}
	with := func(f func(*nftChain)) nftChain { c := forward; f(&c); return c }
	for name, c := range map[string]struct {
		chains  []nftChain
		dormant bool
		// empty says that chains that are not read have no rules.
		empty bool
		// want is the tables with their chains, "?" for an opaque one, or a
		// part of the error.
		want string
	}{
		"nothing":              {nil, false, false, ""},
		"a base chain":         {[]nftChain{forward}, false, false, "ip filter FORWARD"},
		"chains":               {[]nftChain{forward, other}, false, false, "ip filter FORWARD X"},
		"a hook of no family":  {[]nftChain{with(func(c *nftChain) { c.hook = 5 })}, false, false, "at hook 5"},
		"a dormant table":      {[]nftChain{forward, other}, true, false, "ip filter FORWARD?"},
		"both families":        {[]nftChain{with(func(c *nftChain) { c.family = unix.NFPROTO_INET })}, false, false, "ip filter FORWARD ip6 filter FORWARD"},
		"both families' input": {[]nftChain{with(func(c *nftChain) { c.family, c.hook = unix.NFPROTO_INET, 5 })}, false, false, "netdev filter FORWARD?"},
		"arp":                  {[]nftChain{with(func(c *nftChain) { c.family = unix.NFPROTO_ARP })}, false, false, ""},
		"an idle one":          {[]nftChain{with(func(c *nftChain) { c.family = unix.NFPROTO_BRIDGE })}, false, true, ""},
		"a policy and no rule": {[]nftChain{with(func(c *nftChain) { c.family, c.drop = unix.NFPROTO_BRIDGE, true })}, false, true, "bridge filter FORWARD?"},
		"a family of tomorrow": {[]nftChain{with(func(c *nftChain) { c.family = 99 })}, false, false, "netdev filter FORWARD?"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &snapshot{}
			err := s.build(map[tableKey]bool{forward.key(): c.dormant}, c.chains, func(nftChain) (bool, error) { return c.empty, nil })
			if err != nil {
				if c.want == "" || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got error %v, want %q", err, c.want)
				}
				return
			}
			if got := outline(s.tables); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// outline returns tables and chains.
func outline(tables []ruleset.Table) string {
	var words []string
	for _, table := range tables {
		words = append(words, table.Family.String(), table.Name)
		for _, c := range table.Chains {
			if c.Opaque != "" {
				words = append(words, c.Name+"?")
				continue
			}
			words = append(words, c.Name)
		}
	}
	return strings.Join(words, " ")
}

// contains reports whether b has an attribute like this one, whatever the flags
// of its type.
func contains(b, attribute []byte) bool {
	for i := range b {
		if len(b)-i < len(attribute) {
			return false
		}
		have := slices.Clone(b[i : i+len(attribute)])
		kind := binary.NativeEndian.Uint16(have[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		binary.NativeEndian.PutUint16(have[2:], kind)
		if slices.Equal(have, attribute) {
			return true
		}
	}
	return false
}

// FuzzDecodeRule demands that a rule accepts only if it has a well-formed
// verdict to accept or the compat target of that name, that nothing accepts
// with an expression that is not known behind it, and that what is handed to
// the evaluation has the sizes that it counts on.
func FuzzDecodeRule(f *testing.F) {
	f.Add(slices.Concat(payload(1, network, 12, 8), compare(1, eq, 10, 0, 0, 1, 10, 0, 0, 2), verdict(1, "")), []byte{0, 2, 'x', 0})
	f.Add(slices.Concat(meta(1, unix.NFT_META_IIFNAME), compare(9, eq, []byte("eth0")...), expr("masq")), []byte{})
	f.Add(slices.Concat(ct(23, unix.NFT_CT_MARK), bitwise(23, 20, native32(3), native32(1)), compare(20, neq, 0, 0)), []byte{})
	f.Add(slices.Concat(payload(9, transport, 2, 2), lookup("s", 9), lookup("v", 9, attr(unix.NFTA_LOOKUP_DREG, 0))), []byte{})
	f.Add(slices.Concat(payload(9, network, 16, 4), lookup("m", 9, attr(unix.NFTA_LOOKUP_DREG, 9)), expr("meta", attr(unix.NFTA_META_KEY, unix.NFT_META_MARK), attr(unix.NFTA_META_SREG, 9)), verdict(1, "")), []byte{})
	f.Add(slices.Concat(fib(unix.NFT_FIB_RESULT_OIF, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF|unix.NFTA_FIB_F_PRESENT), compare(1, eq, 0), expr("byteorder", attr(1, 1), attr(2, 2), attr(3, 1), attr(4, 8), attr(5, 4))), []byte{})
	accepts := attr(unix.NFTA_VERDICT_CODE, nfAccept)
	f.Fuzz(func(t *testing.T, expressions, userdata []byte) {
		for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
			rule, err := decodeRule(family, "c", expressions, userdata, someSets)
			if err != nil {
				continue
			}
			wellFormed(t, rule)
			if reaches(rule, ruleset.Accept) && !contains(expressions, accepts) && !strings.Contains(string(expressions), "target") {
				t.Errorf("%x accepts: %+v", expressions, rule)
			}
			// Whatever came before, what is not known decides nothing.
			if len(expressions)%4 != 0 {
				continue
			}
			rule, err = decodeRule(family, "c", append(slices.Clone(expressions), expr("oracle", userdata)...), nil, someSets)
			if err == nil && !reaches(rule, ruleset.UnknownTarget) && !slices.ContainsFunc(flat(rule), func(r ruleset.Rule) bool {
				return slices.ContainsFunc(r.Matches, isImpossible)
			}) {
				t.Errorf("an unknown expression in %x has target %+v", expressions, rule.Target)
			}
		}
		_, _ = readRule(expressions)
		_, _ = readChain(expressions)
	})
}

// someSets are a set, a map of verdicts and one of marks.
var someSets = world{
	"s": {keyLength: 2}, "v": {keyLength: 2, flags: unix.NFT_SET_MAP, dataType: unix.NFT_DATA_VERDICT, dataLength: 16},
	"m": {keyLength: 4, flags: unix.NFT_SET_MAP, dataLength: 4},
}

// flat returns a rule, or its steps.
func flat(r ruleset.Rule) []ruleset.Rule {
	if r.Target.Name == restOfRule {
		return append([]ruleset.Rule{r}, r.Target.Chain.Rules...)
	}
	return []ruleset.Rule{r}
}

func reaches(r ruleset.Rule, kind ruleset.TargetKind) bool {
	return slices.ContainsFunc(flat(r), func(r ruleset.Rule) bool { return r.Target.Kind == kind })
}

func isImpossible(m ruleset.Match) bool {
	c, ok := m.(ruleset.Compare)
	return ok && len(c.Value) == 1 && c.Value[0] == ruleset.Byte{Known: true} && c.From[0] == 1 && !c.Not
}

func wellFormed(t *testing.T, rule ruleset.Rule) {
	t.Helper()
	for _, r := range flat(rule) {
		if to := r.Target; (to.Kind == ruleset.Jump || to.Kind == ruleset.Goto) && to.Chain == nil ||
			to.Kind == ruleset.Decide && (to.Map == nil || len(to.Key) != to.Map.KeyLength) {
			t.Errorf("target without its chain or map: %+v", to)
		}
		for _, m := range r.Matches {
			switch m := m.(type) {
			case ruleset.Addr:
				if m.Addr.BitLen() != m.Mask.BitLen() || !m.Mask.IsValid() {
					t.Errorf("address %v under mask %v", m.Addr, m.Mask)
				}
			case ruleset.Compare:
				sized(t, m.Value, len(m.From))
				sized(t, m.Value, len(m.To))
			case ruleset.Lookup:
				sized(t, m.Key, m.Set.KeyLength)
			}
		}
	}
}

func sized(t *testing.T, v ruleset.Value, want int) {
	t.Helper()
	if len(v) != want || want == 0 {
		t.Errorf("a value of %d bytes: want %d", len(v), want)
	}
	for _, b := range v {
		if b.Field > ruleset.ReverseIndex || (!b.Known && b != ruleset.Byte{}) || (b.Mask == 0 && b.Field != ruleset.Constant) || b.Index >= fieldBytes {
			t.Errorf("a byte that is none of the model: %+v", b)
		}
	}
}

func lookup(set string, sreg int, more ...[]byte) []byte {
	return expr("lookup", append([][]byte{attr(unix.NFTA_LOOKUP_SET, set), attr(unix.NFTA_LOOKUP_SREG, sreg)}, more...)...)
}

func fib(result, flags int) []byte {
	return expr("fib", attr(unix.NFTA_FIB_DREG, 1), attr(unix.NFTA_FIB_RESULT, result), attr(unix.NFTA_FIB_FLAGS, flags))
}
