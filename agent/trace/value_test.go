// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// field is a field of some bytes, as it is.
func field(f ruleset.Field, length int) ruleset.Value {
	return masked(f, strings.Repeat("\xff", length), "")
}

// masked is a field under a mask, flipped by xor, which may be shorter.
func masked(f ruleset.Field, mask, xor string) ruleset.Value {
	v := make(ruleset.Value, len(mask))
	for i := range v {
		v[i] = ruleset.Byte{Known: true, Field: f, Index: uint8(i), Mask: mask[i]}
		if i < len(xor) {
			v[i].Xor = xor[i]
		}
	}
	return v
}

func joined(values ...ruleset.Value) ruleset.Value {
	var all ruleset.Value
	for _, v := range values {
		all = append(all, v...)
	}
	return all
}

var pad = ruleset.Value{{Known: true}, {Known: true}}

func equal(v ruleset.Value, to string) ruleset.Compare {
	return ruleset.Compare{Value: v, From: []byte(to), To: []byte(to)}
}

func differs(v ruleset.Value, from string) ruleset.Compare {
	c := equal(v, from)
	c.Not = true
	return c
}

func between(v ruleset.Value, from, to string) ruleset.Compare {
	return ruleset.Compare{Value: v, From: []byte(from), To: []byte(to)}
}

// host is a number as the kernel has it in a register.
func host(n uint32) string { return string(binary.NativeEndian.AppendUint32(nil, n)) }

// name is an interface's name as the kernel has it in a register.
func name(s string) string { return s + strings.Repeat("\x00", 16-len(s)) }

// at is a table with one base chain.
func at(hook ruleset.Hook, priority int, rules ...ruleset.Rule) []ruleset.Table {
	for i := range rules {
		if rules[i].Raw == "" {
			rules[i].Raw = fmt.Sprintf("rule %d", i)
		}
	}
	return []ruleset.Table{{Family: ruleset.IPv4, Backend: ruleset.NFT, Name: "t", Chains: []*ruleset.Chain{
		{Name: "c", Base: &ruleset.Base{Hook: hook, Priority: priority}, Rules: rules}}}}
}

func drop(matches ...ruleset.Match) ruleset.Rule {
	return ruleset.Rule{Matches: matches, Target: ruleset.Target{Kind: ruleset.Drop}}
}

func does(t ruleset.Target, matches ...ruleset.Match) ruleset.Rule {
	return ruleset.Rule{Matches: matches, Target: t}
}

// elements answers for native sets: by the key's bytes, and with an error in
// place of what a key is not known to.
type elements struct {
	namedSets
	of  map[string]ruleset.Element
	err error
}

func (e elements) Element(_ *ruleset.NativeSet, key []byte) (ruleset.Element, error) {
	return e.of[string(key)], e.err
}

// ifMatch is what the verdict of "drop if it matches" says of the match.
var ifMatch = map[trace.Ternary]flow.Answer{trace.Yes: flow.Denied, trace.No: flow.Allowed, trace.Unknown: flow.Inconclusive}

