// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/xtables"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
	"github.com/policygate/policygate/api/flow"
)

// readable returns tables as text by chain, so that two readers can be
// compared. Raw is left out, and what nobody understands has no text.
func readable(tables []ruleset.Table) map[string]string {
	all := map[string]string{}
	for _, table := range tables {
		for _, c := range table.Chains {
			var b strings.Builder
			if c.Base != nil {
				fmt.Fprintf(&b, "%+v\n", *c.Base)
			}
			rules, err := c.List()
			if err != nil {
				fmt.Fprintf(&b, "unreadable: %v\n", err)
			}
			for _, r := range rules {
				matches := make([]string, 0, len(r.Matches))
				for _, m := range r.Matches {
					if _, ok := m.(ruleset.Unknown); ok {
						m = ruleset.Unknown{}
					}
					matches = append(matches, fmt.Sprintf("%T%+v", m, m))
				}
				target := r.Target
				to := ""
				if target.Chain != nil {
					to, target.Chain = target.Chain.Name, nil
				}
				fmt.Fprintf(&b, "%s | %+v to %q | %q\n", strings.Join(matches, " "), target, to, r.Comment)
			}
			all[fmt.Sprintf("%s %s %s/%s", table.Backend, table.Family, table.Name, c.Name)] = b.String()
		}
	}
	return all
}

// sameAsText compares what a look reads of the legacy tables with what
// iptables-save prints of them, and returns the tables.
func (r *rig) sameAsText(t testing.TB) []ruleset.Table {
	t.Helper()
	var printed, native []ruleset.Table
	var read map[string]string
	r.node.do(t, func() error {
		for family, tool := range map[ruleset.Family]string{ruleset.IPv4: "iptables-legacy-save", ruleset.IPv6: "ip6tables-legacy-save"} {
			out, err := exec.CommandContext(t.Context(), tool).Output()
			if err != nil {
				return err
			}
			tables, err := savetext.Parse(family, ruleset.Legacy, string(out))
			if err != nil {
				return err
			}
			printed = append(printed, tables...)
		}
		return nil
	})
	r.look(t, func(look *kernel.Look) error {
		native = slices.DeleteFunc(slices.Clone(look.Tables()), func(t ruleset.Table) bool { return t.Backend != ruleset.Legacy })
		read = readable(native)
		return nil
	})
	if diff := cmp.Diff(readable(printed), read); diff != "" {
		t.Errorf("(-text +native):\n%s", diff)
	}
	return native
}

func TestTheCapturedLegacyTablesReadAsTheirText(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:2])
	for _, capture := range []string{"iptables-legacy", "iptables-nft", "iptables-nft-defaultdeny"} {
		r.node.run(t, "", "iptables-legacy", "-F")
		r.node.run(t, "", "ip6tables-legacy", "-F")
		r.node.run(t, "", "ipset", "flush")
		text, err := os.ReadFile(filepath.Join("..", "..", "agent", "trace", "testdata", "kube-router-v2.11", capture, "ipset-save.txt"))
		if err != nil {
			t.Fatal(err)
		}
		r.node.run(t, string(text), "ipset", "-exist", "restore")
		for _, tool := range []string{"iptables", "ip6tables"} {
			text, err := os.ReadFile(filepath.Join("..", "..", "agent", "trace", "testdata", "kube-router-v2.11", capture, tool+"-save.txt"))
			if err != nil {
				t.Fatal(err)
			}
			r.node.run(t, string(text), tool+"-legacy-restore", "-w")
		}
		rules := 0
		for _, table := range r.sameAsText(t) {
			for _, c := range table.Chains {
				listed, err := c.List()
				if err != nil {
					t.Error(err)
				}
				rules += len(listed)
			}
		}
		if rules < 20 {
			t.Errorf("%s: only %d rules", capture, rules)
		}
	}
}

func TestRandomLegacyTablesReadAsTheirText(t *testing.T) {
	first, rounds := rand.Uint64(), uint64(randomRounds)
	if text := os.Getenv("PG_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		first, rounds = seed, 1
	}
	r := newRig(t, capturePods[:1], captureRemote[:2])
	for seed := first; seed < first+rounds; seed++ {
		g := generator{rand.New(rand.NewPCG(seed, 0)), false, false}
		r.node.run(t, g.sets(), "ipset", "-exist", "restore")
		r.node.run(t, g.ruleset(), "iptables-legacy-restore", "-w")
		g.v6 = true
		r.node.run(t, g.ruleset(), "ip6tables-legacy-restore", "-w")
		r.sameAsText(t)
		if t.Failed() {
			t.Fatalf("PG_SEED=%d", seed)
		}
	}
}

