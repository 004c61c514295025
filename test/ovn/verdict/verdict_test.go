// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/test/ovn/fixture"
)

func TestVerdictsAgreeWithPackets(t *testing.T) {
	ingress, egress := networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	for _, nodes := range []int{1, 2} {
		w := newWorld(t, fixture.Options{Nodes: nodes})
		for name, policies := range map[string][]*networkingv1.NetworkPolicy{
			"none":                  nil,
			"from one peer":         {fromFriend()},
			"from nobody":           {selects("db", "server", ingress)},
			"to one peer":           {toServer("friend"), toServer("beside")},
			"to nobody":             {selects("db", "server", egress), selects("web", "beside", egress)},
			"from and to":           {fromFriend(), toServer("friend"), toServer("stranger")},
			"from and to by nobody": {selects("db", "server", ingress, egress), selects("web", "stranger", ingress, egress)},
		} {
			t.Run(fmt.Sprintf("%d nodes, %s", nodes, name), func(t *testing.T) {
				w := *w
				w.TB = t
				w.apply(policies...)
				w.agree(everyWay()...)
			})
		}
	}
}

func TestBothFamilies(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2, IPv6: true})
	w.apply(fromFriend(), toServer("beside"))
	for _, d := range []dial{{"friend", "server", 80}, {"stranger", "server", 80}, {"beside", "friend", 80}, {"server", "stranger", 80}} {
		from, to := w.pods[d.from].IPs()[1], w.pods[d.to].IPs()[1]
		got, err := w.pods[d.from].DialAddr(netip.AddrPortFrom(to, d.port), time.Second/2)
		w.must(err)
		verdict := flow.Allowed
		for _, name := range []string{w.pods[d.from].Node().Name(), w.pods[d.to].Node().Name()} {
			a := w.nodes[name].settled(w, flow.Flow{Protocol: flow.TCP, Src: from, Dst: to, Port: d.port})[0]
			if a.Verdict.Answer == flow.Inconclusive {
				t.Errorf("%s to %s: on %s %s", d.from, d.to, name, a.Verdict)
			}
			if a.Verdict.Answer != flow.Allowed {
				verdict = a.Verdict.Answer
			}
		}
		if (verdict == flow.Allowed) != (got == fixture.Open) {
			t.Errorf("%s to %s is %s; the packet is %q", d.from, d.to, verdict, got)
		}
	}
}

// An answer that counts is one that the next packet meets, though packets had
// kept the flow cache at what was before.
func TestTheNextPacketMeetsTheVerdict(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2})
	way := dial{"stranger", "server", 80}
	for i := range 6 {
		policies, want := []*networkingv1.NetworkPolicy{fromFriend()}, fixture.Silent
		if i%2 == 1 {
			policies, want = nil, fixture.Open
		}
		_, err := w.pods[way.from].Dial(w.pods[way.to], way.port)
		w.must(err)
		w.must(w.engine.Sync(w.Context(), w.cluster(policies...)))
		wanted := flow.Allowed
		if want == fixture.Silent {
			wanted = flow.Denied
		}
		began := time.Now()
		w.eventually("the server's node says so", func() bool {
			a := w.nodes["n1"].settled(w, w.flow(way))[0]
			return a.Verdict.Answer == wanted
		})
		took := time.Since(began)
		got, err := w.pods[way.from].Dial(w.pods[way.to], way.port)
		w.must(err)
		if got != want {
			t.Errorf("round %d: the packet is %q, want %q", i, got, want)
		}
		t.Logf("round %d: %s after %s", i, want, took)
	}
}

// Each of these is what an acknowledgement does not show.
func TestAPausedController(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2})
	w.apply(fromFriend())
	// Its own node is paused: packets and verdicts are as before.
	w.must(w.fixture.Node("n1").PauseController(t.Context()))
	w.must(w.engine.Sync(t.Context(), w.cluster()))
	w.agree(dial{"stranger", "server", 80}, dial{"friend", "server", 80})
	w.must(w.fixture.Node("n1").ResumeController(t.Context()))
	w.must(w.fixture.Settle(t.Context()))
	w.agree(dial{"stranger", "server", 80})
	// Another is paused: here the policy is in force.
	w.must(w.fixture.Node("n2").PauseController(t.Context()))
	w.must(w.engine.Sync(t.Context(), w.cluster(fromFriend())))
	w.eventually("the server's node denies", func() bool {
		return w.nodes["n1"].settled(w, w.flow(dial{"stranger", "server", 80}))[0].Verdict.Answer == flow.Denied
	})
	w.agree(dial{"stranger", "server", 80}, dial{"beside", "server", 80})
}

func TestFlowsDeletedBehindTheController(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2})
	w.apply(fromFriend())
	w.agree(dial{"stranger", "server", 80})
	_, err := w.fixture.Node("n1").DeleteDropFlows(t.Context(), "of.server.db")
	w.must(err)
	w.must(w.fixture.Settle(t.Context()))
	if got := w.verdicts(dial{"stranger", "server", 80})[0]; got.Answer != flow.Allowed {
		t.Errorf("stranger to server is %s", got)
	}
	w.agree(dial{"stranger", "server", 80}, dial{"friend", "server", 80})
}

