// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/agent/ruleset"
)

// edit returns size zero bytes with some set.
func edit(size int, bytes map[int]byte) []byte {
	b := make([]byte, size)
	for at, value := range bytes {
		b[at] = value
	}
	return b
}

// number16 returns size zero bytes with 16-bit numbers in host byte order.
func number16(size int, numbers map[int]uint16) []byte {
	b := make([]byte, size)
	for at, value := range numbers {
		binary.NativeEndian.PutUint16(b[at:], value)
	}
	return b
}

func TestMatchesOfOlderRevisions(t *testing.T) {
	const src, dst = ruleset.Src, ruleset.Dst
	set := func(not bool, dims ...ruleset.Direction) []ruleset.Match {
		return []ruleset.Match{ruleset.Set{Name: "pair", Dims: dims, Not: not}}
	}
	pair := number16(48, map[int]uint16{0: 1})
	pair[2], pair[3] = 2, 0b101
	ip := netip.MustParseAddr
	tracked := ruleset.CTState{States: ruleset.Invalid | ruleset.Untracked, Not: true}
	for name, c := range map[string]struct {
		match    string
		revision uint8
		data     []byte
		want     []ruleset.Match
	}{
		"set 1":                   {"set", 1, pair[:4], set(true, dst, src)},
		"set 2, padded":           {"set", 2, pair[:8], set(true, dst, src)},
		"set 3":                   {"set", 3, pair, set(true, dst, src)},
		"conntrack 1":             {"conntrack", 1, edit(152, map[int]byte{146: 1, 150: 0b1010}), []ruleset.Match{ruleset.CTState{States: ruleset.Established | ruleset.New}}},
		"conntrack 1, a port":     {"conntrack", 1, edit(152, map[int]byte{146: 0, 147: 2, 140: 1, 141: 2}), []ruleset.Match{tracked, ruleset.Ports{Dir: dst, Ranges: []ruleset.PortRange{{From: 258, To: 258}}}}},
		"conntrack 1, a status":   {"conntrack", 1, edit(152, map[int]byte{146: 1 << 6, 151: 4}), []ruleset.Match{tracked, ruleset.CTState{States: later}}},
		"conntrack 2, no status":  {"conntrack", 2, edit(160, map[int]byte{146: 1 << 6, 148: 1 << 6, 152: 4}), []ruleset.Match{tracked}},
		"a port of a bridge":      {"physdev", 0, edit(72, map[int]byte{0: 'a', 16: 255, 65: 1}), []ruleset.Match{ruleset.BridgePort{Name: "a", Prefix: true}}},
		"any port of a bridge":    {"physdev", 0, edit(72, map[int]byte{65: 1}), []ruleset.Match{ruleset.BridgePort{Not: true}}},
		"a loose way back":        {"rpfilter", 0, edit(8, map[int]byte{0: 9}), []ruleset.Match{ruleset.ReversePath{Loose: true, Not: true}}},
		"conntrack 2":             {"conntrack", 2, number16(160, map[int]uint16{146: 1, 148: 1, 150: 0x1c0}), []ruleset.Match{ruleset.CTState{States: ruleset.SNATed | ruleset.DNATed | ruleset.Untracked, Not: true}}},
		"state 0":                 {"state", 0, number16(8, map[int]uint16{0: 0x45}), []ruleset.Match{ruleset.CTState{States: ruleset.Invalid | ruleset.Related | ruleset.Untracked}}},
		"addrtype 0":              {"addrtype", 0, number16(16, map[int]uint16{0: 4, 2: 2, 8: 1}), []ruleset.Match{ruleset.AddrType{Dir: src, Types: ruleset.Local}, ruleset.AddrType{Dir: dst, Types: ruleset.Unicast, Not: true}}},
		"iprange, IPv6":           {"iprange", 1, edit(72, map[int]byte{32: 0xfd, 47: 1, 48: 0xfd, 63: 9, 64: 0x22}), []ruleset.Match{ruleset.AddrRange{Dir: dst, From: ip("fd00::1"), To: ip("fd00::9"), Not: true}}},
		"tcp, any port but every": {"tcp", 0, number16(16, map[int]uint16{2: 65535, 6: 65535, 10: 0x0100}), []ruleset.Match{ruleset.Ports{Dir: src, Ranges: []ruleset.PortRange{{From: 0, To: 65535}}, Not: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := Match(ruleset.IPv6, c.match, c.revision, c.data, twoSets{})
			if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(ruleset.AddrRange{}, ruleset.Addr{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAMatchThatIsNotUnderstoodSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		match    string
		revision uint8
		data     []byte
		want     string
	}{
		"another extension":                       {"limit", 0, make([]byte, 48), "-m limit (revision 0: not understood)"},
		"a revision to come":                      {"set", 5, make([]byte, 48), "unknown revision"},
		"a wrong size":                            {"mark", 1, make([]byte, 20), "20 bytes, want 12"},
		"a set that does not exist":               {"set", 1, number16(8, map[int]uint16{0: 7, 2: 1}), "set 7 does not exist"},
		"a set without dimensions":                {"set", 1, make([]byte, 8), "unknown flags"},
		"a set of seven dimensions":               {"set", 1, edit(8, map[int]byte{2: 7}), "unknown flags"},
		"a direction of no dimension":             {"set", 1, edit(8, map[int]byte{2: 1, 3: 4}), "unknown flags"},
		"a set's nomatch returned":                {"set", 2, edit(8, map[int]byte{2: 1, 3: 0x80}), "unknown flags"},
		"a set's packets counted, 3":              {"set", 3, edit(48, map[int]byte{2: 1, 8: 1}), "unknown flags"},
		"a set's bytes counted, 3":                {"set", 3, edit(48, map[int]byte{2: 1, 24: 1}), "unknown flags"},
		"a set's flags":                           {"set", 3, edit(48, map[int]byte{2: 1, 41: 1}), "unknown flags"},
		"a mark inverted twice":                   {"mark", 1, edit(16, map[int]byte{8: 2}), "unknown flags"},
		"a connection's mark inverted twice":      {"connmark", 1, edit(16, map[int]byte{8: 2}), "unknown flags"},
		"a connection's reply's source":           {"conntrack", 3, number16(168, map[int]uint16{146: 1 << 4}), "unknown flags"},
		"a connection's condition to come":        {"conntrack", 3, number16(168, map[int]uint16{146: 1<<14 | 1, 150: 8}), "unknown flags"},
		"nothing of a connection":                 {"conntrack", 3, make([]byte, 168), "unknown flags"},
		"no connection, and its protocol":         {"conntrack", 3, number16(168, map[int]uint16{146: 3, 150: 1}), "unknown flags"},
		"not a new connection, and its protocol":  {"conntrack", 3, number16(168, map[int]uint16{146: 3, 148: 1, 150: 8}), "unknown flags"},
		"a connection's protocol beyond all":      {"conntrack", 3, number16(168, map[int]uint16{146: 2, 136: 256}), "a range ends"},
		"a connection's ports the wrong way":      {"conntrack", 3, number16(168, map[int]uint16{146: 1 << 9, 140: 2, 156: 1}), "a range ends"},
		"a connection's status without a name":    {"conntrack", 3, number16(168, map[int]uint16{146: 1 << 6, 152: 0x10}), "unknown flags"},
		"a connection's other inversion":          {"conntrack", 3, number16(168, map[int]uint16{146: 1, 148: 2}), "unknown flags"},
		"a connection's state to come":            {"conntrack", 3, number16(168, map[int]uint16{146: 1, 150: 0x210}), "unknown flags"},
		"a state to come":                         {"state", 0, number16(8, map[int]uint16{0: 0x10}), "unknown flags"},
		"tcp: an option":                          {"tcp", 0, edit(16, map[int]byte{8: 5}), "unknown flags"},
		"tcp: flags of ECN":                       {"tcp", 0, edit(16, map[int]byte{9: 0x40}), "unknown flags"},
		"tcp: an inversion to come":               {"tcp", 0, edit(16, map[int]byte{11: 0x10}), "unknown flags"},
		"tcp: a range that ends early":            {"tcp", 0, number16(16, map[int]uint16{4: 5, 6: 4}), "a range ends before it begins"},
		"udp: an inversion to come":               {"udp", 0, edit(16, map[int]byte{8: 4}), "unknown flags"},
		"sctp: an inversion of what is not asked": {"sctp", 0, edit(296, map[int]byte{288: 1}), "unknown flags"},
		"multiport: a direction to come":          {"multiport", 1, edit(48, map[int]byte{0: 3, 1: 1}), "unknown flags"},
		"multiport: no port":                      {"multiport", 1, make([]byte, 48), "unknown flags"},
		"multiport: too many":                     {"multiport", 1, edit(48, map[int]byte{1: 16}), "unknown flags"},
		"multiport: a range without an end":       {"multiport", 1, edit(48, map[int]byte{1: 1, 32: 1}), "a range ends"},
		"multiport: a range without an end, last": {"multiport", 1, edit(48, map[int]byte{1: 15, 46: 1}), "a range ends"},
		"multiport: inverted twice":               {"multiport", 1, edit(48, map[int]byte{1: 1, 47: 2}), "unknown flags"},
		"iprange: neither end":                    {"iprange", 1, make([]byte, 72), "unknown flags"},
		"iprange: an inversion of nothing":        {"iprange", 1, edit(72, map[int]byte{64: 0x21}), "unknown flags"},
		"addrtype: a type that is not modelled":   {"addrtype", 1, edit(8, map[int]byte{1: 2}), "unknown flags"},
		"addrtype: nothing":                       {"addrtype", 1, make([]byte, 8), "unknown flags"},
		"addrtype: an inversion of nothing":       {"addrtype", 1, edit(8, map[int]byte{0: 4, 4: 2}), "unknown flags"},
		"addrtype: limited to an interface":       {"addrtype", 1, edit(8, map[int]byte{0: 4, 4: 4}), "unknown flags"},
		"physdev: nothing":                        {"physdev", 0, make([]byte, 72), "unknown flags"},
		"physdev: a condition to come":            {"physdev", 0, edit(72, map[int]byte{65: 0x21}), "unknown flags"},
		"physdev: an inversion of nothing":        {"physdev", 0, edit(72, map[int]byte{65: 1, 64: 4}), "unknown flags"},
		"physdev: not a port out, maybe routed":   {"physdev", 0, edit(72, map[int]byte{65: 2, 64: 2}), "unknown flags"},
		"physdev: a mask with a hole":             {"physdev", 0, edit(72, map[int]byte{65: 1, 16: 255, 18: 255}), "a range ends"},
		"rpfilter: with the packet's mark":        {"rpfilter", 0, edit(8, map[int]byte{0: 2}), "unknown flags"},
		"rpfilter: a local source":                {"rpfilter", 0, edit(8, map[int]byte{0: 4}), "unknown flags"},
		"a header of IPv6 in IPv4":                {"rt", 0, make([]byte, 280), "not understood"},
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := Match(ruleset.IPv4, c.match, c.revision, c.data, twoSets{})
			if !unknown(got) || !strings.Contains(got[0].(ruleset.Unknown).Text, c.want) {
				t.Errorf("got %+v, want unknown because %q", got, c.want)
			}
		})
	}
}

func TestTargetsDoWhatTheirNameSays(t *testing.T) {
	kind := func(k ruleset.TargetKind, name string) ruleset.Target { return ruleset.Target{Kind: k, Name: name} }
	for name, c := range map[string]struct {
		target   string
		revision uint8
		data     []byte
		want     ruleset.Target
	}{
		"a refusal":               {"REJECT", 0, make([]byte, 8), kind(ruleset.Drop, "REJECT")},
		"a log":                   {"NFLOG", 0, make([]byte, 80), kind(ruleset.Continue, "NFLOG")},
		"more hops":               {"TTL", 0, edit(8, map[int]byte{0: 1, 1: 1}), kind(ruleset.Continue, "TTL")},
		"hops enough":             {"HL", 0, edit(8, map[int]byte{1: 2}), kind(ruleset.Continue, "HL")},
		"a last hop":              {"HL", 0, edit(8, map[int]byte{1: 1}), kind(ruleset.UnknownTarget, "HL")},
		"fewer hops":              {"TTL", 0, edit(8, map[int]byte{0: 2, 1: 1}), kind(ruleset.UnknownTarget, "TTL")},
		"a rewritten destination": {"DNAT", 2, make([]byte, 48), kind(ruleset.NewDestination, "DNAT")},
		"a rewritten source":      {"MASQUERADE", 0, make([]byte, 24), kind(ruleset.NewSource, "MASQUERADE")},
		"another program":         {"NFQUEUE", 3, make([]byte, 8), kind(ruleset.UnknownTarget, "NFQUEUE")},
		"another log to come":     {"NFLOG", 1, make([]byte, 80), kind(ruleset.UnknownTarget, "NFLOG")},
		"a refusal to come":       {"REJECT", 1, make([]byte, 8), kind(ruleset.UnknownTarget, "REJECT")},
		"a source of IPv6":        {"MASQUERADE", 0, make([]byte, 40), kind(ruleset.UnknownTarget, "MASQUERADE")},
		"a set that changes":      {"SET", 3, make([]byte, 24), kind(ruleset.UnknownTarget, "SET")},
		"a source and on":         {"SNPT", 0, make([]byte, 40), kind(ruleset.UnknownTarget, "SNPT")},
		"no name that is known":   {"NEW", 0, nil, kind(ruleset.UnknownTarget, "NEW")},
		"no tracking":             {"NOTRACK", 0, nil, kind(ruleset.NoTrack, "NOTRACK")},
		"CT 0":                    {"CT", 0, edit(40, map[int]byte{0: 1}), kind(ruleset.NoTrack, "CT")},
		"CT 1 with a helper":      {"CT", 1, edit(72, map[int]byte{12: 'f'}), kind(ruleset.UnknownTarget, "CT")},
		"CT to come":              {"CT", 2, edit(72, map[int]byte{0: 0x21}), kind(ruleset.UnknownTarget, "CT")},
		"CONNMARK 1":              {"CONNMARK", 1, edit(16, map[int]byte{0: 1, 4: 2, 8: 3, 12: 2}), ruleset.Target{Kind: ruleset.RestoreMark, Name: "CONNMARK", CTMask: 2, Mask: 3}},
		"CONNMARK that shifts":    {"CONNMARK", 2, edit(16, map[int]byte{13: 1}), kind(ruleset.UnknownTarget, "CONNMARK")},
		"CONNMARK to come":        {"CONNMARK", 2, edit(16, map[int]byte{14: 3}), kind(ruleset.UnknownTarget, "CONNMARK")},
		"MARK 1":                  {"MARK", 1, make([]byte, 16), kind(ruleset.UnknownTarget, "MARK")},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, Target(ruleset.IPv4, c.target, c.revision, c.data)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