func TestComparisonsOfRegisters(t *testing.T) {
	const yes, no, open = trace.Yes, trace.No, trace.Unknown
	const forwardHook, pre, post, in, out = ruleset.Forward, ruleset.Prerouting, ruleset.Postrouting, ruleset.Input, ruleset.Output
	src, dst, sport, dport := field(ruleset.SrcAddr, 4), field(ruleset.DstAddr, 4), field(ruleset.SrcPort, 2), field(ruleset.DstPort, 2)
	for title, c := range map[string]struct {
		hook  ruleset.Hook
		match ruleset.Match
		want  trace.Ternary
	}{
		"an address":                               {forwardHook, equal(src, "\x0a\xf4\x02\x14"), yes},
		"another address":                          {forwardHook, equal(src, "\x0a\xf4\x02\x15"), no},
		"another address, negated":                 {forwardHook, differs(src, "\x0a\xf4\x02\x15"), yes},
		"an address's network":                     {forwardHook, equal(masked(ruleset.DstAddr, "\xff\xff\x00\x00", ""), "\x0a\xf4\x00\x00"), yes},
		"an address that is flipped":               {forwardHook, equal(masked(ruleset.DstAddr, "\xff", "\xff"), "\xf5"), yes},
		"a range of addresses":                     {forwardHook, between(dst, "\x0a\xf4\x01\x00", "\x0a\xf4\x01\x0a"), yes},
		"below a range of addresses":               {forwardHook, between(dst, "\x0a\xf4\x01\x0b", "\x0a\xf4\x01\xff"), no},
		"above a range of addresses":               {forwardHook, between(dst, "\x00\x00\x00\x00", "\x0a\xf4\x01\x09"), no},
		"a range that has no end":                  {forwardHook, between(dst, "\x0b\x00\x00\x00", "\x0a\x00\x00\x00"), no},
		"address and port":                         {forwardHook, equal(joined(dst, dport), "\x0a\xf4\x01\x0a\x0c\xea"), yes},
		"the protocol":                             {forwardHook, equal(field(ruleset.L4Proto, 1), "\x06"), yes},
		"a port above 1023":                        {forwardHook, between(dport, "\x04\x00", "\xff\xff"), yes},
		"a source port":                            {forwardHook, equal(sport, "\x30\x39"), open},
		"a source port of the system":              {forwardHook, equal(sport, "\x00\x16"), no},
		"all source ports above the system's":      {forwardHook, between(sport, "\x04\x00", "\xff\xff"), yes},
		"source ports the wrong way round":         {forwardHook, between(sport, "\xff\xff", "\x04\x00"), no},
		"what a port hides":                        {forwardHook, equal(masked(ruleset.SrcPort, "\x00\x00", "\x01\x02"), "\x01\x02"), yes},
		"a byte that is not known":                 {forwardHook, equal(make(ruleset.Value, 1), "\x00"), open},
		"a byte that is not known but hopeless":    {forwardHook, equal(joined(make(ruleset.Value, 1), dport), "\x00\x00\x00"), no},
		"any byte":                                 {forwardHook, between(make(ruleset.Value, 1), "\x00", "\xff"), yes},
		"a constant":                               {forwardHook, equal(ruleset.Value{{Known: true, Xor: 7}}, "\x07"), yes},
		"a constant that is another":               {forwardHook, equal(ruleset.Value{{Known: true, Xor: 7}}, "\x08"), no},
		"lengths that differ":                      {forwardHook, equal(dport, "\x0c"), open},
		"nothing at all":                           {forwardHook, equal(nil, ""), yes},
		"a byte that no address has":               {forwardHook, equal(ruleset.Value{{Known: true, Field: ruleset.DstAddr, Index: 4, Mask: 0xff}}, "\x00"), open},
		"a field that does not exist":              {forwardHook, equal(field(200, 1), "\x00"), open},
		"no fragment":                              {forwardHook, equal(masked(ruleset.FragOff, "\x1f\xff", ""), "\x00\x00"), yes},
		"more fragments":                           {forwardHook, equal(masked(ruleset.FragOff, "\x20\x00", ""), "\x20\x00"), no},
		"do not fragment":                          {forwardHook, equal(masked(ruleset.FragOff, "\x40\x00", ""), "\x40\x00"), open},
		"SYN":                                      {forwardHook, equal(masked(ruleset.TCPFlagBits, "\x17", ""), "\x02"), yes},
		"SYN, with ECN's flags":                    {forwardHook, equal(masked(ruleset.TCPFlagBits, "\xff", ""), "\x02"), open},
		"ACK, with ECN's flags":                    {forwardHook, equal(masked(ruleset.TCPFlagBits, "\xff", ""), "\x12"), no},
		"an input name":                            {forwardHook, equal(field(ruleset.InName, 16), name("eth0")), yes},
		"an input name's beginning":                {forwardHook, equal(field(ruleset.InName, 3), "eth"), yes},
		"another input name":                       {forwardHook, equal(field(ruleset.InName, 16), name("eth1")), no},
		"an output name":                           {forwardHook, equal(field(ruleset.OutName, 16), name("cni0")), yes},
		"the index of an input that is not known":  {forwardHook, equal(field(ruleset.InIndex, 4), host(2)), open},
		"the index of the output":                  {forwardHook, equal(field(ruleset.OutIndex, 4), host(7)), yes},
		"no output at prerouting":                  {pre, equal(field(ruleset.OutName, 16), name("")), yes},
		"no output index at prerouting":            {pre, equal(field(ruleset.OutIndex, 4), host(0)), yes},
		"another name than none":                   {pre, differs(field(ruleset.OutName, 16), name("lo")), yes},
		"the input at postrouting":                 {post, equal(field(ruleset.InName, 16), name("eth0")), open},
		"another input at postrouting":             {post, equal(field(ruleset.InName, 16), name("eth1")), no},
		"an input at postrouting that is neither":  {post, differs(field(ruleset.InName, 16), name("eth1")), yes},
		"the output at postrouting":                {post, equal(field(ruleset.OutName, 16), name("cni0")), yes},
		"another output index at postrouting":      {post, equal(field(ruleset.OutIndex, 4), host(8)), no},
		"the input hook":                           {in, equal(field(ruleset.InName, 16), name("eth0")), no},
		"the output hook":                          {out, equal(field(ruleset.InName, 16), name("eth0")), no},
		"no mark":                                  {forwardHook, equal(field(ruleset.PacketMark, 4), host(0)), yes},
		"a mark's bit":                             {forwardHook, equal(masked(ruleset.PacketMark, host(0x10), ""), host(0x10)), no},
		"no mark of the connection":                {forwardHook, equal(field(ruleset.ConnMark, 4), host(0)), yes},
		"a new connection":                         {forwardHook, equal(field(ruleset.ConnState, 4), host(8)), yes},
		"a connection of either state":             {forwardHook, differs(masked(ruleset.ConnState, host(6), ""), host(0)), no},
		"a connection that got no answer yet":      {forwardHook, equal(masked(ruleset.ConnStatus, host(2), ""), host(0)), yes},
		"a connection whose address was rewritten": {forwardHook, differs(masked(ruleset.ConnStatus, host(0x30), ""), host(0)), no},
		"a connection of which nat is done":        {forwardHook, equal(masked(ruleset.ConnStatus, host(0x100), ""), host(0)), open},
		"a local destination":                      {forwardHook, equal(field(ruleset.DstType, 4), host(2)), no},
		"a unicast source":                         {forwardHook, equal(field(ruleset.SrcType, 4), host(1)), yes},
		"a route back":                             {pre, equal(field(ruleset.ReverseIndex, 4), host(0)), open},
	} {
		t.Run(title, func(t *testing.T) {
			path := forward
			path.OutIndex = 7
			got := trace.Trace(at(c.hook, 0, drop(c.match)), path, asked, namedSets{})
			if got.Answer != ifMatch[c.want] {
				t.Errorf("got %s, want %s", got, ifMatch[c.want])
			}
		})
	}
}

