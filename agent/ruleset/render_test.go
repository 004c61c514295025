// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
)

// TestARuleIsRenderedAsItWasRead holds for all that the model knows.
func TestARuleIsRenderedAsItWasRead(t *testing.T) {
	for _, rule := range []string{
		"-A a",
		"-A a ! -s 10.0.0.0/8 -d 10.0.0.1/32 -j ACCEPT",
		"-A a -d 10.0.0.1/255.0.0.255 -i eth0 ! -o veth+ -j DROP",
		"-A a ! -f -j RETURN",
		"-A a -p tcp --sport 1:2 ! --dport 80 ! --tcp-flags FIN,SYN,RST,ACK SYN -j a",
		"-A a ! -p 99 -g a",
		"-A a -p udp -m multiport ! --ports 53,80:90 -j LOG",
		"-A a -p tcp -m multiport --dports 53,54",
		"-A a -p icmp",
		"-A a -m mark --mark 0x1 -m connmark ! --mark 0x1/0x3 -j MARK --set-xmark 0x1/0xff",
		"-A a -m conntrack ! --ctstate INVALID,RELATED -j CONNMARK --set-xmark 0x1/0xff",
		"-A a -m addrtype --dst-type LOCAL,PROHIBIT -j CONNMARK --save-mark --nfmask 0x1 --ctmask 0x2",
		"-A a -m iprange ! --src-range 10.0.0.1-10.0.0.3 -j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x2",
		"-A a -m physdev ! --physdev-is-bridged -m limit --limit 5/sec -j REJECT",
		"-A a -m set ! --match-set four src,dst -m comment --comment \"not \\\"this\\\"\" -j NFQUEUE",
	} {
		text := strings.NewReplacer("--sport", "-m tcp --sport", "! --tcp-flags", "-m tcp ! --tcp-flags").Replace(rule)
		tables, err := savetext.Parse(ruleset.IPv4, ruleset.Legacy, "*filter\n:a -\n"+text+"\nCOMMIT\n")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rule, ruleset.Render("a", &tables[0].Chains[0].Rules[0])); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestARuleForIPv6IsRendered(t *testing.T) {
	r := ruleset.Rule{Matches: []ruleset.Match{
		ruleset.Addr{Dir: ruleset.Src, Addr: netip.MustParseAddr("fd00::"), Mask: netip.MustParseAddr("ffff::")},
		ruleset.Proto{Number: 58}, ruleset.Unknown{Text: "-m icmp6"},
	}, Target: ruleset.Target{Kind: ruleset.UnknownTarget}}
	if diff := cmp.Diff("-A FORWARD -s fd00::/16 -p ipv6-icmp -m icmp6", ruleset.Render("FORWARD", &r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRegistersReadMuchLikeNft(t *testing.T) {
	run := func(f ruleset.Field, first, length int, mask byte) ruleset.Value {
		v := make(ruleset.Value, length)
		for i := range v {
			v[i] = ruleset.Byte{Known: true, Field: f, Index: uint8(first + i), Mask: mask}
		}
		return v
	}
	pad := run(ruleset.Constant, 0, 2, 0)
	flipped := run(ruleset.DstAddr, 0, 4, 0xff)
	flipped[3].Xor = 1
	address, port := run(ruleset.SrcAddr, 0, 4, 0xff), run(ruleset.DstPort, 0, 2, 0xff)
	both := slices.Concat(address, port, pad)
	number := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	one := func(v ruleset.Value, to string) ruleset.Compare {
		return ruleset.Compare{Value: v, From: []byte(to), To: []byte(to)}
	}
	not := one(address, "\x0a\x00\x00\x01")
	not.Not = true
	set := &ruleset.NativeSet{Name: "peers"}
	for want, m := range map[string]ruleset.Match{
		`-m nft "ip saddr != 10.0.0.1"`:              not,
		`-m nft "ip saddr . th dport 10.0.0.1 . 80"`: one(both, "\x0a\x00\x00\x01\x00\x50\x00\x00"),
		`-m nft "th dport 80-443"`:                   ruleset.Compare{Value: port, From: []byte{0, 80}, To: []byte{1, 187}},
		`-m nft "ip6 daddr fd00::1"`:                 one(run(ruleset.DstAddr, 0, 16, 0xff), "\xfd"+strings.Repeat("\x00", 14)+"\x01"),
		`-m nft "ip saddr & 0x0f0f0f0f 0.0.0.0"`:     one(run(ruleset.SrcAddr, 0, 4, 0x0f), "\x00\x00\x00\x00"),
		`-m nft "ip daddr ^ 0x00000001 10.0.0.1"`:    one(flipped, "\x0a\x00\x00\x01"),
		`-m nft "ip6 saddr 0x0001"`:                  one(run(ruleset.SrcAddr, 14, 2, 0xff), "\x00\x01"),
		`-m nft "meta mark & 0x1010101 0x1"`:         one(run(ruleset.PacketMark, 0, 4, 1), string(number(1))),
		`-m nft "ct state 0x8"`:                      one(run(ruleset.ConnState, 0, 4, 0xff), string(number(8))),
		`-m nft "iifname eth0"`:                      one(run(ruleset.InName, 0, 16, 0xff), "eth0"+strings.Repeat("\x00", 12)),
		`-m nft "oifname veth*"`:                     one(run(ruleset.OutName, 0, 4, 0xff), "veth"),
		`-m nft "meta l4proto tcp"`:                  one(run(ruleset.L4Proto, 0, 1, 0xff), "\x06"),
		`-m nft "unknown 0x00"`:                      one(make(ruleset.Value, 1), "\x00"),
		`-m nft "0x0000 0x0000"`:                     one(pad, "\x00\x00"),
		`-m nft "th dport 0050-01"`:                  ruleset.Compare{Value: port, From: []byte{0, 80}, To: []byte{1}},
		`-m nft "ip saddr . th dport @peers"`:        ruleset.Lookup{Set: set, Key: both},
		`-m nft "ip saddr != @peers"`:                ruleset.Lookup{Set: set, Key: address, Not: true},
		`-m nft "fib saddr . iif oif 0x0"`:           one(run(ruleset.ReverseIndex, 0, 4, 0xff), "\x00\x00\x00\x00"),
		`-m nft "field 99 0x00"`:                     one(run(99, 0, 1, 0xff), "\x00"),
		`-m physdev ! --physdev-in veth+`:            ruleset.BridgePort{Name: "veth", Prefix: true, Not: true},
		`-m physdev --physdev-out veth0`:             ruleset.BridgePort{Out: true, Name: "veth0"},
		`-m rpfilter --loose --invert`:               ruleset.ReversePath{Loose: true, Not: true},
	} {
		got := ruleset.Render("a", &ruleset.Rule{Matches: []ruleset.Match{m}})
		if diff := cmp.Diff("-A a "+want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	for want, e := range map[string]struct {
		key     ruleset.Value
		element string
	}{
		"10.0.0.1":            {address, "\x0a\x00\x00\x01"},
		"10.0.0.1 . 80":       {both, "\x0a\x00\x00\x01\x00\x50\x00\x00"},
		"fd00::1":             {run(ruleset.DstAddr, 0, 16, 0xff), "\xfd" + strings.Repeat("\x00", 14) + "\x01"},
		"10.0.0.0":            {run(ruleset.SrcAddr, 0, 4, 0x0f), "\x0a\x00\x00\x00"},
		"10.0.0.1 . tcp . 80": {slices.Concat(address, run(ruleset.L4Proto, 0, 1, 0xff), pad, pad[:1], port, pad), "\x0a\x00\x00\x01\x06\x00\x00\x00\x00\x50\x00\x00"},
		"eth0 . 10.0.0.1":     {slices.Concat(run(ruleset.InName, 0, 16, 0xff), address), "eth0" + strings.Repeat("\x00", 12) + "\x0a\x00\x00\x01"},
		"":                    {address, "\x0a"},
	} {
		if got := ruleset.RenderElement(e.key, []byte(e.element)); got != want {
			t.Errorf("element %q, want %q", got, want)
		}
	}
	for want, l := range map[string]ruleset.Lookup{
		"peers":                     {Set: set, Key: address},
		"ip saddr . th dport {...}": {Set: &ruleset.NativeSet{Name: "__set12"}, Key: both},
		"ip saddr {...}":            {Set: &ruleset.NativeSet{Name: "__map0"}, Key: address},
	} {
		if got := l.SetName(); got != want {
			t.Errorf("set %q, want %q", got, want)
		}
	}
	decide := ruleset.Rule{Target: ruleset.Target{Kind: ruleset.Decide, Map: set, Key: address}}
	if diff := cmp.Diff(`-A a -m nft "ip saddr vmap @peers"`, ruleset.Render("a", &decide)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
