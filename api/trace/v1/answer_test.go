// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package tracev1

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/flow"
)

var update = flag.Bool("update", false, "write the golden files anew")

func flowTo(dst string) flow.Flow {
	f := flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr(dst), Port: 3306}
	if f.Dst.Is6() {
		f.Src = netip.MustParseAddr("fd00::1")
	}
	return f
}

// steps is a walk through a chain that another one jumps to.
func steps(last Step) []Step {
	const base = "nft ip filter/FORWARD"
	return []Step{
		{Hook: "forward", Base: base, Chain: "FORWARD", Rule: "-A FORWARD -j KUBE-ROUTER-FORWARD", Effect: "jumps to KUBE-ROUTER-FORWARD"},
		{Hook: "forward", Base: base, Chain: "KUBE-ROUTER-FORWARD", Depth: 1, Rule: "-d 10.0.1.2/32 -j KUBE-POD-FW-X", Effect: "jumps to KUBE-POD-FW-X"},
		last,
	}
}

func accepted() Hop {
	return Hop{
		Way: "forwarded", In: "veth1", Out: "eth0", Routed: true, Verdict: Allowed, Reason: "nft ip filter/FORWARD: -j ACCEPT",
		Steps: steps(Step{
			Hook: "forward", Base: "nft ip filter/FORWARD", Chain: "KUBE-POD-FW-X", Depth: 2,
			Rule: "-m set --match-set KUBE-SRC-Y src -j ACCEPT", Effect: "accepts",
		}),
	}
}

