// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

// xtTargets are the targets of iptables except for jumps. Left out is what
// would make one packet's fate depend on another one's: -j SET, TEE, RATEEST.
var xtTargets = []construct{
	{"no target", 6, everywhere, "", "", fixed("")},
	{"-j ACCEPT", 12, everywhere, "", "", fixed("-j ACCEPT")},
	{"-j DROP", 8, everywhere, "filter", "", fixed("-j DROP")},
	{"-j DROP", 4, everywhere, "raw mangle security", "", fixed("-j DROP")},
	{"-j REJECT", 4, input | forward | output, "filter", "4", fixed("-j REJECT", "-j REJECT --reject-with icmp-host-prohibited", "-j REJECT --reject-with tcp-reset")},
	{"-j REJECT", 4, input | forward | output, "filter", "6", fixed("-j REJECT", "-j REJECT --reject-with icmp6-adm-prohibited", "-j REJECT --reject-with tcp-reset")},
	{"-j RETURN", 8, everywhere, "", "", fixed("-j RETURN")},
	{"-j MARK", 18, everywhere, "", "", func(g *generator) string {
		return "-j MARK " + g.some("--set-xmark "+g.bits()+"/"+g.bits(), "--set-mark "+g.bits()+"/"+g.bits(), "--set-mark "+g.bits(), "--and-mark "+g.bits(), "--xor-mark "+g.bits(), "--or-mark "+g.bits())
	}},
	{"-j CONNMARK", 14, everywhere, "", "", func(g *generator) string {
		masks := " --nfmask " + g.bits() + " --ctmask " + g.bits()
		return "-j CONNMARK " + g.some("--save-mark", "--save-mark"+masks, "--save-mark"+masks, "--restore-mark", "--restore-mark"+masks, "--restore-mark"+masks,
			"--set-xmark "+g.bits()+"/"+g.bits(), "--set-mark "+g.bits(), "--or-mark "+g.bits(), "--and-mark "+g.bits(), "--xor-mark "+g.bits())
	}},
	{"-j NFLOG", 2, everywhere, "", "", fixed("-j NFLOG --nflog-group 100", "-j LOG --log-prefix x")},
	{"-m limit -j NFLOG", 2, everywhere, "", "", fixed("-m limit --limit 1/hour --limit-burst 3 -j NFLOG --nflog-group 100", "-m statistic --mode random --probability 0.5 -j LOG")},
	{"-m limit -j DROP", 1, everywhere, "filter", "", fixed("-m limit --limit 1/hour --limit-burst 3 -j DROP", "-m limit --limit 1/hour --limit-burst 3 -j ACCEPT")},
	{"-m limit -j MARK", 1, everywhere, "", "", fixed("-m limit --limit 1/hour --limit-burst 3 -j MARK --set-xmark 0x1/0x1", "-m statistic --mode random --probability 0.5 -j MARK --or-mark 0x2")},
	{"-j NFQUEUE", 1, everywhere, "filter mangle raw", "", fixed("-j NFQUEUE --queue-num 5", "-j NFQUEUE --queue-num 5 --queue-bypass", "-j NFQUEUE --queue-balance 5:6")},
	{"-j CT --notrack", 8, everywhere, "raw", "", fixed("-j CT --notrack", "-j NOTRACK")},
	{"-j CT", 1, everywhere, "raw", "", fixed("-j CT --zone 3", "-j CT --ctevents new", "-j CT --zone-orig 4")},
	{"-j TRACE", 1, everywhere, "raw", "", fixed("-j TRACE")},
	{"-j DNAT", 6, prerouting | output, "nat", "4", func(g *generator) string {
		return "-j DNAT --to-destination " + g.some("10.244.1.10", "10.244.2.10", "198.51.100.7", "192.168.100.10")
	}},
	{"-j DNAT", 6, prerouting | output, "nat", "6", func(g *generator) string {
		return "-j DNAT --to-destination " + g.some("fd00:10:244:1::10", "fd00:10:244:2::10", "fd00:192:168:100::10")
	}},
	{"-j REDIRECT", 2, prerouting | output, "nat", "", fixed("-j REDIRECT")},
	{"-j SNAT", 6, input | postrouting, "nat", "4", fixed("-j SNAT --to-source 192.168.100.10", "-j SNAT --to-source 10.244.1.1")},
	{"-j SNAT", 6, input | postrouting, "nat", "6", fixed("-j SNAT --to-source fd00:192:168:100::10", "-j SNAT --to-source fd00:10:244:1::1")},
	{"-j MASQUERADE", 8, postrouting, "nat", "", fixed("-j MASQUERADE", "-j MASQUERADE --random-fully")},
	{"-j NETMAP", 1, prerouting | output | postrouting, "nat", "4", fixed("-j NETMAP --to 10.244.9.0/24")},
	{"-j TTL", 1, everywhere, "mangle", "4", fixed("-j TTL --ttl-set 20", "-j TTL --ttl-dec 63", "-j TTL --ttl-inc 1")},
	{"-j HL", 1, everywhere, "mangle", "6", fixed("-j HL --hl-set 20", "-j HL --hl-dec 63", "-j HL --hl-inc 1")},
	{"-j DSCP", 2, everywhere, "mangle", "", fixed("-j DSCP --set-dscp 46", "-j TOS --set-tos 0x10")},
	{"-j CLASSIFY", 1, forward | output | postrouting, "mangle", "", fixed("-j CLASSIFY --set-class 1:1")},
	{"-j TCPMSS", 2, forward | output | postrouting, "mangle", "", fixed("-j TCPMSS --set-mss 1200", "-j TCPMSS --clamp-mss-to-pmtu")},
	{"-j TCPOPTSTRIP", 1, everywhere, "mangle", "", fixed("-j TCPOPTSTRIP --strip-options 8")},
	{"-j CHECKSUM", 1, everywhere, "mangle", "", fixed("-j CHECKSUM --checksum-fill")},
	{"-j HMARK", 1, everywhere, "mangle", "4", fixed("-j HMARK --hmark-tuple src,dst --hmark-mod 8 --hmark-offset 1 --hmark-rnd 5")},
	{"-j TPROXY", 1, prerouting, "mangle", "4", fixed("-j TPROXY --on-port 80 --tproxy-mark 0x1/0x1")},
	{"-j SYNPROXY", 1, input | forward, "filter", "", fixed("-j SYNPROXY --sack-perm --mss 1460")},
	{"-j AUDIT", 1, everywhere, "", "", fixed("-j AUDIT --type accept")},
}
