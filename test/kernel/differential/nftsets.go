// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"fmt"
	"strings"
)

// nftSet is a kind of set or map.
type nftSet struct {
	name string
	// key is the type, expression what is looked up by it.
	key, expression string
	options         string
	families        string
	hooks           hooks
	// verdicts: it is a map to verdicts.
	verdicts bool
	// elements to choose from; those of maps must not overlap.
	elements func(g *generator) []string
}

const (
	both     = "ip4 ip6 inet"
	onlyIPv4 = "ip4 inet"
	onlyIPv6 = "ip6 inet"
)

// version4 and version6 make what a writer makes for one family.
func version4(f func(*generator) string) func(*generator) string {
	return func(g *generator) string { g.v6 = false; return f(g) }
}

func version6(f func(*generator) string) func(*generator) string {
	return func(g *generator) string { g.v6 = true; return f(g) }
}

// joined returns some elements, each of the parts joined.
func joined(parts ...func(*generator) string) func(*generator) []string {
	return func(g *generator) []string {
		var all []string
		for range 2 + g.IntN(5) {
			var words []string
			for _, p := range parts {
				words = append(words, p(g))
			}
			all = append(all, strings.Join(words, " . "))
		}
		return all
	}
}

// of returns a choice of these elements.
func of(elements ...string) func(*generator) []string {
	return func(g *generator) []string {
		var all []string
		for _, e := range elements {
			if g.IntN(2) == 0 {
				all = append(all, e)
			}
		}
		return all
	}
}

// parts4 and parts6 are intervals that do not overlap.
var (
	parts4 = of("10.244.1.0-10.244.1.15", "10.244.1.16/29", "10.244.2.0/24", "10.244.4.10", "172.16.0.0/16", "192.168.100.0/24", "198.51.100.7", "10.244.3.0-10.244.4.9")
	parts6 = of("fd00:10:244:1::-fd00:10:244:1::15", "fd00:10:244:1::20/124", "fd00:10:244:2::/64", "fd00:10:244:4::10", "fd00:172::/32", "2001:db8::7", "fd00:10:244:3::-fd00:10:244:4::f")
)

func proto(g *generator) string { return g.some("tcp", "udp", "sctp") }

func netOrRange(g *generator) string {
	return g.some(g.network(), g.network(), g.span(), g.address())
}

func portOrRange(g *generator) string { return g.some(g.port(), g.port(), g.portRange("-")) }

func device(g *generator) string { return `"` + g.device() + `"` }