func TestComparisonsThatDependOnThePath(t *testing.T) {
	const yes, no, open = trace.Yes, trace.No, trace.Unknown
	back := equal(field(ruleset.ReverseIndex, 4), host(0))
	for title, c := range map[string]struct {
		hook  ruleset.Hook
		path  trace.Path
		match ruleset.Match
		want  trace.Ternary
	}{
		"no route back":                    {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, In: "a", Returns: trace.No}, back, yes},
		"a route back":                     {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, In: "a", Returns: trace.Yes}, back, no},
		"a route back, negated":            {ruleset.Forward, trace.Path{Way: trace.Forwarded, In: "a", Returns: trace.Yes}, differs(field(ruleset.ReverseIndex, 4), host(0)), yes},
		"a route back by a number":         {ruleset.Input, trace.Path{Way: trace.Delivered, In: "a", InIndex: 4, Returns: trace.Yes}, equal(field(ruleset.ReverseIndex, 4), host(4)), yes},
		"a route back where none is asked": {ruleset.Output, trace.Path{Way: trace.Sent, Out: "a", Returns: trace.Yes}, back, open},
		"an unknown input":                 {ruleset.Forward, trace.Path{Way: trace.Forwarded, InUnknown: true}, equal(field(ruleset.InName, 16), name("a")), open},
		"an unknown input's index":         {ruleset.Forward, trace.Path{Way: trace.Forwarded, InUnknown: true}, equal(field(ruleset.InIndex, 4), host(1)), open},
		"what is sent has no input later":  {ruleset.Postrouting, trace.Path{Way: trace.Sent, Out: "a"}, equal(field(ruleset.InName, 16), name("")), yes},
		"nor as a name":                    {ruleset.Postrouting, trace.Path{Way: trace.Sent, Out: "a"}, ruleset.Iface{Name: "a"}, no},
		"a local destination":              {ruleset.Input, trace.Path{Way: trace.Delivered, DstType: ruleset.Local}, equal(field(ruleset.DstType, 4), host(2)), yes},
		"a local one that is unicast too":  {ruleset.Input, trace.Path{Way: trace.Delivered, DstType: ruleset.Local | ruleset.Unicast}, equal(field(ruleset.DstType, 4), host(2)), yes},
		"a destination of no known type":   {ruleset.Input, trace.Path{Way: trace.Delivered}, equal(field(ruleset.DstType, 4), host(2)), open},

		"rpfilter with a route":            {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, Returns: trace.Yes}, ruleset.ReversePath{}, yes},
		"rpfilter with a route, inverted":  {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, Returns: trace.Yes}, ruleset.ReversePath{Not: true}, no},
		"rpfilter without, inverted":       {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, Returns: trace.No}, ruleset.ReversePath{Not: true}, yes},
		"rpfilter that nobody knows":       {ruleset.Prerouting, trace.Path{Way: trace.Forwarded}, ruleset.ReversePath{}, open},
		"loose rpfilter with a route":      {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, Returns: trace.Yes}, ruleset.ReversePath{Loose: true}, yes},
		"loose rpfilter by another":        {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, Returns: trace.No}, ruleset.ReversePath{Loose: true}, open},
		"a route back at forward":          {ruleset.Forward, trace.Path{Way: trace.Forwarded, Returns: trace.No}, ruleset.ReversePath{}, no},
		"rpfilter where it cannot be":      {ruleset.Postrouting, trace.Path{Way: trace.Forwarded, Returns: trace.Yes}, ruleset.ReversePath{}, open},
		"a port of entry":                  {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.Yes, InPort: "v1", OutPort: "v2"}, ruleset.BridgePort{Name: "v1"}, yes},
		"a port of entry by its beginning": {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, Bridged: trace.Yes, InPort: "v1"}, ruleset.BridgePort{Name: "v", Prefix: true}, yes},
		"another port of entry, negated":   {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.Yes, InPort: "v1"}, ruleset.BridgePort{Name: "v2", Not: true}, yes},
		"a port of entry not known":        {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.Yes}, ruleset.BridgePort{Name: "v1"}, open},
		"a port of leaving":                {ruleset.Postrouting, trace.Path{Way: trace.Forwarded, Bridged: trace.Yes, OutPort: "v2"}, ruleset.BridgePort{Out: true, Name: "v2"}, yes},
		"a port of leaving, too early":     {ruleset.Prerouting, trace.Path{Way: trace.Forwarded, Bridged: trace.Yes, OutPort: "v2"}, ruleset.BridgePort{Out: true, Name: "v2"}, no},
		"no port of a routed packet":       {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.No}, ruleset.BridgePort{Name: "v1"}, no},
		"no port, negated":                 {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.No}, ruleset.BridgePort{Name: "v1", Not: true}, yes},
		"routed from a bridge":             {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.No, OnBridge: true}, ruleset.BridgePort{Name: "v1"}, open},
		"routed to a bridge":               {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.No, OnBridge: true}, ruleset.BridgePort{Out: true, Name: "v1"}, no},
		"sent to a bridge":                 {ruleset.Output, trace.Path{Way: trace.Sent, Bridged: trace.No, OnBridge: true}, ruleset.BridgePort{Name: "v1"}, no},
		"perhaps bridged":                  {ruleset.Forward, trace.Path{Way: trace.Forwarded, InPort: "v1"}, ruleset.BridgePort{Name: "v1"}, open},
		"any port of a bridged packet":     {ruleset.Forward, trace.Path{Way: trace.Forwarded, Bridged: trace.Yes}, ruleset.BridgePort{Prefix: true}, yes},
	} {
		t.Run(title, func(t *testing.T) {
			got := trace.Trace(at(c.hook, 0, drop(c.match)), c.path, asked, namedSets{})
			if got.Answer != ifMatch[c.want] {
				t.Errorf("got %s, want %s", got, ifMatch[c.want])
			}
		})
	}
}

