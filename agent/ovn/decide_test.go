// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	testclock "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
)

// node is what a real node answered: traces by packet.
type node struct {
	traces map[string]string
	asked  []string
	// bare: what was not recorded meets a bridge without flows.
	bare bool
	// fails is for what packet there is no answer.
	fails string
}

// replay returns the traces of a recorded node.
func replay(tb testing.TB, name string) *node {
	tb.Helper()
	file, err := os.Open(filepath.Join("testdata", name+".txt.gz"))
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	plain, err := gzip.NewReader(file)
	if err != nil {
		tb.Fatal(err)
	}
	all, err := io.ReadAll(plain)
	if err != nil {
		tb.Fatal(err)
	}
	n := &node{traces: map[string]string{}}
	for part := range strings.SplitSeq(strings.TrimPrefix(string(all), "### "), "\n### ") {
		packet, text, _ := strings.Cut(part, "\n")
		n.traces[packet] = text
	}
	return n
}

func (n *node) Trace(_ context.Context, packet string) (string, error) {
	n.asked = append(n.asked, packet)
	if n.fails != "" && strings.HasPrefix(packet, n.fails) {
		return "", errors.New("the connection broke")
	}
	text, ok := n.traces[packet]
	if !ok && n.bare {
		return withoutFlows, nil
	}
	if !ok {
		return "", errors.New("nobody recorded " + packet)
	}
	return text, nil
}

// change changes what the node answers to packets with that beginning.
func (n *node) change(tb testing.TB, packet, old, replacement string) {
	tb.Helper()
	changed := false
	for p, text := range n.traces {
		if strings.HasPrefix(p, packet) {
			changed = changed || strings.Contains(text, old)
			n.traces[p] = strings.ReplaceAll(text, old, replacement)
		}
	}
	if !changed {
		tb.Fatalf("no answer to %s has %q", packet, old)
	}
}

// withoutFlows is a trace on a bridge that has none.
const withoutFlows = "Flow: arp,in_port=1\n\nbridge(\"br-int\")\n----------------\n 0. No match.\n    drop\n\n" +
	"Final flow: unchanged\nMegaflow: recirc_id=0,eth,in_port=1\nDatapath actions: drop"

// empty makes the bridge one without flows, for packets with that beginning.
func (n *node) empty(packet string) {
	n.bare = n.bare || packet == ""
	for p := range n.traces {
		if strings.HasPrefix(p, packet) {
			n.traces[p] = withoutFlows
		}
	}
}

// joinRoutes are those of a node of Kube-OVN.
type joinRoutes struct{}

func (joinRoutes) NextHop(device string, to netip.Addr) (hop, own netip.Addr, err error) {
	if device != "ovn0" || to.Is6() {
		return hop, own, errors.New("no such route")
	}
	return netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.2"), nil
}

func podInterface(uuid, name string, ofport int64, pod, addresses string) Interface {
	name1, namespace, _ := strings.Cut(pod, ".")
	return Interface{UUID: uuid, Name: name, OFPort: ofport, ExternalIDs: map[string]string{
		"iface-id": pod, "ip": addresses, "ovn-installed": "true", "pod_name": name1, "pod_namespace": namespace,
	}}
}

// interfacesOf returns those of a recorded node.
func interfacesOf(name string) []Interface {
	joined := Interface{
		UUID: "c", Name: "ovn0", Type: "internal", MAC: "0a:00:00:00:64:02", OFPort: 2,
		ExternalIDs: map[string]string{"iface-id": "node-n1", "ovn-installed": "true"},
	}
	if name == "single" {
		joined.OFPort = 1
		return []Interface{joined, podInterface("a", "srv0", 2, "srv.db", "10.16.0.5"), podInterface("b", "oth0", 3, "oth.x", "10.16.0.7")}
	}
	return []Interface{
		joined, {UUID: "g", Name: "ovn-n2-0", Type: "geneve", OFPort: 1},
		podInterface("a", "srv0", 3, "srv.db", "10.16.0.5,fd00::5"), podInterface("b", "oth0", 4, "oth.x", "10.16.0.7"),
		podInterface("d", "loc0", 5, "loc.y", "10.17.0.8"),
	}
}

