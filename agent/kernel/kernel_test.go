// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
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

func TestTypesOfAddressesAreTheKernels(t *testing.T) {
	a := addresses{types: map[netip.Prefix]ruleset.AddrTypes{}, lengths4: map[int]bool{}, lengths6: map[int]bool{}}
	for text, kind := range map[string]int{
		"127.0.0.0/8": unix.RTN_LOCAL, "10.0.0.1/32": unix.RTN_LOCAL, "10.0.0.255/32": unix.RTN_BROADCAST,
		"fd00::1/128": unix.RTN_LOCAL, "fd00::/128": unix.RTN_ANYCAST, "ff00::/8": unix.RTN_MULTICAST,
	} {
		_, prefix, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		a.add(netlink.Route{Dst: prefix, Type: kind})
	}
	for text, want := range map[string]ruleset.AddrTypes{
		"10.0.0.1": ruleset.Local, "127.1.2.3": ruleset.Local, "10.0.0.255": ruleset.Broadcast, "255.255.255.255": ruleset.Broadcast,
		"10.0.0.2": ruleset.Unicast, "224.0.0.1": ruleset.Multicast,
		"fd00::1": ruleset.Local | ruleset.Unicast, "fd00::": ruleset.Anycast | ruleset.Unicast, "fd00::2": ruleset.Unicast, "ff02::1": ruleset.Multicast,
	} {
		if got := a.of(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: got %#x, want %#x", text, got, want)
		}
	}
}

func FuzzAttributes(f *testing.F) {
	f.Add(attribute(attribute(nil, 1, []byte("filter\x00")), 2, nil))
	f.Add([]byte{3, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		if err := attributes(b, func(_ uint16, value []byte) { total += 4 + len(value) }); err == nil && total > len(b) {
			t.Errorf("%d bytes of attributes in %d", total, len(b))
		}
		var l link
		_ = l.info(b)
	})
}