func TestWhatAnotherProtocolOrFamilyHasNotIsNotKnown(t *testing.T) {
	udp, v6 := asked, asked
	udp.Protocol = flow.UDP
	v6.Src, v6.Dst = v6Src, v6Dst
	tables := func(family ruleset.Family, m ruleset.Match) []ruleset.Table {
		tables := at(ruleset.Forward, 0, drop(m))
		tables[0].Family = family
		return tables
	}
	for title, c := range map[string]struct {
		flow   flow.Flow
		family ruleset.Family
		match  ruleset.Match
		want   trace.Ternary
	}{
		"TCP flags of a datagram":         {udp, ruleset.IPv4, equal(field(ruleset.TCPFlagBits, 1), "\x02"), trace.Unknown},
		"no TCP flag of a datagram":       {udp, ruleset.IPv4, equal(masked(ruleset.TCPFlagBits, "\x00", ""), "\x00"), trace.Unknown},
		"the fragment offset of IPv6":     {v6, ruleset.IPv6, equal(field(ruleset.FragOff, 2), "\x00\x00"), trace.Unknown},
		"an address of IPv6":              {v6, ruleset.IPv6, equal(field(ruleset.SrcAddr, 16), string(v6Src.AsSlice())), trace.Yes},
		"the last bytes of one":           {v6, ruleset.IPv6, equal(field(ruleset.DstAddr, 16)[14:], "\x00\x10"), trace.Yes},
		"a datagram's destination port":   {udp, ruleset.IPv4, equal(field(ruleset.DstPort, 2), "\x0c\xea"), trace.Yes},
		"a datagram is of another number": {udp, ruleset.IPv4, equal(field(ruleset.L4Proto, 1), "\x06"), trace.No},
	} {
		t.Run(title, func(t *testing.T) {
			got := trace.Trace(tables(c.family, c.match), forward, c.flow, namedSets{})
			if got.Answer != ifMatch[c.want] {
				t.Errorf("got %s, want %s", got, ifMatch[c.want])
			}
		})
	}
}