// question parses "tcp 10.16.0.6 10.16.0.5 80", with "external" behind it.
func question(tb testing.TB, text string) Question {
	tb.Helper()
	parts := strings.Fields(text)
	protocol := map[string]flow.Protocol{"tcp": flow.TCP, "udp": flow.UDP, "sctp": flow.SCTP}[parts[0]]
	to := netip.MustParseAddrPort(netip.AddrPortFrom(netip.MustParseAddr(parts[2]), 0).String())
	port, err := netip.ParseAddrPort("0.0.0.0:" + parts[3])
	if err != nil {
		tb.Fatal(err)
	}
	return Question{
		Flow:     flow.Flow{Protocol: protocol, Src: netip.MustParseAddr(parts[1]), Dst: to.Addr(), Port: port.Port()},
		External: len(parts) > 4,
	}
}

// judged answers one question by the traces of a node.
func judged(t *testing.T, n *node, interfaces []Interface, text string) Answer {
	t.Helper()
	b := batch{tracer: n, ports: portsOf(interfaces), learned: newLearned(testclock.NewFakeClock(time.Unix(1000, 0)), joinRoutes{})}
	answers, err := b.answer(t.Context(), []Question{question(t, text)})
	if err != nil {
		t.Fatal(err)
	}
	return answers[0]
}

func TestVerdictsOfARecordedNode(t *testing.T) {
	for node, cases := range map[string]map[string]string{
		// srv admits tcp 80 of cli, 10.16.0.6, which is elsewhere. oth may send
		// tcp 443 to 10.17.0.9, elsewhere and of another subnet, and to
		// 198.51.100.1. Nothing selects loc, of another subnet.
		"pair": {
			"tcp 10.16.0.6 10.16.0.5 80":              "allowed (output to interface srv0)",
			"tcp 10.16.0.6 10.16.0.5 81":              "denied (dropped by the logical port of the destination)",
			"tcp 192.0.2.9 10.16.0.5 80":              "denied (dropped by the logical port of the destination)",
			"udp 10.16.0.6 10.17.0.8 53":              "allowed (output to interface loc0)",
			"tcp 10.16.0.7 10.16.0.5 80":              "denied (dropped by the switch of the source)",
			"tcp 10.17.0.8 10.16.0.5 80":              "denied (dropped by the logical port of the destination)",
			"tcp 10.16.0.5 10.16.0.6 80":              "allowed (sent to OpenFlow ports [1])",
			"tcp 10.16.0.5 10.17.0.8 80":              "allowed (output to interface loc0)",
			"tcp 10.16.0.5 10.17.0.9 80":              "allowed (sent to OpenFlow ports [1])",
			"tcp 10.16.0.7 10.16.0.6 80":              "denied (dropped by the switch of the source)",
			"tcp 10.16.0.7 10.17.0.9 443":             "allowed (sent to OpenFlow ports [1])",
			"tcp 10.16.0.7 10.17.0.9 444":             "denied (dropped by the switch of the source)",
			"tcp 10.16.0.7 198.51.100.1 443 external": "allowed (sent to OpenFlow ports [2])",
			"tcp 10.16.0.7 198.51.100.2 443 external": "denied (dropped by the switch of the source)",
			"tcp 10.16.0.5 198.51.100.2 443 external": "allowed (sent to OpenFlow ports [2])",
			"tcp 10.16.0.5 10.18.0.2 443 external":    "inconclusive (the packet ends without being sent or dropped: ct(commit,zone=10,mark=0/0x1,nat(src)))",
			"tcp 10.17.0.8 10.16.0.7 443":             "allowed (output to interface oth0)",
			"sctp 10.17.0.8 10.16.0.6 443":            "allowed (sent to OpenFlow ports [1])",
			"tcp 10.16.0.6 10.17.0.9 443":             "inconclusive (NoRoute: neither end is on a logical port of this node)",
			"tcp fd00::6 fd00::5 80":                  "allowed (output to interface srv0)",
			"tcp fd00::7 fd00::5 80":                  "denied (dropped by the logical port of the destination)",
			"tcp 10.16.0.5 10.16.0.5 80":              "inconclusive (both ends are on the same logical port)",
		},
		// The same srv. There is no tunnel, and no route out.
		"single": {
			"tcp 10.16.0.6 10.16.0.5 80":             "allowed (output to interface srv0)",
			"tcp 10.16.0.6 10.16.0.5 81":             "denied (dropped by the logical port of the destination)",
			"tcp 192.0.2.9 10.16.0.5 80":             "denied (dropped by the logical port of the destination)",
			"tcp 192.0.2.9 10.16.0.7 80":             "allowed (output to interface oth0)",
			"tcp 10.16.0.7 10.16.0.5 80":             "denied (dropped by the logical port of the destination)",
			"tcp 10.16.0.5 10.16.0.7 80":             "allowed (output to interface oth0)",
			"tcp 10.16.0.5 198.51.100.1 80 external": "inconclusive (the packet ends without being sent or dropped: ct(commit,zone=8,mark=0/0x1,nat(src)))",
		},
	} {
		for text, want := range cases {
			t.Run(node+" "+text, func(t *testing.T) {
				got := judged(t, replay(t, node), interfacesOf(node), text)
				if got.Verdict.String() != want {
					t.Errorf("%s\nwant %s", got.Verdict, want)
				}
				if got.Routed == strings.Contains(want, flow.NoRoute) {
					t.Errorf("routed is %t", got.Routed)
				}
			})
		}
	}
}