// extensionRules has rules of every extension that the decoders know, and of
// others. Two are left out that iptables-save 1.8.9 prints as rules without a
// condition: "! -i +" and "! --sport 0:65535".
var extensionRules = []string{
	"", "-m comment --comment \"a \\\"b\\\"\"", "-s 10.1.0.0/16 -d 10.2.3.4", "! -s 10.1.0.0/16", "-d 10.0.0.1/255.0.0.255", "! -s 0.0.0.0/0",
	"-i eth0", "! -i eth+", "-o +", "-i abcdefghijklmno -o abcdefghijklmn+", "-p 99", "! -p tcp", "-f", "! -f", "-p icmp", "-p icmp --icmp-type 8",
	"-p tcp -m tcp", "-p tcp --sport 1:2 ! --dport 3", "-p tcp --syn", "-p tcp ! --tcp-flags ALL SYN,ACK", "-p tcp --tcp-flags ALL NONE", "-p tcp --tcp-option 5", "-p tcp --dport 0:65535",
	"-p udp --sport 53", "-p udp ! --dport 1:1000", "-p sctp --dport 5 ! --sport 6:7", "-p sctp --chunk-types any DATA", "-p sctp -m sctp",
	"-p tcp -m multiport --dports 1,2:3,4", "-p tcp -m multiport ! --sports 5", "-p udp -m multiport --ports 1:15,2,3,4,5,6,7,8,9,10,11,12,13,14",
	"-m mark --mark 1", "-m mark ! --mark 0x10/0xf0", "-m connmark --mark 7/0xff",
	"-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED,SNAT,DNAT", "-m conntrack ! --ctstate NEW", "-m conntrack --ctstate NEW --ctdir ORIGINAL", "-m conntrack --ctorigsrc 10.0.0.1", "-m conntrack --ctproto tcp",
	"-m conntrack --ctdir REPLY", "-m conntrack ! --ctorigdst 10.1.0.0/16 ! --ctstate INVALID,UNTRACKED", "-m conntrack --ctstate INVALID --ctproto tcp", "-m conntrack --ctorigdstport 80:90 ! --ctorigsrcport 5", "-m conntrack --ctstatus NONE", "-m conntrack ! --ctstatus CONFIRMED --ctstate NEW", "-m conntrack --ctexpire 5",
	"-m state --state NEW,UNTRACKED", "-m state ! --state ESTABLISHED",
	"-m set --match-set four src", "-m set ! --match-set four dst", "-m set --match-set pair src,dst", "-m set --match-set pair dst,dst,src,dst,src,dst",
	"-m set --match-set four src --return-nomatch", "-m set --match-set four src ! --update-counters", "-m set --match-set four src ! --update-counters ! --update-subcounters", "-m set --match-set four src --packets-gt 5", "-m set --match-set four src --bytes-eq 5",
	"-m addrtype --src-type LOCAL", "-m addrtype ! --dst-type LOCAL,BROADCAST --src-type UNICAST", "-m addrtype --dst-type LOCAL --limit-iface-in", "-m addrtype --dst-type THROW",
	"-m iprange --src-range 10.0.0.1-10.0.0.9", "-m iprange ! --dst-range 10.0.0.1-10.0.0.9 --src-range 10.0.0.3",
	"-m physdev --physdev-is-bridged", "-m physdev ! --physdev-is-bridged", "-m physdev --physdev-in veth0", "-m physdev --physdev-is-bridged --physdev-in veth0", "-m physdev --physdev-is-in", "-m physdev ! --physdev-is-out", "-m physdev --physdev-in +", "-m physdev ! --physdev-in veth+", "-m physdev ! --physdev-out veth0 --physdev-is-bridged", "-m physdev ! --physdev-out veth0",
	"-m limit --limit 5/sec", "-m statistic --mode nth --every 3 --packet 0", "-m hashlimit --hashlimit-upto 5/sec --hashlimit-name x", "-m recent --name y --set", "-m pkttype --pkt-type broadcast", "-m length --length 1:5", "-m ttl --ttl-eq 5", "-m mac --mac-source 00:11:22:33:44:55", "-m tos --tos 0x10",
}