func TestTypesOfAnIPv6AddressGoTogether(t *testing.T) {
	const local, unicast, multicast = ruleset.Local, ruleset.Unicast, ruleset.Multicast
	v6 := asked
	v6.Src, v6.Dst = v6Src, v6Dst
	for title, c := range map[string]struct {
		have, types ruleset.AddrTypes
		want        trace.Ternary
	}{
		"unicast":                        {unicast, unicast, trace.Yes},
		"unicast, of the node":           {local | unicast, unicast, trace.Yes},
		"local, of the node":             {local | unicast, local, trace.Yes},
		"local, of another":              {unicast, local, trace.No},
		"unicast and local, of another":  {unicast, unicast | local, trace.No},
		"unicast and local, of the node": {unicast | local, unicast | local, trace.Yes},
		"unicast and multicast":          {unicast, unicast | multicast, trace.No},
		"multicast":                      {unicast, multicast, trace.No},
		"local or anycast, of the node":  {unicast | local, local | ruleset.Anycast, trace.Yes},
		"what the kernel does not take":  {unicast, ruleset.Broadcast, trace.Unknown},
		"an address that is not known":   {0, unicast, trace.Unknown},
	} {
		t.Run(title, func(t *testing.T) {
			tables := at(ruleset.Forward, 0, drop(ruleset.AddrType{Dir: ruleset.Dst, Types: c.types}))
			tables[0].Family = ruleset.IPv6
			path := forward
			path.DstType = c.have
			if got := trace.Trace(tables, path, v6, namedSets{}); got.Answer != ifMatch[c.want] {
				t.Errorf("got %s, want %s", got, ifMatch[c.want])
			}
		})
	}
}