// What is denied without a proof that something gets through is not believed.
func TestADropAloneProvesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		node, question, why string
		change              func(*node)
		interfaces          func([]Interface) []Interface
	}{
		"the bridge is empty": {
			"pair", "tcp 10.16.0.6 10.16.0.5 81", "no flows for interface srv0", func(n *node) { n.empty("") }, nil,
		},
		"the bridge is empty, of the source": {
			"pair", "tcp 10.16.0.7 10.16.0.6 80", "no flows for interface oth0", func(n *node) { n.empty("") }, nil,
		},
		"the bridge is emptied meanwhile": {
			"pair", "tcp 10.16.0.6 10.16.0.5 81", "as is what no policy judges", func(n *node) { n.empty("arp,in_port=1,tun_id") }, nil,
		},
		"the bridge is emptied meanwhile, of the source": {
			"pair", "tcp 10.16.0.7 10.16.0.6 80", "as is what no policy judges",
			func(n *node) { n.empty("arp,in_port=4,dl_src=0a:00:00:00:00:07,dl_dst=0a:00:00:00:00:06") }, nil,
		},
		"the tunnel's flows are not there": {
			"pair", "tcp 10.16.0.6 10.16.0.5 81", "no flows for what comes from elsewhere", func(n *node) { n.empty("tcp,in_port=1") }, nil,
		},
		"the port is unbound": {
			"single", "tcp 10.16.0.6 10.16.0.5 81", "no flows for interface srv0", func(n *node) { n.empty("arp,in_port=2") }, nil,
		},
		"it comes to another place": {
			"pair", "tcp 10.16.0.6 10.16.0.5 81", "before it came to the logical port",
			func(n *node) { n.change(t, "tcp,in_port=1,", "reg15=0x2", "reg15=0x3") }, nil,
		},
		"what is to prove it goes elsewhere": {
			"pair", "tcp 10.16.0.6 10.16.0.5 81", "as is what no policy judges",
			func(n *node) { n.change(t, "arp,in_port=1,", "output:3", "output:4") }, nil,
		},
		"what is to prove it leaves another port": {
			"pair", "tcp 10.16.0.7 10.16.0.6 80", "as is what no policy judges",
			func(n *node) {
				n.change(t, "arp,in_port=4,dl_src=0a:00:00:00:00:07,dl_dst=0a:00:00:00:00:06,arp_op=2", "reg14=0x4", "reg14=0x5")
			}, nil,
		},
		"nobody is there to prove it": {
			"single", "tcp 10.16.0.6 10.16.0.5 81", "nothing else of its switch is here", func(*node) {},
			func(all []Interface) []Interface { return all[:2] },
		},
		"there is no way in": {
			"single", "tcp 10.16.0.6 10.16.0.5 81", "neither a Geneve tunnel nor the interface ovn0", func(*node) {},
			func(all []Interface) []Interface { return all[1:] },
		},
		"the tunnels are of another kind": {
			"single", "tcp 10.16.0.6 10.16.0.5 81", "tunnels of vxlan", func(*node) {},
			func(all []Interface) []Interface {
				return append(all, Interface{UUID: "v", Name: "ovn-n2-0", Type: "vxlan", OFPort: 9})
			},
		},
		"the flows of the port are not installed": {
			"pair", "tcp 10.16.0.6 10.16.0.5 80", "has not installed the flows of interface srv0", func(*node) {},
			func(all []Interface) []Interface {
				delete(all[2].ExternalIDs, "ovn-installed")
				return all
			},
		},
		"the port has no number": {
			"pair", "tcp 10.16.0.5 10.16.0.6 80", "interface srv0 has no OpenFlow port", func(*node) {},
			func(all []Interface) []Interface {
				all[2].OFPort = -1
				return all
			},
		},
		"two have the address": {
			"pair", "tcp 10.16.0.6 10.16.0.5 80", "(srv0 and srv1) have the address 10.16.0.5", func(*node) {},
			func(all []Interface) []Interface {
				return append(all, podInterface("z", "srv1", 9, "new.db", "10.16.0.5"))
			},
		},
		"the Pod has several ports": {
			"pair", "tcp 10.16.0.6 10.16.0.5 80", "several logical ports (interfaces srv0 and net1)", func(*node) {},
			func(all []Interface) []Interface {
				return append(all, podInterface("z", "net1", 9, "srv.db", "10.99.0.5"))
			},
		},
		"it is sent to another Pod": {
			"pair", "tcp 10.16.0.5 10.16.0.6 80", "which is another Pod's",
			func(n *node) { n.change(t, "tcp,in_port=3,", "output:1", "output:4") }, nil,
		},
		"it is sent elsewhere than to the destination": {
			"pair", "tcp 10.16.0.5 10.17.0.8 80", "without being sent or dropped",
			func(n *node) {
				n.change(t, "tcp,in_port=3,", "set(ipv4(ttl=63)),8", "set(ipv4(ttl=63))")
				n.traces["tcp,in_port=1,tun_id=0x4,tun_metadata0=0x7ffe0002,dl_src=02:00:00:00:00:01,dl_dst=0a:00:00:00:01:08,nw_src=10.16.0.5,nw_dst=10.17.0.8,nw_ttl=64,tcp_src=40000,tcp_dst=80,tcp_flags=syn"] = recorded(t, "ingress-unselected")
			}, nil,
		},
		"its source is rewritten": {
			"pair", "tcp 10.16.0.5 10.16.0.6 80", "SourceRewritten",
			func(n *node) { n.change(t, "tcp,in_port=3,", "nat(src)", "nat(src=10.9.9.9)") }, nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, interfaces := replay(t, tc.node), interfacesOf(tc.node)
			tc.change(n)
			if tc.interfaces != nil {
				interfaces = tc.interfaces(interfaces)
			}
			got := judged(t, n, interfaces, tc.question)
			if got.Verdict.Answer != flow.Inconclusive || !strings.Contains(got.Verdict.Reason, tc.why) {
				t.Errorf("%s\nwant inconclusive (%s)", got.Verdict, tc.why)
			}
		})
	}
}

