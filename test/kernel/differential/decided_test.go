// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"strings"
	"testing"

	"github.com/policygate/policygate/api/flow"
)

// decided are rules of which every flow's verdict has to be known: the engines'
// own, and those that people write beside them. "%" stands for the family's
// number, "@" for an address of a pod, "&" for a network of pods.
var decided = map[string]struct {
	// families is "46" if empty.
	families string
	rules    string
}{
	"addresses":                        {"", "filter FORWARD -s @ -j DROP; filter FORWARD ! -d & -j DROP"},
	"a mask that is no prefix":         {"4", "filter FORWARD -s 10.244.0.10/255.255.0.255 -j DROP"},
	"a range of addresses":             {"4", "filter FORWARD -m iprange ! --src-range 10.244.1.5-10.244.1.20 -j DROP"},
	"protocols":                        {"", "filter FORWARD -p tcp -j DROP; filter FORWARD ! -p udp -j DROP"},
	"a port":                           {"", "filter FORWARD -p tcp -m tcp --dport 80 -j DROP; filter FORWARD -p sctp -m sctp ! --dport 443 -j DROP"},
	"ports of a client":                {"", "filter FORWARD -p udp -m udp --sport 1024:65535 -j DROP"},
	"many ports":                       {"", "filter FORWARD -p tcp -m multiport --dports 80:81,443 -j DROP; filter FORWARD -p udp -m multiport ! --dports 53 -j DROP"},
	"the first packet of TCP":          {"", "filter FORWARD -p tcp -m tcp --syn -j DROP; filter INPUT -p tcp -m tcp ! --syn -j DROP"},
	"no echo request":                  {"4", "filter FORWARD -p icmp -m icmp --icmp-type 8 -j DROP; filter FORWARD -p tcp -j DROP"},
	"no echo request, IPv6":            {"6", "filter FORWARD -p icmpv6 -m icmp6 --icmpv6-type 128 -j DROP; filter FORWARD -p tcp -j DROP"},
	"an input interface":               {"", "filter FORWARD -i kube-bridge -j DROP; filter INPUT ! -i eth0 -j DROP; raw PREROUTING -i cali+ -j DROP"},
	"an output interface":              {"", "filter FORWARD -o cali+ -j DROP; filter OUTPUT -o eth0 -j DROP; mangle POSTROUTING ! -o kube-bridge -j DROP"},
	"what is bridged":                  {"", "filter FORWARD -m physdev --physdev-is-bridged -j DROP"},
	"what is not bridged":              {"", "filter FORWARD -m physdev ! --physdev-is-bridged -j DROP"},
	"a port of the bridge":             {"", "filter FORWARD -m physdev --physdev-in veth0 --physdev-is-bridged -j DROP; filter FORWARD -m physdev --physdev-out veth1 --physdev-is-bridged -j DROP"},
	"a local address":                  {"", "raw PREROUTING -m addrtype --dst-type LOCAL -j DROP; filter FORWARD -m addrtype --src-type UNICAST -p tcp -j DROP"},
	"a way back":                       {"", "raw PREROUTING -m rpfilter --invert -j DROP; filter FORWARD -p tcp -j DROP"},
	"a loose way back":                 {"", "mangle PREROUTING -m rpfilter --loose -p tcp -j DROP"},
	"a mark":                           {"", "raw PREROUTING -p tcp -j MARK --set-xmark 0x4/0xf; filter FORWARD -m mark --mark 0x4/0x4 -j DROP"},
	"a connection's mark":              {"", "mangle PREROUTING -s & -j CONNMARK --set-xmark 0x2/0x3; filter FORWARD -m connmark --mark 0x2/0x2 -j DROP"},
	"a mark saved and restored":        {"", "mangle PREROUTING -p udp -j MARK --set-mark 5; mangle PREROUTING -j CONNMARK --save-mark; mangle FORWARD -j MARK --set-mark 0; mangle FORWARD -j CONNMARK --restore-mark; filter FORWARD -m mark --mark 5 -j DROP"},
	"a new connection":                 {"", "filter FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; filter FORWARD -p tcp -m conntrack --ctstate NEW -j DROP"},
	"no connection":                    {"", "raw PREROUTING -p udp -j CT --notrack; filter FORWARD -m conntrack --ctstate UNTRACKED -j DROP"},
	"a connection's direction":         {"", "filter FORWARD -p tcp -m conntrack --ctdir ORIGINAL -j DROP"},
	"a connection's status":            {"", "filter FORWARD -p tcp -m conntrack ! --ctstatus CONFIRMED -j DROP; filter FORWARD -m conntrack --ctstatus ASSURED -j DROP"},
	"a set of addresses":               {"", "filter FORWARD -m set --match-set ip% src -j DROP"},
	"a set with timeouts":              {"", "filter FORWARD -m set ! --match-set iptimeout% dst -j DROP"},
	"a set of networks":                {"", "filter FORWARD -m set --match-set net% src -j DROP"},
	"a set of addresses and ports":     {"", "filter FORWARD -m set --match-set ipport% dst,dst -j DROP"},
	"a set of networks and ports":      {"", "filter FORWARD -m set --match-set netport% dst,dst -j DROP"},
	"a set of networks and interfaces": {"", "filter FORWARD -m set --match-set netiface% src,src -j DROP"},
	"a set of pairs and ports":         {"", "filter FORWARD -m set --match-set ipportip% src,dst,dst -j DROP"},
	"a set of addresses, port, net":    {"", "filter FORWARD -m set --match-set ipportnet% dst,dst,src -j DROP"},
	"a set of ports":                   {"4", "filter FORWARD -p tcp -m set --match-set bmport4 dst -j DROP"},
	"a bitmap of addresses":            {"4", "filter FORWARD -m set --match-set bmip4 src -j DROP"},
	"a set of sets":                    {"", "filter FORWARD -m set --match-set list% src -j DROP"},
	"a limit before a log":             {"", "filter FORWARD -m limit --limit 1/hour --limit-burst 3 -j NFLOG --nflog-group 100; filter FORWARD -p tcp -j DROP"},
	"chains":                           {"", "filter FORWARD -p tcp -j R0; filter R0 -p tcp -m tcp --dport 80 -j RETURN; filter R0 -s & -g R1; filter R0 -j DROP; filter R1 -d & -j DROP"},
	"a refusal":                        {"", "filter FORWARD -p tcp -j REJECT --reject-with tcp-reset; filter INPUT -p udp -j REJECT"},
	"a table for security":             {"", "security FORWARD -p tcp -j DROP; security INPUT -p udp -j DROP"},
	"a destination that is not ours":   {"4", "nat PREROUTING -d 10.96.0.1 -j DNAT --to-destination 10.244.1.10; filter FORWARD -p tcp -j DROP"},
	"a source of what leaves us":       {"4", "nat POSTROUTING -d 198.51.100.0/24 -j MASQUERADE; filter FORWARD -p tcp -j DROP"},
	"a hop limit that is high enough":  {"4", "mangle FORWARD -j TTL --ttl-set 20; filter FORWARD -p tcp -j DROP"},
}