func TestARestartedVSwitchd(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2})
	w.apply(fromFriend(), toServer("beside"))
	n := w.fixture.Node("n1")
	ways := []dial{
		{"stranger", "server", 80}, {"friend", "server", 80}, {"beside", "server", 80}, {"beside", "friend", 80}, {"server", "stranger", 80},
	}
	w.agree(ways...)
	w.must(n.PauseController(t.Context()))
	w.must(n.RestartVSwitchd(t.Context()))
	flows := make([]flow.Flow, len(ways))
	for i, d := range ways {
		flows[i] = w.flow(d)
	}
	judged := 0
	w.eventually("the empty bridge was asked ten times", func() bool {
		answers, err := w.nodes["n1"].ask(t.Context(), flows...)
		if err != nil {
			t.Logf("no look: %v", err)
			return false
		}
		for i, a := range answers {
			if a.Verdict.Answer != flow.Inconclusive {
				t.Errorf("%v on an empty bridge is %s", ways[i], a.Verdict)
			}
			if judged == 0 {
				t.Logf("%v: %s", ways[i], a.Verdict)
			}
		}
		judged++
		return judged == 10
	})
	w.must(n.ResumeController(t.Context()))
	w.eventually("the verdicts are conclusive again", func() bool {
		for _, v := range w.verdicts(ways...) {
			if v.Answer == flow.Inconclusive {
				return false
			}
		}
		return true
	})
	w.must(w.fixture.Settle(t.Context()))
	w.agree(ways...)
}

func TestAFrozenVSwitchd(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 1})
	w.apply(fromFriend())
	way := dial{"stranger", "server", 80}
	w.agree(way)
	n := w.fixture.Node("n1")
	w.must(n.FreezeVSwitchd())
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	if answers, err := w.nodes["n1"].ask(ctx, w.flow(way)); err == nil {
		t.Errorf("a frozen vswitchd answers %v", answers)
	} else {
		t.Log(err)
	}
	w.must(n.ThawVSwitchd())
	w.eventually("it answers again", func() bool {
		answers, err := w.nodes["n1"].ask(t.Context(), w.flow(way))
		return err == nil && answers[0].Verdict.Answer == flow.Denied
	})
}

// outside is two addresses that no Pod has, behind the first node.
var outside = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}

func TestWhatLeavesTheCluster(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2})
	gateway := w.fixture.Node("n1")
	_, err := w.fixture.Nbctl(t.Context(), "lr-route-add", "ovn-cluster", "198.51.100.0/24", gateway.JoinIPs()[0].String())
	w.must(err)
	gateway.Enter(func() {
		link, err := netlink.LinkByName("lo")
		w.must(err)
		w.must(netlink.LinkSetUp(link))
		for _, a := range outside {
			w.must(netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}}))
		}
		listener, err := net.Listen("tcp", ":80")
		w.must(err)
		t.Cleanup(func() { _ = listener.Close() })
	})
	var policies []*networkingv1.NetworkPolicy
	for _, app := range []string{"beside", "stranger"} {
		p := selects("web", app, networkingv1.PolicyTypeEgress)
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{
			To:    []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "198.51.100.1/32"}}},
			Ports: tcp80(),
		}}
		policies = append(policies, p)
	}
	w.apply(policies...)
	for from := range where {
		for i, to := range outside {
			a := w.nodes[w.pods[from].Node().Name()].settled(w, flow.Flow{Protocol: flow.TCP, Src: w.pods[from].IP(), Dst: to, Port: 80})[0]
			want := flow.Allowed
			if namespaceOf(from) == "web" && i == 1 {
				want = flow.Denied
			}
			got, err := w.pods[from].DialAddr(netip.AddrPortFrom(to, 80), time.Second/2)
			if err != nil || a.Verdict.Answer != want || (got == fixture.Open) != (want == flow.Allowed) {
				t.Errorf("%s to %s is %s, want %s; the packet is %q, %v", from, to, a.Verdict, want, got, err)
			}
		}
	}
}

func TestAPodThatIsNotInThePortGroupIsOpen(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2})
	w.apply(fromFriend())
	late := w.fixture.AddPod(fixture.PodOptions{Namespace: "db", Name: "late", Node: "n1"})
	w.pods["late"] = late
	w.eventually("it is local", func() bool { return w.nodes["n1"].knows(late) })
	// From before its flows are installed until it is in the group: never Denied
	// for a packet that passes, and Allowed at last.
	w.must(w.fixture.WaitInstalled(t.Context()))
	w.must(late.Listen(80))
	w.eventually("its port is judged", func() bool {
		return w.verdicts(dial{"stranger", "late", 80})[0].Answer == flow.Allowed
	})
	w.agree(dial{"stranger", "late", 80}, dial{"stranger", "server", 80}, dial{"late", "server", 80})
}

func TestSeveralLogicalPortsOfAPod(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 1})
	w.fixture.AddPod(fixture.PodOptions{
		Namespace: "db", Name: "server", Node: "n1", Provider: "net.db.ovn", Bare: true,
		IPs: []netip.Addr{netip.MustParseAddr("10.16.9.9")},
	})
	w.eventually("the server's verdicts say so", func() bool {
		a, err := w.nodes["n1"].ask(t.Context(), w.flow(dial{"stranger", "server", 80}))
		return err == nil && a[0].Verdict.Answer == flow.Inconclusive && strings.Contains(a[0].Verdict.Reason, "several logical ports")
	})
	w.agree(dial{"stranger", "beside", 80})
}

func TestFlowsOfNobodyHere(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 2})
	answers, err := w.nodes["n1"].ask(t.Context(), w.flow(dial{"friend", "stranger", 80}))
	w.must(err)
	if a := answers[0]; a.Routed || a.Verdict.Answer != flow.Inconclusive || !strings.HasPrefix(a.Verdict.Reason, flow.NoRoute) {
		t.Errorf("%+v", a)
	}
}

func TestALookThatIsGivenUpHasNoAnswers(t *testing.T) {
	w := newWorld(t, fixture.Options{Nodes: 1})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if answers, err := w.nodes["n1"].ask(ctx, w.flow(dial{"stranger", "server", 80})); err == nil {
		t.Errorf("without time there are answers: %v", answers)
	}
}