func TestWhatLeavesTheClusterMayHaveAnotherSource(t *testing.T) {
	n := replay(t, "pair")
	n.change(t, "tcp,in_port=4,", "nat(src)", "nat(src=203.0.113.1)")
	got := judged(t, n, interfacesOf("pair"), "tcp 10.16.0.7 198.51.100.1 443 external")
	if got.Verdict.Answer != flow.Allowed {
		t.Errorf("%s, want allowed", got.Verdict)
	}
}

func TestControlsFollowWhatTheyProve(t *testing.T) {
	n := replay(t, "pair")
	l := newLearned(testclock.NewFakeClock(time.Unix(1000, 0)), joinRoutes{})
	b := batch{tracer: n, ports: portsOf(interfacesOf("pair")), learned: l}
	questions := []Question{
		question(t, "tcp 10.16.0.6 10.16.0.5 81"), question(t, "tcp 192.0.2.9 10.16.0.5 80"), question(t, "tcp 10.16.0.6 10.16.0.5 80"),
	}
	if _, err := b.answer(t.Context(), questions); err != nil {
		t.Fatal(err)
	}
	control := "arp,in_port=1,tun_id=0x2,tun_metadata0=0x7ffe0002,dl_src=02:00:00:00:00:01,dl_dst=0a:00:00:00:00:05,arp_op=2,arp_sha=02:00:00:00:00:01,arp_spa=192.0.2.1,arp_tpa=10.16.0.5"
	if got := slices.Index(n.asked, control); got != len(n.asked)-1 {
		t.Errorf("the control is trace %d of %d: want it once, as the last", got+1, len(n.asked))
	}
	// The next batch learns nothing anew, but proves again.
	n.asked = nil
	b = batch{tracer: n, ports: portsOf(interfacesOf("pair")), learned: l}
	if _, err := b.answer(t.Context(), questions); err != nil {
		t.Fatal(err)
	}
	if len(n.asked) != 4 || n.asked[3] != control {
		t.Errorf("three questions took these traces: %q", n.asked)
	}
}

