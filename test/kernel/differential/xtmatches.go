// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

// xtProtocols come first in a rule: what follows may depend on them.
var xtProtocols = []construct{
	{"no protocol", 14, everywhere, "", "", fixed("")},
	{"-p", 6, everywhere, "", "", fixed("-p tcp", "-p tcp", "-p udp", "-p sctp", "! -p udp", "! -p tcp", "-p 99", "-p all")},
	{"-p icmp", 1, everywhere, "", "4", fixed("-p icmp", "! -p icmp", "-p icmp --icmp-type 8", "-p icmp ! --icmp-type 8", "-p icmp --icmp-type any")},
	{"-p icmpv6", 1, everywhere, "", "6", fixed("-p icmpv6", "! -p icmpv6", "-p icmpv6 --icmpv6-type 128", "-p icmpv6 ! --icmpv6-type 136")},
	{"--dport", 6, everywhere, "", "", func(g *generator) string {
		return g.some("-p tcp -m tcp ", "-p tcp -m tcp ", "-p udp -m udp ", "-p sctp -m sctp ") + g.not() + "--dport " + g.some(g.port(), g.portRange(":"))
	}},
	{"--sport", 2, everywhere, "", "", func(g *generator) string {
		return g.some("-p tcp -m tcp ", "-p udp -m udp ", "-p sctp -m sctp ") + g.not() + "--sport " + g.some("1024:65535", "0:1023", "80", "0:65535", "20000:60000")
	}},
	{"--tcp-flags", 3, everywhere, "", "", func(g *generator) string {
		return "-p tcp -m tcp " + g.not() + g.some("--syn", "--syn", "--tcp-flags SYN,ACK ACK", "--tcp-flags ALL SYN", "--tcp-flags ALL NONE", "--tcp-flags SYN,RST ALL", "--tcp-flags FIN,RST NONE")
	}},
	{"--tcp-option", 1, everywhere, "", "", func(g *generator) string { return "-p tcp -m tcp " + g.not() + "--tcp-option " + g.some("2", "8") }},
	{"--chunk-types", 1, everywhere, "", "", func(g *generator) string {
		return "-p sctp -m sctp " + g.not() + "--chunk-types " + g.some("any INIT", "all INIT", "only INIT,DATA", "any DATA")
	}},
	{"-m ecn", 1, everywhere, "", "4", fixed("-p tcp -m ecn --ecn-tcp-cwr", "-p tcp -m ecn ! --ecn-tcp-ece")},
	{"-m multiport", 4, everywhere, "", "", func(g *generator) string {
		return g.some("-p tcp", "-p udp", "-p sctp") + " -m multiport " + g.not() + g.some("--dports ", "--dports ", "--ports ", "--sports ") +
			g.some(g.port()+","+g.port(), "80:81,"+g.port(), "22,3000:9000", "1:1023,8080", "1024:65535", "0:65535", "22")
	}},
}