func TestWhatConntrackKnows(t *testing.T) {
	const yes, no = trace.Yes, trace.No
	notrack := does(ruleset.Target{Kind: ruleset.NoTrack})
	set := &ruleset.NativeSet{Name: "s", KeyLength: 4}
	for title, c := range map[string]struct {
		priority int
		rules    []ruleset.Rule
		match    ruleset.Match
		want     trace.Ternary
	}{
		"before it, the state is invalid":            {-300, nil, equal(field(ruleset.ConnState, 4), host(1)), yes},
		"before it, a mark breaks the rule off":      {-300, nil, equal(field(ruleset.ConnMark, 4), host(0)), no},
		"before it, that does so negated too":        {-300, nil, differs(field(ruleset.ConnMark, 4), host(5)), no},
		"before it, a status breaks the rule off":    {-300, nil, differs(field(ruleset.ConnStatus, 4), host(5)), no},
		"before it, nothing is looked up":            {-300, nil, ruleset.Lookup{Set: set, Key: field(ruleset.ConnMark, 4), Not: true}, no},
		"untracked is a state":                       {-300, []ruleset.Rule{notrack}, equal(field(ruleset.ConnState, 4), host(64)), yes},
		"untracked has no mark":                      {-300, []ruleset.Rule{notrack}, differs(field(ruleset.ConnMark, 4), host(5)), no},
		"after it, the state is new":                 {-150, nil, equal(field(ruleset.ConnState, 4), host(8)), yes},
		"after it, notrack comes too late":           {-150, []ruleset.Rule{notrack}, equal(field(ruleset.ConnState, 4), host(8)), yes},
		"at its own priority it may have seen it":    {-200, nil, equal(field(ruleset.ConnState, 4), host(8)), trace.Unknown},
		"at its own priority it is not established":  {-200, nil, equal(field(ruleset.ConnState, 4), host(2)), no},
		"after it, there is a mark to look for":      {-150, nil, ruleset.Lookup{Set: set, Key: field(ruleset.ConnMark, 4), Not: true}, yes},
		"before it, a map of marks has nothing":      {-300, []ruleset.Rule{does(ruleset.Target{Kind: ruleset.Decide, Map: set, Key: field(ruleset.ConnMark, 4)})}, ruleset.Bridged{}, no},
		"before it, marks of connections do not set": {-300, []ruleset.Rule{does(ruleset.Target{Kind: ruleset.SetConnMark, Value: 1, Mask: 1})}, ruleset.CTState{States: ruleset.Invalid}, yes},
	} {
		t.Run(title, func(t *testing.T) {
			got := trace.Trace(at(ruleset.Prerouting, c.priority, append(c.rules, drop(c.match))...), forward, asked, elements{})
			if got.Answer != ifMatch[c.want] {
				t.Errorf("got %s, want %s", got, ifMatch[c.want])
			}
		})
	}
}

