// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package differential

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/api/flow"
)

func TestAPacketIsRecognisedWhereItArrives(t *testing.T) {
	for _, protocol := range []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP} {
		for _, pair := range [][2]string{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
			f := flow.Flow{Protocol: protocol, Src: netip.MustParseAddr(pair[0]), Dst: netip.MustParseAddr(pair[1]), Port: 443}
			t.Run(f.String(), func(t *testing.T) {
				got, ok := parse(packet(f, 40000, 0x01020304))
				want := arrival{0x01020304, f.Src, f.Dst, 443}
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(arrival{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" || !ok {
					t.Errorf("ok %t (-want +got):\n%s", ok, diff)
				}
			})
		}
	}
}

func TestWhatAnswersIsNotAPacketOfOurs(t *testing.T) {
	f := flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: 80}
	reset := packet(f, 40000, 7)
	reset[ipv4Header+13] = 4
	unreachable := packet(f, 40000, 7)
	unreachable[9] = 1
	for name, b := range map[string][]byte{"a reset": reset, "an error message": unreachable, "nothing": nil, "a header alone": packet(f, 40000, 7)[:ipv4Header]} {
		if got, ok := parse(b); ok {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(packet(flow.Flow{Protocol: flow.UDP, Src: netip.MustParseAddr("fd00::1"), Dst: netip.MustParseAddr("fd00::2"), Port: 80}, 1, 2))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parse(b) })
}
