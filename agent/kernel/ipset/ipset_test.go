// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

var packet = trace.Packet{In: "cni0", Flow: flow.Flow{
	Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: 80}}

func TestASetIsTestedOnlyForWhatItsTypeHas(t *testing.T) {
	const src, dst = ruleset.Src, ruleset.Dst
	type dims = []ruleset.Direction
	for name, c := range map[string]struct {
		header header
		dims   dims
		tested bool
		answer trace.Ternary
	}{
		"an address":                         {header{kind: "hash:ip", family: unix.AF_INET}, dims{src}, true, trace.Unknown},
		"more dimensions than it has":        {header{kind: "hash:net", family: unix.AF_INET}, dims{dst, dst}, true, trace.Unknown},
		"fewer dimensions than it has":       {header{kind: "hash:ip,port", family: unix.AF_INET}, dims{dst}, false, trace.No},
		"another family":                     {header{kind: "hash:ip", family: unix.AF_INET6}, dims{src}, false, trace.No},
		"a destination port":                 {header{kind: "hash:ip,port", family: unix.AF_INET}, dims{src, dst}, true, trace.Unknown},
		"a source port, which may be any":    {header{kind: "hash:ip,port", family: unix.AF_INET}, dims{dst, src}, false, trace.Unknown},
		"ports of no family":                 {header{kind: "bitmap:port"}, dims{dst}, true, trace.Unknown},
		"two addresses and a port":           {header{kind: "hash:ip,port,net", family: unix.AF_INET}, dims{src, dst, dst}, true, trace.Unknown},
		"an interface":                       {header{kind: "hash:net,iface", family: unix.AF_INET}, dims{src, src}, true, trace.Unknown},
		"an interface that is not known":     {header{kind: "hash:net,iface", family: unix.AF_INET}, dims{dst, dst}, false, trace.Unknown},
		"a set of sets":                      {header{kind: "list:set"}, dims{src}, false, trace.Unknown},
		"hardware addresses":                 {header{kind: "hash:mac"}, dims{src}, false, trace.Unknown},
		"a packet's mark":                    {header{kind: "hash:ip,mark", family: unix.AF_INET}, dims{src, src}, false, trace.Unknown},
		"a type that the kernel did not say": {header{}, dims{src}, false, trace.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			data, answer, why := element(c.header, c.dims, packet)
			if (data != nil) != c.tested || (!c.tested && answer != c.answer) {
				t.Errorf("got %v, answer %d (%s); want tested %t, answer %d", data, answer, why, c.tested, c.answer)
			}
		})
	}
}
