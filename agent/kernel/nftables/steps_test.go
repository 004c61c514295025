// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

func setMark(reg int) []byte {
	return expr("meta", attr(unix.NFTA_META_KEY, unix.NFT_META_MARK), attr(unix.NFTA_META_SREG, reg))
}

func immediate(reg int, data ...byte) []byte {
	return expr("immediate", attr(unix.NFTA_IMMEDIATE_DREG, reg), value(unix.NFTA_IMMEDIATE_DATA, data...))
}

// TestARuleThatGoesOnAfterAMarkIsAChainOfItsSteps has steps as "matches:kind".
func TestARuleThatGoesOnAfterAMarkIsAChainOfItsSteps(t *testing.T) {
	mark := slices.Concat(immediate(1, native32(5)...), setMark(1))
	tcp := slices.Concat(meta(1, unix.NFT_META_L4PROTO), compare(1, eq, 6))
	const setmark, accept, unknown, jump, goTo, back, goOn, drop = ruleset.SetMark, ruleset.Accept, ruleset.UnknownTarget, ruleset.Jump, ruleset.Goto, ruleset.Return, ruleset.Continue, ruleset.Drop
	type step struct {
		Matches int
		Kind    ruleset.TargetKind
	}
	for name, c := range map[string]struct {
		expressions []byte
		want        step
		steps       []step
	}{
		"a mark alone":                         {mark, step{0, setmark}, nil},
		"a mark and a verdict":                 {slices.Concat(tcp, mark, verdict(1, "")), step{1, jump}, []step{{0, setmark}, {0, accept}}},
		"a mark, a condition and a verdict":    {slices.Concat(mark, tcp, verdict(0, "")), step{0, jump}, []step{{0, setmark}, {1, drop}}},
		"a mark and a condition alone":         {slices.Concat(mark, tcp), step{0, jump}, []step{{0, setmark}, {1, goOn}}},
		"two marks and a jump":                 {slices.Concat(mark, mark, verdict(unix.NFT_JUMP, "x")), step{0, jump}, []step{{0, setmark}, {0, setmark}, {0, jump}}},
		"a mark and a return":                  {slices.Concat(tcp, mark, verdict(unix.NFT_RETURN, "")), step{1, goTo}, []step{{0, setmark}, {0, back}}},
		"a mark and a goto":                    {slices.Concat(mark, verdict(unix.NFT_GOTO, "x")), step{0, goTo}, []step{{0, setmark}, {0, goTo}}},
		"a mark, a condition and a return":     {slices.Concat(mark, tcp, verdict(unix.NFT_RETURN, "")), step{0, unknown}, nil},
		"a mark and a map of verdicts":         {slices.Concat(mark, payload(1, transport, 2, 2), lookup("v", 1, attr(unix.NFTA_LOOKUP_DREG, 0))), step{0, unknown}, nil},
		"a mark and what is not known":         {slices.Concat(mark, expr("oracle")), step{0, unknown}, nil},
		"a mark, a log and a verdict":          {slices.Concat(mark, expr("log"), expr("counter"), verdict(1, "")), step{0, jump}, []step{{0, setmark}, {0, accept}}},
		"no connection tracking and a verdict": {slices.Concat(expr("notrack"), verdict(1, "")), step{0, jump}, []step{{0, ruleset.NoTrack}, {0, accept}}},
		"a verdict and a condition":            {slices.Concat(verdict(1, ""), tcp), step{0, unknown}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeRule(ruleset.IPv4, "c", c.expressions, append([]byte{0, 5}, "mine\x00"...), someSets)
			if err != nil {
				t.Fatal(err)
			}
			if have := (step{len(got.Matches), got.Target.Kind}); have != c.want {
				t.Errorf("got %+v, want %+v", have, c.want)
			}
			var steps []step
			if got.Target.Name == restOfRule {
				for _, r := range got.Target.Chain.Rules {
					steps = append(steps, step{len(r.Matches), r.Target.Kind})
					if r.Raw != got.Raw || r.Comment != "mine" || !strings.HasPrefix(r.Raw, "-A c ") {
						t.Errorf("a step is %q (%s), of the rule %q", r.Raw, r.Comment, got.Raw)
					}
				}
			}
			if diff := cmp.Diff(c.steps, steps); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestARuleThatLeadsNowhereIsAnError(t *testing.T) {
	for name, expressions := range map[string][]byte{
		"a jump":                  verdict(unix.NFT_JUMP, "nowhere"),
		"a goto":                  verdict(unix.NFT_GOTO, "nowhere"),
		"a set that is not there": slices.Concat(payload(1, network, 12, 4), lookup("gone", 1)),
	} {
		if got, err := decodeRule(ruleset.IPv4, "c", expressions, nil, someSets); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

// TestAKeyIsWhatTheKernelPutsIntoItsRegister looks at the value that a lookup in
// a set is asked with.
func TestAKeyIsWhatTheKernelPutsIntoItsRegister(t *testing.T) {
	zero := func(n int) ruleset.Value {
		return slices.Repeat(ruleset.Value{{Known: true}}, n)
	}
	reversed := func(v ruleset.Value) ruleset.Value { v = slices.Clone(v); slices.Reverse(v); return v }
	swap := func(reg, length, size int) []byte {
		return expr("byteorder", attr(unix.NFTA_BYTEORDER_SREG, reg), attr(unix.NFTA_BYTEORDER_DREG, reg), attr(unix.NFTA_BYTEORDER_OP, unix.NFT_BYTEORDER_HTON),
			attr(unix.NFTA_BYTEORDER_LEN, length), attr(unix.NFTA_BYTEORDER_SIZE, size))
	}
	unclear := func(n int) ruleset.Value { return make(ruleset.Value, n) }
	hash := expr("hash", attr(unix.NFTA_HASH_DREG, 1))
	shift := expr("bitwise", attr(unix.NFTA_BITWISE_SREG, 1), attr(unix.NFTA_BITWISE_DREG, 1), attr(unix.NFTA_BITWISE_LEN, 4), attr(bitwiseOperation, 1), value(bitwiseData, 0, 0, 0, 8))
	for name, c := range map[string]struct {
		family      ruleset.Family
		expressions []byte
		length      int
		want        ruleset.Value
	}{
		"a port":                         {ruleset.IPv4, payload(1, transport, 2, 2), 4, slices.Concat(field(ruleset.DstPort, 2), zero(2))},
		"an address and a port":          {ruleset.IPv4, slices.Concat(payload(1, network, 16, 4), payload(9, transport, 2, 2)), 8, slices.Concat(field(ruleset.DstAddr, 4), field(ruleset.DstPort, 2), zero(2))},
		"an address of IPv6":             {ruleset.IPv6, payload(1, network, 24, 16), 16, field(ruleset.DstAddr, 16)},
		"the other order":                {ruleset.IPv4, slices.Concat(payload(9, transport, 2, 2), payload(8, network, 16, 4)), 8, slices.Concat(field(ruleset.DstAddr, 4), unclear(4))},
		"six bytes":                      {ruleset.IPv4, payload(1, network, 14, 6), 8, slices.Concat(field(ruleset.SrcAddr, 4)[2:], field(ruleset.DstAddr, 4), zero(2))},
		"an index":                       {ruleset.IPv4, meta(1, unix.NFT_META_OIF), 4, field(ruleset.OutIndex, 4)},
		"a name and a mark":              {ruleset.IPv4, slices.Concat(meta(1, unix.NFT_META_IIFNAME), meta(2, unix.NFT_META_MARK)), 20, slices.Concat(field(ruleset.InName, 16), field(ruleset.PacketMark, 4))},
		"a mark in network order":        {ruleset.IPv4, slices.Concat(meta(1, unix.NFT_META_MARK), swap(1, 4, 4)), 4, reversed(field(ruleset.PacketMark, 4))},
		"a port in host order":           {ruleset.IPv4, slices.Concat(payload(1, transport, 0, 2), swap(1, 2, 2)), 4, slices.Concat(reversed(field(ruleset.SrcPort, 2)), zero(2))},
		"a protocol that is not swapped": {ruleset.IPv4, slices.Concat(meta(1, unix.NFT_META_L4PROTO), swap(1, 1, 2)), 4, slices.Concat(field(ruleset.L4Proto, 1), zero(3))},
		"two numbers that are swapped":   {ruleset.IPv4, slices.Concat(payload(1, transport, 0, 4), swap(1, 4, 2)), 4, unclear(4)},
		"a hash":                         {ruleset.IPv4, hash, 4, unclear(4)},
		"a shift":                        {ruleset.IPv4, slices.Concat(meta(1, unix.NFT_META_MARK), shift), 4, unclear(4)},
		"half an address under a mask":   {ruleset.IPv4, slices.Concat(payload(1, network, 12, 4), bitwise(1, 1, []byte{255, 0, 0, 15}, []byte{0, 7, 0, 1})), 4, ruleset.Value{{Known: true, Field: ruleset.SrcAddr, Mask: 255}, {Known: true, Xor: 7}, {Known: true}, {Known: true, Field: ruleset.SrcAddr, Index: 3, Mask: 15, Xor: 1}}},
		"the original source":            {ruleset.IPv4, expr("ct", attr(unix.NFTA_CT_DREG, 1), attr(unix.NFTA_CT_KEY, unix.NFT_CT_SRC_IP), attr(unix.NFTA_CT_DIRECTION, []byte{0})), 4, field(ruleset.SrcAddr, 4)},
		"the source of the reply":        {ruleset.IPv4, expr("ct", attr(unix.NFTA_CT_DREG, 1), attr(unix.NFTA_CT_KEY, unix.NFT_CT_SRC), attr(unix.NFTA_CT_DIRECTION, []byte{1})), 4, unclear(4)},
		"a state":                        {ruleset.IPv4, ct(1, unix.NFT_CT_STATE), 4, field(ruleset.ConnState, 4)},
		"a type of address":              {ruleset.IPv4, fib(unix.NFT_FIB_RESULT_ADDRTYPE, unix.NFTA_FIB_F_DADDR), 4, field(ruleset.DstType, 4)},
		"a type of address at a device":  {ruleset.IPv4, fib(unix.NFT_FIB_RESULT_ADDRTYPE, unix.NFTA_FIB_F_DADDR|unix.NFTA_FIB_F_IIF), 4, unclear(4)},
		"the way back":                   {ruleset.IPv4, fib(unix.NFT_FIB_RESULT_OIF, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF), 4, field(ruleset.ReverseIndex, 4)},
		"whether there is a way back":    {ruleset.IPv4, fib(unix.NFT_FIB_RESULT_OIF, unix.NFTA_FIB_F_SADDR|unix.NFTA_FIB_F_IIF|unix.NFTA_FIB_F_PRESENT), 4, slices.Concat(unclear(1), zero(3))},
		"flags of a fragment":            {ruleset.IPv4, payload(1, network, 6, 2), 4, slices.Concat(unclear(1), field(ruleset.FragOff, 2)[1:], zero(2))},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := decodeRule(c.family, "c", slices.Concat(c.expressions, lookup("k", 1)), nil, world{"k": {keyLength: c.length}})
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(got.Matches, func(m ruleset.Match) bool { _, ok := m.(ruleset.Lookup); return ok })
			if i < 0 {
				t.Fatalf("no lookup in %+v", got.Matches)
			}
			if diff := cmp.Diff(c.want, got.Matches[i].(ruleset.Lookup).Key); diff != "" { //nolint:forcetypeassert // Found by its type.
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheWayBackIsAConditionOfTheModel(t *testing.T) {
	const iif, present = unix.NFTA_FIB_F_SADDR | unix.NFTA_FIB_F_IIF, unix.NFTA_FIB_F_PRESENT
	for name, c := range map[string]struct {
		flags int
		op    int
		data  []byte
		want  ruleset.Match
	}{
		"there is one":           {iif | present, eq, []byte{1}, ruleset.ReversePath{}},
		"there is none":          {iif | present, eq, []byte{0}, ruleset.ReversePath{Not: true}},
		"there is not none":      {iif | present, neq, []byte{0}, ruleset.ReversePath{}},
		"there is one in a word": {iif | present, eq, []byte{1, 0, 0, 0}, ruleset.ReversePath{}},
		"by any interface":       {unix.NFTA_FIB_F_SADDR | present, eq, []byte{1}, ruleset.ReversePath{Loose: true}},
		"two ways":               {iif | present, eq, []byte{2}, ruleset.Unknown{}},
	} {
		got, err := decodeRule(ruleset.IPv4, "c", slices.Concat(fib(unix.NFT_FIB_RESULT_OIF, c.flags), compare(1, c.op, c.data...)), nil, world{})
		if err != nil || len(got.Matches) != 1 {
			t.Fatalf("%s: got %+v, %v", name, got.Matches, err)
		}
		if _, ok := got.Matches[0].(ruleset.Unknown); ok {
			got.Matches[0] = ruleset.Unknown{}
		}
		if got.Matches[0] != c.want {
			t.Errorf("%s: got %+v, want %+v", name, got.Matches[0], c.want)
		}
	}
}

func TestADynsetIsUnknownFromThereOnIfTheSetIsAsked(t *testing.T) {
	for name, c := range map[string]struct {
		set  string
		want ruleset.TargetKind
	}{"asked": {"s", ruleset.UnknownTarget}, "not asked": {"e", ruleset.Continue}} {
		rule, err := decodeRule(ruleset.IPv4, "c", expr("dynset", attr(unix.NFTA_DYNSET_SET_NAME, c.set)), nil, world{"e": {flags: unix.NFT_SET_EVAL}})
		if err != nil || rule.Target.Kind != c.want {
			t.Errorf("%s: got %+v, %v; want kind %d", name, rule, err, c.want)
		}
	}
	names := map[string]bool{}
	if err := addLookups(slices.Concat(lookup("a", 1), expr("dynset", attr(unix.NFTA_DYNSET_SET_NAME, "b")), expr("objref", attr(unix.NFTA_OBJREF_SET_NAME, "c"))), names); err != nil || !names["a"] || names["b"] || !names["c"] {
		t.Errorf("got %v, %v", names, err)
	}
}
