// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/policygate/policygate/api/flow"
)

// randomRounds is how many rulesets each variant tries: about a tenth of a
// second each.
const randomRounds = 40

// TestRandomRulesDoWhatTheVerdictsSay prints the seed of a failure; run it
// again with PG_SEED set to that number.
func TestRandomRulesDoWhatTheVerdictsSay(t *testing.T) {
	first, rounds := rand.Uint64(), uint64(randomRounds)
	if text := os.Getenv("PG_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, rounds = seed, 1
	}
	for name, backends := range map[string][]string{"nft": {"nft"}, "legacy": {"legacy"}, "both": {"nft", "legacy"}} {
		t.Run(name, func(t *testing.T) {
			pods := capturePods[:3]
			r := newRig(t, pods, captureRemote[:4])
			flows := randomFlows(r)
			r.settle(t, flows)
			definite := 0
			for seed := first; seed < first+rounds; seed++ {
				definite += r.tryRandom(t, seed, backends, flows)
				if t.Failed() {
					t.Fatalf("PG_SEED=%d", seed)
				}
			}
			t.Logf("seeds from %d: %d verdicts were definite", first, definite)
			if definite < len(flows) {
				t.Errorf("only %d verdicts were definite", definite)
			}
		})
	}
}

func randomFlows(r *rig) []flow.Flow {
	var flows []flow.Flow
	for src := range r.at {
		for dst := range r.at {
			if src.Is4() != dst.Is4() || r.at[src] == r.at[dst] {
				continue
			}
			flows = append(flows,
				flow.Flow{Protocol: flow.TCP, Src: src, Dst: dst, Port: 80},
				flow.Flow{Protocol: flow.TCP, Src: src, Dst: dst, Port: 81},
				flow.Flow{Protocol: flow.UDP, Src: src, Dst: dst, Port: 80})
		}
	}
	return flows
}

// tryRandom loads rules made from a seed and returns how many verdicts were
// definite.
func (r *rig) tryRandom(t *testing.T, seed uint64, backends []string, flows []flow.Flow) int {
	t.Helper()
	g := generator{rand.New(rand.NewPCG(seed, 0)), false, false}
	var loaded strings.Builder
	r.node.run(t, g.sets(), "ipset", "-exist", "restore")
	for _, backend := range backends {
		for _, v6 := range []bool{false, true} {
			g.v6 = v6
			tool := "iptables-"
			if v6 {
				tool = "ip6tables-"
			}
			rules := g.ruleset()
			r.node.run(t, rules, tool+backend+"-restore", "-w")
			fmt.Fprintf(&loaded, "# %s%s\n%s", tool, backend, rules)
		}
	}
	// Only a rule that nobody can foresee may leave a verdict open, and two
	// variants at once whose order is not known.
	allowed, denied := r.agree(t, flows, !g.unforeseeable && len(backends) == 1)
	if t.Failed() {
		t.Log(loaded.String())
	}
	return allowed + denied
}

// generator makes rules of what the model understands, and a little of what
// it does not.
type generator struct {
	*rand.Rand
	v6 bool
	// unforeseeable is set once such a match was written.
	unforeseeable bool
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *generator) not() string { return pick(g, "", "", "! ") }

// sets fills a few sets anew; they are used by rules of both families.
func (g *generator) sets() string {
	var b strings.Builder
	for _, family := range []string{"inet", "inet6"} {
		one := []string{"10.244.1.10", "10.244.1.20", "10.244.2.10", "192.168.100.10"}
		wide := []string{"10.244.0.0/16", "10.244.1.0/24"}
		if family == "inet6" {
			one = []string{"fd00:10:244:1::10", "fd00:10:244:2::10", "fd00:192:168:100::10"}
			wide = []string{"fd00:10:244::/48", "fd00:10:244:1::/64"}
		}
		addr := func() string { return pick(g, one...) }
		fmt.Fprintf(&b, "create ip-%s hash:ip family %s\nflush ip-%s\n", family, family, family)
		fmt.Fprintf(&b, "create net-%s hash:net family %s\nflush net-%s\n", family, family, family)
		fmt.Fprintf(&b, "create ipport-%s hash:ip,port family %s\nflush ipport-%s\n", family, family, family)
		fmt.Fprintf(&b, "create netif-%s hash:net,iface family %s\nflush netif-%s\n", family, family, family)
		fmt.Fprintf(&b, "create netport-%s hash:net,port family %s\nflush netport-%s\n", family, family, family)
		fmt.Fprintf(&b, "add ip-%s %s\nadd ip-%s %s\n", family, addr(), family, addr())
		fmt.Fprintf(&b, "add net-%s %s\nadd net-%s %s nomatch\n", family, wide[0], family, wide[1])
		fmt.Fprintf(&b, "add ipport-%s %s,tcp:80\nadd ipport-%s %s,udp:80\n", family, addr(), family, addr())
		fmt.Fprintf(&b, "add netif-%s %s,kube-bridge\n", family, wide[1])
		fmt.Fprintf(&b, "add netport-%s %s,tcp:80-81\nadd netport-%s %s,tcp:81 nomatch\n", family, wide[0], family, wide[1])
	}
	return b.String()
}

