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
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/agent/ruleset"
)

// setless is a kernel without sets.
type setless struct{}

func (setless) SetName(index uint16) (string, error) {
	return "", fmt.Errorf("set %d does not exist", index)
}

func (setless) Resolve([]uint16) {}

// extension returns a match or target with its head, padded.
func extensionOf(name string, data []byte) []byte {
	b := make([]byte, extensionData, extensionData+len(data)+7)
	copy(b[2:], name)
	b = append(b, data...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	binary.NativeEndian.PutUint16(b, uint16(len(b)))
	return b
}

func verdictOf(v int32) []byte {
	return extensionOf("", binary.NativeEndian.AppendUint32(nil, uint32(v)))
}

func markerOf(name string) []byte {
	return extensionOf("ERROR", append([]byte(name), make([]byte, 30-len(name))...))
}

// entryOf returns an entry; change may set fields of its header.
func entryOf(l layout, target []byte, change func(header []byte), matches ...[]byte) []byte {
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
func sampleTable(family ruleset.Family, change func(header []byte), matches ...[]byte) table {
	l := layoutOf(family)
	t := table{family: family, name: "filter", info: info{hooks: 1<<1 | 1<<2 | 1<<3}}
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
		t.info.underflow[hook] = add(entryOf(l, verdictOf(policy), nil))
		if len(rules) == 0 {
			t.info.entry[hook] = t.info.underflow[hook]
		}
	}
	base(1, verdictAccept)
	// The chain's first entry follows FORWARD's two, OUTPUT's one and its own
	// head.
	jump := func(to int32) []byte { return entryOf(l, verdictOf(to), change, matches...) }
	small, head := len(entryOf(l, verdictOf(0), nil)), len(entryOf(l, markerOf("a"), nil))
	base(2, verdictDrop, jump(int32(len(t.data)+len(jump(0))+2*small+head)))
	base(3, verdictAccept)
	add(entryOf(l, markerOf("a"), nil))
	add(entryOf(l, verdictOf(int32(len(t.data)+small)), nil))
	add(entryOf(l, verdictOf(verdictReturn), nil))
	add(entryOf(l, markerOf("ERROR"), nil))
	t.info.size = uint32(len(t.data))
	return t
}

// read returns the table with the rules of all its chains, or the first error.
func (t *table) read() (ruleset.Table, error) {
	table, err := t.split(setless{})
	if err != nil {
		return table, err
	}
	for _, c := range table.Chains {
		if c.Rules, err = c.List(); err != nil {
			return table, err
		}
	}
	for _, c := range table.Chains {
		c.Read = nil
	}
	return table, nil
}

// forwardRule returns the rule of a sample table's FORWARD.
func forwardRule(t *testing.T, sample table) ruleset.Rule {
	t.Helper()
	table, err := sample.read()
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
		sample := sampleTable(family, nil)
		got, err := sample.read()
		if err != nil {
			t.Fatal(err)
		}
		a := &ruleset.Chain{Name: "a", Rules: []ruleset.Rule{{Target: ruleset.Target{Kind: ruleset.Continue}}}}
		want := ruleset.Table{Family: family, Backend: ruleset.Legacy, Name: "filter", Chains: []*ruleset.Chain{
			{Name: "INPUT", Base: &ruleset.Base{Hook: ruleset.Input}},
			{Name: "FORWARD", Base: &ruleset.Base{Hook: ruleset.Forward, Drop: true}, Rules: []ruleset.Rule{
				{Target: ruleset.Target{Kind: ruleset.Jump, Chain: a, Name: "a"}}}},
			{Name: "OUTPUT", Base: &ruleset.Base{Hook: ruleset.Output}},
			a,
		}}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(ruleset.Chain{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", family, diff)
		}
	}
}

func TestCountersAreNoPartOfALegacyTable(t *testing.T) {
	for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		l := layoutOf(family)
		one := sampleTable(family, nil)
		other := sampleTable(family, func(h []byte) { h[l.steady], h[l.next+2], h[l.size-16], h[l.size-1] = 1, 2, 3, 4 })
		if string(one.data) == string(other.data) {
			t.Fatal("the samples are the same from the beginning")
		}
		if !one.same(&other) {
			t.Errorf("%s: counters make a difference", family)
		}
	}
}

