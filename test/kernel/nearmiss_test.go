// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// nearMisses returns the verdict on a flow that takes one way, and its near
// misses.
func (r *rig) nearMisses(t testing.TB, f flow.Flow) (v flow.Verdict, misses []trace.NearMiss) {
	t.Helper()
	r.look(t, func(look *kernel.Look) error {
		all, err := look.Explain(t.Context(), f)
		if len(all) == 1 {
			v, misses = all[0].Verdict, all[0].NearMisses
		}
		return err
	})
	if v.Reason == "" {
		t.Fatalf("%s is explained for no way, or for several", f)
	}
	return v, misses
}

// turn does by hand what a near miss says, and turnBack undoes it.
func (r *rig) turn(t testing.TB, m trace.NearMiss)     { r.change(t, m, !m.Held) }
func (r *rig) turnBack(t testing.TB, m trace.NearMiss) { r.change(t, m, m.Held) }

func (r *rig) change(t testing.TB, m trace.NearMiss, add bool) {
	t.Helper()
	if strings.Contains(m.Rule, "--match-set") {
		verb := map[bool]string{true: "add", false: "del"}[add]
		set, _, _ := strings.Cut(m.Set, " in list ")
		r.node.run(t, "", "ipset", verb, set, m.Element)
		return
	}
	verb := map[bool]string{true: "add", false: "delete"}[add]
	// The base chain's name is as in "nft ip table/chain".
	words := strings.Fields(m.Base)
	table, _, _ := strings.Cut(words[2], "/")
	family := words[1]
	if table == "mine" {
		// It is of both families.
		family = "inet"
	}
	r.node.run(t, verb+" element "+family+" "+table+" "+m.Set+" { "+m.Element+" }\n", "nft", "-f", "-")
}

// mostTurned bounds the near misses of a capture that are put to the test: each
// takes two programs.
const mostTurned = 40

// TestWhatANearMissSaysIsSo puts into the sets of captured rules what near
// misses say that they lack, and takes out what they say should not be there.
func TestWhatANearMissSaysIsSo(t *testing.T) {
	for _, c := range captures {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, capturePods, captureRemote)
			flows := slices.DeleteFunc(captureFlows(r), func(f flow.Flow) bool { return r.at[f.Src] == r.node || r.at[f.Dst] == r.node })
			slices.SortFunc(flows, func(a, b flow.Flow) int { return strings.Compare(a.String(), b.String()) })
			r.settle(t, flows)
			c.load(t, r)
			found := map[trace.NearMiss]flow.Flow{}
			denied, named := 0, 0
			r.look(t, func(look *kernel.Look) error {
				for _, f := range flows {
					all, err := look.Explain(t.Context(), f)
					if err != nil {
						return err
					}
					if all[0].Verdict.Answer == flow.Allowed {
						continue
					}
					denied++
					for _, m := range all[0].NearMisses {
						// An interval would have to be split.
						split := m.Held && !strings.Contains(m.Rule, "--match-set")
						if _, known := found[m]; !known && !split && m.Otherwise == flow.Allowed {
							found[m] = f
						}
					}
					if len(all[0].NearMisses) > 0 {
						named++
					}
				}
				return nil
			})
			t.Logf("%d of %d flows are denied, %d of these with near misses, %d different ones", denied, len(flows), named, len(found))
			if named < denied/4 || len(found) < 10 {
				t.Error("want more")
			}
			misses := slices.SortedFunc(maps.Keys(found), func(a, b trace.NearMiss) int {
				return strings.Compare(a.Element+a.Set+a.Rule, b.Element+b.Set+b.Rule)
			})
			for i := 0; i < len(misses); i += 1 + len(misses)/mostTurned {
				m := misses[i]
				r.turn(t, m)
				v, _ := r.nearMisses(t, found[m])
				if v.Answer != flow.Allowed || !r.send(t, []flow.Flow{found[m]})[found[m]] {
					t.Errorf("%s: %+v: then it is %s, and should arrive", found[m], m, v)
				}
				r.turnBack(t, m)
				if v, _ := r.nearMisses(t, found[m]); v.Answer != flow.Denied {
					t.Errorf("%s: %+v: and back again it is %s", found[m], m, v)
				}
			}
		})
	}
}