func TestLookups(t *testing.T) {
	const yes, no, open = flow.Allowed, flow.Denied, flow.Inconclusive
	set := &ruleset.NativeSet{Table: "t", Name: "s", KeyLength: 8}
	key := joined(field(ruleset.DstAddr, 4), field(ruleset.DstPort, 2), pad)
	in := elements{of: map[string]ruleset.Element{"\x0a\xf4\x01\x0a\x0c\xea\x00\x00": {In: true}}}
	maybe := elements{of: map[string]ruleset.Element{"\x0a\xf4\x01\x0a\x0c\xea\x00\x00": {In: true, Unknown: "its limit"}}}
	for title, c := range map[string]struct {
		match  ruleset.Match
		sets   trace.Membership
		want   flow.Answer
		reason string
	}{
		"a key that is in":            {ruleset.Lookup{Set: set, Key: key}, in, no, ""},
		"a key that is in, negated":   {ruleset.Lookup{Set: set, Key: key, Not: true}, in, yes, ""},
		"a key that is not in":        {ruleset.Lookup{Set: set, Key: key}, elements{}, yes, ""},
		"a key that is not, negated":  {ruleset.Lookup{Set: set, Key: key, Not: true}, elements{}, no, ""},
		"a key that is not known":     {ruleset.Lookup{Set: set, Key: field(ruleset.SrcPort, 2)}, in, open, "key for s is not known: rule 0"},
		"a set that does not answer":  {ruleset.Lookup{Set: set, Key: key}, elements{err: errors.New("no answer")}, open, "no answer: rule 0"},
		"an error that says nothing":  {ruleset.Lookup{Set: set, Key: key}, elements{err: errors.New("")}, open, "s cannot be asked"},
		"an element with a limit":     {ruleset.Lookup{Set: set, Key: key}, maybe, open, "its limit: rule 0"},
		"such an element, negated":    {ruleset.Lookup{Set: set, Key: key, Not: true}, maybe, open, "its limit"},
		"a key that nothing hangs on": {ruleset.Lookup{Set: set, Key: key[:4]}, in, yes, ""},
		"a key that may not even be":  {ruleset.Lookup{Set: set, Key: field(ruleset.FragOff, 3)}, in, open, "not known"},
		"a key of no known bytes":     {ruleset.Lookup{Set: set, Key: make(ruleset.Value, 4), Not: true}, in, open, "not known"},
	} {
		t.Run(title, func(t *testing.T) {
			got := trace.Trace(at(ruleset.Forward, 0, drop(c.match)), forward, asked, c.sets)
			if got.Answer != c.want || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("got %s, want %s (... %s ...)", got, c.want, c.reason)
			}
		})
	}
}