func TestTextAndJSON(t *testing.T) {
	denied := accepted()
	denied.In, denied.Out, denied.Verdict = "eth0", "veth2", Denied
	denied.Reason = "nft ip filter/FORWARD policy DROP"
	denied.Steps = append(denied.Steps[:2:2], Step{Hook: "forward", Base: "nft ip filter/FORWARD", Chain: "FORWARD", Effect: "policy drops"})
	near := func(verdict Verdict) []NearMiss {
		return []NearMiss{
			{Hook: "forward", Base: "nft ip filter/FORWARD", Chain: "KUBE-NWPLCY-Z", Rule: "-m set --match-set KUBE-SRC-Z src -p tcp --dport 3306 -j MARK", Set: "KUBE-SRC-Z", Element: "10.0.0.1", Effect: "sets mark 0x10000/0x10000", Verdict: verdict},
			{Hook: "forward", Base: "nft ip filter/FORWARD", Chain: "FORWARD", Rule: "-m set ! --match-set local dst -j REJECT", Matched: true, Set: "local", Element: "10.0.1.2", Effect: "rejects", Verdict: verdict},
			{Hook: "forward", Base: "nft ip filter/FORWARD", Chain: "FORWARD", Rule: "-m set ! --match-set blocked src,dst -j ACCEPT", Set: "blocked", Held: true, Element: "10.0.0.1,tcp:3306", Effect: "accepts", Verdict: verdict},
		}
	}
	nearly, notNearly, nearlyDenied := denied, denied, accepted()
	nearly.NearMisses, notNearly.NearMisses, nearlyDenied.NearMisses = near(Allowed), near(Denied), near(Denied)
	unknown := accepted()
	unknown.Verdict, unknown.Reason = Inconclusive, "-m recent --rcheck -j DROP"
	unknown.Steps[2].Effect, unknown.Steps[2].Rule, unknown.Steps[2].Maybe = "drops", "-m recent --rcheck -j DROP", "recent is not understood"
	rewritten := Hop{Way: "forwarded", In: "veth1", Routed: true, Verdict: Inconclusive, Reason: "DestinationRewritten: -j DNAT --to-destination 10.0.1.2:3306"}
	noWay := Hop{Routed: true, Verdict: Inconclusive, Reason: "source and destination are both the node's own addresses"}
	delivered := Hop{Way: "delivered", In: "eth0", Routed: true, Verdict: Allowed, Reason: "no rule refuses it"}
	noRoute := Hop{Verdict: Inconclusive, Reason: "no route to 10.9.9.9"}
	sent := Hop{Way: "sent", Out: "eth0", Routed: true, Verdict: Denied, Reason: "policy"}
	rewritten.Steps = []Step{
		{Hook: "prerouting", Base: "nft ip nat/PREROUTING", Chain: "PREROUTING", Rule: "-j DNAT", Effect: "may meet any fate", Maybe: "DestinationRewritten: -j DNAT"},
	}
	long := accepted()
	long.Steps = append(long.Steps, long.Steps[2])
	long.LeftOut = 40

	one := func(n ...Node) *Answer {
		return NewAnswer([]Flow{NewFlow(flowTo("10.0.1.2"), "Pod shop/client", "Pod shop/mysql", n)})
	}
	for name, answer := range map[string]*Answer{
		"allowed":      one(NewNode("n1", []Hop{accepted()}), NewNode("n2", []Hop{accepted()})),
		"denied":       one(NewNode("n1", []Hop{accepted()}), NewNode("n2", []Hop{denied})),
		"inconclusive": one(NewNode("n1", []Hop{accepted()}), NewNode("n2", []Hop{unknown})),
		"unanswered":   one(Unanswered("n1", "no agent of this node is connected"), NewNode("n2", []Hop{denied})),
		"service":      one(NewNode("n1", []Hop{rewritten})),
		"no-route":     one(NewNode("n1", []Hop{noRoute})),
		"no-way":       one(NewNode("n1", []Hop{noWay})),
		"delivered":    one(NewNode("", []Hop{delivered})),
		"two-ways":     one(NewNode("n1", []Hop{accepted(), sent})),
		"nearly":       one(NewNode("n1", []Hop{nearlyDenied}), NewNode("n2", []Hop{nearly})),
		"not-nearly":   one(NewNode("n2", []Hop{notNearly})),
		"left-out":     one(NewNode("", []Hop{long})),
		"two-families": NewAnswer([]Flow{
			NewFlow(flowTo("10.0.1.2"), "Pod shop/client", "", []Node{NewNode("n1", []Hop{accepted()})}),
			NewFlow(flowTo("fd00::2"), "Pod shop/client", "", []Node{NewNode("n1", []Hop{denied})}),
		}),
	} {
		t.Run(name, func(t *testing.T) {
			var got bytes.Buffer
			if err := answer.WriteText(&got); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
			text, err := json.Marshal(answer)
			if err != nil {
				t.Fatal(err)
			}
			var back Answer
			if err := json.Unmarshal(text, &back); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(answer, &back); diff != "" {
				t.Errorf("after JSON (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerdictsAreJoined(t *testing.T) {
	for name, tc := range map[string]struct {
		verdicts []Verdict
		want     Verdict
		status   int
	}{
		"none":                                {nil, Inconclusive, 3},
		"all allow it":                        {[]Verdict{Allowed, Allowed}, Allowed, 0},
		"one refuses it":                      {[]Verdict{Allowed, Denied}, Denied, 2},
		"a refusal counts beside an unknown":  {[]Verdict{Inconclusive, Denied}, Denied, 2},
		"an unknown before":                   {[]Verdict{Inconclusive, Allowed}, Inconclusive, 3},
		"an unknown behind":                   {[]Verdict{Allowed, Inconclusive}, Inconclusive, 3},
		"a word that is none is not an Allow": {[]Verdict{Allowed, "Sure"}, Inconclusive, 3},
	} {
		t.Run(name, func(t *testing.T) {
			if got := join(tc.verdicts); got != tc.want || got.ExitStatus() != tc.status {
				t.Errorf("join(%v) = %v with exit status %d, want %v and %d", tc.verdicts, got, got.ExitStatus(), tc.want, tc.status)
			}
		})
	}
}

func TestHopsHaveToAgree(t *testing.T) {
	hop := func(v Verdict) Hop { return Hop{Way: "w" + string(v), Verdict: v, Reason: string(v)} }
	for name, tc := range map[string]struct {
		hops   []Hop
		want   Verdict
		reason string
	}{
		"none":                  {nil, Inconclusive, "the node knows no way for the packet"},
		"one":                   {[]Hop{hop(Allowed)}, Allowed, "Allowed"},
		"two that agree":        {[]Hop{hop(Denied), hop(Denied)}, Denied, "Denied"},
		"two that differ":       {[]Hop{hop(Allowed), hop(Denied)}, Inconclusive, "the ways differ: wAllowed it is allowed, wDenied it is denied"},
		"an unknown and a deny": {[]Hop{hop(Inconclusive), hop(Denied)}, Inconclusive, "Inconclusive"},
		"a deny and an unknown": {[]Hop{hop(Denied), hop(Inconclusive)}, Inconclusive, "Inconclusive"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := NewNode("n", tc.hops); got.Verdict != tc.want || got.Reason != tc.reason {
				t.Errorf("NewNode = %v %q, want %v %q", got.Verdict, got.Reason, tc.want, tc.reason)
			}
		})
	}
}

func TestBound(t *testing.T) {
	h := Hop{In: "veth\x1b[1m", Reason: strings.Repeat("r", 600)}
	for i := range 200 {
		h.Steps = append(h.Steps, Step{Rule: fmt.Sprint("rule ", i), Effect: "f\u00fcr"})
	}
	for i := range 20 {
		h.NearMisses = append(h.NearMisses, NearMiss{Rule: fmt.Sprint("rule ", i), Set: "s\u00e4t", Held: true, Verdict: Allowed})
	}
	got := h.Bound()
	if first := (NearMiss{Rule: "rule 0", Set: "s??t", Held: true, Verdict: Allowed}); len(got.NearMisses) != MaxNearMisses || got.NearMisses[0] != first {
		t.Errorf("%d near misses, the first %+v: want %d, the first %+v", len(got.NearMisses), got.NearMisses[0], MaxNearMisses, first)
	}
	if got.In != "veth?[1m" || len(got.Reason) != MaxText || !strings.HasSuffix(got.Reason, "r...") {
		t.Errorf("texts %q and %q", got.In, got.Reason)
	}
	if len(got.Steps) != MaxSteps || got.LeftOut != 72 || got.Steps[63].Rule != "rule 63" || got.Steps[64].Rule != "rule 136" ||
		got.Steps[127].Rule != "rule 199" || got.Steps[0].Effect != "f??r" {
		t.Errorf("%d steps, %d left out, in the middle %q and %q, the last %q", len(got.Steps), got.LeftOut,
			got.Steps[63].Rule, got.Steps[64].Rule, got.Steps[127].Rule)
	}
	if len(h.Steps) != 200 || h.Steps[0].Effect != "f\u00fcr" || len(h.NearMisses) != 20 || h.NearMisses[0].Set != "s\u00e4t" {
		t.Error("Bound has changed what it was given")
	}
	if diff := cmp.Diff(got, got.Bound()); diff != "" {
		t.Errorf("bound twice (-once +twice):\n%s", diff)
	}
}

func TestTextOfAHostileAnswerHasNoControlCharacters(t *testing.T) {
	a := NewAnswer([]Flow{{Source: "\x1b]0;x\a", Nodes: []Node{{Name: "n\n=> Allowed", Error: "\r"}}}})
	var got bytes.Buffer
	if err := a.WriteText(&got); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(got.String(), "\x1b\a\r") || strings.Contains(got.String(), "\n=>") {
		t.Errorf("%q", got.String())
	}
}
