// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/kernel/nftables"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
)

// plainChain is a chain without pointers and without what is only for people.
type plainChain struct {
	Base  *ruleset.Base
	Rules []plainRule
}

type plainRule struct {
	Matches []string
	Kind    ruleset.TargetKind
	// To is the chain of a jump.
	To                  string
	Value, Mask, CTMask uint32
	Comment             string
}

// plain returns the chains by table and name, without base chains that do
// nothing: iptables-nft-save prints those that the kernel does not have.
func plain(tables []ruleset.Table) map[string]plainChain {
	chains := map[string]plainChain{}
	for _, table := range tables {
		for _, c := range table.Chains {
			rules, err := c.List()
			if err != nil {
				// Never what is wanted.
				chains[c.Name+": "+err.Error()] = plainChain{}
			}
			if c.Base != nil && !c.Base.Drop && len(rules) == 0 {
				continue
			}
			p := plainChain{Base: c.Base}
			for _, r := range rules {
				rule := plainRule{Matches: plainMatches(r.Matches), Kind: r.Target.Kind, Comment: r.Comment,
					Value: r.Target.Value, Mask: r.Target.Mask, CTMask: r.Target.CTMask}
				if r.Target.Chain != nil {
					rule.To = r.Target.Chain.Name
				}
				p.Rules = append(p.Rules, rule)
			}
			chains[fmt.Sprintf("%s %s %s %s", table.Backend, table.Family, table.Name, c.Name)] = p
		}
	}
	return chains
}

// plainMatches sorts them and leaves the wording of unknown ones away, of
// which one is as good as many.
func plainMatches(matches []ruleset.Match) []string {
	var all []string
	for _, m := range matches {
		switch unlike := m.(type) {
		case ruleset.Unknown:
			m = ruleset.Unknown{}
		case ruleset.Iface:
			if unlike.Name == "INVAL/D" {
				// How iptables-nft writes "! -i +", which it prints again.
				m = ruleset.Iface{Out: unlike.Out, Prefix: true, Not: true}
			}
		}
		all = append(all, fmt.Sprintf("%T%+v", m, m))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// text returns what the save tools of a backend print, parsed.
func (r *rig) text(t testing.TB, backend ruleset.Backend) []ruleset.Table {
	t.Helper()
	var tables []ruleset.Table
	r.node.do(t, func() error {
		for tool, family := range map[string]ruleset.Family{"iptables": ruleset.IPv4, "ip6tables": ruleset.IPv6} {
			out, err := exec.CommandContext(t.Context(), tool+"-"+backend.String()+"-save").Output()
			if err != nil {
				return fmt.Errorf("%s-%s-save: %w", tool, backend, err)
			}
			parsed, err := savetext.Parse(family, backend, string(out))
			if err != nil {
				return err
			}
			tables = append(tables, parsed...)
		}
		return nil
	})
	return tables
}

// same demands that the kernel's own rules are those that the tools print.
func (r *rig) same(t testing.TB, backend ruleset.Backend) {
	t.Helper()
	r.look(t, func(look *kernel.Look) error {
		var read []ruleset.Table
		for _, table := range look.Tables() {
			if table.Backend == backend {
				read = append(read, table)
			}
		}
		if diff := cmp.Diff(plain(r.text(t, backend)), plain(read)); diff != "" {
			t.Errorf("%s (-text +kernel):\n%s", backend, diff)
		}
		return nil
	})
}

// TestNetAdminIsEnough reads rules with sets as the agent's container does:
// root, but with one capability. iptables-save could not: for the name of a
// set it opens a raw socket.
func TestNetAdminIsEnough(t *testing.T) {
	r := newRig(t, capturePods, captureRemote)
	r.load(t, "iptables-nft", "nft")
	r.node.run(t, "create one-inet hash:ip\ncreate one-inet6 hash:ip family inet6\nadd one-inet 10.244.2.20\n", "ipset", "restore")
	for tool, family := range map[string]string{"iptables-": "inet", "ip6tables-": "inet6"} {
		r.node.run(t, "*filter\n:FORWARD ACCEPT\n-A FORWARD -m set --match-set one-"+family+" src -j DROP\nCOMMIT\n", tool+"legacy-restore", "-w")
	}
	flows := captureFlows(r)
	answers := func(limit bool) (tables map[string]plainChain, verdicts []string) {
		r.node.do(t, func() error {
			if limit {
				if err := onlyNetAdmin(); err != nil {
					return err
				}
			}
			nf, err := kernel.New(kernel.Options{})
			if err != nil {
				return err
			}
			defer func() { _ = nf.Close() }()
			look, err := nf.Look(t.Context())
			if err != nil {
				return err
			}
			for _, f := range flows {
				verdicts = append(verdicts, f.String()+": "+look.Verdict(f).String())
			}
			tables = plain(look.Tables())
			return nil
		})
		return tables, verdicts
	}
	tables, verdicts := answers(false)
	limitedTables, limitedVerdicts := answers(true)
	if diff := cmp.Diff(tables, limitedTables); diff != "" {
		t.Errorf("tables (-root +limited):\n%s", diff)
	}
	if diff := cmp.Diff(verdicts, limitedVerdicts); diff != "" {
		t.Errorf("verdicts (-root +limited):\n%s", diff)
	}
	sets := 0
	for _, chain := range limitedTables {
		for _, rule := range chain.Rules {
			if slices.ContainsFunc(rule.Matches, func(m string) bool { return strings.HasPrefix(m, "ruleset.Set{Name:") }) {
				sets++
			}
		}
	}
	if sets < 10 {
		t.Errorf("%d rules ask for a set: want those of the capture", sets)
	}
}

// onlyNetAdmin takes all other capabilities from the calling thread, which
// ends with its goroutine, and makes sure that they are gone.
func onlyNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	one := uint32(1 << unix.CAP_NET_ADMIN)
	data := [2]unix.CapUserData{{Effective: one, Permitted: one}}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if _, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW); !errors.Is(err, unix.EPERM) {
		return errors.New("a raw socket is not refused")
	}
	return nil
}