// contents fill the sets that decided names.
const contents = `add ip4 10.244.1.10
add ip6 fd00:10:244:1::10
add iptimeout4 10.244.1.10 timeout 600
add iptimeout6 fd00:10:244:1::10 timeout 600
add net4 10.244.0.0/16
add net4 10.244.1.0/24 nomatch
add net6 fd00:10:244::/48
add net6 fd00:10:244:1::/64 nomatch
add ipport4 10.244.1.10,tcp:80
add ipport6 fd00:10:244:1::10,tcp:80
add netport4 10.244.0.0/16,tcp:80-81
add netport6 fd00:10:244::/48,tcp:80-81
add netiface4 10.244.0.0/16,kube-bridge
add netiface6 fd00:10:244::/48,kube-bridge
add ipportip4 10.244.2.10,tcp:53-443,10.244.1.10
add ipportip4 10.244.4.10,tcp:53-443,10.244.1.20
add ipportip4 10.244.1.20,tcp:53-443,10.244.2.20
add ipportip6 fd00:10:244:2::10,tcp:53-443,fd00:10:244:1::10
add ipportip6 fd00:10:244:4::10,tcp:53-443,fd00:10:244:1::20
add ipportip6 fd00:10:244:1::20,tcp:53-443,2001:db8::7
add ipportnet4 10.244.1.10,tcp:80,10.244.0.0/16
add ipportnet6 fd00:10:244:1::10,tcp:80,fd00:10:244::/48
add bmport4 80
add bmip4 10.244.1.10
add list4 ip4
add list4 net4
add list6 ip6
add list6 net6`