func TestMapsOfVerdicts(t *testing.T) {
	const yes, no, open = flow.Allowed, flow.Denied, flow.Inconclusive
	dropping := &ruleset.Chain{Name: "dropping", Rules: []ruleset.Rule{drop()}}
	returning := &ruleset.Chain{Name: "returning"}
	decide := does(ruleset.Target{Kind: ruleset.Decide, Map: &ruleset.NativeSet{Name: "m", Verdicts: true}, Key: field(ruleset.DstPort, 2)})
	is := func(target ruleset.Target) elements {
		return elements{of: map[string]ruleset.Element{"\x0c\xea": {In: true, Verdict: target}}}
	}
	limited := is(ruleset.Target{Kind: ruleset.Drop})
	limited.of["\x0c\xea"] = ruleset.Element{In: true, Verdict: ruleset.Target{Kind: ruleset.Drop}, Unknown: "its limit"}
	counted := is(ruleset.Target{Kind: ruleset.Continue})
	counted.of["\x0c\xea"] = ruleset.Element{In: true, Verdict: ruleset.Target{Kind: ruleset.Continue}, Unknown: "its limit"}
	unknownKey := decide
	unknownKey.Target.Key = field(ruleset.SrcPort, 2)
	for title, c := range map[string]struct {
		rules  []ruleset.Rule
		sets   trace.Membership
		want   flow.Answer
		reason string
	}{
		"accept":                                {[]ruleset.Rule{decide, drop()}, is(ruleset.Target{Kind: ruleset.Accept}), yes, ""},
		"drop":                                  {[]ruleset.Rule{decide}, is(ruleset.Target{Kind: ruleset.Drop}), no, "rule 0"},
		"nothing: the next rule":                {[]ruleset.Rule{decide, drop()}, elements{}, no, "rule 1"},
		"continue: the next rule":               {[]ruleset.Rule{decide, drop()}, is(ruleset.Target{Kind: ruleset.Continue}), no, "rule 1"},
		"return: the policy":                    {[]ruleset.Rule{decide, drop()}, is(ruleset.Target{Kind: ruleset.Return}), yes, ""},
		"jump to what drops":                    {[]ruleset.Rule{decide}, is(ruleset.Target{Kind: ruleset.Jump, Chain: dropping}), no, "dropping"},
		"jump and back":                         {[]ruleset.Rule{decide, drop()}, is(ruleset.Target{Kind: ruleset.Jump, Chain: returning}), no, "rule 1"},
		"goto and not back":                     {[]ruleset.Rule{decide, drop()}, is(ruleset.Target{Kind: ruleset.Goto, Chain: returning}), yes, ""},
		"a key that is not known":               {[]ruleset.Rule{unknownKey}, is(ruleset.Target{Kind: ruleset.Drop}), open, "key for m is not known"},
		"a key that is not known, too late":     {[]ruleset.Rule{drop(), unknownKey}, elements{}, no, ""},
		"a map that does not answer":            {[]ruleset.Rule{decide}, elements{err: errors.New("no answer")}, open, "no answer"},
		"an element with a limit":               {[]ruleset.Rule{decide}, limited, open, "its limit"},
		"an element with a limit, all the same": {[]ruleset.Rule{decide, drop()}, limited, no, ""},
		"an element with a limit that goes on":  {[]ruleset.Rule{decide}, counted, yes, ""},
		"what is no verdict":                    {[]ruleset.Rule{decide}, is(decide.Target), open, "no verdict"},
		"a jump to nowhere":                     {[]ruleset.Rule{decide}, is(ruleset.Target{Kind: ruleset.Jump}), open, "rule 0"},
		"a verdict that nobody knows":           {[]ruleset.Rule{decide}, is(ruleset.Target{}), open, "rule 0"},
	} {
		t.Run(title, func(t *testing.T) {
			got := trace.Trace(at(ruleset.Forward, 0, c.rules...), forward, asked, c.sets)
			if got.Answer != c.want || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("got %s, want %s (... %s ...)", got, c.want, c.reason)
			}
		})
	}
}

func TestUnknownBitsAreComparedAsIfTheyHadEveryValue(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2_000 {
		var n [5]uint16
		for i := range n {
			n[i] = uint16(random.Uint32())
			if random.IntN(2) == 0 {
				// Near each other, so that it depends on the low bits.
				n[i] = n[i]&0x0f0f | 0x1000
			}
		}
		unknown, value := n[0]&n[1], n[2]&^(n[0]&n[1])
		from, to := min(n[3], n[4]), max(n[3], n[4])
		if random.IntN(4) == 0 {
			to = from
		}
		in, out := false, false
		for bits := unknown; ; bits = (bits - 1) & unknown {
			if v := value | bits; from <= v && v <= to {
				in = true
			} else {
				out = true
			}
			if bits == 0 {
				break
			}
		}
		want := trace.Unknown
		if in != out {
			want = trace.Of(in)
		}
		word := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
		if got := trace.Within(word(value), word(unknown), word(from), word(to)); got != want {
			t.Errorf("%04x with unknown %04x between %04x and %04x: got %d, want %d", value, unknown, from, to, got, want)
		}
	}
}