func TestWhatElseDiffersMakesAnotherTable(t *testing.T) {
	for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		l := layoutOf(family)
		comment := extensionOf("comment", make([]byte, 256))
		one := sampleTable(family, nil, comment)
		first := int(one.info.entry[2])
		counters := func(at int) bool {
			return at >= l.steady && at < l.target || at >= l.next+2 && at < l.size
		}
		for at := range l.size + len(comment) + len(verdictOf(0)) {
			if counters(at) {
				continue
			}
			other := sampleTable(family, nil, comment)
			other.data[first+at]++
			if one.same(&other) || other.same(&one) {
				t.Fatalf("%s: byte %d of an entry makes no difference", family, at)
			}
		}
		for name, change := range map[string]func(*table){
			"another chain's end": func(t *table) { t.info.underflow[1]++ },
			"an entry more":       func(t *table) { t.data = append(t.data, t.data[:l.size+len(verdictOf(0))]...) },
			"a cut":               func(t *table) { t.data = t.data[:len(t.data)-1] },
		} {
			other := sampleTable(family, nil, comment)
			change(&other)
			if one.same(&other) || other.same(&one) {
				t.Errorf("%s: %s makes no difference", family, name)
			}
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
		"an IPv4 network": {ruleset.IPv4, func(h []byte) { h[0], h[8], h[83] = 10, 255, notSrc },
			matches{ruleset.Addr{Dir: ruleset.Src, Addr: address("10.0.0.0"), Mask: address("255.0.0.0"), Not: true}}},
		"an IPv6 network": {ruleset.IPv6, func(h []byte) { h[16], h[48] = 0xfd, 0xff },
			matches{ruleset.Addr{Dir: ruleset.Dst, Addr: address("fd00::"), Mask: address("ff00::")}}},
		"no address": {ruleset.IPv4, func(h []byte) { h[83] = notDst },
			matches{ruleset.Addr{Dir: ruleset.Dst, Addr: address("0.0.0.0"), Mask: address("0.0.0.0"), Not: true}}},
		"an address beyond its mask": {ruleset.IPv4, func(h []byte) { h[0], h[3], h[8] = 10, 1, 255 },
			matches{ruleset.Unknown{Text: "src address 0a000001 under mask ff000000"}}},
		"an interface": {ruleset.IPv4, func(h []byte) { copy(h[16:], "eth0"); copy(h[48:], "\xff\xff\xff\xff\xff") },
			matches{ruleset.Iface{Name: "eth0"}}},
		"the start of an interface": {ruleset.IPv6, func(h []byte) { copy(h[80:], "eth+"); copy(h[112:], "\xff\xff\xff"); h[132] = notOut },
			matches{ruleset.Iface{Out: true, Name: "eth", Prefix: true, Not: true}}},
		"no interface": {ruleset.IPv4, func(h []byte) { h[16], h[83] = '+', notIn },
			matches{ruleset.Iface{Prefix: true, Not: true}}},
		"an interface under a mask with a hole": {ruleset.IPv4, func(h []byte) { copy(h[16:], "et\x00\x00"); h[48], h[50] = 255, 255 },
			matches{ruleset.Unknown{Text: `interface "et\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" under mask ff00ff00000000000000000000000000`}}},
		"a protocol": {ruleset.IPv6, func(h []byte) { h[l6.proto], h[l6.flags], h[l6.inverted] = 6, l6.protoFlag, notProto },
			matches{ruleset.Proto{Number: 6, Not: true}}},
		"a protocol that IPv6 does not look at": {ruleset.IPv6, func(h []byte) { h[l6.proto] = 6 },
			matches{ruleset.Unknown{Text: "-p 6, with flags 0x0"}}},
		"fragments": {ruleset.IPv4, func(h []byte) { h[l4.flags], h[l4.inverted] = l4.fragFlag, notFrag },
			matches{ruleset.Fragment{Not: true}}},
		"no fragments are asked for": {ruleset.IPv4, func(h []byte) { h[l4.inverted] = notFrag },
			matches{ruleset.Unknown{Text: "flags 0x0, inverted 0x20"}}},
		"a type of service": {ruleset.IPv6, func(h []byte) { h[l6.flags] = 0x02 },
			matches{ruleset.Unknown{Text: "flags 0x2, inverted 0x0"}}},
		"an inversion to come": {ruleset.IPv4, func(h []byte) { h[l4.inverted] = 0x80 },
			matches{ruleset.Unknown{Text: "flags 0x0, inverted 0x80"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := forwardRule(t, sampleTable(c.family, c.change))
			if diff := cmp.Diff(c.want, got.Matches, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestALegacyRulesMatchesAndComment(t *testing.T) {
	comment := extensionOf("comment", append([]byte("why"), make([]byte, 253)...))
	got := forwardRule(t, sampleTable(ruleset.IPv4, func(h []byte) { h[82] = 0x02 }, comment, extensionOf("quota", make([]byte, 8))))
	if got.Comment != "why" || got.Target.Kind != ruleset.Goto || len(got.Matches) != 1 {
		t.Errorf("got %+v", got)
	}
	if raw, want := ruleset.Render("FORWARD", &got), `-A FORWARD -m quota (revision 0: not understood) -m comment --comment "why" -g a`; raw != want {
		t.Errorf("got %q, want %q", raw, want)
	}
}

func TestAMalformedLegacyTableIsAnError(t *testing.T) {
	l := layoutOf(ruleset.IPv4)
	first := len(entryOf(l, verdictOf(0), nil))
	for name, c := range map[string]struct {
		change func(*table)
		want   string
	}{
		"nothing":                         {func(t *table) { t.data = nil }, "entries"},
		"cut short":                       {func(t *table) { t.data = t.data[:len(t.data)-40] }, "its end"},
		"cut within an entry":             {func(t *table) { t.data = t.data[:len(t.data)-150] }, "cut short"},
		"an entry fewer":                  {func(t *table) { t.info.count++ }, "want"},
		"an entry that never ends":        {func(t *table) { t.data[l.next], t.data[l.next+1] = 0, 0 }, "its end"},
		"a target before the matches":     {func(t *table) { t.data[l.target] = 8 }, "its target"},
		"a target beyond its entry":       {func(t *table) { t.data[l.size] = 200 }, "target"},
		"a match without an end":          {func(t *table) { t.data[first+l.target] += 8 }, "matches"},
		"no end marker":                   {func(t *table) { t.data[len(t.data)-62] = 'X' }, "no end marker"},
		"a hook to come":                  {func(t *table) { t.info.hooks |= 1 << 5 }, "hooks"},
		"two chains at one place":         {func(t *table) { t.info.entry[3] = t.info.entry[2] }, "begin at"},
		"a chain in the midst of entries": {func(t *table) { t.info.entry[3]++ }, "is in no chain"},
		"a chain that begins nowhere":     {func(t *table) { t.info.hooks, t.info.entry[4] = t.info.hooks|1<<4, 5 }, "begin nowhere"},
		"a chain without an end":          {func(t *table) { t.info.underflow[2] = 1 }, "has no end"},
		"a chain that ends early":         {func(t *table) { t.info.underflow[3] = 0 }, "has no end"},
		"a policy that asks":              {func(t *table) { t.data[0], t.data[8] = 1, 255 }, "no policy"},
		"a policy that is none":           {func(t *table) { t.data[first-8] = 0xfb }, "no policy"},
		"a jump to nowhere":               {func(t *table) { t.data[2*first-8] += 8 }, "no chain begins"},
		"a table that is not known":       {func(t *table) { t.name = "mine" }, "hook 1 of table mine"},
	} {
		t.Run(name, func(t *testing.T) {
			sample := sampleTable(ruleset.IPv4, nil)
			c.change(&sample)
			got, err := sample.read()
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
			base, name, ok := baseOf(table, hook)
			if !ok || name != names[hook] || base.Priority != want || base.NAT != (table == "nat") || hookNumber(base.Hook) != hook {
				t.Errorf("%s, hook %d: got %s %+v, %t", table, hook, name, base, ok)
			}
		}
	}
}

func FuzzLegacyTable(f *testing.F) {
	for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
		t := sampleTable(family, nil, extensionOf("comment", make([]byte, 256)))
		f.Add(family == ruleset.IPv6, t.info.hooks, t.info.count, t.info.entry[2], t.info.underflow[2], t.data)
	}
	f.Fuzz(func(t *testing.T, v6 bool, hooks, count, entry, underflow uint32, data []byte) {
		family := ruleset.IPv4
		if v6 {
			family = ruleset.IPv6
		}
		sample := sampleTable(family, nil)
		sample.info.hooks, sample.info.count, sample.info.entry[2], sample.info.underflow[2], sample.data = hooks, count, entry, underflow, data
		other := sample
		other.data = append([]byte(nil), data...)
		if !sample.same(&other) {
			t.Error("a table is not the same as its copy")
		}
		table, err := sample.split(setless{})
		if err != nil {
			return
		}
		for _, c := range table.Chains {
			rules, err := c.List()
			if err != nil && rules != nil {
				t.Errorf("rules %+v with error %v", rules, err)
			}
			for _, r := range rules {
				if (r.Target.Kind == ruleset.Jump || r.Target.Kind == ruleset.Goto) != (r.Target.Chain != nil) {
					t.Errorf("rule %+v", r)
				}
			}
		}
	})
}
