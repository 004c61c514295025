// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nftables"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// native loads a table of family inet with a chain at the forward hook, in
// place of all rules. "; " ends a line.
func (r *rig) native(t testing.TB, declarations, rules string) {
	t.Helper()
	r.node.run(t, "flush ruleset\ntable inet mine {\n"+lines(declarations)+
		"\nchain forward {\ntype filter hook forward priority 0; policy accept;\n"+lines(rules)+"\n}\n}\n", "nft", "-f", "-")
}

func lines(text string) string { return strings.ReplaceAll(text, "; ", "\n") }

// nativeSets are declarations and rules that refuse some flows of both
// families and let others pass.
var nativeSets = map[string][2]string{
	"addresses":                       {"set s { type ipv4_addr; elements = { 10.244.1.10, 10.244.2.10 }; }", "ip saddr @s drop"},
	"addresses, negated":              {"set s { type ipv6_addr; elements = { fd00:10:244:1::10, fd00:10:244:2::10 }; }", "ip6 saddr != @s drop"},
	"addresses without a name":        {"", "ip saddr { 10.244.1.10, 10.244.1.20 } drop; ip6 daddr != { fd00:10:244:1::10, fd00:10:244:2::10 } drop"},
	"networks":                        {"set s { type ipv4_addr; flags interval; elements = { 10.244.1.0/28, 10.244.1.20-10.244.2.10 }; }", "ip saddr @s drop"},
	"networks, negated":               {"set s { type ipv6_addr; flags interval; elements = { fd00:10:244:1::/64, 2001:db8::/32 }; }", "ip6 saddr != @s drop"},
	"networks without a name":         {"", "ip daddr { 10.244.1.0/28, 10.244.1.20, 192.168.0.0/16 } drop; ip6 daddr { ::/1, fd00:10:244:1::/64 } drop"},
	"adjacent networks":               {"set s { type ipv4_addr; flags interval; elements = { 10.244.1.10-10.244.1.19, 10.244.1.20-10.244.1.20 }; }", "ip saddr @s drop"},
	"up to the last address":          {"set s { type ipv4_addr; flags interval; elements = { 10.244.1.15-255.255.255.255 }; }", "ip saddr @s drop"},
	"from the first address":          {"set s { type ipv4_addr; flags interval; elements = { 0.0.0.0-10.244.1.15 }; }", "ip saddr @s drop"},
	"everything":                      {"set s { type ipv4_addr; flags interval; elements = { 0.0.0.0/0 }; }", "ip saddr @s drop"},
	"nothing":                         {"set s { type ipv4_addr; flags interval; }", "ip saddr @s drop; tcp dport 80 drop"},
	"ports":                           {"set s { type inet_service; elements = { 80, 443 }; }", "tcp dport @s drop"},
	"ranges of ports":                 {"set s { type inet_service; flags interval; elements = { 0-79, 81-90 }; }", "th dport @s drop"},
	"ports without a name":            {"", "tcp dport { 1-79, 81 } drop; udp dport != { 1-79, 81 } drop"},
	"protocols":                       {"", "meta l4proto { tcp, sctp } drop"},
	"protocols of ip":                 {"", "ip protocol { udp, sctp } drop; ip6 nexthdr != { udp } drop"},
	"a family":                        {"", "meta nfproto ipv6 drop"},
	"families":                        {"", "meta nfproto { ipv4 } th dport 80 drop; meta protocol ip6 th dport 81 drop"},
	"pairs":                           {"set s { type ipv4_addr . inet_service; elements = { 10.244.1.10 . 80, 10.244.2.10 . 81 }; }", "ip daddr . tcp dport @s drop"},
	"pairs, negated":                  {"set s { typeof ip6 saddr . meta l4proto . th dport; elements = { fd00:10:244:1::10 . tcp . 80, fd00:10:244:2::10 . udp . 80 }; }", "ip6 saddr . meta l4proto . th dport != @s drop"},
	"pairs of intervals":              {"set s { type ipv4_addr . inet_service; flags interval; elements = { 10.244.1.0/24 . 70-80, 10.244.2.10-10.244.2.30 . 81 }; }", "ip daddr . th dport @s drop"},
	"triples of intervals":            {"set s { type ipv6_addr . ipv6_addr . inet_service; flags interval; elements = { fd00:10:244:1::/64 . ::/0 . 80, fd00:10:244:2::10 . fd00:10:244:1::10-fd00:10:244:1::20 . 0-65535 }; }", "ip6 saddr . ip6 daddr . th dport @s drop"},
	"interfaces by name":              {"set s { type ifname; elements = { \"eth0\", \"veth9\" }; }", "iifname @s drop"},
	"interfaces by their beginning":   {"set s { type ifname; flags interval; elements = { \"kube*\", \"lo\" }; }", "iifname @s drop"},
	"interfaces by number":            {"", "iif eth0 th dport 80 drop; oif { lo, eth0 } th dport 81 drop"},
	"interfaces by number, negated":   {"", "iif != eth0 drop"},
	"an interface and an address":     {"set s { type ifname . ipv4_addr; elements = { \"eth0\" . 10.244.1.10, \"kube-bridge\" . 10.244.2.10 }; }", "iifname . ip daddr @s drop"},
	"a mark":                          {"set s { type mark; elements = { 5, 7 }; }", "tcp dport 80 meta mark set 5; udp dport 80 meta mark set 6; meta mark @s drop"},
	"marks in a range":                {"set s { type mark; flags interval; elements = { 0x100-0x1ff, 0x10001-0x1ffff }; }", "tcp dport 80 meta mark set 0x180; udp dport 80 meta mark set 0x8001; meta mark @s drop"},
	"a mark in a range":               {"", "tcp dport 80 meta mark set 0x180; udp dport 80 meta mark set 0x8001; meta mark 0x100-0x1ff drop"},
	"states":                          {"", "ct state { established, related } accept; ct state { new, untracked } tcp dport 80 drop"},
	"states in a map":                 {"", "tcp dport 80 ct state vmap { established : accept, new : drop }"},
	"statuses":                        {"", "ct status snat,dnat drop; ct status != dnat tcp dport 80 drop"},
	"the original direction":          {"", "ct direction reply drop; ct direction original ct original ip saddr 10.244.1.10 drop; meta l4proto tcp ct original proto-dst 81 drop; ct original ip6 daddr { fd00:10:244:1::10 } drop"},
	"the connection's protocol":       {"", "ct protocol tcp drop"},
	"a type of address":               {"", "fib daddr type local drop; fib saddr type { unicast } tcp dport 80 drop"},
	"half an address":                 {"", "@nh,96,16 0x0af4 th dport 80 drop"},
	"a range of bits":                 {"", "ip saddr & 0.0.0.255 >= 20 drop; ip6 saddr & ::ff < ::20 drop"},
	"a verdict per address":           {"map m { type ipv4_addr : verdict; elements = { 10.244.1.10 : drop, 10.244.1.20 : jump web, 10.244.2.10 : goto web }; }; chain web { tcp dport 80 drop; udp dport 80 return; }", "ip daddr vmap @m; th dport 81 drop"},
	"a verdict per network":           {"map m { type ipv6_addr : verdict; flags interval; elements = { fd00:10:244:1::/64 : jump web, fd00:10:244:2::10-fd00:10:244:2::20 : drop }; }; chain web { tcp dport 80 return; tcp dport 81 drop; }", "ip6 saddr vmap @m; ip6 daddr vmap { fd00:10:244:1::10 : accept, fd00:10:244:1::11-ffff:: : drop }"},
	"a verdict per port":              {"", "th dport vmap { 80 : drop, 81 : accept }; drop"},
	"a verdict per pair":              {"", "meta l4proto . th dport vmap { tcp . 80 : drop, udp . 80 : accept }; ip saddr . ip daddr vmap { 10.244.1.10 . 0.0.0.0/0 : drop }"},
	"a verdict that goes on":          {"", "tcp dport vmap { 80 : continue, 81 : return }; drop"},
	"a catch-all":                     {"set s { type ipv4_addr; elements = { 10.244.1.10, * }; }", "ip saddr @s tcp dport 80 drop"},
	"a catch-all in a map":            {"map m { type ipv4_addr : verdict; elements = { 10.244.1.10 : accept, * : jump web }; }; chain web { tcp dport 80 drop; }", "ip saddr vmap @m"},
	"a catch-all in a map of ranges":  {"map m { type inet_service : verdict; flags interval; elements = { 0-80 : accept, * : drop }; }", "th dport vmap @m"},
	"counters":                        {"set s { type ipv4_addr; counter; elements = { 10.244.1.10, 10.244.2.10 }; }", "ip saddr @s counter drop"},
	"timeouts":                        {"set s { type ipv4_addr; flags timeout; elements = { 10.244.1.10 timeout 1h, 10.244.2.10 timeout 1ms }; }", "ip saddr @s drop"},
	"timeouts of networks":            {"set s { type ipv4_addr; flags interval,timeout; elements = { 10.244.1.0/28 timeout 1h, 10.244.2.0/24 timeout 1ms }; }", "ip saddr @s drop"},
	"a map of marks":                  {"map m { type ipv4_addr : mark; elements = { 10.244.1.10 : 5 }; }", "ip saddr @m tcp dport 80 drop"},
	"a map of counters":               {"counter c { }; map m { type ipv4_addr : counter; elements = { 10.244.1.10 : \"c\" }; }", "counter name ip saddr map @m drop"},
	"a mark and a verdict in a rule":  {"", "tcp dport 80 meta mark set 5 ct mark set 6 accept; udp dport 80 meta mark set mark or 8 ip saddr 10.244.1.10 drop; meta mark 8 drop"},
	"a mark and a return":             {"chain a { tcp dport 80 meta mark set 5 return; drop; }", "jump a; meta mark 5 drop"},
	"a mark and a goto":               {"chain a { tcp dport 80 meta mark set 5 goto b; drop; }; chain b { ip saddr 10.244.1.10 drop; }", "jump a; meta mark 5 ct mark 0 drop"},
	"marks that are copied":           {"", "tcp dport 80 meta mark set 5; ct mark set mark; meta mark set 7; meta mark set ct mark; meta mark 5 drop"},
	"a chain without a name":          {"", "ip saddr { 10.244.1.10 } jump { tcp dport 80 drop; ip daddr { 10.244.2.10 } drop; }"},
	"a set that packets fill":         {"set seen { type ipv4_addr; flags dynamic; size 100; }", "tcp dport 80 drop; ip saddr @seen drop"},
	"a set that nobody looks into":    {"set seen { type ipv4_addr; flags dynamic; size 100; }", "update @seen { ip saddr }; tcp dport 80 drop"},
	"an element added and taken away": {"set s { type ipv4_addr; elements = { 10.244.1.10 }; }", "ip saddr @s drop; tcp dport 81 drop"},
}

