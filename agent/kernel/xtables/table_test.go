// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// setless is a kernel without sets.
type setless struct{}

func (setless) SetName(index uint16) (string, error) {
	return "", fmt.Errorf("set %d does not exist", index)
}

// extension returns a match or target with its head, padded.
func xtExtension(name string, data []byte) []byte {
	b := make([]byte, xtExtensionData, xtExtensionData+len(data)+7)
	copy(b[2:], name)
	b = append(b, data...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	return b
}

func xtVerdict(v int32) []byte {
	return xtExtension("", binary.NativeEndian.AppendUint32(nil, uint32(v)))
}

func xtHead(name string) []byte {
	return xtExtension("ERROR", append([]byte(name), make([]byte, 30-len(name))...))
}

// entryOf returns an entry; change may set fields of its header.
func xtEntryOf(l xtLayout, target []byte, change func(header []byte), matches ...[]byte) []byte {
	b := make([]byte, l.size)
	if change != nil {
		change(b)
	}
	for _, m := range matches {
		b = append(b, m...)
	}
	binary.NativeEndian.PutUint16(b[l.target:], uint16(len(b)))
	b = append(b, target...)
	binary.NativeEndian.PutUint16(b[l.next:], uint16(len(b)))
	return b
}

// sampleTable returns a filter table of which FORWARD, with policy DROP, has
// one rule that leads to a chain "a", and that chain one rule without a target.
func xtSample(family ruleset.Family, change func(header []byte), matches ...[]byte) xtTable {
	l := layoutOf(family)
	t := xtTable{family: family, name: "filter", info: xtInfo{hooks: 1<<1 | 1<<2 | 1<<3}}
	add := func(e []byte) (at uint32) {
		at = uint32(len(t.data))
		t.data = append(t.data, e...)
		t.info.count++
		return at
	}
	base := func(hook int, policy int32, rules ...[]byte) {
		for i, r := range rules {
			if at := add(r); i == 0 {
				t.info.entry[hook] = at
			}
		}
		t.info.underflow[hook] = add(xtEntryOf(l, xtVerdict(policy), nil))
		if len(rules) == 0 {
			t.info.entry[hook] = t.info.underflow[hook]
		}
	}
	base(1, xtAccept)
	// The chain's first entry follows FORWARD's two, OUTPUT's one and its own
	// head.
	jump := func(to int32) []byte { return xtEntryOf(l, xtVerdict(to), change, matches...) }
	small, head := len(xtEntryOf(l, xtVerdict(0), nil)), len(xtEntryOf(l, xtHead("a"), nil))
	base(2, xtDrop, jump(int32(len(t.data)+len(jump(0))+2*small+head)))
	base(3, xtAccept)
	add(xtEntryOf(l, xtHead("a"), nil))
	add(xtEntryOf(l, xtVerdict(int32(len(t.data)+small)), nil))
	add(xtEntryOf(l, xtVerdict(xtReturn), nil))
	add(xtEntryOf(l, xtHead("ERROR"), nil))
	t.info.size = uint32(len(t.data))
	return t
}

// forwardRule returns the rule of a sample table's FORWARD.
func forwardRule(t *testing.T, sample xtTable) ruleset.Rule {
	t.Helper()
	table, err := sample.parse(setless{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range table.Chains {
		if c.Name == "FORWARD" && len(c.Rules) == 1 {
			return c.Rules[0]
		}
	}
	t.Fatalf("no FORWARD with one rule: %+v", table)
	return ruleset.Rule{}
}

func TestALegacyTableIsItsChainsAndPolicies(t *testing.T) {
	for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		sample := xtSample(family, nil)
		if err := sample.wipe(); err != nil {
			t.Fatal(err)
		}
		got, err := sample.parse(setless{})
		if err != nil {
			t.Fatal(err)
		}
		a := &ruleset.Chain{Name: "a", Rules: []ruleset.Rule{{Target: ruleset.Target{Kind: ruleset.Continue}, Raw: "-A a"}}}
		want := ruleset.Table{Family: family, Backend: ruleset.Legacy, Name: "filter", Chains: []*ruleset.Chain{
			{Name: "INPUT", Base: &ruleset.Base{Hook: ruleset.Input}, Rules: []ruleset.Rule{}},
			{Name: "FORWARD", Base: &ruleset.Base{Hook: ruleset.Forward, Drop: true}, Rules: []ruleset.Rule{
				{Target: ruleset.Target{Kind: ruleset.Jump, Chain: a, Name: "a"}, Raw: "-A FORWARD -j a"}}},
			{Name: "OUTPUT", Base: &ruleset.Base{Hook: ruleset.Output}, Rules: []ruleset.Rule{}},
			a,
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", family, diff)
		}
	}
}

func TestCountersAreNoPartOfALegacyTable(t *testing.T) {
	for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		l := layoutOf(family)
		one := xtSample(family, nil)
		other := xtSample(family, func(h []byte) { h[l.steady], h[l.next+2], h[l.size-16], h[l.size-1] = 1, 2, 3, 4 })
		if string(one.data) == string(other.data) {
			t.Fatal("the samples are the same from the beginning")
		}
		for _, sample := range []xtTable{one, other} {
			if err := sample.wipe(); err != nil {
				t.Fatal(err)
			}
		}
		if string(one.data) != string(other.data) {
			t.Errorf("%s: counters are left", family)
		}
	}
}

func TestConditionsOfALegacyEntry(t *testing.T) {
	l4, l6 := layoutOf(ruleset.IPv4), layoutOf(ruleset.IPv6)
	address := netip.MustParseAddr
	type matches = []ruleset.Match
	for name, c := range map[string]struct {
		family ruleset.Family
		change func(h []byte)
		want   matches
	}{
		"an IPv4 network": {ruleset.IPv4, func(h []byte) { h[0], h[8], h[83] = 10, 255, xtNotSrc },
			matches{ruleset.Addr{Dir: ruleset.Src, Addr: address("10.0.0.0"), Mask: address("255.0.0.0"), Not: true}}},
		"an IPv6 network": {ruleset.IPv6, func(h []byte) { h[16], h[48] = 0xfd, 0xff },
			matches{ruleset.Addr{Dir: ruleset.Dst, Addr: address("fd00::"), Mask: address("ff00::")}}},
		"no address": {ruleset.IPv4, func(h []byte) { h[83] = xtNotDst },
			matches{ruleset.Addr{Dir: ruleset.Dst, Addr: address("0.0.0.0"), Mask: address("0.0.0.0"), Not: true}}},
		"an address beyond its mask": {ruleset.IPv4, func(h []byte) { h[0], h[3], h[8] = 10, 1, 255 },
			matches{ruleset.Unknown{Text: "src address 0a000001 under mask ff000000"}}},
		"an interface": {ruleset.IPv4, func(h []byte) { copy(h[16:], "eth0"); copy(h[48:], "\xff\xff\xff\xff\xff") },
			matches{ruleset.Iface{Name: "eth0"}}},
		"the start of an interface": {ruleset.IPv6, func(h []byte) { copy(h[80:], "eth+"); copy(h[112:], "\xff\xff\xff"); h[132] = xtNotOut },
			matches{ruleset.Iface{Out: true, Name: "eth", Prefix: true, Not: true}}},
		"no interface": {ruleset.IPv4, func(h []byte) { h[16], h[83] = '+', xtNotIn },
			matches{ruleset.Iface{Prefix: true, Not: true}}},
		"an interface under a mask with a hole": {ruleset.IPv4, func(h []byte) { copy(h[16:], "et\x00\x00"); h[48], h[50] = 255, 255 },
			matches{ruleset.Unknown{Text: `interface "et\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" under mask ff00ff00000000000000000000000000`}}},
		"a protocol": {ruleset.IPv6, func(h []byte) { h[l6.proto], h[l6.flags], h[l6.inverted] = 6, l6.protoFlag, xtNotProto },
			matches{ruleset.Proto{Number: 6, Not: true}}},
		"a protocol that IPv6 does not look at": {ruleset.IPv6, func(h []byte) { h[l6.proto] = 6 },
			matches{ruleset.Unknown{Text: "-p 6, with flags 0x0"}}},
		"fragments": {ruleset.IPv4, func(h []byte) { h[l4.flags], h[l4.inverted] = l4.fragFlag, xtNotFrag },
			matches{ruleset.Fragment{Not: true}}},
		"no fragments are asked for": {ruleset.IPv4, func(h []byte) { h[l4.inverted] = xtNotFrag },
			matches{ruleset.Unknown{Text: "flags 0x0, inverted 0x20"}}},
		"a type of service": {ruleset.IPv6, func(h []byte) { h[l6.flags] = 0x02 },
			matches{ruleset.Unknown{Text: "flags 0x2, inverted 0x0"}}},
		"an inversion to come": {ruleset.IPv4, func(h []byte) { h[l4.inverted] = 0x80 },
			matches{ruleset.Unknown{Text: "flags 0x0, inverted 0x80"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := forwardRule(t, xtSample(c.family, c.change))
			if diff := cmp.Diff(c.want, got.Matches, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestALegacyRulesMatchesAndComment(t *testing.T) {
	comment := xtExtension("comment", append([]byte("why"), make([]byte, 253)...))
	got := forwardRule(t, xtSample(ruleset.IPv4, func(h []byte) { h[82] = 0x02 }, comment, xtExtension("quota", make([]byte, 8))))
	if got.Comment != "why" || got.Target.Kind != ruleset.Goto || len(got.Matches) != 1 {
		t.Errorf("got %+v", got)
	}
	if want := `-A FORWARD -m quota (revision 0: not understood) -m comment --comment "why" -g a`; got.Raw != want {
		t.Errorf("got %q, want %q", got.Raw, want)
	}
}

func TestAMalformedLegacyTableIsAnError(t *testing.T) {
	l := layoutOf(ruleset.IPv4)
	first := len(xtEntryOf(l, xtVerdict(0), nil))
	for name, c := range map[string]struct {
		change func(*xtTable)
		want   string
	}{
		"nothing":                         {func(t *xtTable) { t.data = nil }, "entries"},
		"cut short":                       {func(t *xtTable) { t.data = t.data[:len(t.data)-40] }, "its end"},
		"cut within an entry":             {func(t *xtTable) { t.data = t.data[:len(t.data)-150] }, "cut short"},
		"an entry fewer":                  {func(t *xtTable) { t.info.count++ }, "want"},
		"an entry that never ends":        {func(t *xtTable) { t.data[l.next], t.data[l.next+1] = 0, 0 }, "its end"},
		"a target before the matches":     {func(t *xtTable) { t.data[l.target] = 8 }, "its target"},
		"a target beyond its entry":       {func(t *xtTable) { t.data[l.size] = 200 }, "target"},
		"a match without an end":          {func(t *xtTable) { t.data[l.target] += 32; t.data[l.size] = 0 }, "matches"},
		"no end marker":                   {func(t *xtTable) { t.data[len(t.data)-62] = 'X' }, "no end marker"},
		"a hook to come":                  {func(t *xtTable) { t.info.hooks |= 1 << 5 }, "hooks"},
		"two chains at one place":         {func(t *xtTable) { t.info.entry[3] = t.info.entry[2] }, "begin at"},
		"a chain in the midst of entries": {func(t *xtTable) { t.info.entry[3]++ }, "is in no chain"},
		"a chain that begins nowhere":     {func(t *xtTable) { t.info.hooks, t.info.entry[4] = t.info.hooks|1<<4, 5 }, "begin nowhere"},
		"a chain without an end":          {func(t *xtTable) { t.info.underflow[2] = 1 }, "has no end"},
		"a chain that ends early":         {func(t *xtTable) { t.info.underflow[3] = 0 }, "has no end"},
		"a policy that asks":              {func(t *xtTable) { t.data[0], t.data[8] = 1, 255 }, "no policy"},
		"a policy that is none":           {func(t *xtTable) { t.data[first-8] = 0xfb }, "no policy"},
		"a jump to nowhere":               {func(t *xtTable) { t.data[2*first-8] += 8 }, "no chain begins"},
		"a table that is not known":       {func(t *xtTable) { t.name = "mine" }, "hook 1 of table mine"},
	} {
		t.Run(name, func(t *testing.T) {
			sample := xtSample(ruleset.IPv4, nil)
			c.change(&sample)
			got, err := sample.parse(setless{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %+v, error %v; want an error with %q", got, err, c.want)
			}
		})
	}
}

func TestLegacyBaseChainsHaveTheirModulesPriorities(t *testing.T) {
	names := []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
	for table, priorities := range map[string][]int{
		"raw": {-300, -300, -300, -300, -300}, "mangle": {-150, -150, -150, -150, -150}, "nat": {-100, 100, -100, -100, 100},
		"filter": {0, 0, 0, 0, 0}, "security": {50, 50, 50, 50, 50},
	} {
		for hook, want := range priorities {
			base, name, ok := legacyBase(table, hook)
			if !ok || name != names[hook] || base.Priority != want || base.NAT != (table == "nat") || hookNumber(base.Hook) != hook {
				t.Errorf("%s, hook %d: got %s %+v, %t", table, hook, name, base, ok)
			}
		}
	}
}

func FuzzLegacyTable(f *testing.F) {
	for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		t := xtSample(family, nil, xtExtension("comment", make([]byte, 256)))
		f.Add(family == ruleset.IPv6, t.info.hooks, t.info.count, t.info.entry[2], t.info.underflow[2], t.data)
	}
	f.Fuzz(func(t *testing.T, v6 bool, hooks, count, entry, underflow uint32, data []byte) {
		family := ruleset.IPv4
		if v6 {
			family = ruleset.IPv6
		}
		sample := xtSample(family, nil)
		sample.info.hooks, sample.info.count, sample.info.entry[2], sample.info.underflow[2], sample.data = hooks, count, entry, underflow, data
		table, err := sample.parse(setless{})
		if err != nil {
			return
		}
		for _, c := range table.Chains {
			for _, r := range c.Rules {
				if (r.Target.Kind == ruleset.Jump || r.Target.Kind == ruleset.Goto) != (r.Target.Chain != nil) || r.Raw == "" {
					t.Errorf("rule %+v", r)
				}
			}
		}
	})
}

func TestASetWithoutANameIsAskedForAgain(t *testing.T) {
	c, err := nlconn.Dial(unix.NETLINK_NETFILTER)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	names := ipset.NewNames(c)
	if !names.Hold() {
		t.Error("no names do not hold")
	}
	// IPSET_INVALID_ID; without CAP_NET_ADMIN the kernel refuses any.
	if name, err := names.SetName(65535); err == nil {
		t.Fatalf("got the name %q, want an error", name)
	}
	if names.Hold() {
		t.Error("a failure holds")
	}
}