func TestABatchFailsWithItsFirstTrace(t *testing.T) {
	for _, packet := range []string{"arp,in_port=3", "tcp,in_port=1", "arp,in_port=1"} {
		n := replay(t, "pair")
		n.fails = packet
		b := batch{tracer: n, ports: portsOf(interfacesOf("pair")), learned: newLearned(testclock.NewFakeClock(time.Unix(1000, 0)), joinRoutes{})}
		_, err := b.answer(t.Context(), []Question{question(t, "tcp 10.16.0.6 10.16.0.5 81"), question(t, "tcp 192.0.2.9 10.16.0.5 80")})
		if err == nil || !strings.HasPrefix(n.asked[len(n.asked)-1], packet) {
			t.Errorf("%s: error %v, and asked for %q after it", packet, err, n.asked[len(n.asked)-1])
		}
	}
}

func TestWhatWasLearnedIsDoubtedAfterAnInconclusiveAnswer(t *testing.T) {
	n := replay(t, "pair")
	clock := testclock.NewFakeClock(time.Unix(1000, 0))
	l := newLearned(clock, joinRoutes{})
	ask := func() Answer {
		n.asked = nil
		b := batch{tracer: n, ports: portsOf(interfacesOf("pair")), learned: l}
		answers, err := b.answer(t.Context(), []Question{question(t, "tcp 10.16.0.6 10.16.0.5 80")})
		if err != nil {
			t.Fatal(err)
		}
		return answers[0]
	}
	ask()
	known := maps.Clone(n.traces)
	n.empty("tcp,in_port=1")
	clock.Step(doubtedFor)
	if got := ask(); got.Verdict.Answer != flow.Inconclusive || len(n.asked) != 1 {
		t.Errorf("%s by %q", got.Verdict, n.asked)
	}
	n.traces = known
	if got := ask(); got.Verdict.Answer != flow.Allowed || !slices.Contains(n.asked, "arp,in_port=3") {
		t.Errorf("%s by %q, want the keys to be asked for again", got.Verdict, n.asked)
	}
}