func TestNativeSetsHoldWhatPacketsFind(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	flows := randomFlows(r)
	r.settle(t, flows)
	for name, c := range nativeSets {
		t.Run(name, func(t *testing.T) {
			r.native(t, c[0], c[1])
			// A first packet from everybody, so that what is dynamic is there.
			if allowed, denied := r.agree(t, flows, name != "a set that nobody looks into"); allowed == 0 || denied == 0 {
				t.Errorf("%d flows are allowed and %d denied: want some of both", allowed, denied)
			}
		})
	}
}

func TestASetIsInconclusiveWhereMoreThanItsElementsDecides(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:4])
	for name, c := range map[string]struct {
		declarations, rules string
		want                flow.Answer
		reason              string
	}{
		"an element with a limit":      {"set s { type ipv4_addr; limit rate 1/second; elements = { 10.244.2.10 }; }", "ip saddr @s drop", flow.Inconclusive, "@s"},
		"another's limit":              {"set s { type ipv4_addr; limit rate 1/second; elements = { 10.244.2.99 }; }", "ip saddr @s drop", flow.Allowed, ""},
		"a verdict with a limit":       {"map m { type ipv4_addr : verdict; limit rate 1/second; elements = { 10.244.2.10 : drop }; }", "ip saddr vmap @m", flow.Inconclusive, "m"},
		"a map of limits":              {"limit l { rate 1/second; }; map m { type ipv4_addr : limit; elements = { 10.244.2.10 : \"l\" }; }", "limit name ip saddr map @m drop", flow.Inconclusive, ""},
		"a map of limits for others":   {"limit l { rate 1/second; }; map m { type ipv4_addr : limit; elements = { 10.244.2.99 : \"l\" }; }", "limit name ip saddr map @m drop", flow.Allowed, ""},
		"a field that is not known":    {"set s { type ipv4_addr . inet_service; elements = { 10.244.2.10 . 40000 }; }", "ip saddr . th sport @s drop", flow.Inconclusive, ""},
		"another field decides":        {"set s { type ipv4_addr . inet_service; elements = { 10.244.2.99 . 40000 }; }", "ip saddr . th sport @s drop", flow.Inconclusive, ""},
		"a mark from a map":            {"map m { type ipv4_addr : mark; elements = { 10.244.2.10 : 5 }; }", "meta mark set ip saddr map @m; meta mark 5 drop", flow.Inconclusive, ""},
		"a mark from a map for others": {"map m { type ipv4_addr : mark; elements = { 10.244.2.99 : 5 }; }", "meta mark set ip saddr map @m; meta mark 5 drop", flow.Allowed, ""},
		"a set that the packet fills":  {"set s { type ipv4_addr; flags dynamic; size 9; }", "tcp dport 80 add @s { ip saddr }; ip saddr @s drop", flow.Inconclusive, "dynset of set s"},
		"a set that another fills":     {"set s { type ipv4_addr; flags dynamic; size 9; }", "tcp dport 99 add @s { ip saddr }; ip saddr @s drop", flow.Allowed, ""},
		"a set that only counts":       {"set s { type ipv4_addr; flags dynamic; size 9; }", "add @s { ip saddr counter }; tcp dport 80 drop", flow.Denied, ""},
		"a catch-all, negated":         {"set s { type ipv4_addr; elements = { 10.244.1.10, * }; }", "ip saddr != @s drop", flow.Inconclusive, ""},
		"a verdict that nobody has":    {"", "ip saddr vmap { 10.244.2.99 : drop }", flow.Allowed, ""},
		"an option's presence":         {"", "tcp option mptcp exists drop", flow.Inconclusive, "exthdr"},
		"a socket's owner":             {"", "meta skuid 0 drop", flow.Inconclusive, "meta key 10"},
		"a shifted mark":               {"", "meta mark set mark << 8; meta mark 0 drop", flow.Inconclusive, ""},
		"a random number":              {"", "numgen random mod 2 0 drop", flow.Inconclusive, "numgen"},
	} {
		t.Run(name, func(t *testing.T) {
			r.native(t, c.declarations, c.rules)
			r.expect(t, verdict{toPod, c.want, c.reason})
		})
	}
}

