// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

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

func FuzzLinkInfo(f *testing.F) {
	f.Add(nlconn.Attribute(nlconn.Attribute(nil, unix.IFLA_INFO_KIND, []byte("bridge\x00")), unix.IFLA_INFO_DATA, nlconn.Attribute(nil, unix.IFLA_BR_NF_CALL_IPTABLES, []byte{1})))
	f.Fuzz(func(_ *testing.T, b []byte) {
		var l link
		_ = l.info(b)
	})
}