func TestTheRowOfAPodThatIsGoneIsNobodys(t *testing.T) {
	for name, gone := range map[string]Interface{
		"with the address": podInterface("0", "old0", -1, "old.db", "10.16.0.5"),
		"of the same name": podInterface("0", "old0", 0, "srv.db", "10.16.0.99"),
	} {
		got := judged(t, replay(t, "pair"), append([]Interface{gone}, interfacesOf("pair")...), "tcp 10.16.0.6 10.16.0.5 80")
		if got.Verdict.Answer != flow.Allowed {
			t.Errorf("%s: %s", name, got.Verdict)
		}
	}
}

func TestPortsOfABridge(t *testing.T) {
	interfaces := interfacesOf("pair")
	p := portsOf(interfaces)
	if diff := cmp.Diff([]int64{3, 4, 5}, slices.Sorted(maps.Keys(p.taken))); diff != "" {
		t.Errorf("Pods' ports (-want +got):\n%s", diff)
	}
	if p.geneve != 1 || p.node == nil || p.nodeMAC != "0a:00:00:00:64:02" {
		t.Errorf("tunnel %d, node %+v", p.geneve, p.node)
	}
	src, dst := netip.MustParseAddr("10.16.0.5"), netip.MustParseAddr("10.16.0.6")
	before := p.ground(src, dst)
	interfaces[3].OFPort = 44
	if portsOf(interfaces).ground(src, dst) != before {
		t.Errorf("what a verdict rests on changes with a port that it is not about")
	}
	interfaces[2].OFPort = 33
	if portsOf(interfaces).ground(src, dst) == before {
		t.Errorf("what a verdict rests on does not change with its port")
	}
}

func TestNeighboursAnswer(t *testing.T) {
	for name, tc := range map[string]struct{ asked, want string }{
		"arp-answered": {"10.16.0.6", "0a:00:00:00:00:06"},
		"arp-router":   {"100.64.0.1", "00:00:00:00:10:02"},
		"arp-flooded":  {"10.17.0.9", ""},
		"nd-answered":  {"fd00::6", "0a:00:00:00:00:06"},
		"nd-router":    {"fd00:100:64::1", "00:00:00:00:10:02"},
		"nd-flooded":   {"fd00::99", ""},
		"empty-bridge": {"10.16.0.6", ""},
	} {
		r, err := read(recorded(t, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := answered(r, netip.MustParseAddr(tc.asked)); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// parrot gives every packet the same answer.
type parrot string

func (p parrot) Trace(context.Context, string) (string, error) { return string(p), nil }

// Of one text for everything nothing is Denied: what is to prove a drop would
// be dropped as well. And nothing is Allowed that it does not send.
func FuzzVerdict(f *testing.F) {
	for _, name := range []string{
		"ingress-allowed", "ingress-denied", "egress-allowed", "egress-denied", "local-allowed", "local-denied-at-destination", "arp-answered",
		"nd-answered", "empty-bridge", "ingress-denied-metered",
	} {
		f.Add(recorded(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		b := batch{
			tracer: parrot(text), ports: portsOf(interfacesOf("pair")),
			learned: newLearned(testclock.NewFakeClock(time.Unix(1000, 0)), joinRoutes{}),
		}
		questions := []Question{
			question(t, "tcp 10.16.0.6 10.16.0.5 80"), question(t, "tcp 10.16.0.5 10.16.0.6 80"), question(t, "tcp 10.16.0.7 10.16.0.5 80"),
			question(t, "tcp fd00::6 fd00::5 80"), question(t, "tcp fd00::5 fd00::6 80"),
		}
		answers, err := b.answer(t.Context(), questions)
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range answers {
			to := "output:"
			if questions[i].Flow.Dst.String() == "10.16.0.5" {
				to = "output:3"
			}
			if a.Verdict.Answer == flow.Denied || a.Verdict.Answer == flow.Allowed && !strings.Contains(text, to) {
				t.Fatalf("%s is %s", questions[i].Flow, a.Verdict)
			}
			for _, r := range a.Verdict.Reason {
				if r < ' ' || r > '~' {
					t.Fatalf("the reason %q is not printable", a.Verdict.Reason)
				}
			}
		}
	})
}
