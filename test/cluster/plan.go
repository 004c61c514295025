// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"net/netip"
	"strconv"
)

const (
	// maxSlots bounds the clusters that run at once on a machine. 64 pod ranges of a /16
	// fill 10.128.0.0/10, half of it: more would not fit a machine anyway.
	maxSlots = 64
	// maxNodes bounds the nodes of a cluster; beyond it one machine's CPUs are the limit.
	maxNodes = 32
	// firstNodeHost is the host part of the first node's address.
	firstNodeHost = 11

	serviceRange4 = "10.96.0.0/16"
	serviceRange6 = "fd00:10:96::/112"
	// apiService4 is the address of the Service "kubernetes": the first of serviceRange4.
	apiService4 = "10.96.0.1"
)

// Plan is the addresses and interface names of one cluster. Two plans with different slots
// have nothing in common but the Service ranges, which exist only inside nodes.
type Plan struct {
	// Slot is what everything else derives from, at least 0 and less than 64.
	Slot int
	// DualStack says whether the IPv6 members are in use.
	DualStack bool
}

// PlannedNode is one node's share of a Plan.
type PlannedNode struct {
	// Name is the node's name in Kubernetes: n1, n2, and so on.
	Name string
	// IPs is the node's addresses, IPv4 first; two if the plan is dual stack.
	IPs []netip.Addr
	// PodCIDRs is the ranges of the node's Pods, in the order of IPs.
	PodCIDRs []netip.Prefix
}

// HostInterface returns the name of the interface that the cluster adds to the namespace of
// the caller of Start.
func (p Plan) HostInterface() string { return "pgate" + strconv.Itoa(p.Slot) }

// Underlay returns the ranges that join host, control plane and nodes, IPv4 first.
func (p Plan) Underlay() []netip.Prefix {
	return p.families(
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(p.Slot), 0}), 24),
		netip.PrefixFrom(ulaPrefix(0x99, p.Slot, 0), 64))
}

// PodRange returns the ranges that hold all nodes' pod ranges, IPv4 first.
func (p Plan) PodRange() []netip.Prefix {
	return p.families(
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + p.Slot), 0, 0}), 16),
		netip.PrefixFrom(ulaPrefix(0x128, p.Slot, 0), 56))
}

// ServiceRange returns the ranges of Service addresses, IPv4 first.
func (p Plan) ServiceRange() []netip.Prefix {
	return p.families(netip.MustParsePrefix(serviceRange4), netip.MustParsePrefix(serviceRange6))
}

// Host returns the addresses of the namespace that called Start on the underlay.
func (p Plan) Host() []netip.Addr { return p.underlayHost(1) }

// ControlPlane returns the addresses of the control plane.
func (p Plan) ControlPlane() []netip.Addr { return p.underlayHost(2) }

// Node returns the share of the node with the given index, which counts from 0.
func (p Plan) Node(index int) PlannedNode {
	return PlannedNode{
		Name: fmt.Sprintf("n%d", index+1),
		IPs:  p.underlayHost(firstNodeHost + index),
		PodCIDRs: p.families(
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + p.Slot), byte(index), 0}), 24),
			netip.PrefixFrom(ulaPrefix(0x128, p.Slot, index), 64)),
	}
}

// families returns the first of its arguments, or both if the plan is dual stack.
func (p Plan) families(v4, v6 netip.Prefix) []netip.Prefix {
	if p.DualStack {
		return []netip.Prefix{v4, v6}
	}
	return []netip.Prefix{v4}
}

// underlayHost returns the underlay's addresses with the given host part, below 256.
func (p Plan) underlayHost(host int) []netip.Addr {
	var addrs []netip.Addr
	for _, prefix := range p.Underlay() {
		raw := prefix.Addr().AsSlice()
		raw[len(raw)-1] = byte(host)
		addr, _ := netip.AddrFromSlice(raw)
		addrs = append(addrs, addr)
	}
	return addrs
}

// ulaPrefix returns fd00:10:<kind>:<slot><index>::, slot and index being a byte each, so
// that one slot is a /56.
func ulaPrefix(kind uint16, slot, index int) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0xfd, 0x00, 0x00, 0x10, byte(kind >> 8), byte(kind), byte(slot), byte(index),
	})
}