func TestTheKernelsNFTRulesAreWhatTheToolsPrint(t *testing.T) {
	for _, capture := range []string{"iptables-nft", "iptables-nft-defaultdeny", "iptables-legacy"} {
		t.Run(capture, func(t *testing.T) {
			r := newRig(t, capturePods[:1], captureRemote[:2])
			r.load(t, capture, "nft")
			r.same(t, ruleset.NFT)
		})
	}
	t.Run("what iptables-nft translates", func(t *testing.T) {
		r := newRig(t, capturePods[:1], captureRemote[:2])
		r.node.run(t, translated, "iptables-nft-restore", "-w")
		r.node.run(t, translated6, "ip6tables-nft-restore", "-w")
		r.same(t, ruleset.NFT)
	})
	t.Run("random", func(t *testing.T) {
		r := newRig(t, capturePods[:1], captureRemote[:2])
		first := rand.Uint64()
		for seed := first; seed < first+3*randomRounds; seed++ {
			g := generator{rand.New(rand.NewPCG(seed, 0)), false, false}
			r.node.run(t, g.sets(), "ipset", "-exist", "restore")
			r.node.run(t, g.ruleset(), "iptables-nft-restore", "-w")
			g.v6 = true
			r.node.run(t, g.ruleset(), "ip6tables-nft-restore", "-w")
			r.same(t, ruleset.NFT)
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
	})
}

// TestRulesOfNftDoWhatTheVerdictsSay has what iptables would never write.
func TestRulesOfNftDoWhatTheVerdictsSay(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	flows := randomFlows(r)
	r.settle(t, flows)
	for _, rules := range []string{
		"ip saddr 10.244.1.11-10.244.2.10 drop", "ip saddr != 10.244.1.11-10.244.2.10 drop", "ip daddr > 10.244.1.10 drop", "ip daddr >= 10.244.1.20 accept; drop",
		"ip saddr 10.244.1.10 ip daddr != 10.244.2.10 drop", "ip saddr & 255.0.0.255 == 10.0.0.10 drop", "ip saddr & 255.0.0.255 != 10.0.0.10 drop",
		"ip protocol tcp drop", "ip protocol != tcp drop", "meta l4proto udp drop", "th dport 80 drop", "tcp dport < 81 drop", "udp dport != 80-81 accept; tcp dport 81 drop",
		"tcp flags & (fin|syn|rst|ack) == syn drop", "tcp flags & ack == 0 drop", "tcp flags & (syn|ack) != syn accept; drop",
		"iifname kube-bridge drop", "iifname != kube-bridge drop", "oifname \"eth*\" drop", "oifname != \"kube*\" drop", "iifname eth0 oifname kube-bridge drop",
		"ct state new drop", "ct state established,related accept; ip saddr 10.244.1.0/24 drop", "ct state != new accept; tcp dport 80 reject", "ct state & (invalid|untracked) == 0 drop",
		"meta protocol ip tcp dport 81 drop", "ip frag-off & 0x1fff == 0 drop",
		"tcp dport 80 meta mark set 3; meta mark & 2 == 2 drop", "meta mark set 6; meta mark set mark and 0xfffffffc or 1; meta mark 5 drop", "meta mark set mark xor 0x10; meta mark != 0x10 accept; udp dport 80 drop",
		"tcp dport 80 ct mark set 7; ct mark 7 drop", "jump a; drop", "goto a", "ip saddr 10.244.1.10 jump { tcp dport 80 return; drop; }; udp dport 80 drop",
	} {
		input := "flush ruleset\ntable ip mine {\nchain a {\ntcp dport 80 accept\nip saddr 10.244.1.10 return\n}\n" +
			"chain c {\ntype filter hook forward priority -5; policy accept;\n" + strings.ReplaceAll(rules, "; ", "\n") + "\n}\n}\n"
		r.node.run(t, input, "nft", "-f", "-")
		if allowed, denied := r.agree(t, flows, true); allowed == 0 || denied == 0 && rules != "goto a" {
			t.Errorf("%d flows are allowed and %d denied: want some of both", allowed, denied)
		}
		if t.Failed() {
			t.Fatal(rules)
		}
	}
}

// TestALookIsOfOneCommit looks while two rulesets take turns.
func TestALookIsOfOneCommit(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	var inputs [2]string
	var whole [2]map[string]plainChain
	for i, policy := range []string{"ACCEPT", "DROP"} {
		inputs[i] = "*filter\n:FORWARD " + policy + "\n:A" + policy + " -\n" +
			strings.Repeat("-A A"+policy+" -s 10.0.0.1 -p tcp --dport 80 -j "+policy+"\n", 300) + "-A FORWARD -j A" + policy + "\nCOMMIT\n"
		r.node.run(t, inputs[i], "iptables-nft-restore", "-w")
		r.look(t, func(look *kernel.Look) error {
			whole[i] = plain(look.Tables())
			return nil
		})
	}
	var seen [2]int
	torn := 0
	r.node.do(t, func() error {
		conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		reader := nftables.New(conn)
		for i := range 60 {
			cmd := exec.CommandContext(t.Context(), "iptables-nft-restore", "-w")
			cmd.Stdin = strings.NewReader(inputs[i%2])
			if err := cmd.Start(); err != nil {
				return err
			}
			done := make(chan error, 1)
			go func() { done <- cmd.Wait() }()
			for committed := false; !committed; {
				select {
				case err := <-done:
					if err != nil {
						return err
					}
					committed = true
				default:
				}
				tables, _, err := reader.Read(t.Context())
				if err != nil {
					return err
				}
				got := plain(tables)
				switch holds, err := reader.Holds(t.Context()); {
				case err != nil:
					return err
				case !holds && !committed:
					torn++
				case holds && cmp.Equal(got, whole[i%2]):
					seen[i%2]++
				case !holds || committed || !cmp.Equal(got, whole[1-i%2]):
					return fmt.Errorf("holds: %t; not the one, nor before its commit the other (-one +look):\n%s", holds, cmp.Diff(whole[i%2], got))
				}
			}
		}
		return nil
	})
	t.Logf("%d looks were found not to hold", torn)
	if seen[0] < 30 || seen[1] < 30 {
		t.Errorf("seen %d and %d times: want at least once per commit", seen[0], seen[1])
	}
}

// translated has a rule for each way in which iptables-nft 1.8 writes a
// condition or a target.
const translated = `*nat
:PREROUTING ACCEPT
:POSTROUTING ACCEPT
-A POSTROUTING -s 10.244.1.0/24 -j MASQUERADE --random-fully
-A POSTROUTING -s 10.244.1.0/24 -j SNAT --to-source 1.2.3.4
-A PREROUTING -p tcp --dport 81 -j DNAT --to-destination 10.0.0.1:80
-A PREROUTING -p tcp --dport 82 -j REDIRECT --to-ports 99
COMMIT
*raw
:PREROUTING ACCEPT
-A PREROUTING -j CT --notrack
-A PREROUTING -j NOTRACK
-A PREROUTING -p tcp -j TRACE
COMMIT
*mangle
:POSTROUTING DROP
:FORWARD ACCEPT
-A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A FORWARD -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf0
-A FORWARD -j MARK --or-mark 0x4000
COMMIT
*security
:FORWARD DROP
-A FORWARD -s 10.244.1.0/24 -j ACCEPT
COMMIT
*filter
:FORWARD DROP
:X -
:Y -
-A FORWARD -i eth0 -o veth+ -j X
-A FORWARD ! -i eth0 ! -o veth+ -g X
-A FORWARD -i + ! -o + -j X
-A FORWARD -s 0.0.0.0/0 -i lo
-A FORWARD -s 128.0.0.0/1 ! -d 10.0.0.0/31
-A FORWARD -s 10.0.0.0/8 ! -d 10.244.1.20/30 -p tcp -m tcp --sport 5 --dport 80
-A FORWARD -s 10.0.0.0/24 ! -d 10.244.0.0/16 -p tcp -m tcp --sport 5 ! --dport 80
-A FORWARD -s 10.0.0.1 -d 10.244.1.20 -p tcp -m tcp --dport 1:80 -j REJECT
-A FORWARD -p tcp ! --dport 1:80 ! --sport 8 -j RETURN
-A FORWARD -p udp --dport 0 -j RETURN
-A FORWARD -p udp --sport 0:1023 --dport 1024: -j RETURN
-A FORWARD -p sctp --dport 9 -j RETURN
-A FORWARD ! -p udp -m mark --mark 5/7 -j MARK --set-xmark 1/2
-A FORWARD -m mark --mark 1 -m mark ! --mark 5 -j ACCEPT
-A FORWARD -p tcp --syn -j ACCEPT
-A FORWARD -p tcp --tcp-flags ALL NONE -j ACCEPT
-A FORWARD -p tcp ! --tcp-flags SYN,ACK ACK -j ACCEPT
-A FORWARD -f -j ACCEPT
-A FORWARD ! -f -m comment --comment "hello world" -j ACCEPT
-A FORWARD -m limit --limit 5/min -j NFLOG --nflog-group 100 --nflog-prefix x
-A FORWARD -j LOG --log-prefix y
-A FORWARD -m conntrack --ctstate NEW,RELATED -j ACCEPT
-A FORWARD -m ttl --ttl-eq 5 -m pkttype --pkt-type broadcast -j ACCEPT
-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A FORWARD -s 10.244.2.10/255.255.0.255 -p udp -m multiport --dports 1,2:3 -j ACCEPT
-A FORWARD -m iprange --src-range 10.0.0.1-10.0.0.9 -j ACCEPT
-A FORWARD -m statistic --mode nth --every 3 --packet 0 -m addrtype --dst-type LOCAL -j ACCEPT
-A X -j NFQUEUE --queue-num 1
-A X -g Y
COMMIT
`

const translated6 = `*security
:INPUT DROP
:OUTPUT ACCEPT
-A OUTPUT -s fd00::/7 -j DROP
COMMIT
*filter
:FORWARD DROP
:X -
-A FORWARD -s fd00:10:244:1::/64 ! -d fd00:10:244::1 -p tcp -m tcp --sport 5 --dport 80
-A FORWARD -s fd00::/7 ! -p icmpv6 -j REJECT
-A FORWARD -s fd00::/3 ! -d fd00:1::/127 -j X
-A FORWARD -p icmpv6 -m icmp6 --icmpv6-type 128 -m hl --hl-eq 5 -j REJECT
-A FORWARD -p udp -m udp --dport 53 -m mark ! --mark 0x10/0xf0 -j RETURN
COMMIT
`