// extensionTargets has the same of targets, by the table that takes them.
var extensionTargets = map[string][]string{
	"filter": {"-j ACCEPT", "-j DROP", "-j RETURN", "-j REJECT", "-j REJECT --reject-with icmp-host-unreachable", "-p tcp -j REJECT --reject-with tcp-reset", "-j a", "-g a", "-g e", "-j b", "-j QUEUE",
		"-j LOG --log-prefix x", "-j NFLOG --nflog-group 5", "-j NFQUEUE --queue-num 1", "-j CONNMARK --set-mark 5", "-j CLASSIFY --set-class 1:2", "-j SET --add-set four src"},
	"mangle": {"-j MARK --set-mark 5", "-j MARK --set-xmark 0x5/0xff", "-j MARK --or-mark 1", "-j MARK --and-mark 1", "-j MARK --xor-mark 1", "-j CONNMARK --set-xmark 1/2", "-j CONNMARK --and-mark 3",
		"-j CONNMARK --save-mark", "-j CONNMARK --save-mark --nfmask 1 --ctmask 2", "-j CONNMARK --restore-mark --mask 0xf", "-j TOS --set-tos 0x10", "-j DSCP --set-dscp 1", "-j TTL --ttl-set 5",
		"-p tcp --syn -j TCPMSS --set-mss 1000", "-j CHECKSUM --checksum-fill"},
	"raw": {"-j CT --notrack", "-j NOTRACK", "-j CT --zone 5", "-j TRACE", "-j CT --ctevents new"},
	"nat": {"-j SNAT --to-source 10.0.0.1", "-j MASQUERADE", "-j MASQUERADE --random", "-j NETMAP --to 10.0.0.0/24"},
}

// asIPv6 turns a rule of the lists into one for IPv6.
func asIPv6(rule string) string {
	return strings.NewReplacer("10.1.0.0/16", "fd01::/16", "10.2.3.4", "fd02::4", "10.0.0.1/255.0.0.255", "fd00::1/ff00::ff", "0.0.0.0/0", "::/0",
		"10.0.0.1-10.0.0.9", "fd00::1-fd00::9", "10.0.0.0/24", "fd00::/64", "10.0.0.0/8", "fd00::/8", "10.0.0.", "fd00::",
		" ! -f", "", " -f", "", "-p icmp --icmp-type 8", "-p icmpv6 --icmpv6-type 128", "-p icmp", "-p icmpv6", "icmp-host", "icmp6-addr",
		"-m ttl --ttl", "-m hl --hl", "TTL --ttl", "HL --hl", "LOCAL,BROADCAST", "LOCAL", "THROW", "ANYCAST", "four", "six", "pair", "pairs").Replace(rule)
}

func TestEveryExtensionReadsAsItsText(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	r.node.run(t, "create four hash:ip counters\ncreate pair hash:ip,port\ncreate six hash:ip counters family inet6\ncreate pairs hash:ip,port family inet6\n", "ipset", "restore")
	chain := map[string]string{"filter": "FORWARD", "mangle": "PREROUTING", "raw": "PREROUTING", "nat": "POSTROUTING"}
	var b strings.Builder
	for _, table := range slices.Sorted(maps.Keys(extensionTargets)) {
		fmt.Fprintf(&b, "*%s\n:%s ACCEPT\n:a -\n:b -\n:e -\n", table, chain[table])
		for _, match := range extensionRules {
			if table == "filter" {
				fmt.Fprintf(&b, "-A FORWARD %s\n-A FORWARD %s -j a\n", match, match)
			}
		}
		for _, target := range extensionTargets[table] {
			fmt.Fprintf(&b, "-A %s %s\n-A %s -s 10.0.0.0/8 %s\n", chain[table], target, chain[table], target)
		}
		b.WriteString("-A a -g b\n-A b -j RETURN\n-A b\nCOMMIT\n")
	}
	b.WriteString("*security\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\nCOMMIT\n")
	more := "*nat\n-A PREROUTING -j DNAT --to-destination 10.0.0.1\n-A OUTPUT -p tcp -j REDIRECT --to-ports 80\n-A INPUT -j SNAT --to-source 10.0.0.1\nCOMMIT\n"
	r.node.run(t, b.String(), "iptables-legacy-restore", "-w")
	r.node.run(t, more, "iptables-legacy-restore", "-w", "--noflush")
	r.node.run(t, asIPv6(b.String()), "ip6tables-legacy-restore", "-w")
	r.node.run(t, asIPv6(more), "ip6tables-legacy-restore", "-w", "--noflush")
	if tables := r.sameAsText(t); len(tables) != 10 {
		t.Errorf("%d tables, want 5 of each family", len(tables))
	}
}

