// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
)

// A look asks only what may have changed, and finds whatever has.
func TestALookFindsWhateverHasChanged(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	open, closed := toPod, toPod
	open.Port, closed.Port = 80, 81
	questions := []kernel.Question{{Flow: open}, {Flow: closed}}
	type answer struct {
		answer flow.Answer
		traced bool
	}
	ipset := func(command string) func(*testing.T) {
		return func(t *testing.T) { r.node.run(t, command+"\n", "ipset", "restore") }
	}
	restore := func(tool, rules string) func(*testing.T) {
		return func(t *testing.T) {
			r.node.run(t, "*filter\n:FORWARD ACCEPT\n"+rules+"COMMIT\n", tool+"-restore", "-w")
		}
	}
	ip := func(command string) func(*testing.T) {
		return func(t *testing.T) { r.node.run(t, command+"\n", "ip", "-batch", "-") }
	}
	rules := "-A FORWARD -p tcp -m tcp --dport 80 -m set --match-set s src -j ACCEPT\n-A FORWARD -j DROP\n"
	yes, no := flow.Allowed, flow.Denied
	var nf *kernel.Netfilter
	r.node.do(t, func() (err error) {
		nf, err = kernel.New(kernel.Options{})
		return err
	})
	t.Cleanup(func() { _ = nf.Close() })
	for _, step := range []struct {
		name   string
		change func(*testing.T)
		want   [2]answer
	}{
		{"rules", func(t *testing.T) {
			ipset("create s hash:ip\nadd s 10.244.2.10")(t)
			restore("iptables-nft", rules)(t)
		}, [2]answer{{yes, true}, {no, true}}},
		{"nothing", func(*testing.T) {}, [2]answer{{yes, false}, {no, false}}},
		{"another element", ipset("add s 10.0.0.1"), [2]answer{{yes, false}, {no, false}}},
		{"the element goes", ipset("del s 10.244.2.10"), [2]answer{{no, true}, {no, false}}},
		{"still gone", func(*testing.T) {}, [2]answer{{no, false}, {no, false}}},
		{"a set with it is swapped in", ipset("create t hash:ip\nadd t 10.244.2.10\nswap s t"), [2]answer{{yes, true}, {no, false}}},
		{"a commit that changes nothing", restore("iptables-nft", rules), [2]answer{{yes, true}, {no, true}}},
		{"the rules of another family", func(t *testing.T) {
			r.node.run(t, "*filter\n:FORWARD DROP\nCOMMIT\n", "ip6tables-nft-restore", "-w")
		}, [2]answer{{yes, true}, {no, true}}},
		{"a legacy rule", restore("iptables-legacy", "-A FORWARD -j DROP\n"), [2]answer{{no, true}, {no, true}}},
		{"a legacy rule is changed in its place", restore("iptables-legacy", "-A FORWARD -j LOG\n"), [2]answer{{yes, true}, {no, true}}},
		{"a link that nobody uses", ip("link add other type bridge"), [2]answer{{yes, false}, {no, false}}},
		{"the route back is another", ip("route add 10.244.2.10/32 dev veth2"), [2]answer{{yes, true}, {no, true}}},
		{"no route", ip("route replace unreachable 10.244.2.10/32"), [2]answer{{flow.Inconclusive, false}, {flow.Inconclusive, false}}},
		{"the route returns", ip("route del unreachable 10.244.2.10/32"), [2]answer{{yes, true}, {no, true}}},
		// Now the default route is left.
		{"a link goes down", ip("link set kube-bridge down"), [2]answer{{yes, true}, {no, true}}},
		{"all rules are flushed", func(t *testing.T) {
			ip("link set kube-bridge up\naddr flush dev kube-bridge\naddr add " + bridgeGateway[0] + " dev kube-bridge")(t)
			r.node.run(t, "flush ruleset\n", "nft", "-f", "-")
		}, [2]answer{{yes, true}, {yes, true}}},
	} {
		step.change(t)
		r.node.do(t, func() error {
			look, err := nf.Look(t.Context())
			if err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			answers, err := look.Together(t.Context(), questions)
			if err != nil {
				return fmt.Errorf("%s: %w", step.name, err)
			}
			for i, want := range step.want {
				if got := (answer{answers[i].Verdict.Answer, answers[i].Traced}); got != want {
					t.Errorf("%s: port %d: got %v (%s), want %v", step.name, questions[i].Flow.Port, got, answers[i].Verdict, want)
				}
			}
			return nil
		})
	}
}

// A routing rule that selects by mark makes two ways possible. They have to
// agree.
func TestAMarkMayChooseTheRoute(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	r.node.run(t, "rule add fwmark 0x80/0x80 lookup 100\nroute add default via 10.244.1.20 dev kube-bridge table 100\n", "ip", "-batch", "-")
	f := fromPod
	f.Dst = netip.MustParseAddr("10.244.2.10")
	for rule, want := range map[string]flow.Answer{
		"-A FORWARD -o eth0 -j ACCEPT\n-A FORWARD -o kube-bridge -j ACCEPT\n-A FORWARD -j DROP\n": flow.Allowed,
		"-A FORWARD -o eth0 -j ACCEPT\n-A FORWARD -j DROP\n":                                      flow.Inconclusive,
		"-A FORWARD -j DROP\n": flow.Denied,
	} {
		r.node.run(t, "*filter\n:FORWARD ACCEPT\n"+rule+"COMMIT\n", "iptables-nft-restore", "-w")
		r.node.do(t, func() error {
			nf, err := kernel.New(kernel.Options{})
			if err != nil {
				return err
			}
			defer func() { _ = nf.Close() }()
			look, err := nf.Look(t.Context())
			if err != nil {
				return err
			}
			if got := look.Verdict(f); got.Answer != want {
				t.Errorf("%q: got %s, want %s", rule, got, want)
			}
			all, err := look.Explain(t.Context(), f)
			out := map[string]bool{}
			for _, e := range all {
				out[e.Path.Out] = true
			}
			if err == nil && (!out["eth0"] || !out["kube-bridge"]) {
				t.Errorf("explained for ways out %v, want both", out)
			}
			return err
		})
	}
}
