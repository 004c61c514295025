// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
)

var (
	toPod    = flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.244.2.10"), Dst: netip.MustParseAddr("10.244.1.10"), Port: 80}
	fromPod  = flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.244.1.10"), Dst: netip.MustParseAddr("10.244.2.10"), Port: 80}
	outbound = flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.244.1.10"), Dst: netip.MustParseAddr("198.51.100.7"), Port: 80}
)

// verdict is a flow's answer and a part of its reason.
type verdict struct {
	flow   flow.Flow
	want   flow.Answer
	reason string
}

func (r *rig) expect(t *testing.T, verdicts ...verdict) {
	t.Helper()
	r.look(t, func(look *kernel.Look) error {
		for _, v := range verdicts {
			if got := look.Verdict(v.flow); got.Answer != v.want || !strings.Contains(got.Reason, v.reason) {
				t.Errorf("%s: got %s, want %s (... %s ...)", v.flow, got, v.want, v.reason)
			}
		}
		return nil
	})
}

func TestRulesOfNftAreUnderstoodOrUnknown(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:4])
	for name, c := range map[string]struct {
		rules  string
		want   flow.Answer
		reason string
	}{
		"a set in iptables' own table":       {"add rule ip filter FORWARD ip saddr { 10.99.0.1, 10.99.0.2 } drop", flow.Allowed, ""},
		"a range of addresses":               {"add rule ip filter FORWARD ip saddr 10.244.2.5-10.244.2.20 drop", flow.Denied, "--src-range 10.244.2.5-"},
		"a range of others":                  {"add rule ip filter FORWARD ip saddr != 10.244.2.5-10.244.2.20 drop", flow.Allowed, ""},
		"a relation that holds":              {"add rule ip filter FORWARD ip saddr > 10.99.0.1 drop", flow.Denied, ""},
		"a relation that does not":           {"add rule ip filter FORWARD ip saddr <= 10.99.0.1 drop", flow.Allowed, ""},
		"a header field":                     {"add rule ip filter FORWARD udp length 8 drop", flow.Allowed, ""},
		"a header field of the protocol":     {"add rule ip filter FORWARD tcp sequence 8 drop", flow.Inconclusive, "transport header at 4"},
		"a field of every packet":            {"add rule ip filter FORWARD ip length 100 drop", flow.Inconclusive, "network header at 2"},
		"a rewritten header":                 {"add rule ip filter FORWARD ip daddr set 10.99.0.1", flow.Inconclusive, "payload written"},
		"two conditions on one field":        {"add rule ip filter FORWARD ip saddr 10.244.2.10 ip saddr 10.99.0.1 drop", flow.Allowed, ""},
		"a state that a new flow has":        {"add rule ip filter FORWARD ct state new drop", flow.Denied, "--ctstate NEW"},
		"a state among several":              {"add rule ip filter FORWARD ct state established,new drop", flow.Denied, "NEW"},
		"a state that it has not":            {"add rule ip filter FORWARD ct state established,related drop", flow.Allowed, ""},
		"states in a map":                    {"add rule ip filter FORWARD ct state vmap { new : drop }", flow.Denied, "vmap"},
		"a mark set and asked for":           {"add rule ip filter FORWARD meta mark set 5\nadd rule ip filter FORWARD meta mark and 4 == 4 drop", flow.Denied, "--mark 0x4/0x4"},
		"bits of a mark":                     {"add rule ip filter FORWARD meta mark set 5\nadd rule ip filter FORWARD meta mark set mark and 0xfffffffe or 2\nadd rule ip filter FORWARD meta mark 6 drop", flow.Denied, ""},
		"a mark that nobody knows":           {"add rule ip filter FORWARD meta mark set ct mark", flow.Allowed, ""},
		"a mark and a verdict at once":       {"add rule ip filter FORWARD meta mark set 5 accept", flow.Allowed, "ACCEPT"},
		"a condition after the mark":         {"add rule ip filter FORWARD meta mark set 5 ip saddr 10.99.0.1", flow.Allowed, ""},
		"a chain of its own":                 {"add rule ip filter FORWARD ip saddr 10.244.2.10 jump { tcp dport 80 drop; }", flow.Denied, "--dport 80"},
		"a chain of its own for others":      {"add rule ip filter FORWARD ip saddr 10.244.2.10 jump { tcp dport 81 drop; }", flow.Allowed, ""},
		"a refusal":                          {"add rule ip filter FORWARD tcp dport 70-90 reject", flow.Denied, "REJECT"},
		"a limit":                            {"add rule ip filter FORWARD limit rate 5/second drop", flow.Inconclusive, "limit"},
		"a limit in front of a log":          {"add rule ip filter FORWARD limit rate 5/second log", flow.Allowed, ""},
		"an interface by its number":         {"add rule ip filter FORWARD iif eth0 drop", flow.Denied, "DROP"},
		"an interface by its name":           {"add rule ip filter FORWARD iifname \"eth0\" drop", flow.Denied, "-i eth0"},
		"an interface by its beginning":      {"add rule ip filter FORWARD oifname \"kube*\" drop", flow.Denied, "-o kube+"},
		"a comment":                          {"add rule ip filter FORWARD ip saddr 10.244.2.10 drop comment \"mine\"", flow.Denied, "mine"},
		"a rule that iptables could write":   {"add rule ip filter FORWARD ip saddr 10.244.2.10 counter drop", flow.Denied, "-s 10.244.2.10/32"},
		"a base chain in iptables' table":    {"add chain ip filter mine { type filter hook forward priority 10; policy drop; }", flow.Denied, "filter/mine policy DROP"},
		"a native table":                     {"add table ip mine\nadd chain ip mine c { type filter hook forward priority 0; policy drop; }", flow.Denied, "mine/c policy DROP"},
		"a dormant table":                    {"add table ip mine { flags dormant; }\nadd chain ip mine c { type filter hook forward priority 0; policy drop; }", flow.Inconclusive, "dormant"},
		"a native table of the other":        {"add table ip6 mine\nadd chain ip6 mine c { type filter hook forward priority 0; policy drop; }", flow.Allowed, ""},
		"a native table of both families":    {"add table inet mine\nadd chain inet mine c { type filter hook prerouting priority 0; policy accept; }\nadd rule inet mine c drop", flow.Denied, "mine/c"},
		"a native table that has no rules":   {"add table inet mine\nadd chain inet mine c { type filter hook forward priority 0; policy accept; }", flow.Allowed, ""},
		"a native table on another way":      {"add table ip mine\nadd chain ip mine c { type filter hook input priority 0; policy drop; }", flow.Allowed, ""},
		"a native table that takes it along": {"add table ip mine\nadd chain ip mine c { type nat hook prerouting priority -100; policy accept; }\nadd rule ip mine c tcp dport 80 dnat to 10.99.0.1", flow.Inconclusive, "DestinationRewritten"},
		"a bridge table":                     {"add table bridge mine\nadd chain bridge mine c { type filter hook forward priority 0; policy drop; }", flow.Inconclusive, "bridge mine/c"},
		"a device's table":                   {"add table netdev mine\nadd chain netdev mine c { type filter hook ingress device eth0 priority 0; policy drop; }", flow.Inconclusive, "netdev mine/c"},
	} {
		t.Run(name, func(t *testing.T) {
			r.node.run(t, "flush ruleset\n", "nft", "-f", "-")
			r.node.run(t, "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\n-A FORWARD -s 10.99.0.9/32 -j DROP\nCOMMIT\n", "iptables-nft-restore", "-w")
			r.node.run(t, c.rules+"\n", "nft", "-f", "-")
			r.expect(t, verdict{toPod, c.want, c.reason})
		})
	}
}