// xtMatches are the other conditions. The last ones are of a kind that is not
// or cannot be foreseen; they stay rare.
var xtMatches = []construct{
	{"-s", 14, everywhere, "", "", func(g *generator) string {
		return g.not() + "-s " + g.some(g.address(), g.network(), g.network(), g.masked())
	}},
	{"-d", 14, everywhere, "", "", func(g *generator) string {
		return g.not() + "-d " + g.some(g.address(), g.network(), g.network(), g.masked())
	}},
	{"-i", 10, prerouting | input | forward, "", "", func(g *generator) string { return g.not() + "-i " + g.interfaces() }},
	{"-o", 10, forward | output | postrouting, "", "", func(g *generator) string { return g.not() + "-o " + g.interfaces() }},
	{"-m mark", 10, everywhere, "", "", func(g *generator) string {
		return "-m mark " + g.not() + "--mark " + g.some(g.oneBit(), g.oneBit(), g.bits(), g.bits()+"/"+g.bits())
	}},
	{"-m connmark", 8, everywhere, "", "", func(g *generator) string {
		return "-m connmark " + g.not() + "--mark " + g.some(g.oneBit(), g.oneBit(), g.bits(), g.bits()+"/"+g.bits())
	}},
	{"--ctstate", 8, everywhere, "", "", negatable("conntrack", "--ctstate NEW", "--ctstate NEW", "--ctstate RELATED,ESTABLISHED", "--ctstate INVALID", "--ctstate UNTRACKED", "--ctstate NEW,UNTRACKED", "--ctstate DNAT", "--ctstate SNAT", "--ctstate INVALID,NEW")},
	{"-m state", 2, everywhere, "", "", negatable("state", "--state NEW", "--state RELATED,ESTABLISHED", "--state UNTRACKED", "--state INVALID")},
	{"--ctdir", 2, everywhere, "", "", fixed("-m conntrack --ctdir ORIGINAL", "-m conntrack --ctdir REPLY", "-m conntrack --ctstate NEW --ctdir ORIGINAL")},
	{"--ctstatus", 2, everywhere, "", "", negatable("conntrack", "--ctstatus NONE", "--ctstatus CONFIRMED", "--ctstatus ASSURED", "--ctstatus SEEN_REPLY,CONFIRMED", "--ctstatus EXPECTED")},
	{"--ctproto", 1, everywhere, "", "", negatable("conntrack", "--ctproto tcp", "--ctproto udp")},
	{"--ctorig", 1, everywhere, "", "", func(g *generator) string {
		return "-m conntrack " + g.not() + g.some("--ctorigsrc ", "--ctorigdst ", "--ctreplsrc ", "--ctrepldst ") + g.network()
	}},
	{"--ctorigport", 1, everywhere, "", "", func(g *generator) string {
		return "-m conntrack --ctproto tcp " + g.not() + g.some("--ctorigdstport ", "--ctreplsrcport ") + g.port()
	}},
	{"--ctexpire", 1, everywhere, "", "", negatable("conntrack", "--ctexpire 0", "--ctexpire 0:100000")},
	{"-m set", 16, everywhere, "", "", (*generator).matchSet},
	{"-m addrtype", 5, everywhere, "", "4", negatable("addrtype", "--src-type LOCAL", "--dst-type LOCAL", "--dst-type UNICAST", "--dst-type BROADCAST,MULTICAST", "--src-type LOCAL,UNICAST", "--dst-type UNREACHABLE", "--dst-type BLACKHOLE,LOCAL", "--src-type UNSPEC")},
	{"-m addrtype", 5, everywhere, "", "6", negatable("addrtype", "--src-type LOCAL", "--dst-type LOCAL", "--dst-type UNICAST", "--dst-type MULTICAST", "--src-type LOCAL,UNICAST", "--dst-type UNREACHABLE", "--dst-type ANYCAST,LOCAL")},
	{"--limit-iface", 1, prerouting | input | forward, "", "", negatable("addrtype", "--dst-type LOCAL --limit-iface-in", "--src-type UNICAST --limit-iface-in")},
	{"-m iprange", 5, everywhere, "", "", func(g *generator) string {
		return "-m iprange " + g.not() + g.some("--src-range ", "--dst-range ") + g.span()
	}},
	{"-m comment", 3, everywhere, "", "", fixed(`-m comment --comment "-j DROP"`, `-m comment --comment "a \"b\" \\"`, "-m comment --comment x")},
	{"--physdev-is-bridged", 5, forward | postrouting, "", "", negatable("physdev", "--physdev-is-bridged")},
	{"--physdev-is-in", 2, prerouting | input | forward, "", "", negatable("physdev", "--physdev-is-in")},
	{"--physdev-in", 3, prerouting | input | forward, "", "", negatable("physdev", "--physdev-in veth0", "--physdev-in veth+", "--physdev-in eth0", "--physdev-in veth3", "--physdev-in veth1")},
	{"--physdev-out", 3, forward | postrouting, "", "", negatable("physdev", "--physdev-out veth1 --physdev-is-bridged", "--physdev-is-out --physdev-is-bridged", "--physdev-out veth+ --physdev-is-bridged", "--physdev-in veth0 --physdev-out veth1 --physdev-is-bridged")},
	{"-m rpfilter", 6, prerouting, "raw mangle", "", fixed("-m rpfilter", "-m rpfilter --invert", "-m rpfilter --loose", "-m rpfilter --loose --invert", "-m rpfilter --validmark", "-m rpfilter --accept-local")},
	{"-f", 1, everywhere, "", "4", func(g *generator) string { return g.not() + "-f" }},
	// From here on nobody knows.
	{"-m statistic", 1, everywhere, "", "", fixed("-m statistic --mode random --probability 0.5", "-m statistic --mode nth --every 2 --packet 0")},
	{"-m limit", 2, everywhere, "", "", fixed("-m limit --limit 1/hour --limit-burst 3", "-m limit --limit 1000/s --limit-burst 10000")},
	{"-m hashlimit", 1, everywhere, "", "", fixed("-m hashlimit --hashlimit-upto 1/hour --hashlimit-burst 2 --hashlimit-mode dstip --hashlimit-name h", "-m hashlimit --hashlimit-above 1/hour --hashlimit-burst 2 --hashlimit-name i")},
	{"-m length", 1, everywhere, "", "", negatable("length", "--length 0:40", "--length 44", "--length 32:70")},
	{"-m ttl", 1, everywhere, "", "4", fixed("-m ttl --ttl-eq 64", "-m ttl --ttl-eq 63", "-m ttl ! --ttl-eq 63", "-m ttl --ttl-lt 64", "-m ttl --ttl-gt 1")},
	{"-m hl", 1, everywhere, "", "6", fixed("-m hl --hl-eq 64", "-m hl --hl-eq 63", "-m hl ! --hl-eq 63", "-m hl --hl-lt 64", "-m hl --hl-gt 1")},
	{"-m tos", 1, everywhere, "", "", negatable("tos", "--tos 0x0", "--tos 0x10")},
	{"-m dscp", 1, everywhere, "", "", negatable("dscp", "--dscp 0", "--dscp 46")},
	{"-m pkttype", 1, everywhere, "", "", negatable("pkttype", "--pkt-type unicast", "--pkt-type broadcast")},
	{"-m mac", 1, prerouting | input | forward, "", "", negatable("mac", "--mac-source 02:00:00:00:00:01", "--mac-source 02:00:00:00:00:07")},
	{"-m time", 1, everywhere, "", "", fixed("-m time --timestart 00:00 --timestop 12:00", "-m time --weekdays Mon,Tue,Wed,Thu,Fri,Sat,Sun")},
	{"-m string", 1, everywhere, "", "", fixed("-m string --algo bm --string x", "-m string --algo bm ! --string x")},
	{"-m u32", 1, everywhere, "", "4", fixed(`-m u32 --u32 "6&0xFF=6"`, `-m u32 --u32 "6&0xFF=17"`)},
	{"-m connlimit", 1, everywhere, "filter mangle", "", fixed("-m connlimit --connlimit-above 2", "-m connlimit --connlimit-upto 1 --connlimit-mask 8")},
	{"-m connbytes", 1, everywhere, "", "", fixed("-m connbytes --connbytes 0:1 --connbytes-dir both --connbytes-mode packets")},
	{"-m recent", 1, everywhere, "", "", fixed("-m recent --set --name r", "-m recent --rcheck --name r", "-m recent ! --update --name r")},
	{"-m quota", 1, everywhere, "", "", fixed("-m quota --quota 500", "-m quota --quota 100000000")},
	{"-m helper", 1, everywhere, "", "", negatable("helper", "--helper ftp")},
	{"-m socket", 1, prerouting | input, "mangle", "", fixed("-m socket", "-m socket --transparent")},
	{"-m owner", 1, output | postrouting, "", "", negatable("owner", "--uid-owner 0", "--gid-owner 0", "--socket-exists")},
	{"-m policy", 1, prerouting | input | forward, "", "", fixed("-m policy --dir in --pol none", "-m policy --dir in --pol ipsec")},
	{"-m devgroup", 1, prerouting | input | forward, "", "", negatable("devgroup", "--src-group 0", "--src-group 5")},
	{"-m realm", 1, input | forward | output | postrouting, "", "4", negatable("realm", "--realm 0", "--realm 7")},
	{"-m cpu", 1, everywhere, "", "", negatable("cpu", "--cpu 0", "--cpu 1")},
	{"-m cluster", 1, everywhere, "", "", fixed("-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 1")},
	{"-m bpf", 1, everywhere, "", "", fixed(`-m bpf --bytecode "1,6 0 0 65535"`, `-m bpf --bytecode "1,6 0 0 0"`)},
	{"-m ipv6header", 1, everywhere, "", "6", fixed("-m ipv6header --header hop --soft", "-m ipv6header --header none --soft", "-m ipv6header ! --header frag --soft")},
	{"-m frag", 1, everywhere, "", "6", fixed("-m frag --fragid 1", "-m rt --rt-type 0", "-m hbh", "-m dst")},
	{"-m eui64", 1, prerouting | input | forward, "", "6", fixed("-m eui64")},
}

// masked returns an address under a mask that is no prefix.
func (g *generator) masked() string {
	return g.family(g.some("10.244.2.10/255.255.0.255", "0.0.0.10/0.0.0.255", "10.244.0.0/255.254.0.0", "0.0.1.0/0.0.1.0", "0.0.0.0/0"),
		g.some("fd00:10:244::10/ffff:ffff:ffff::ffff", "::10/::ff", "fd00:10:244:1::/ffff:ffff:ffff:1::", "::/0"))
}

// interfaces returns an interface's name or the beginning of one.
func (g *generator) interfaces() string {
	return g.some(g.device(), g.device(), g.device(), "eth+", "cali+", "kube+", "veth+", "+", "none+")
}