func TestWhatEnginesWriteIsDecided(t *testing.T) {
	onNode(t, func(n *Node) {
		sets := newGenerator(0, n.sets).fill()
		var fill []Line
		for _, l := range sets.Lines {
			if !l.Rule {
				fill = append(fill, l)
			}
		}
		for text := range strings.SplitSeq(contents, "\n") {
			fill = append(fill, Line{text, true})
		}
		for name, c := range decided {
			for _, backend := range []string{"legacy", "nft"} {
				r := &Ruleset{Calls4: true, Calls6: true, Loads: []Load{{"ipset", fill}}}
				for version := range strings.SplitSeq(c.families, "") {
					r.Loads = append(r.Loads, restore(backend, version, c.rules))
				}
				if c.families == "" {
					r.Loads = append(r.Loads, restore(backend, "4", c.rules), restore(backend, "6", c.rules))
				}
				n.decides(t, backend+": "+name, r)
			}
		}
	})
}

// restore returns rules, each written as its table, its chain and the rest, as
// iptables-restore reads them.
func restore(backend, version, rules string) Load {
	replace := strings.NewReplacer("%", version, "@", map[string]string{"4": "10.244.1.10", "6": "fd00:10:244:1::10"}[version], "&", map[string]string{"4": "10.244.1.0/24", "6": "fd00:10:244:1::/64"}[version])
	l := Load{Tool: map[string]string{"4": "iptables-", "6": "ip6tables-"}[version] + backend + "-restore"}
	for _, table := range xtablesTables {
		var here []Line
		for rule := range strings.SplitSeq(rules, "; ") {
			if name, rest, _ := strings.Cut(rule, " "); name == table.name {
				here = append(here, Line{"-A " + replace.Replace(rest), true})
			}
		}
		if len(here) == 0 {
			continue
		}
		l.Lines = append(l.Lines, Line{"*" + table.name, false})
		for h := prerouting; h <= postrouting; h <<= 1 {
			if table.hooks&h != 0 {
				l.Lines = append(l.Lines, Line{":" + builtin[h] + " ACCEPT", false})
			}
		}
		l.Lines = append(append(l.Lines, Line{":R0 -", false}, Line{":R1 -", false}), here...)
		l.Lines = append(l.Lines, Line{"COMMIT", false})
	}
	return l
}

// decides demands that all is known and right, and that the rules matter.
func (n *Node) decides(t *testing.T, name string, r *Ruleset) {
	t.Helper()
	rules := r.rules()
	outcomes, err := n.Try(t.Context(), r, newGenerator(1, n.sets).flows(n, 400))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if r.rules() != rules {
		t.Errorf("%s: %d rules were refused", name, rules-r.rules())
	}
	answers, shown := map[flow.Answer]int{}, 0
	for _, o := range outcomes {
		answers[o.Verdict.Answer]++
		if (o.Wrong != "" || o.Verdict.Answer == flow.Inconclusive) && shown < 3 {
			shown++
			t.Errorf("%s: %s: %s %s", name, o.Flow, o.Verdict, o.Wrong)
		}
	}
	if answers[flow.Allowed] == 0 || answers[flow.Denied] == 0 {
		t.Errorf("%s: %d allowed, %d denied: want some of both", name, answers[flow.Allowed], answers[flow.Denied])
	}
}