// nftSets has a line for each kind.
var nftSets = []nftSet{
	{"addr4", "ipv4_addr", "ip saddr|ip daddr", "", onlyIPv4, everywhere, false, joined(version4((*generator).address))},
	{"addr6", "ipv6_addr", "ip6 saddr|ip6 daddr", "", onlyIPv6, everywhere, false, joined(version6((*generator).address))},
	{"timeout4", "ipv4_addr", "ip saddr|ip daddr", "timeout 1h;", onlyIPv4, everywhere, false, joined(version4((*generator).address))},
	{"interval4", "ipv4_addr", "ip saddr|ip daddr", "flags interval; auto-merge;", onlyIPv4, everywhere, false, joined(version4(netOrRange))},
	{"interval6", "ipv6_addr", "ip6 saddr|ip6 daddr", "flags interval; auto-merge;", onlyIPv6, everywhere, false, joined(version6(netOrRange))},
	{"port", "inet_service", "th dport|tcp dport|udp dport", "", both, everywhere, false, joined((*generator).port)},
	{"portrange", "inet_service", "th dport|tcp dport|udp dport|sctp dport", "flags interval; auto-merge;", both, everywhere, false, joined(portOrRange)},
	{"proto", "inet_proto", "meta l4proto", "", both, everywhere, false, joined(proto)},
	{"iface", "ifname", "iifname", "", both, prerouting | input | forward, false, joined(device)},
	{"oface", "ifname", "oifname", "", both, forward | output | postrouting, false, joined(device)},
	{"mark", "mark", "meta mark|ct mark", "", both, everywhere, false, joined(fixed("0", "1", "2", "6"))},
	{"addrport4", "ipv4_addr . inet_service", "ip saddr . th dport|ip daddr . tcp dport", "", onlyIPv4, everywhere, false, joined(version4((*generator).address), (*generator).port)},
	{"addrport6", "ipv6_addr . inet_service", "ip6 saddr . th dport|ip6 daddr . tcp dport", "", onlyIPv6, everywhere, false, joined(version6((*generator).address), (*generator).port)},
	{"triple4", "ipv4_addr . inet_proto . inet_service", "ip saddr . meta l4proto . th dport|ip daddr . meta l4proto . th dport", "", onlyIPv4, everywhere, false, joined(version4((*generator).address), proto, (*generator).port)},
	{"pair4", "ipv4_addr . ipv4_addr", "ip saddr . ip daddr", "", onlyIPv4, everywhere, false, joined(version4((*generator).address), version4((*generator).address))},
	{"ifaddr4", "ifname . ipv4_addr", "iifname . ip saddr|iifname . ip daddr", "", onlyIPv4, prerouting | input | forward, false, joined(device, version4((*generator).address))},
	{"concat4", "ipv4_addr . inet_service", "ip saddr . th dport|ip daddr . udp dport", "flags interval;", onlyIPv4, everywhere, false, one(version4(netOrRange), portOrRange)},
	{"concat6", "ipv6_addr . inet_service", "ip6 saddr . th dport|ip6 daddr . tcp dport", "flags interval;", onlyIPv6, everywhere, false, one(version6(netOrRange), portOrRange)},
	{"concatpair4", "ipv4_addr . ipv4_addr . inet_service", "ip saddr . ip daddr . th dport", "flags interval;", onlyIPv4, everywhere, false, one(version4(netOrRange), version4(netOrRange), portOrRange)},

	{"vaddr4", "ipv4_addr", "ip saddr|ip daddr", "", onlyIPv4, everywhere, true, of("10.244.1.10", "10.244.1.20", "10.244.2.10", "198.51.100.7", "10.244.4.10", "*")},
	{"vaddr6", "ipv6_addr", "ip6 saddr|ip6 daddr", "", onlyIPv6, everywhere, true, of("fd00:10:244:1::10", "fd00:10:244:2::10", "2001:db8::7", "fd00:10:244:4::10", "*")},
	{"vinterval4", "ipv4_addr", "ip saddr|ip daddr", "flags interval;", onlyIPv4, everywhere, true, parts4},
	{"vinterval6", "ipv6_addr", "ip6 saddr|ip6 daddr", "flags interval;", onlyIPv6, everywhere, true, parts6},
	{"vport", "inet_service", "th dport|tcp dport", "", both, everywhere, true, of("53", "80", "443", "8080", "*")},
	{"vportrange", "inet_service", "th dport|tcp dport|udp dport", "flags interval;", both, everywhere, true, of("1-53", "80-81", "82-1000", "3000-65535")},
	{"vproto", "inet_proto", "meta l4proto", "", both, everywhere, true, of("tcp", "udp", "sctp")},
	{"viface", "ifname", "iifname", "", both, prerouting | input | forward, true, of(bridge, "eth0", "eth1", "cali0", "*")},
	{"voface", "ifname", "oifname", "", both, forward | output | postrouting, true, of(bridge, "eth0", "cali1", "*")},
	{"vmark", "mark", "meta mark|ct mark", "", both, everywhere, true, of("0", "1", "2", "5", "6")},
	{"vstate", "ct_state", "ct state", "", both, everywhere, true, of("new", "established", "untracked", "invalid")},
	{"vaddrport4", "ipv4_addr . inet_service", "ip saddr . th dport|ip daddr . tcp dport", "", onlyIPv4, everywhere, true, of("10.244.1.10 . 80", "10.244.1.20 . 80", "10.244.2.10 . 443", "10.244.4.10 . 53", "10.244.1.10 . 81")},
	{"vifaddr4", "ifname . ipv4_addr", "iifname . ip daddr", "", onlyIPv4, prerouting | input | forward, true, of(bridge+" . 10.244.2.10", "eth0 . 10.244.1.10", "cali0 . 10.244.1.10", bridge+" . 10.244.1.20")},
	{"vconcat4", "ipv4_addr . inet_service", "ip saddr . th dport|ip daddr . th dport", "flags interval;", onlyIPv4, everywhere, true, of("10.244.1.0/24 . 1-80", "10.244.1.0/24 . 81-443", "10.244.2.0/24 . 0-65535", "10.244.4.0-10.244.4.10 . 53")},
	{"vconcat6", "ipv6_addr . inet_service", "ip6 saddr . th dport|ip6 daddr . th dport", "flags interval;", onlyIPv6, everywhere, true, of("fd00:10:244:1::/64 . 1-80", "fd00:10:244:1::/64 . 81-443", "fd00:10:244:2::/64 . 0-65535", "fd00:10:244:4::-fd00:10:244:4::10 . 53")},
}