// TestTheNearMissNamesWhatWasTakenOut removes a job's address from the set of
// the policy that admits it, which is one of those for which it is admitted.
func TestTheNearMissNamesWhatWasTakenOut(t *testing.T) {
	for _, c := range captures {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, nil)
			c.load(t, r)
			for i := range 2 {
				stranger := flow.Flow{Protocol: flow.TCP, Src: addr(unused[i]), Dst: addr(mysql0[i]), Port: 3306}
				job := stranger
				job.Src = addr(jobB[i])
				// Which set is the policy's, its comment tells.
				_, misses := r.nearMisses(t, stranger)
				if len(misses) == 0 || !strings.Contains(misses[0].Rule, `"db/allow-jobs ingress pods"`) {
					t.Fatalf("%s: near misses are %+v", stranger, misses)
				}
				want := misses[0]
				want.Element = job.Src.String()
				holds := want
				holds.Matched, holds.Held, holds.Otherwise = true, true, flow.Denied
				v, misses := r.nearMisses(t, job)
				if v.Answer != flow.Allowed || !slices.Contains(misses, holds) {
					t.Fatalf("%s: %s with near misses %+v, want %+v among them", job, v, misses, holds)
				}
				r.turn(t, holds)
				v, misses = r.nearMisses(t, job)
				if v.Answer != flow.Denied || len(misses) == 0 || misses[0] != want {
					t.Errorf("%s: %s with near misses %+v, want the first to be %+v", job, v, misses, want)
				}
				r.turn(t, want)
				if v, _ := r.nearMisses(t, job); v.Answer != flow.Allowed {
					t.Errorf("%s: put in again it is %s", job, v)
				}
			}
		})
	}
}

func TestAnElementOfAnIPSetIsWrittenAsIpsetTakesIt(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	for i, c := range []struct{ commands, rule, set, element string }{
		{"create s$ hash:ip", "s$ src", "s$", "10.244.2.10"},
		{"create s$ hash:ip timeout 500", "s$ dst", "s$", "10.244.1.10"},
		{"create s$ hash:net\nadd s$ 10.244.2.0/24\nadd s$ 10.244.2.0/28 nomatch", "s$ src", "s$", "10.244.2.10"},
		{"create s$ hash:ip,port\nadd s$ 10.244.2.10,udp:80", "s$ src,dst", "s$", "10.244.2.10,tcp:80"},
		{"create s$ hash:net,port", "s$ dst,dst", "s$", "10.244.1.10,tcp:80"},
		{"create s$ hash:ip,port,ip", "s$ src,dst,dst", "s$", "10.244.2.10,tcp:80,10.244.1.10"},
		{"create s$ hash:ip,port,net", "s$ src,dst,dst", "s$", "10.244.2.10,tcp:80,10.244.1.10"},
		{"create s$ hash:net,iface", "s$ src,src", "s$", "10.244.2.10,eth0"},
		{"create s$ bitmap:ip range 10.244.1.0-10.244.2.255", "s$ src", "s$", "10.244.2.10"},
		{"create s$ bitmap:port range 0-1000", "s$ dst", "s$", "80"},
		{"create s$ hash:ip,port", "s$ src", "", ""},
		{"create a$ hash:ip family inet6\ncreate b$ hash:ip,port\ncreate c$ hash:ip\ncreate s$ list:set\nadd s$ a$\nadd s$ b$\nadd s$ c$", "s$ src,dst", "b$ in list s$", "10.244.2.10,tcp:80"},
	} {
		number := strings.NewReplacer("$", string(rune('a'+i)))
		r.node.run(t, number.Replace(c.commands)+"\n", "ipset", "restore")
		for _, backend := range []string{"legacy", "nft"} {
			r.node.run(t, number.Replace("*filter\n:FORWARD DROP\n-A FORWARD -p tcp -m set --match-set "+c.rule+" -j ACCEPT\nCOMMIT\n"), "iptables-"+backend+"-restore", "-w")
			r.turnAndBack(t, number.Replace(c.set), c.element)
			r.clear(t, backend)
		}
	}
}

