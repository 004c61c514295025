// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

// equal is nft's comparison, seldom negated.
func (g *generator) equal() string { return g.some("", "", "", "!= ") }

func (g *generator) ip() string { return g.family("ip", "ip6") }

func comparison(left string, right ...string) func(*generator) string {
	return func(g *generator) string { return left + " " + g.equal() + g.some(right...) }
}

func transportPort(end string) func(*generator) string {
	return func(g *generator) string {
		which := g.some("tcp ", "tcp ", "udp ", "sctp ", "th ") + end + " "
		return which + g.some(g.equal()+g.port(), g.equal()+g.portRange("-"), g.equal()+"{ "+g.port()+" }", g.equal()+"{ 53, 80, 443 }", g.equal()+"{ 1-80, 443, 3000-9000 }", "> 80", "<= 443", ">= 53", "< 100")
	}
}

func address(end string) func(*generator) string {
	return func(g *generator) string {
		which := g.ip() + " " + end + " "
		return which + g.some(g.equal()+g.address(), g.equal()+g.network(), g.equal()+g.network(), g.equal()+g.span(), g.equal()+"{ "+g.address()+" }",
			g.equal()+"{ "+g.network()+" }", g.equal()+"{ "+g.span()+" }", "> "+g.address(), "<= "+g.address())
	}
}

