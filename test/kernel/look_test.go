// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"context"
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

// TestWhatTheSaveToolsCannotPrintIsNotTrusted: with iptables 1.8.9 the sets
// and ranges of the first table's rules are printed as rules that match
// everything, or something else.
func TestWhatTheSaveToolsCannotPrintIsNotTrusted(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:4])
	for name, c := range map[string]struct {
		rules  string
		want   flow.Answer
		reason string
	}{
		"a set in iptables' own table":      {"add rule ip filter FORWARD ip saddr { 10.99.0.1, 10.99.0.2 } drop", flow.Inconclusive, "lookup"},
		"a range of addresses":              {"add rule ip filter FORWARD ip saddr 10.244.2.5-10.244.2.20 drop", flow.Inconclusive, "relation"},
		"a relation":                        {"add rule ip filter FORWARD ip saddr > 10.99.0.1 drop", flow.Inconclusive, "relation"},
		"a header field":                    {"add rule ip filter FORWARD udp length 8 drop", flow.Inconclusive, "transport header field at 4"},
		"a field that stops the tool":       {"add rule ip filter FORWARD ip length 100 drop", flow.Inconclusive, "network header field at 2"},
		"a rewritten header":                {"add rule ip filter FORWARD ip daddr set 10.99.0.1", flow.Inconclusive, "payload written"},
		"two conditions on one field":       {"add rule ip filter FORWARD ip saddr 10.244.2.10 ip saddr 10.99.0.1 drop", flow.Inconclusive, "twice"},
		"a rule that makes it incompatible": {"add rule ip filter FORWARD ct state new drop", flow.Inconclusive, "(ct)"},
		"a rule that iptables could write":  {"add rule ip filter FORWARD ip saddr 10.244.2.10 counter drop", flow.Denied, "-s 10.244.2.10/32"},
		"a base chain in iptables' table":   {"add chain ip filter mine { type filter hook forward priority 10; policy drop; }", flow.Inconclusive, "filter/mine"},
		"a native table":                    {"add table ip mine\nadd chain ip mine c { type filter hook forward priority 0; policy drop; }", flow.Inconclusive, "mine/c"},
		"a native table of both families":   {"add table inet mine\nadd chain inet mine c { type filter hook prerouting priority 0; policy accept; }\nadd rule inet mine c drop", flow.Inconclusive, "mine/c"},
		"a native table that has no rules":  {"add table inet mine\nadd chain inet mine c { type filter hook forward priority 0; policy accept; }", flow.Allowed, ""},
		"a native table on another way":     {"add table ip mine\nadd chain ip mine c { type filter hook input priority 0; policy drop; }", flow.Allowed, ""},
		"a bridge table":                    {"add table bridge mine\nadd chain bridge mine c { type filter hook forward priority 0; policy drop; }", flow.Inconclusive, "bridge mine/c"},
		"a device's table":                  {"add table netdev mine\nadd chain netdev mine c { type filter hook ingress device eth0 priority 0; policy drop; }", flow.Inconclusive, "netdev mine/c"},
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
		runner := &countingRunner{}
		nf, err := kernel.New(kernel.Options{Runner: runner})
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
			runs              int
		}{
			{"nothing yet", "", "", 0, flow.Allowed, 0},
			{"an nft rule", "iptables-nft-restore", "*filter\n:FORWARD DROP\nCOMMIT\n", 1, flow.Denied, 1},
			{"unchanged", "", "", 1, flow.Denied, 0},
			{"the same again, which is a commit", "iptables-nft-restore", "*filter\n:FORWARD DROP\nCOMMIT\n", 2, flow.Denied, 1},
			{"opened", "iptables-nft-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -j ACCEPT\nCOMMIT\n", 3, flow.Allowed, 1},
			{"a legacy rule", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n", 4, flow.Denied, 0},
			{"the same legacy rule", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n", 4, flow.Denied, 0},
			{"one legacy port", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp --dport 81 -j DROP\nCOMMIT\n", 5, flow.Allowed, 0},
			{"another of the same length", "iptables-legacy-restore", "*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp --dport 80 -j DROP\nCOMMIT\n", 6, flow.Denied, 0},
		} {
			if step.tool != "" {
				if err := run(step.tool, step.input); err != nil {
					return fmt.Errorf("%s: %w", step.name, err)
				}
			}
			runner.runs = 0
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
			if runner.runs != step.runs {
				t.Errorf("%s: %d programs run, want %d", step.name, runner.runs, step.runs)
			}
		}
		return nil
	})
}

// countingRunner counts the programs that a look runs.
type countingRunner struct{ runs int }

func (c *countingRunner) Run(ctx context.Context, name string, args ...string) ([]byte, error) {
	c.runs++
	return exec.CommandContext(ctx, name, args...).Output()
}

func TestAToolThatFailsFailsTheLook(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:2])
	r.node.run(t, "*filter\n:FORWARD DROP\nCOMMIT\n", "iptables-nft-restore", "-w")
	for name, options := range map[string]kernel.Options{
		"no such program":   {IPTablesNFTSave: "/nonexistent/iptables-nft-save"},
		"a program failing": {IPTablesNFTSave: "false"},
		"a cut text":        {Runner: printing("*filter\n:FORWARD ACCEPT\n")},
		"another policy":    {Runner: printing("*filter\n:FORWARD ACCEPT\nCOMMIT\n")},
	} {
		t.Run(name, func(t *testing.T) {
			r.node.do(t, func() error {
				nf, err := kernel.New(options)
				if err != nil {
					return err
				}
				defer func() { _ = nf.Close() }()
				if look, err := nf.Look(t.Context()); err == nil {
					t.Errorf("the look is %v, want an error", look.Verdict(toPod))
				}
				return nil
			})
		})
	}
}

// printing is a program's output.
type printing string

func (p printing) Run(context.Context, string, ...string) ([]byte, error) { return []byte(p), nil }

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