// turnAndBack demands one near miss of the flow to the pod, of a set that lacks
// an element, and that it is allowed if that is added. Without a set it demands
// none.
func (r *rig) turnAndBack(t *testing.T, set, element string) {
	t.Helper()
	v, misses := r.nearMisses(t, toPod)
	if set == "" {
		if len(misses) > 0 {
			t.Errorf("near misses are %+v, want none", misses)
		}
		return
	}
	if v.Answer != flow.Denied || len(misses) != 1 || misses[0].Set != set || misses[0].Element != element || misses[0].Otherwise != flow.Allowed {
		t.Errorf("%s, near misses are %+v: want one that lacks %s in %s", v, misses, element, set)
		return
	}
	r.turn(t, misses[0])
	if v, _ := r.nearMisses(t, toPod); v.Answer != flow.Allowed {
		t.Errorf("with %s in set %s it is %s", element, set, v)
	}
	r.turnBack(t, misses[0])
}

func TestAnElementOfANativeSetIsWrittenAsNftTakesIt(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	for _, c := range []struct{ declaration, rule, element string }{
		{"set s { type ipv4_addr; }", "ip saddr @s accept", "10.244.2.10"},
		{"set s { type ipv4_addr; elements = { 10.244.1.10 }; }", "ip saddr @s ip daddr 10.244.1.10 tcp dport 80 accept", "10.244.2.10"},
		{"set s { type ipv4_addr; flags interval; elements = { 10.244.3.0/24 }; }", "ip saddr @s accept", "10.244.2.10"},
		{"set s { type ipv4_addr . inet_service; elements = { 10.244.2.10 . 81 }; }", "ip saddr . tcp dport @s accept", "10.244.2.10 . 80"},
		{"set s { type ipv4_addr . ipv4_addr . inet_service; flags interval; elements = { 10.244.2.0/24 . 10.244.1.0/24 . 81-90 }; }", "ip saddr . ip daddr . tcp dport @s accept", "10.244.2.10 . 10.244.1.10 . 80"},
		{"set s { typeof ip saddr . meta l4proto . th dport; }", "ip saddr . meta l4proto . th dport @s accept", "10.244.2.10 . tcp . 80"},
		{"set s { type ifname . ipv4_addr; }", "iifname . ip saddr @s accept", "eth0 . 10.244.2.10"},
		{"set s { type inet_service; elements = { 81 }; }", "tcp dport @s accept", "80"},
		{"set s { type ipv4_addr; }", "ip saddr @s meta mark set 5; meta mark 5 accept", "10.244.2.10"},
		{"set s { type ipv4_addr; }; chain a { ip saddr @s meta mark set 5 return; drop; }", "jump a; meta mark 5 accept", "10.244.2.10"},
		{"set s { type ipv4_addr; }", "ip saddr != @s drop; accept", "10.244.2.10"},
	} {
		r.native(t, c.declaration, c.rule+"; drop")
		r.turnAndBack(t, "s", c.element)
		if t.Failed() {
			t.Fatalf("%s %s", c.declaration, c.rule)
		}
	}
}

func TestASetWithoutANameIsCalledByWhatItIsAskedFor(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	for rule, want := range map[string]string{
		"ip saddr { 10.244.2.11, 10.244.2.12 } accept":                "ip saddr {...} lacks 10.244.2.10",
		"ip saddr . tcp dport { 10.244.2.0/24 . 81-90 } accept":       "ip saddr . th dport {...} lacks 10.244.2.10 . 80",
		"ip daddr != { 10.244.1.0/24, 10.0.0.1 } tcp dport 80 accept": "ip daddr {...} has 10.244.1.10",
		"ct state { established, related } accept":                    "",
	} {
		r.native(t, "", rule+"; drop")
		_, misses := r.nearMisses(t, toPod)
		got := ""
		for _, m := range misses {
			got += m.Set + map[bool]string{true: " has ", false: " lacks "}[m.Held] + m.Element
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", rule, got, want)
		}
	}
}
