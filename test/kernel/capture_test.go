// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"net/netip"
	"testing"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
)

// The pods of node1 in the captures, and one that the engine does not know.
var capturePods = [][2]string{
	{"10.244.1.10", "fd00:10:244:1::10"}, {"10.244.1.20", "fd00:10:244:1::20"}, {"10.244.1.21", "fd00:10:244:1::21"},
	{"10.244.1.30", "fd00:10:244:1::30"}, {"10.244.1.31", "fd00:10:244:1::31"}, {"10.244.1.41", "fd00:10:244:1::41"},
	{"10.244.1.99", "fd00:10:244:1::99"},
}

// The other node's pods, addresses of ipBlocks and of nobody.
var captureRemote = []string{
	"10.244.2.10", "fd00:10:244:2::10", "10.244.2.20", "fd00:10:244:2::20", "10.244.2.30", "fd00:10:244:2::30",
	"10.244.2.40", "fd00:10:244:2::40", "10.244.2.53", "fd00:10:244:2::53", "10.244.2.99", "fd00:10:244:2::99",
	"198.51.100.7", "2001:db8::7", "203.0.113.5", "203.0.113.200",
}

func captureFlows(r *rig) []flow.Flow {
	var flows []flow.Flow
	for src := range r.at {
		for dst := range r.at {
			if src.Is4() != dst.Is4() || r.at[src] == r.at[dst] || r.at[src] == r.all[1] && r.at[dst] == r.all[1] {
				continue
			}
			for _, port := range []uint16{53, 443, 3306, 8050, 8080, 9090, 9104, 33060} {
				flows = append(flows, flow.Flow{Protocol: flow.TCP, Src: src, Dst: dst, Port: port})
			}
			for _, port := range []uint16{53, 4567} {
				flows = append(flows, flow.Flow{Protocol: flow.UDP, Src: src, Dst: dst, Port: port})
			}
		}
	}
	return flows
}

// look takes one look in the node's namespace and hands it to f.
func (r *rig) look(t testing.TB, f func(*kernel.Look) error) {
	t.Helper()
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
		return f(look)
	})
}

func TestCapturedRulesDoWhatTheVerdictsSay(t *testing.T) {
	for _, c := range captures {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, capturePods, captureRemote)
			flows := captureFlows(r)
			r.settle(t, flows)
			r.agree(t, flows, true)
			c.load(t, r)
			allowed, denied := r.agree(t, flows, true)
			if allowed == 0 || denied == 0 {
				t.Errorf("%d flows allowed and %d denied: want some of both", allowed, denied)
			}
		})
	}
}

// agree demands that every flow arrives if and only if it is Allowed. With
// certain, no flow may be Inconclusive.
func (r *rig) agree(t testing.TB, flows []flow.Flow, certain bool) (allowed, denied int) {
	t.Helper()
	arrived := r.send(t, flows)
	wrong := 0
	r.look(t, func(look *kernel.Look) error {
		for _, f := range flows {
			v := look.Verdict(f)
			switch v.Answer {
			case flow.Allowed:
				allowed++
			case flow.Denied:
				denied++
			case flow.Inconclusive:
				if certain {
					wrong++
					if wrong < 10 {
						t.Errorf("%s: %s", f, v)
					}
				}
				continue
			}
			if (v.Answer == flow.Allowed) != arrived[f] {
				if wrong++; wrong < 10 {
					t.Errorf("%s: the verdict is %s, but that it arrived is %t", f, v, arrived[f])
				}
			}
		}
		return nil
	})
	if wrong > 0 {
		t.Errorf("%d of %d verdicts are wrong", wrong, len(flows))
	}
	return allowed, denied
}

func TestWhatIsNotCarriedHasNoRoute(t *testing.T) {
	r := newRig(t, capturePods[:2], captureRemote[:2])
	r.node.run(t, "route del default\nroute add blackhole 10.99.0.0/16\n", "ip", "-batch", "-")
	ask := func(src, dst string) flow.Flow {
		return flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Port: 80}
	}
	r.look(t, func(look *kernel.Look) error {
		for f, routed := range map[flow.Flow]bool{
			ask("10.244.1.10", "198.51.100.7"): false,
			ask("198.51.100.7", "10.244.1.10"): false,
			ask("10.244.1.10", "10.244.2.10"):  true,
			ask("10.244.1.10", "10.244.1.20"):  true,
		} {
			if got := look.Routed(f); got != routed {
				t.Errorf("%s: routed %t, want %t (%s)", f, got, routed, look.Verdict(f))
			}
			want := flow.Allowed
			if !routed {
				want = flow.Inconclusive
			}
			if got := look.Verdict(f); got.Answer != want {
				t.Errorf("%s: got %s, want %s", f, got, want)
			}
		}
		return nil
	})
}
