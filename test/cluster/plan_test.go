// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"net/netip"
	"testing"
)

func TestPlansDoNotOverlap(t *testing.T) {
	type claimed struct {
		prefix netip.Prefix
		slot   int
	}
	var all []claimed
	for slot := range maxSlots {
		plan := Plan{Slot: slot, DualStack: true}
		for _, prefix := range append(plan.Underlay(), plan.PodRange()...) {
			for _, other := range all {
				if prefix.Overlaps(other.prefix) {
					t.Fatalf("%v of slot %d overlaps %v of slot %d", prefix, slot, other.prefix, other.slot)
				}
			}
			for _, service := range plan.ServiceRange() {
				if prefix.Overlaps(service) {
					t.Fatalf("%v of slot %d overlaps the Services' %v", prefix, slot, service)
				}
			}
			all = append(all, claimed{prefix, slot})
		}
		if name := plan.HostInterface(); len(name) > 15 {
			t.Errorf("interface name %q is longer than the kernel's 15", name)
		}
	}
}

func TestPlannedNodesAreInThePlan(t *testing.T) {
	for _, dual := range []bool{false, true} {
		plan := Plan{Slot: maxSlots - 1, DualStack: dual}
		families := 1
		if dual {
			families = 2
		}
		seen := map[netip.Addr]string{}
		for i := range maxNodes {
			node := plan.Node(i)
			if len(node.IPs) != families || len(node.PodCIDRs) != families {
				t.Fatalf("dual stack %v: node has %v and %v", dual, node.IPs, node.PodCIDRs)
			}
			for family := range families {
				ip, pods := node.IPs[family], node.PodCIDRs[family]
				if !plan.Underlay()[family].Contains(ip) {
					t.Errorf("%s: %v is not in %v", node.Name, ip, plan.Underlay()[family])
				}
				if whole := plan.PodRange()[family]; !whole.Contains(pods.Addr()) || pods.Bits() < whole.Bits() {
					t.Errorf("%s: %v is not in %v", node.Name, pods, whole)
				}
				for _, addr := range []netip.Addr{ip, pods.Addr(), plan.Host()[family], plan.ControlPlane()[family]} {
					if owner := seen[addr]; owner != "" && addr != plan.Host()[family] && addr != plan.ControlPlane()[family] {
						t.Errorf("%v is %s's and %s's", addr, owner, node.Name)
					}
					seen[addr] = node.Name
				}
			}
		}
	}
}

func TestPlanText(t *testing.T) {
	plan := Plan{Slot: 3, DualStack: true}
	node := plan.Node(1)
	for _, tc := range []struct{ got, want string }{
		{joined(plan.Underlay()), "10.99.3.0/24,fd00:10:99:300::/64"},
		{joined(plan.PodRange()), "10.131.0.0/16,fd00:10:128:300::/56"},
		{joined(plan.ControlPlane()), "10.99.3.2,fd00:10:99:300::2"},
		{joined(node.IPs), "10.99.3.12,fd00:10:99:300::c"},
		{joined(node.PodCIDRs), "10.131.1.0/24,fd00:10:128:301::/64"},
		{apiServerAddr(plan), "10.99.3.2:6443"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %s, want %s", tc.got, tc.want)
		}
	}
}

func mustAddr(t *testing.T, text string) netip.Addr {
	t.Helper()
	addr, err := netip.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