// nftMatches are the conditions of nf_tables' own rules. The last ones are of
// a kind that is not or cannot be foreseen.
var nftMatches = []construct{
	{"nft saddr", 12, everywhere, "", "", address("saddr")},
	{"nft daddr", 12, everywhere, "", "", address("daddr")},
	{"nft masked addr", 2, everywhere, "", "4", fixed("ip saddr & 255.255.0.255 == 10.244.0.10", "ip daddr & 0.0.1.0 == 0.0.1.0", "ip daddr & 255.0.0.0 != 10.0.0.0")},
	{"nft dport", 12, everywhere, "", "", transportPort("dport")},
	{"nft sport", 2, everywhere, "", "", comparison("th sport", "1024-65535", "80", "{ 1-1023 }")},
	{"nft l4proto", 5, everywhere, "", "", comparison("meta l4proto", "tcp", "udp", "{ tcp, udp }", "icmp", "{ udp, sctp }", "ipv6-icmp")},
	{"nft ip protocol", 2, everywhere, "", "4", comparison("ip protocol", "tcp", "udp", "{ tcp, udp }")},
	{"nft nexthdr", 2, everywhere, "", "6", comparison("ip6 nexthdr", "tcp", "udp", "{ tcp, udp }")},
	{"nft icmp", 1, everywhere, "", "", fixed("icmp type echo-request", "icmpv6 type nd-neighbor-solicit", "icmp type { echo-request, echo-reply }")},
	{"nft tcp flags", 3, everywhere, "", "", fixed("tcp flags syn", "tcp flags & (fin|syn|rst|ack) == syn", "tcp flags & (syn|ack) == ack", "tcp flags != syn", "tcp flags { syn, ack }", "tcp flags syn / fin,syn,rst,ack")},
	{"nft iifname", 8, prerouting | input | forward, "", "", func(g *generator) string {
		return "iifname " + g.equal() + g.some(device(g), device(g), `"eth*"`, `"cali*"`, `"kube*"`, `{ "eth0", "cali0" }`, `{ "kube-bridge", "eth1" }`)
	}},
	{"nft oifname", 8, forward | output | postrouting, "", "", func(g *generator) string {
		return "oifname " + g.equal() + g.some(device(g), device(g), `"eth*"`, `"cali*"`, `"veth*"`, `{ "eth0", "cali0" }`, `{ "kube-bridge", "eth1" }`)
	}},
	{"nft no interface", 1, everywhere, "user", "", fixed(`iifname "eth0"`, `oifname "eth0"`, `oifname != "kube*"`, `iifname != { "eth0", "cali1" }`, `iif eth0`, `oif != eth0`)},
	{"nft iif", 3, prerouting | input | forward, "", "", comparison("iif", "eth0", bridge, "cali0", "{ eth0, eth1 }", "lo")},
	{"nft oif", 3, forward | output | postrouting, "", "", comparison("oif", "eth0", bridge, "cali0", "{ eth0, eth1 }", "lo")},
	{"nft mark", 8, everywhere, "", "", fixed("meta mark 1", "meta mark != 0", "meta mark & 1 == 1", "meta mark & 3 != 2", "meta mark 0", "meta mark { 0, 5, 6 }", "meta mark 1-5", "meta mark and 4 == 4", "meta mark > 2", "meta mark & 7 < 4")},
	{"nft ct mark", 5, everywhere, "", "", fixed("ct mark 1", "ct mark != 0", "ct mark & 1 == 1", "ct mark 0", "ct mark { 0, 2 }", "ct mark & 2 != 2", "ct mark != 2")},
	{"nft ct state", 8, everywhere, "", "", fixed("ct state new", "ct state established,related", "ct state invalid", "ct state != new", "ct state untracked", "ct state new,untracked", "ct state & (established|related) == 0", "ct state { new, invalid }", "ct state != established")},
	{"nft ct status", 3, everywhere, "", "", fixed("ct status dnat", "ct status snat", "ct status confirmed", "ct status assured", "ct status seen-reply", "ct status != dnat", "ct status expected", "ct status 0")},
	{"nft ct direction", 2, everywhere, "", "", comparison("ct direction", "original", "reply")},
	{"nft ct original", 1, everywhere, "", "4", comparison("ct original ip saddr", "10.244.1.10", "10.244.0.0/16")},
	{"nft ct proto-dst", 1, everywhere, "", "", comparison("meta l4proto tcp ct original proto-dst", "80", "443")},
	{"nft fib type", 4, prerouting | input | forward, "filter nat", "", func(g *generator) string {
		return "fib " + g.some("saddr", "daddr") + " type " + g.equal() + g.some("local", "unicast", "local", "{ local, broadcast }", "broadcast", "multicast")
	}},
	{"nft fib type output", 2, output | postrouting, "filter", "", func(g *generator) string {
		return "fib " + g.some("saddr", "daddr") + " type " + g.equal() + g.some("local", "unicast", "{ local, multicast }")
	}},
	{"nft fib rpf", 4, prerouting, "filter", "", fixed("fib saddr . iif oif missing", "fib saddr . iif oif exists", "fib saddr . iif oif 0", "fib saddr . iif oif != 0")},
	{"nft fib oif", 1, prerouting, "filter", "", fixed("fib saddr oif eth0", "fib saddr oifname \"eth0\"", "fib saddr . mark . iif oif missing", "fib daddr . iif type local", "fib daddr oif exists")},
	{"nft nfproto", 2, everywhere, "", "", comparison("meta nfproto", "ipv4", "ipv6")},
	{"nft protocol", 2, everywhere, "", "", comparison("meta protocol", "ip", "ip6", "{ ip, ip6 }")},
	{"nft concat", 4, everywhere, "", "4", func(g *generator) string {
		return "ip " + g.some("saddr", "daddr") + " . th dport " + g.equal() + "{ " + g.address() + " . " + g.port() + ", " + g.some("10.99.0.9 . 80", "10.99.0.0/24 . 1-100") + " }"
	}},
	{"nft concat6", 4, everywhere, "", "6", func(g *generator) string {
		return "ip6 " + g.some("saddr", "daddr") + " . th dport " + g.equal() + "{ " + g.address() + " . " + g.port() + ", " + g.some("fd99::9 . 80", "fd99::/64 . 1-100") + " }"
	}},
	{"nft concat proto", 3, everywhere, "", "", fixed("meta l4proto . th dport { tcp . 80, udp . 53 }", "meta l4proto . th dport != { tcp . 80, sctp . 443 }", "meta mark . th dport { 0 . 80, 1 . 443 }", "ct mark . meta mark { 0 . 0, 1 . 1 }", "meta l4proto . th dport { tcp . 1-80, udp . 0-65535 }")},
	{"nft udp length", 1, everywhere, "", "", fixed("udp length 12", "udp length 8", "udp length > 4")},
	// From here on nobody knows.
	{"nft limit", 1, everywhere, "", "", fixed("limit rate 1/hour", "limit rate over 1/hour", "limit rate 100000/second")},
	{"nft quota", 1, everywhere, "", "", fixed("quota over 500 bytes", "quota 10000000 bytes")},
	{"nft numgen", 1, everywhere, "", "", fixed("numgen random mod 2 0", "numgen inc mod 2 0")},
	{"nft length", 1, everywhere, "", "", fixed("meta length < 45", "meta length 32-100")},
	{"nft ttl", 1, everywhere, "", "4", fixed("ip ttl 64", "ip ttl != 64", "ip ttl < 64", "ip length 44", "ip dscp cs0", "ip id 5", "ip version 4")},
	{"nft hoplimit", 1, everywhere, "", "6", fixed("ip6 hoplimit 64", "ip6 hoplimit < 64", "ip6 length > 10", "ip6 dscp cs0", "ip6 version 6", "ip6 flowlabel 0")},
	{"nft tcp others", 1, everywhere, "", "", fixed("tcp window 65535", "tcp doff 6", "tcp sequence > 100", "tcp option maxseg size 1460", "tcp option sack-perm exists", "tcp flags & ecn == 0")},
	{"nft frag-off", 1, everywhere, "", "4", fixed("ip frag-off & 0x1fff == 0", "ip frag-off & 0x1fff != 0", "ip frag-off 0x4000")},
	{"nft exthdr", 1, everywhere, "", "6", fixed("exthdr frag exists", "exthdr hbh missing", "rt type 0")},
	{"nft pkttype", 1, prerouting | input | forward, "", "", comparison("meta pkttype", "host", "unicast", "broadcast")},
	{"nft skuid", 1, output, "", "", fixed("meta skuid 0", "meta skuid != 0", "meta skgid 5")},
	{"nft cpu", 1, everywhere, "", "", fixed("meta cpu 0", "meta priority 0", "meta rtclassid 0", "meta iifgroup 0", "meta iiftype ether", `meta oifkind "veth"`, `meta iifkind "bridge"`, "meta secpath missing", "meta random < 5", "meta hour < \"12:00\"")},
	{"nft socket", 1, prerouting | input, "filter", "", fixed("socket transparent 1", "socket mark 0")},
	{"nft jhash", 1, everywhere, "", "4", fixed("jhash ip saddr mod 2 0", "symhash mod 2 0")},
	{"nft ct others", 1, everywhere, "", "", fixed("ct zone 0", "ct zone 3", `ct helper "ftp"`, "ct expiration > 1s", "ct packets < 2", "ct bytes > 0", "ct label 1", "ct l3proto ipv4", "ct count 5", "ct count over 0")},
	{"nft osf", 1, prerouting | input | forward, "filter", "", fixed(`osf name "unknown"`)},
	{"nft rt", 1, forward | output | postrouting, "filter", "", fixed("rt classid 0", "rt mtu > 100", "rt ip nexthop 192.168.100.11", "rt ipsec missing")},
	{"nft payload raw", 1, everywhere, "", "", fixed("@th,16,16 80", "@nh,0,4 4", "@nh,0,4 6", "@th,0,16 > 1023", "@ll,0,48 0x020000000001", "@th,32,8 0", "@ih,0,8 5")},
}

