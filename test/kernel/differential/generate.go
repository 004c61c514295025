// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/policygate/policygate/api/flow"
)

// generator makes rulesets and flows from a seed.
type generator struct {
	*rand.Rand
	sets []ipset
	// v6: what is written is for IPv6.
	v6 bool
	// theme is the one of the ruleset.
	theme string
	// favours has the factors of favour.
	favours map[string]int
	// used counts the constructs that were written.
	used map[string]int
}

func newGenerator(seed uint64, sets []ipset) *generator {
	return &generator{Rand: rand.New(rand.NewPCG(seed, 0)), sets: sets, favours: map[string]int{}, used: map[string]int{}}
}

func (g *generator) use(construct string) { g.used[construct]++ }

// some returns one of the texts.
func (g *generator) some(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) not() string { return g.some("", "", "", "! ") }

func (g *generator) version() string {
	if g.v6 {
		return "6"
	}
	return "4"
}

// The ports that flows go to.
var ports = []uint16{53, 80, 81, 443, 3306, 8080}

func (g *generator) port() string { return strconv.Itoa(int(ports[g.IntN(len(ports))])) }

func (g *generator) portRange(between string) string {
	return g.some("1"+between+"80", "81"+between+"1000", "0"+between+"65535", "80"+between+"81", "3000"+between+"9000", "443"+between+"443")
}

func (g *generator) protocolPort() string {
	// Short ranges: each port is an element.
	return g.some("tcp:", "tcp:", "udp:", "sctp:") + g.some(g.port(), g.port(), "80-81", "52-54", "443-443")
}

func (g *generator) nomatch() string { return g.some("", "", "", " nomatch") }

// device returns an interface of the node or one that it does not have.
func (g *generator) device() string {
	return g.some(bridge, bridge, "eth0", "eth0", "eth1", "cali0", "cali1", "veth0", "veth1", "veth3", "lo", "none0")
}

// address returns an address that flows have, or seldom one that they do not.
func (g *generator) address() string {
	if g.IntN(12) == 0 {
		return g.family("10.99.0.1", "fd00:99::1")
	}
	var all []string
	for _, h := range hosts {
		all = append(all, strings.Fields(h.addresses)...)
	}
	all = append(all, own...)
	all = slices.DeleteFunc(all, func(a string) bool { return strings.Contains(a, ":") != g.v6 })
	return all[g.IntN(len(all))]
}

func (g *generator) family(v4, v6 string) string {
	if g.v6 {
		return v6
	}
	return v4
}

// network returns a prefix, never of length 0.
func (g *generator) network() string {
	if g.v6 {
		return g.some("fd00:10:244:1::/64", "fd00:10:244::/48", "fd00:10:244:2::/64", "fd00::/8", "fd00:10:244:1::10/127", "fd00:10:244:1::/112",
			"2001:db8::/32", "fd00:192:168:100::/64", "fd00:172:16::/44", "8000::/1", "::/1", g.address()+"/128", g.address()+"/128")
	}
	return g.some("10.244.1.0/24", "10.244.0.0/16", "10.244.2.0/24", "10.0.0.0/8", "10.244.1.0/28", "10.244.1.20/31", "10.244.4.0/27",
		"198.51.100.0/24", "192.168.100.0/24", "172.16.0.0/12", "0.0.0.0/1", "128.0.0.0/1", g.address()+"/32", g.address()+"/32")
}

// span returns a range of addresses.
func (g *generator) span() string {
	if g.v6 {
		return g.some("fd00:10:244:1::5-fd00:10:244:1::15", "fd00:10:244:1::20-fd00:10:244:1::20", "fd00:10::-fd00:10:244:2::ffff", "::1-fd00:10:244:1::10")
	}
	return g.some("10.244.1.5-10.244.1.15", "10.244.1.20-10.244.1.20", "10.244.1.20-10.244.3.255", "1.0.0.0-10.244.1.10", "172.16.0.0-255.255.255.255")
}

// ruleset returns everything that is loaded for one try.
func (g *generator) ruleset() *Ruleset {
	g.theme = themes[g.IntN(len(themes))]
	r := &Ruleset{Calls4: g.IntN(3) > 0, Calls6: g.IntN(3) > 0, Own: g.IntN(8) == 0}
	var loads []Load
	for _, e := range engines {
		if g.IntN(e.of) == 0 {
			loads = append(loads, e.make(g)...)
		}
	}
	if len(loads) == 0 {
		loads = engines[g.IntN(len(engines))].make(g)
	}
	g.Shuffle(len(loads), func(i, j int) { loads[i], loads[j] = loads[j], loads[i] })
	r.Loads = append([]Load{g.fill()}, loads...)
	return r
}

// engines are the ways to load rules; each is in one of so many rulesets.
var engines = []struct {
	of   int
	make func(*generator) []Load
}{
	{2, func(g *generator) []Load {
		return []Load{g.tables("iptables-nft-restore"), g.tables("ip6tables-nft-restore")}
	}},
	{3, func(g *generator) []Load {
		return []Load{g.tables("iptables-legacy-restore"), g.tables("ip6tables-legacy-restore")}
	}},
	{2, func(g *generator) []Load { return []Load{g.native()} }},
}

// flows returns the first packets of different connections.
func (g *generator) flows(n *Node, count int) []flow.Flow {
	addresses := n.addresses()
	seen := map[flow.Flow]bool{}
	var all []flow.Flow
	for range count * 10 {
		f := flow.Flow{
			Protocol: []flow.Protocol{flow.TCP, flow.TCP, flow.UDP, flow.SCTP}[g.IntN(4)],
			Src:      addresses[g.IntN(len(addresses))], Dst: addresses[g.IntN(len(addresses))], Port: ports[g.IntN(len(ports))],
		}
		if n.carries(f) && !seen[f] {
			seen[f] = true
			if all = append(all, f); len(all) == count {
				break
			}
		}
	}
	return all
}