// TestALookNeedsNoMoreThanNetAdmin: what iptables-save needs CAP_NET_RAW for
// is a set's name.
func TestALookNeedsNoMoreThanNetAdmin(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:4])
	r.node.run(t, "create four hash:ip\nadd four "+toPod.Src.String()+"\ncreate six hash:ip family inet6\n", "ipset", "restore")
	for _, backend := range []string{"legacy", "nft"} {
		for tool, set := range map[string]string{"iptables-": "four", "ip6tables-": "six"} {
			r.node.run(t, "*filter\n:FORWARD ACCEPT\n-A FORWARD -m set --match-set "+set+" src -j DROP\nCOMMIT\n", tool+backend+"-restore", "-w")
		}
		r.node.do(t, func() error {
			// Of this thread only, which ends with the function.
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_ADMIN, Permitted: 1 << unix.CAP_NET_ADMIN}}
			if err := unix.Capset(&head, &data[0]); err != nil {
				return err
			}
			if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW); err == nil {
				return errors.Join(errors.New("the thread can open raw sockets"), unix.Close(fd))
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
			if v := look.Verdict(toPod); v.Answer != flow.Denied || !strings.Contains(v.Reason, "--match-set four src") || !strings.Contains(v.Reason, backend) {
				t.Errorf("%s: got %s, want the set's rule", backend, v)
			}
			return nil
		})
		r.clear(t, backend)
	}
}

// TestALookDuringRewritesIsOfOneRuleset flips between two tables of the same
// size, whose rules differ in their order and in the set that they ask.
func TestALookDuringRewritesIsOfOneRuleset(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	r.node.run(t, "create one hash:ip\ncreate two hash:ip\n", "ipset", "restore")
	var texts []string
	for _, set := range []string{"one", "two"} {
		var b strings.Builder
		b.WriteString("*filter\n:FORWARD ACCEPT\n:" + set + " -\n-A FORWARD -j " + set + "\n")
		for port := range 200 {
			fmt.Fprintf(&b, "-A %s -p tcp --dport %d -m set --match-set %s src -j DROP\n", set, port+len(texts), set)
		}
		texts = append(texts, b.String()+"COMMIT\n")
	}
	want := map[string]bool{}
	for _, text := range texts {
		r.node.run(t, text, "iptables-legacy-restore", "-w")
		want[fmt.Sprint(readable(r.sameAsText(t)))] = true
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 100 {
			r.node.run(t, texts[i%2], "iptables-legacy-restore", "-w")
		}
	}()
	seen, held, torn := map[string]int{}, 0, 0
	r.node.do(t, func() error {
		conn, err := nlconn.Dial(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		reader := xtables.New(conn, "/proc/thread-self/net")
		for {
			select {
			case <-done:
				return nil
			default:
			}
			tables, _, err := reader.Read(t.Context())
			if errors.Is(err, xtables.ErrUnsettled) {
				// It may give up, but not be wrong.
				continue
			}
			if err != nil {
				return err
			}
			read := fmt.Sprint(readable(tables))
			holds, err := reader.Holds(t.Context())
			if err != nil {
				return err
			}
			if !holds {
				torn++
				continue
			}
			held++
			seen[read]++
		}
	})
	t.Logf("%d looks held, %d did not", held, torn)
	for tables, times := range seen {
		if !want[tables] {
			t.Errorf("%d looks are of no ruleset that ever was: %.500s", times, tables)
		}
	}
	if len(seen) != 2 {
		t.Errorf("looks saw %d rulesets, want both", len(seen))
	}
}

// TestTrafficIsNoRewrite: counters, and what some matches remember, change
// under rules that stay.
func TestTrafficIsNoRewrite(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:4])
	flows := randomFlows(r)
	r.settle(t, flows)
	var b strings.Builder
	b.WriteString("*filter\n:FORWARD ACCEPT\n")
	for _, match := range []string{"-m limit --limit 5/sec", "-m statistic --mode nth --every 3 --packet 0", "-m statistic --mode random --probability 0.5", "-m quota --quota 10000",
		"-m hashlimit --hashlimit-upto 5/sec --hashlimit-name x", "-m recent --name y --set", "-m connlimit --connlimit-above 3 -m string --string x --algo bm"} {
		b.WriteString("-A FORWARD " + match + "\n")
	}
	r.node.run(t, b.String()+"COMMIT\n", "iptables-legacy-restore", "-w")
	r.node.do(t, func() error {
		nf, err := kernel.New(kernel.Options{})
		if err != nil {
			return err
		}
		defer func() { _ = nf.Close() }()
		for range 3 {
			look, err := nf.Look(t.Context())
			if err != nil {
				return err
			}
			if look.Rewrites() != 0 {
				t.Errorf("%d rewrites, want none", look.Rewrites())
			}
			if arrived := r.send(t, flows); len(arrived) == 0 {
				t.Error("nothing arrived")
			}
		}
		return nil
	})
}