// TestRandomNativeSetsHoldWhatPacketsFind prints the seed of a failure; run it
// again with PG_SEED set to that number.
func TestRandomNativeSetsHoldWhatPacketsFind(t *testing.T) {
	first, rounds := rand.Uint64(), uint64(randomRounds)
	if text := os.Getenv("PG_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, rounds = seed, 1
	}
	r := newRig(t, capturePods[:2], captureRemote[:4])
	all := randomFlows(r)
	r.settle(t, all)
	allowed, denied := 0, 0
	for seed := first; seed < first+rounds; seed++ {
		g := &generator{rand.New(rand.NewPCG(seed, 1)), false, false}
		declarations, rules := g.nativeSet()
		r.native(t, declarations, rules)
		a, d := r.agree(t, g.ports(all), true)
		allowed, denied = allowed+a, denied+d
		if t.Failed() {
			t.Fatalf("PG_SEED=%d\n%s\n%s", seed, lines(declarations), lines(rules))
		}
	}
	t.Logf("seeds from %d: %d flows were allowed and %d denied", first, allowed, denied)
	if allowed == 0 || denied == 0 {
		t.Error("want some of both")
	}
}

// ports gives some of the flows other ports, which are those that the sets
// have and their neighbours.
func (g *generator) ports(flows []flow.Flow) []flow.Flow {
	flows = slices.Clone(flows)
	for i := range flows {
		flows[i].Port = uint16(1 + g.IntN(60))
	}
	slices.SortFunc(flows, func(a, b flow.Flow) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(flows)
}

// nativeSet makes a set or a map, and a rule that asks it.
func (g *generator) nativeSet() (declarations, rules string) {
	key, data := g.nativeKey()
	interval := g.IntN(3) > 0
	var elements []string
	seen := map[string]bool{}
	for range 1 + g.IntN(8) {
		var parts []string
		for _, k := range key {
			parts = append(parts, k.value(g, interval))
		}
		text := strings.Join(parts, " . ")
		if seen[text] {
			continue
		}
		seen[text] = true
		if data {
			text += " : " + pick(g, "drop", "accept", "continue", "jump a", "goto a", "return")
		}
		elements = append(elements, text)
	}
	// What a negated lookup does with it depends on the kernel.
	all := g.IntN(4) == 0
	if all {
		elements = append(elements, "*"+map[bool]string{true: " : " + pick(g, "drop", "jump a")}[data])
	}
	var types, expressions []string
	for _, k := range key {
		types, expressions = append(types, k.name), append(expressions, k.expression)
	}
	flags := []string{}
	if interval {
		flags = append(flags, "interval")
	}
	if g.IntN(4) == 0 {
		flags = append(flags, "timeout")
	}
	kind, verdict := "set", ""
	if data {
		kind, verdict = "map", " : verdict"
	}
	flagged := ""
	if len(flags) > 0 {
		flagged = "flags " + strings.Join(flags, ",") + "; "
	}
	declarations = fmt.Sprintf("chain a { th dport 1-30 drop; }; %s s { typeof %s%s; %selements = { %s }; }", kind, strings.Join(types, " . "), verdict, flagged, strings.Join(elements, ", "))
	expression := strings.Join(expressions, " . ")
	if data {
		return declarations, expression + " vmap @s; tcp dport 1-40 drop"
	}
	not := " "
	if !all {
		not = pick(g, " ", " != ")
	}
	return declarations, expression + not + "@s " + pick(g, "drop", "jump a", "goto a")
}

// nativeField is one field of a key, and values of it that do not overlap.
type nativeField struct {
	name, expression string
	points, ranges   []string
}

// value returns one of them. The kernel refuses keys that overlap.
func (f nativeField) value(g *generator, interval bool) string {
	if interval && len(f.ranges) > 0 {
		return pick(g, f.ranges...)
	}
	return pick(g, f.points...)
}

// nativeKey returns the fields of a key, and whether it is that of a map.
func (g *generator) nativeKey() ([]nativeField, bool) {
	port := nativeField{name: "th dport", expression: "th dport"}
	for from := 1; from < 60; {
		to := from + g.IntN(3)*g.IntN(8)
		port.points, port.ranges = append(port.points, strconv.Itoa(from)), append(port.ranges, fmt.Sprintf("%d-%d", from, to))
		from = to + 1 + g.IntN(2)
	}
	address := func(name string) nativeField {
		return nativeField{
			name, name, []string{"10.244.1.10", "10.244.1.20", "10.244.2.10", "192.168.100.10"},
			[]string{"0.0.0.0/5", "10.244.1.0-10.244.1.9", "10.244.1.10", "10.244.1.11-10.244.1.19", "10.244.1.20-10.244.1.255", "10.244.2.0/28", "10.244.2.16-255.255.255.255"},
		}
	}
	fields := []nativeField{
		port, address("ip saddr"), address("ip daddr"),
		{"meta l4proto", "meta l4proto", []string{"tcp", "udp", "sctp"}, nil},
		{"iifname", "iifname", []string{`"eth0"`, `"kube-bridge"`, `"lo"`}, nil},
	}
	g.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
	return fields[:1+g.IntN(3)], g.IntN(2) == 0
}

// TestAnElementIsNotMissedBehindABatch asks an interval set while batches put
// other elements into it, and batches that are given up again, which is how
// nft checks a ruleset. One key is always in the set and one never is.
func TestAnElementIsNotMissedBehindABatch(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	var lists [2][]string
	for i := range 2000 {
		for j, from := range []int{0, 20} {
			lists[j] = append(lists[j], fmt.Sprintf("10.%d.%d.%d-10.%d.%d.100", i/250, i%250, from, i/250, i%250))
		}
	}
	r.native(t, "set s { type ipv4_addr; flags interval; elements = { "+strings.Join(lists[1], ", ")+" }; }", "ip saddr @s drop")
	held, torn, missed := 0, 0, 0
	r.node.do(t, func() error {
		conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		reader := nftables.New(conn)
		for i := range 40 {
			cmd := exec.CommandContext(t.Context(), "nft", "-f", "-")
			if i%2 == 0 {
				cmd.Args = append(cmd.Args, "-c")
			}
			cmd.Stdin = strings.NewReader("flush set inet mine s\nadd element inet mine s { " + strings.Join(lists[i/2%2], ", ") + " }\n")
			if err := cmd.Start(); err != nil {
				return err
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			for running := true; running; {
				select {
				case err := <-done:
					if err != nil {
						return err
					}
					running = false
				default:
				}
				in, out, holds, err := askBoth(t, reader)
				switch {
				case err != nil:
					return err
				case !holds:
					torn++
				case !in || out:
					return fmt.Errorf("the key that is in the set was found: %t; the other: %t", in, out)
				default:
					held++
				}
				if !in {
					missed++
				}
			}
		}
		return nil
	})
	t.Logf("%d readings held, %d did not; the key was missed in %d", held, torn, missed)
	if held < 40 {
		t.Error("want at least a reading after each batch that holds")
	}
}

// askBoth asks the set of a new reading for the key that is always in it and for the
// one that never is.
func askBoth(t *testing.T, reader *nftables.Reader) (in, out, holds bool, err error) {
	t.Helper()
	tables, _, err := reader.Read(t.Context())
	if errors.Is(err, nftables.ErrUnsettled) {
		return false, false, false, nil
	}
	if err != nil {
		return false, false, false, err
	}
	set := lookedUp(t, tables)
	yes, err := set.Get([]byte{10, 3, 7, 50})
	no, err2 := set.Get([]byte{10, 3, 7, 150})
	holds, err3 := reader.Holds(t.Context())
	return yes.In, no.In, holds, errors.Join(err, err2, err3)
}

func TestAReadingHoldsUntilTheNextCommit(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	const declaration, rule = "set s { type ipv4_addr; flags interval; elements = { 10.0.0.0/24 }; }; chain a { drop; }", "ip saddr @s jump a"
	for name, change := range map[string]string{
		"an element more":     "add element inet mine s { 10.1.0.0/16 }",
		"a rule more":         "add rule inet mine a accept",
		"a policy":            "chain inet mine forward { policy drop; }",
		"another table":       "add table ip other",
		"a table that sleeps": "add table inet mine { flags dormant; }",
		"nothing left":        "flush ruleset",
	} {
		t.Run(name, func(t *testing.T) {
			r.native(t, declaration, rule)
			r.node.do(t, func() error {
				conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
				if err != nil {
					return err
				}
				defer func() { _ = conn.Close() }()
				reader := nftables.New(conn)
				in, out, holds, err := askBoth(t, reader)
				if err != nil || in || out || !holds {
					return fmt.Errorf("before: %t, %t, holds: %t, %w", in, out, holds, err)
				}
				tables, stamp, err := reader.Read(t.Context())
				if err != nil {
					return err
				}
				if _, again, err := reader.Read(t.Context()); err != nil || again != stamp {
					return fmt.Errorf("read again: %q and %q, %w", stamp, again, err)
				}
				cmd := exec.CommandContext(t.Context(), "nft", change)
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				for range 2 {
					if holds, err := reader.Holds(t.Context()); holds || err != nil {
						return fmt.Errorf("after the commit it holds: %t, %w", holds, err)
					}
				}
				_ = plain(tables)
				_, now, err := reader.Read(t.Context())
				if err != nil || now == stamp {
					return fmt.Errorf("read anew: %q, %w", now, err)
				}
				if holds, err := reader.Holds(t.Context()); !holds || err != nil {
					return fmt.Errorf("the new reading holds: %t, %w", holds, err)
				}
				return nil
			})
		})
	}
}

// TestConcatenationsAreTheSameListedAndAsked reads as on a kernel that cannot be
// asked for a key of a concatenation of intervals.
func TestConcatenationsAreTheSameListedAndAsked(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	seed := rand.Uint64()
	g := &generator{rand.New(rand.NewPCG(seed, 2)), false, false}
	part := func() (uint8, uint8) { a, b := uint8(g.IntN(16)), uint8(g.IntN(16)); return min(a, b), max(a, b) }
	var elements []string
	for i := range 60 {
		// Sources differ, so that no two overlap.
		from, to := part()
		elements = append(elements, fmt.Sprintf("10.0.%d.%d-10.0.%d.%d . %d-%d . %s", i, from, i, to, 16*from, 16*to+1, pick(g, "tcp", "udp")))
	}
	in := 0
	for _, declaration := range []string{"set s { type ipv4_addr . inet_service . inet_proto; flags interval; elements = { ", "set s { type ipv4_addr . inet_service . inet_proto; flags interval, timeout; timeout 1h; elements = { "} {
		r.native(t, declaration+strings.Join(elements, ", ")+" }; }", "ip saddr . th dport . meta l4proto @s drop")
		r.node.do(t, func() error {
			conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			var sets [2]*ruleset.NativeSet
			for i, release := range []string{"6.12.0", "5.15.0-91-generic"} {
				tables, _, err := nftables.NewFor(conn, release).Read(t.Context())
				if err != nil {
					return err
				}
				sets[i] = lookedUp(t, tables)
			}
			for range 1000 {
				key := []byte{10, 0, uint8(g.IntN(62)), uint8(g.IntN(16)), 0, uint8(g.IntN(256)), 0, 0, pick[uint8](g, 6, 17), 0, 0, 0}
				asked, err := sets[0].Get(key)
				listed, err2 := sets[1].Get(key)
				if err := errors.Join(err, err2); err != nil {
					return err
				}
				if asked.In != listed.In || asked.Unknown != listed.Unknown {
					t.Errorf("seed %d: %v: asked %+v, listed %+v", seed, key, asked, listed)
				}
				if asked.In {
					in++
				}
			}
			return nil
		})
	}
	if in < 20 {
		t.Errorf("seed %d: only %d keys are in the set", seed, in)
	}
}

// lookedUp returns the set that the only rule of the forward chain asks.
func lookedUp(t *testing.T, tables []ruleset.Table) *ruleset.NativeSet {
	t.Helper()
	for _, table := range tables {
		for _, c := range table.Chains {
			rules, err := c.List()
			if err != nil || c.Name != "forward" || table.Family != ruleset.IPv4 {
				continue
			}
			for _, m := range slices.Concat(rules[0].Matches) {
				if l, ok := m.(ruleset.Lookup); ok {
					return l.Set
				}
			}
		}
	}
	t.Fatal("no rule asks a set")
	return nil
}