// decidedNative are nft's own rules in a chain of hook forward and priority 0
// of an inet table; "late" is one of postrouting, "early" one of prerouting,
// and u and v are two chains that only jumps reach.
var decidedNative = map[string]string{
	"addresses":                      "add rule inet t c ip saddr 10.244.1.10 drop; add rule inet t c ip6 daddr != fd00:10:244::/48 drop",
	"a range of addresses":           "add rule inet t c ip daddr 10.244.1.5-10.244.1.20 drop",
	"several addresses":              "add rule inet t c ip daddr { 10.244.1.10, 10.244.1.20 } drop",
	"several networks":               "add rule inet t c ip6 saddr != { fd00:10:244:1::/64, fd00:10:244:4::/64 } drop",
	"a port":                         "add rule inet t c tcp dport 80 drop; add rule inet t c udp dport != 53 drop",
	"ports":                          "add rule inet t c th dport { 80, 443, 3000-9000 } drop; add rule inet t c tcp dport > 400 drop",
	"protocols":                      "add rule inet t c meta l4proto { tcp, udp } drop",
	"a family":                       "add rule inet t c meta nfproto ipv6 drop",
	"interfaces":                     `add rule inet t c iifname "kube-bridge" drop; add rule inet t c oifname { "cali0", "eth1" } drop`,
	"interfaces by their beginning":  `add rule inet t c iifname "cali*" drop; add rule inet t late oifname "eth*" drop`,
	"interfaces by their number":     "add rule inet t c iif kube-bridge drop; add rule inet t c oif != eth0 drop",
	"a mark":                         "add rule inet t early tcp dport 80 meta mark set meta mark or 4; add rule inet t c meta mark and 4 == 4 drop",
	"a mark set and gone on":         "add rule inet t c meta mark set 5 tcp dport 80 drop; add rule inet t late meta mark != 5 drop",
	"a connection's mark":            "add rule inet t early tcp dport 80 ct mark set 2; add rule inet t c meta mark set ct mark; add rule inet t late meta mark 2 drop",
	"a state":                        "add rule inet t c ct state established,related accept; add rule inet t c meta l4proto tcp ct state new drop",
	"states in a map":                "add rule inet t c ct state vmap { established : accept, related : accept, invalid : drop }; add rule inet t c meta l4proto tcp drop",
	"a status":                       "add rule inet t c ct status dnat accept; add rule inet t c meta l4proto tcp drop",
	"a direction":                    "add rule inet t c meta l4proto tcp ct direction original drop",
	"no connection":                  "add rule inet t raw meta l4proto udp notrack; add rule inet t c ct state untracked drop",
	"a local address":                "add rule inet t early fib daddr type local meta l4proto tcp drop",
	"no way back":                    "add rule inet t early fib saddr . iif oif missing drop; add rule inet t c meta l4proto tcp drop",
	"flags":                          "add rule inet t c tcp flags & (fin|syn|rst|ack) == syn drop",
	"a set":                          "add set inet t s { type ipv4_addr; }; add element inet t s { 10.244.1.10, 10.244.2.10 }; add rule inet t c ip saddr @s drop",
	"a set with timeouts":            "add set inet t s { type ipv6_addr; timeout 1h; }; add element inet t s { fd00:10:244:1::10 }; add rule inet t c ip6 daddr @s drop",
	"a set of intervals":             "add set inet t s { type ipv4_addr; flags interval; }; add element inet t s { 10.244.1.0/24, 10.244.3.0-10.244.4.15 }; add rule inet t c ip saddr != @s drop",
	"a set of pairs":                 "add set inet t s { type ipv4_addr . inet_service; }; add element inet t s { 10.244.1.10 . 80, 10.244.1.20 . 443 }; add rule inet t c ip daddr . tcp dport @s drop",
	"a set of pairs of intervals":    "add set inet t s { type ipv4_addr . inet_service; flags interval; }; add element inet t s { 10.244.1.0/24 . 80-81 }; add rule inet t c ip daddr . th dport @s drop",
	"a set of interface and address": `add set inet t s { type ifname . ipv4_addr; }; add element inet t s { "kube-bridge" . 10.244.1.10 }; add rule inet t c iifname . ip saddr @s drop`,
	"a map of verdicts":              "add map inet t m { type ipv4_addr : verdict; }; add element inet t m { 10.244.1.10 : jump u, 10.244.2.10 : drop }; add rule inet t c ip daddr vmap @m; add rule inet t u tcp dport 80 drop",
	"a map for all others":           "add map inet t m { type ipv4_addr : verdict; }; add element inet t m { 10.244.1.10 : accept, 10.244.2.10 : return, * : drop }; add rule inet t c ip daddr vmap @m",
	"a map of intervals":             "add map inet t m { type ipv4_addr : verdict; flags interval; }; add element inet t m { 10.244.1.0/24 : goto u, 10.244.2.0-10.244.2.15 : drop }; add rule inet t c ip daddr vmap @m; add rule inet t u udp dport 80 drop",
	"a map of pairs":                 "add map inet t m { type inet_proto . inet_service : verdict; }; add element inet t m { tcp . 80 : drop, udp . 53 : jump u }; add rule inet t c meta l4proto . th dport vmap @m; add rule inet t u drop",
	"a map of pairs of intervals":    "add map inet t m { type ipv4_addr . inet_service : verdict; flags interval; }; add element inet t m { 10.244.1.0/24 . 80-443 : drop }; add rule inet t c ip daddr . th dport vmap @m",
	"a map of interfaces":            `add map inet t m { type ifname : verdict; }; add element inet t m { "eth0" : jump u, "cali0" : drop }; add rule inet t c iifname vmap @m; add rule inet t u tcp dport 80 drop`,
	"a map of marks":                 "add rule inet t early tcp dport 80 meta mark set 1; add rule inet t c meta mark vmap { 1 : drop, 2 : accept }",
	"chains":                         "add rule inet t c meta l4proto tcp jump u; add rule inet t u tcp dport 80 return; add rule inet t u goto v; add rule inet t v tcp dport 443 drop",
	"a limit before a log":           "add rule inet t c limit rate 1/hour log group 100; add rule inet t c meta l4proto tcp drop",
	"a refusal":                      "add rule inet t c meta l4proto tcp reject with tcp reset; add rule inet t c meta l4proto udp reject",
	"a destination that is not ours": "add rule inet t dest ip daddr 10.96.0.1 dnat ip to 10.244.1.10; add rule inet t c meta l4proto tcp drop",
	"a source of what leaves us":     "add rule inet t source ip daddr 198.51.100.0/24 masquerade; add rule inet t c meta l4proto tcp drop",
}

const nativeChains = `add table inet t
add chain inet t raw { type filter hook prerouting priority -300; policy accept; }
add chain inet t early { type filter hook prerouting priority -150; policy accept; }
add chain inet t dest { type nat hook prerouting priority -100; policy accept; }
add chain inet t c { type filter hook forward priority 0; policy accept; }
add chain inet t late { type filter hook postrouting priority 0; policy accept; }
add chain inet t source { type nat hook postrouting priority 100; policy accept; }
add chain inet t u
add chain inet t v`

func TestWhatEnginesWriteForNftIsDecided(t *testing.T) {
	onNode(t, func(n *Node) {
		for name, rules := range decidedNative {
			l := Load{Tool: "nft"}
			for text := range strings.SplitSeq(nativeChains, "\n") {
				l.Lines = append(l.Lines, Line{text, false})
			}
			for text := range strings.SplitSeq(rules, "; add ") {
				l.Lines = append(l.Lines, Line{"add " + strings.TrimPrefix(text, "add "), true})
			}
			n.decides(t, name, &Ruleset{Calls4: true, Calls6: true, Loads: []Load{l}})
		}
	})
}