// ruleset returns rules for all tables that can decide about a packet.
func (g *generator) ruleset() string {
	var b strings.Builder
	b.WriteString("*raw\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\n")
	for range g.IntN(3) {
		fmt.Fprintf(&b, "-A %s %s -j %s\n", pick(g, "PREROUTING", "OUTPUT"), g.matches(true), pick(g, "CT --notrack", "ACCEPT", "MARK --set-mark 0x1/0x3"))
	}
	b.WriteString("COMMIT\n*mangle\n")
	for _, c := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
		fmt.Fprintf(&b, ":%s ACCEPT\n", c)
	}
	for range g.IntN(4) {
		fmt.Fprintf(&b, "-A %s %s -j %s\n", pick(g, "PREROUTING", "FORWARD", "OUTPUT", "POSTROUTING", "INPUT"), g.matches(true),
			pick(g, "MARK --or-mark 0x2", "MARK --set-xmark 0x4/0xc", "CONNMARK --save-mark", "CONNMARK --set-mark 0x1", "ACCEPT", "DROP"))
	}
	b.WriteString("COMMIT\n*filter\n")
	for _, c := range []string{"INPUT", "FORWARD", "OUTPUT"} {
		fmt.Fprintf(&b, ":%s %s\n", c, pick(g, "ACCEPT", "ACCEPT", "DROP"))
	}
	const chains = 4
	for i := range chains {
		fmt.Fprintf(&b, ":R%d -\n", i)
	}
	for _, c := range []string{"INPUT", "FORWARD", "FORWARD", "FORWARD", "OUTPUT"} {
		for range 1 + g.IntN(3) {
			fmt.Fprintf(&b, "-A %s %s%s\n", c, g.matches(false), g.target(0, chains))
		}
	}
	for i := range chains {
		for range g.IntN(5) {
			fmt.Fprintf(&b, "-A R%d %s%s\n", i, g.matches(false), g.target(i+1, chains))
		}
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

func (g *generator) target(from, to int) string {
	if from < to && g.IntN(3) == 0 {
		return fmt.Sprintf(" -%s R%d", pick(g, "j", "j", "g"), from+g.IntN(to-from))
	}
	return pick(g, "", " -j ACCEPT", " -j ACCEPT", " -j DROP", " -j REJECT", " -j RETURN", " -j RETURN",
		" -j MARK --set-xmark 0x1/0x1", " -j MARK --set-xmark 0x0/0x1", " -j MARK --set-mark 0x6", " -j MARK --and-mark 0x5", " -j MARK --xor-mark 0x3",
		" -j CONNMARK --save-mark --nfmask 0x3 --ctmask 0xf", " -j CONNMARK --restore-mark", " -j CONNMARK --set-xmark 0x2/0x3",
		" -j NFLOG --nflog-group 100")
}

// matches writes up to three conditions. Those of a hook that several hooks
// share, or that knows no output interface, are general.
func (g *generator) matches(general bool) string {
	var b strings.Builder
	for _, i := range g.Perm(14)[:g.IntN(4)] {
		if text := g.match(i, general); text != "" {
			b.WriteString(text + " ")
		}
	}
	return b.String()
}

func (g *generator) match(kind int, general bool) string {
	family := "inet"
	addr, cidr := "10.244.1.10", pick(g, "10.244.1.0/24", "10.244.0.0/16", "10.244.1.20/32", "10.244.2.10/255.255.0.255")
	from, to := "10.244.1.5", "10.244.1.15"
	if g.v6 {
		family = "inet6"
		addr, cidr = "fd00:10:244:1::10", pick(g, "fd00:10:244:1::/64", "fd00:10:244::/48", "fd00:10:244:2::10/128")
		from, to = "fd00:10:244:1::5", "fd00:10:244:1::15"
	}
	switch kind {
	case 0:
		return g.not() + "-s " + pick(g, addr, cidr)
	case 1:
		return g.not() + "-d " + pick(g, addr, cidr)
	case 2:
		return pick(g, "-p tcp", "-p udp", "! -p udp", "-p tcp --dport 80", "-p tcp ! --dport 80", "-p udp --dport 1:80", "-p tcp --syn",
			"-p tcp --sport 1024:65535", "-p tcp ! --syn", "-p tcp -m multiport --dports 79:80,443", "-p tcp -m multiport ! --ports 22,81", "-p tcp --tcp-flags SYN,ACK ACK")
	case 3:
		return "-m mark " + g.not() + "--mark " + pick(g, "0x1/0x1", "0x2/0x3", "0x0", "0x5")
	case 4:
		return "-m connmark " + g.not() + "--mark " + pick(g, "0x1/0x1", "0x0", "0x2/0x2")
	case 5:
		return "-m conntrack " + g.not() + "--ctstate " + pick(g, "NEW", "RELATED,ESTABLISHED", "INVALID", "UNTRACKED", "NEW,UNTRACKED", "DNAT")
	case 6:
		return "-m set " + g.not() + "--match-set " + pick(g, "ip", "net") + "-" + family + " " + pick(g, "src", "dst", "dst,dst")
	case 7:
		return "-m set " + g.not() + "--match-set " + pick(g, "ipport-"+family+" dst,dst", "ipport-"+family+" src,dst", "netport-"+family+" dst,dst", "netport-"+family+" src,dst,dst", "netport-"+family+" dst")
	case 8:
		if g.v6 {
			return "-m addrtype " + g.not() + pick(g, "--src-type LOCAL", "--dst-type LOCAL", "--dst-type UNICAST")
		}
		return "-m addrtype " + g.not() + pick(g, "--src-type LOCAL", "--dst-type LOCAL", "--dst-type UNICAST", "--dst-type BROADCAST,MULTICAST", "--src-type LOCAL,UNICAST")
	case 9:
		return "-m iprange " + g.not() + pick(g, "--src-range ", "--dst-range ") + from + "-" + to
	case 10:
		return "-m comment --comment " + pick(g, `"-j DROP"`, `"a \"b\" \\"`, "x")
	case 11:
		if general {
			return ""
		}
		return "-m physdev " + g.not() + "--physdev-is-bridged"
	case 12:
		if g.IntN(5) > 0 {
			return ""
		}
		g.unforeseeable = true
		return "-m statistic --mode random --probability 0.5"
	}
	return ""
}

func TestInterfacesAndBridgingAreSeenAsTheKernelSeesThem(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	flows := randomFlows(r)
	r.settle(t, flows)
	for _, rules := range []string{
		"-A FORWARD -i kube-bridge -j DROP", "-A FORWARD ! -i kube-bridge -j DROP", "-A FORWARD -o eth+ -j DROP", "-A FORWARD -i kube+ -o kube-bridge -j DROP",
		"-A FORWARD -m physdev --physdev-is-bridged -j DROP", "-A FORWARD -m physdev ! --physdev-is-bridged -j DROP",
		"-A INPUT -i eth0 -j DROP", "-A INPUT ! -i eth0 -j DROP", "-A OUTPUT -o kube-bridge -j DROP", "-A OUTPUT ! -o kube-bridge -j REJECT", "-A INPUT -i + -j DROP",
	} {
		for _, backend := range []string{"nft", "legacy"} {
			for _, family := range []string{"iptables-", "ip6tables-"} {
				r.node.run(t, "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n"+rules+"\nCOMMIT\n", family+backend+"-restore", "-w")
			}
			if _, denied := r.agree(t, flows, true); denied == 0 {
				t.Errorf("%s %s: nothing was denied", backend, rules)
			}
			if t.Failed() {
				t.Fatalf("%s %s", backend, rules)
			}
			r.clear(t, backend)
		}
	}
	// With the sysctl off nothing asks the rules about what is bridged.
	r.bridgeCalls(t, "0")
	r.node.run(t, "*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n", "iptables-nft-restore", "-w")
	if allowed, denied := r.agree(t, flows, true); allowed == 0 || denied == 0 {
		t.Errorf("bridge-nf off: %d allowed, %d denied: want both", allowed, denied)
	}
	// Unless the bridge itself wants it.
	r.node.run(t, "link set kube-bridge type bridge nf_call_iptables 1\n", "ip", "-batch", "-")
	r.agree(t, flows, true)
}

// clear empties the filter table.
func (r *rig) clear(t testing.TB, backend string) {
	t.Helper()
	for _, family := range []string{"iptables-", "ip6tables-"} {
		r.node.run(t, "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n", family+backend+"-restore", "-w")
	}
}

func TestSetsThatNeedTheInterface(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	flows := randomFlows(r)
	r.settle(t, flows)
	g := generator{rand.New(rand.NewPCG(1, 1)), false, false}
	r.node.run(t, g.sets(), "ipset", "-exist", "restore")
	r.node.run(t, "create all list:set\nadd all ip-inet\n", "ipset", "restore")
	for _, match := range []string{"netif-inet src,src", "netif-inet dst,dst", "all src"} {
		r.node.run(t, "*filter\n:FORWARD ACCEPT\n-A FORWARD -m set --match-set "+match+" -j DROP\nCOMMIT\n", "iptables-nft-restore", "-w")
		if _, denied := r.agree(t, flows, true); denied == 0 {
			t.Errorf("%s: nothing was denied", match)
		}
	}
}