// one returns a single element: concatenated ranges must not overlap.
func one(parts ...func(*generator) string) func(*generator) []string {
	return func(g *generator) []string {
		var words []string
		for _, p := range parts {
			words = append(words, p(g))
		}
		return []string{strings.Join(words, " . ")}
	}
}

// set writes a set or a map and its elements.
func (t *nftTable) set(s nftSet) {
	t.use("nft set " + s.name)
	kind, data := "set", ""
	if s.verdicts {
		kind, data = "map", " : verdict"
	}
	v6 := t.v6
	elements := s.elements(t.generator)
	t.v6 = v6
	t.linef(&t.define, false, "add %s %s %s s_%s { type %s%s; %s }", kind, t.family, t.name, s.name, s.key, data, s.options)
	for _, e := range elements {
		if s.verdicts {
			e += " : " + t.verdict(where{"user", s.hooks}, t.chains)
		}
		t.linef(&t.elements, true, "add element %s %s s_%s { %s }", t.family, t.name, s.name, e)
	}
	if s.verdicts {
		t.maps[s.name] = strings.Split(s.expression, "|")
		return
	}
	t.sets[s.name] = strings.Split(s.expression, "|")
}

// lookup returns a condition on one of the table's sets, "" if none fits.
func (t *nftTable) lookup(w where) string {
	var able []string
	for _, s := range nftSets {
		for _, e := range t.sets[s.name] {
			if w.hooks&^s.hooks == 0 {
				able = append(able, fmt.Sprintf("%s %s@s_%s", e, t.some("", "", "!= "), s.name))
			}
		}
	}
	if len(able) == 0 {
		return ""
	}
	t.use("nft lookup")
	return t.some(able...)
}

// vmap returns a lookup of a verdict, "" if no map fits.
func (t *nftTable) vmap(w where) string {
	if w.table == "nat" || w.table == "user" {
		// Jumps from chains that come later would lead back.
		return t.anonymous()
	}
	var able []string
	for _, s := range nftSets {
		for _, e := range t.maps[s.name] {
			// The elements' chains are for all of the map's hooks, or for
			// forward only.
			if w.hooks&^s.hooks == 0 {
				able = append(able, fmt.Sprintf("%s vmap @s_%s", e, s.name))
			}
		}
	}
	if len(able) == 0 {
		return t.anonymous()
	}
	t.use("nft vmap")
	return t.some(able...)
}

// anonymous returns a lookup of a verdict in a map of its own.
func (t *nftTable) anonymous() string {
	t.use("nft anonymous vmap")
	return t.some(
		"meta l4proto vmap { tcp : accept, udp : drop }",
		"th dport vmap { 80 : accept, 81-443 : drop, 3000-9000 : return }",
		"ct state vmap { invalid : drop, established : accept, new : continue }",
		"ct state vmap { new : accept, untracked : drop }",
		"meta mark vmap { 1 : accept, 2 : drop, 6 : return }",
		"meta l4proto . th dport vmap { tcp . 80 : accept, udp . 53 : drop, sctp . 443 : accept }",
	)
}