// nftStatements go on with the rule.
var nftStatements = []construct{
	{"nft counter", 6, everywhere, "", "", fixed("counter")},
	{"nft log", 3, everywhere, "", "", fixed("log group 100", `log prefix "x"`, "limit rate 1/hour log group 100")},
	{"nft mark set", 8, everywhere, "", "", fixed("meta mark set 1", "meta mark set meta mark or 2", "meta mark set meta mark and 5", "meta mark set meta mark xor 3", "meta mark set 6", "meta mark set 0", "meta mark set mark and 0xfffffffe or 4")},
	{"nft ct mark set", 5, everywhere, "", "", fixed("ct mark set 1", "ct mark set ct mark or 2", "ct mark set 0", "ct mark set ct mark and 1")},
	{"nft mark from ct", 5, everywhere, "", "", fixed("meta mark set ct mark", "ct mark set meta mark", "ct mark set meta mark and 3", "meta mark set ct mark and 1", "meta mark set ct mark or 4")},
	{"nft notrack", 3, prerouting | output, "filter", "", fixed("notrack")},
	{"nft map set", 1, everywhere, "", "", fixed("meta mark set meta l4proto map { tcp : 1, udp : 2 }", "meta mark set th dport map { 80 : 1, 443 : 2 }", "ct mark set meta mark map { 0 : 1 }", "meta mark set numgen random mod 2")},
	{"nft priority set", 1, everywhere, "filter user", "", fixed("meta priority set 1:1", "meta nftrace set 1")},
	{"nft payload set", 1, everywhere, "filter", "4", fixed("ip dscp set cs1", "ip ttl set 30", "ip daddr set 10.244.1.20", "tcp dport set 81")},
	{"nft ct set", 1, prerouting | output, "filter", "", fixed("ct zone set 3", "ct label set 1", "ct event set new")},
	{"nft option set", 1, everywhere, "filter", "", fixed("tcp option maxseg size set 1200", "reset tcp option sack-perm")},
}

// nftEnds end the chain in another way than by a plain verdict.
var nftEnds = []construct{
	{"nft accept", 6, everywhere, "", "", fixed("accept")},
	{"nft reject", 4, input | forward | output, "filter user", "", fixed("reject", "reject with icmpx admin-prohibited", "meta l4proto tcp reject with tcp reset")},
	{"nft dnat", 12, prerouting | output, "nat", "4", func(g *generator) string {
		return "dnat ip to " + g.some("10.244.1.10", "10.244.2.10", "192.168.100.10")
	}},
	{"nft dnat", 12, prerouting | output, "nat", "6", func(g *generator) string { return "dnat ip6 to " + g.some("fd00:10:244:1::10", "fd00:10:244:2::10") }},
	{"nft redirect", 4, prerouting | output, "nat", "", fixed("meta l4proto tcp redirect to :80", "redirect")},
	{"nft snat", 12, postrouting | input, "nat", "4", fixed("snat ip to 192.168.100.10", "snat ip to 10.244.1.1")},
	{"nft snat", 12, postrouting | input, "nat", "6", fixed("snat ip6 to fd00:192:168:100::10")},
	{"nft masquerade", 12, postrouting, "nat", "", fixed("masquerade", "masquerade random")},
	{"nft tproxy", 1, prerouting, "filter", "", fixed("meta l4proto tcp tproxy to :80")},
	{"nft synproxy", 1, input | forward, "filter", "", fixed("meta l4proto tcp synproxy mss 1460 wscale 7")},
}