func TestARewrittenAddressIsInconclusiveWhereItMatters(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:4])
	r.at[outbound.Dst] = r.all[1]
	for _, backend := range []string{"nft", "legacy"} {
		r.node.run(t, "*nat\n:POSTROUTING ACCEPT\n:PREROUTING ACCEPT\n-A POSTROUTING -s 10.244.1.0/24 -j MASQUERADE --random-fully\n"+
			"-A PREROUTING -p tcp -m addrtype --dst-type LOCAL -m tcp --dport 80 -j DNAT --to-destination 10.244.1.10:80\nCOMMIT\n", "iptables-"+backend+"-restore", "-w")
		toNode := toPod
		toNode.Dst = netip.MustParseAddr("192.168.100.10")
		samePlace := toPod
		samePlace.Src = netip.MustParseAddr("10.244.1.20")
		r.expect(t,
			verdict{fromPod, flow.Inconclusive, "SourceRewritten"},
			// Nobody judges by the source what leaves the cluster.
			verdict{outbound, flow.Allowed, ""},
			verdict{toPod, flow.Allowed, ""},
			verdict{samePlace, flow.Allowed, ""},
			verdict{toNode, flow.Inconclusive, "DestinationRewritten"},
		)
		r.node.run(t, "*nat\n:POSTROUTING ACCEPT\n:PREROUTING ACCEPT\nCOMMIT\n", "iptables-"+backend+"-restore", "-w")
	}
}

