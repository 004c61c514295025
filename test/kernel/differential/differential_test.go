// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/test/kernel/rootless"
)

func TestMain(m *testing.M) { os.Exit(rootless.Root(m.Run)) }

// onNode calls a test with a node, on the node's thread.
func onNode(t *testing.T, test func(*Node)) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread is in another namespace and ends.
		runtime.LockOSThread()
		n, err := NewNode(t.Context(), 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		}()
		test(n)
	}()
	<-done
}

// fixed and random seeds are tried with so many packets each: together about
// a minute on two processors that do nothing else.
const (
	fixedSeed     = 1
	fixedPackets  = 60_000
	randomPackets = 30_000
)

// TestVerdictsAreWhatTheKernelDoes tries random rules. A failure's seed can be
// tried again: make fuzz-verdict N=1 SEED=...
func TestVerdictsAreWhatTheKernelDoes(t *testing.T) {
	seeds := map[string]struct {
		seed    uint64
		packets int
	}{
		"the same rules each time": {fixedSeed, fixedPackets},
		"new rules each time":      {uint64(rand.Uint32()), randomPackets},
	}
	if text := os.Getenv("SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("SEED=%s: want a number", text)
		}
		clear(seeds)
		seeds["rules of the environment's SEED"] = struct {
			seed    uint64
			packets int
		}{seed, 1}
	}
	for name, c := range seeds {
		t.Run(name, func(t *testing.T) {
			t.Logf("SEED=%d", c.seed)
			report, err := Run(t.Context(), Options{Packets: c.packets, Seed: c.seed, Failed: func(d Disagreement) { t.Error(d) }})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(report)
			if c.packets == fixedPackets {
				thorough(t, report)
			}
		})
	}
}

// thorough demands that a report is of rules that meant something, and of all
// constructs.
func thorough(t *testing.T, r Report) {
	t.Helper()
	if r.Allowed < r.Packets/5 || r.Denied < r.Packets/5 {
		t.Errorf("of %d packets %d were allowed and %d denied: want at least a fifth of both", r.Packets, r.Allowed, r.Denied)
	}
	if r.Refused > r.Rules/10 {
		t.Errorf("of %d rules %d were refused: want a tenth at most", r.Rules, r.Refused)
	}
	all := map[string]bool{}
	for _, of := range [][]construct{xtProtocols, xtMatches, xtTargets, nftMatches, nftStatements, nftEnds} {
		for _, c := range of {
			all[c.name] = true
		}
	}
	for _, s := range nftSets {
		all["nft set "+s.name] = true
	}
	for name := range all {
		if r.Constructs[name] == 0 {
			t.Errorf("nothing was tried with %s", name)
		}
	}
}

// TestWhatDoesNotAgreeIsFound: a comparison that missed these would prove
// nothing.
func TestWhatDoesNotAgreeIsFound(t *testing.T) {
	ip := netip.MustParseAddr
	pod, other, remote, far := ip("10.244.1.10"), ip("10.244.1.20"), ip("10.244.2.10"), ip("198.51.100.7")
	n := &Node{at: map[netip.Addr]place{pod: {host: &host{port: "veth0"}}, other: {host: &host{port: "veth1"}}, remote: {host: &host{port: "eth0"}, onward: true}, far: {host: &host{port: "eth0"}}}}
	for name, c := range map[string]struct {
		src, dst netip.Addr
		answer   flow.Answer
		fate     Fate
		wrong    bool
	}{
		"allowed and arrived":                   {pod, other, flow.Allowed, Fate{true, pod}, false},
		"allowed and lost":                      {pod, other, flow.Allowed, Fate{}, true},
		"denied and lost":                       {pod, other, flow.Denied, Fate{}, false},
		"denied and arrived":                    {pod, other, flow.Denied, Fate{true, pod}, true},
		"inconclusive and arrived":              {pod, other, flow.Inconclusive, Fate{true, pod}, false},
		"inconclusive and lost":                 {pod, other, flow.Inconclusive, Fate{}, false},
		"another source, judged by another":     {pod, remote, flow.Allowed, Fate{true, other}, true},
		"another source, judged by nobody":      {pod, far, flow.Allowed, Fate{true, other}, false},
		"another source, of who was never here": {remote, remote, flow.Allowed, Fate{true, other}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got := n.wrong(Outcome{Flow: flow.Flow{Protocol: flow.TCP, Src: c.src, Dst: c.dst, Port: 80}, Verdict: flow.Verdict{Answer: c.answer}, Fate: c.fate})
			if (got != "") != c.wrong {
				t.Errorf("got %q, want wrong %t", got, c.wrong)
			}
		})
	}
}

// TestShrinkKeepsWhatMatters has a rule that the verdict is told wrongly of.
func TestShrinkKeepsWhatMatters(t *testing.T) {
	onNode(t, func(n *Node) {
		l := Load{Tool: "iptables-legacy-restore", Lines: []Line{{"*filter", false}, {":FORWARD ACCEPT", false}}}
		for _, port := range []string{"1", "2", "3", "4", "5", "80", "6", "7"} {
			l.Lines = append(l.Lines, Line{"-A FORWARD -p tcp -m tcp --dport " + port + " -j DROP", true})
		}
		l.Lines = append(l.Lines, Line{"COMMIT", false})
		f := flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.244.2.10"), Dst: netip.MustParseAddr("10.244.1.10"), Port: 80}
		// What arrives nowhere cannot be what is said of it, however few
		// rules there are.
		got, o := shrink(&Ruleset{Loads: []Load{l}}, Outcome{Flow: f}, func(r *Ruleset) (Outcome, bool) {
			outcomes, err := n.Try(t.Context(), r, []flow.Flow{f})
			if err != nil {
				t.Error(err)
				return Outcome{}, false
			}
			return outcomes[0], !outcomes[0].Fate.Arrived
		})
		want := "# bridge-nf-call-iptables=false bridge-nf-call-ip6tables=false, the bridge's own=false\n# iptables-legacy-restore\n*filter\n:FORWARD ACCEPT\n-A FORWARD -p tcp -m tcp --dport 80 -j DROP\nCOMMIT\n"
		if diff := cmp.Diff(want, got.String()); diff != "" || o.Verdict.Answer != flow.Denied || o.Wrong != "" {
			t.Errorf("%+v (-want +got):\n%s", o, diff)
		}
	})
}