func TestLookingChangesNothing(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:2])
	r.node.run(t, "*filter\n:FORWARD DROP\nCOMMIT\n", "iptables-legacy-restore", "-w")
	names := func() (got string) {
		r.node.do(t, func() error {
			for _, file := range []string{"ip_tables_names", "ip6_tables_names"} {
				text, err := os.ReadFile("/proc/thread-self/net/" + file)
				if err != nil && !os.IsNotExist(err) {
					return err
				}
				got += string(text) + ";"
			}
			out, err := exec.CommandContext(t.Context(), "nft", "list", "ruleset").Output()
			got += string(out)
			return err
		})
		return got
	}
	before := names()
	if before != "filter\n;;" {
		t.Fatalf("the rig begins with tables %q", before)
	}
	r.expect(t, verdict{toPod, flow.Denied, "legacy ip filter/FORWARD policy DROP"})
	if after := names(); after != before {
		t.Errorf("tables %q became %q", before, after)
	}
}

func TestRewritesCountsWhatChanged(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:2])
	r.node.do(t, func() error {
		nf, err := kernel.New(kernel.Options{})
		if err != nil {
			return err
		}
		defer func() { _ = nf.Close() }()
		run := func(name, input string) error {
			cmd := exec.CommandContext(t.Context(), name, "-w")
			cmd.Stdin = strings.NewReader(input)
			return cmd.Run()
		}
		for _, step := range []struct {
			name, tool, input string
			rewrites          uint64
			answer            flow.Answer
		}{
			{"nothing yet", "", "", 0, flow.Allowed},
			{"an nft rule", "iptables-nft-restore", "*filter\n:FORWARD DROP\nCOMMIT\n", 1, flow.Denied},
			{"unchanged", "", "", 1, flow.Denied},
			{"the same again, which is a commit", "iptables-nft-restore", "*filter\n:FORWARD DROP\nCOMMIT\n", 2, flow.Denied},
			{"opened", "iptables-nft-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -j ACCEPT\nCOMMIT\n", 3, flow.Allowed},
			{"a legacy rule", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n", 4, flow.Denied},
			{"the same legacy rule", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n", 4, flow.Denied},
			{"one legacy port", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp --dport 81 -j DROP\nCOMMIT\n", 5, flow.Allowed},
			{"another of the same length", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n", 6, flow.Denied},
		} {
			if step.tool != "" {
				if err := run(step.tool, step.input); err != nil {
					return fmt.Errorf("%s: %w", step.name, err)
				}
			}
			look, err := nf.Look(t.Context())
			if err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			if got := look.Rewrites(); got != step.rewrites {
				t.Errorf("%s: %d rewrites, want %d", step.name, got, step.rewrites)
			}
			if got := look.Verdict(toPod); got.Answer != step.answer {
				t.Errorf("%s: got %s, want %s", step.name, got, step.answer)
			}
		}
		return nil
	})
}

func TestADataplaneThatCannotBeSeenIsNamed(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:2])
	ask := func() (got string) {
		r.node.do(t, func() error {
			nf, err := kernel.New(kernel.Options{})
			if err != nil {
				return err
			}
			defer func() { _ = nf.Close() }()
			got = nf.Unsupported(t.Context())
			return nil
		})
		return got
	}
	if got := ask(); got != "" {
		t.Errorf("plain node: got %q, want nothing", got)
	}
	r.node.run(t, "qdisc add dev veth0 clsact\n", "tc", "-batch", "-")
	if got := ask(); got != "" {
		t.Errorf("an empty classifier: got %q, want nothing", got)
	}
	r.node.run(t, "link add cilium_host type veth peer name cilium_net\n", "ip", "-batch", "-")
	if got := ask(); !strings.Contains(got, "Cilium") {
		t.Errorf("Cilium's interface: got %q", got)
	}
}

func TestTheBootIDIsTheKernels(t *testing.T) {
	got, err := kernel.BootID()
	if err != nil || len(got) != 36 {
		t.Errorf("got %q, %v: want a UUID", got, err)
	}
}
