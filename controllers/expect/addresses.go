// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"slices"
)

// martians4 and martians6 are never on the wire between two hosts.
func martians(v6 bool) []netip.Prefix {
	if v6 {
		return []netip.Prefix{
			netip.MustParsePrefix("::/8"),
			netip.MustParsePrefix("fe80::/9"), // link-local and the former site-local
			netip.MustParsePrefix("ff00::/8"),
		}
	}
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/3"), // multicast, reserved, broadcast
	}
}

// enforcedAny6 reports whether kube-router's spelling of ::/0 has addr.
func enforcedAny6(addr netip.Addr) bool {
	return netip.MustParsePrefix("2000::/3").Contains(addr) || netip.MustParsePrefix("fd00::/8").Contains(addr)
}

// outsiders are the addresses that stand for everyone outside the cluster:
// those reserved for documentation, of which no Pod, Service or node is one.
func outsiders(v6 bool) []netip.Addr {
	if v6 {
		return []netip.Addr{netip.MustParseAddr("2001:db8::77"), netip.MustParseAddr("2001:db8:ffff::77")}
	}
	return []netip.Addr{
		netip.MustParseAddr("203.0.113.77"),
		netip.MustParseAddr("198.51.100.77"),
		netip.MustParseAddr("192.0.2.77"),
	}
}

// pick returns an address of within that no prefix of avoid has, the same for
// the same arguments; false if there is none.
func pick(within netip.Prefix, avoid []netip.Prefix) (netip.Addr, bool) {
	var inside []netip.Prefix
	for _, a := range avoid {
		if !a.Overlaps(within) {
			continue
		}
		if a.Bits() <= within.Bits() {
			return netip.Addr{}, false
		}
		inside = append(inside, a)
	}
	if len(inside) == 0 {
		if within.IsSingleIP() {
			return within.Addr(), true
		}
		// The first address of a prefix is often a network's own.
		return within.Addr().Next(), true
	}
	low, high := halves(within)
	if addr, ok := pick(low, inside); ok {
		return addr, true
	}
	return pick(high, inside)
}

// halves splits a masked prefix that is not a single address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	raw := p.Addr().AsSlice()
	raw[bits/8] |= 0x80 >> (bits % 8)
	addr, _ := netip.AddrFromSlice(raw)
	return netip.PrefixFrom(p.Addr(), bits+1), netip.PrefixFrom(addr, bits+1)
}

// last returns the highest address of p.
func last(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(raw)*8; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

// inside returns the prefixes of one family that belong to the cluster: pod
// CIDRs, node addresses and whatever else the options name.
func (k *plan) inside(v6 bool) []netip.Prefix {
	if k.insideOf[bit(v6)] != nil {
		return k.insideOf[bit(v6)]
	}
	out := martians(v6)
	add := func(p netip.Prefix) {
		if p.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	for _, p := range k.options.Avoid {
		add(p)
	}
	for _, name := range k.cluster.nodeNames {
		n := k.cluster.nodes[name]
		for _, p := range n.PodCIDRs {
			add(p)
		}
		for _, a := range n.Addresses {
			add(netip.PrefixFrom(a, a.BitLen()))
		}
	}
	k.insideOf[bit(v6)] = out
	return out
}

func bit(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// How far the search for an unused address goes: it is found at once unless a
// node's range is full or a rule admits all of it.
const (
	unusedNodes     = 8
	unusedAddresses = 8
)

// unused yields addresses of the pod CIDRs of nodes other than node that no
// Pod has, from the high end, which is given out last.
func (k *plan) unused(node string, v6 bool, yield func(netip.Addr) bool) {
	nodes := 0
	for _, name := range k.cluster.nodeNames {
		n := k.cluster.nodes[name]
		if name == node || n.Out {
			continue
		}
		if nodes++; nodes > unusedNodes {
			return
		}
		for _, cidr := range n.PodCIDRs {
			if cidr.Addr().Is6() != v6 || cidr.IsSingleIP() {
				continue
			}
			addr := last(cidr)
			for range unusedAddresses {
				addr = addr.Prev() // the very last is IPv4's broadcast
				if !cidr.Contains(addr) {
					break
				}
				taken := len(k.cluster.byAddr[addr]) > 0 || slices.Contains(n.Addresses, addr)
				if !taken && !yield(addr) {
					return
				}
			}
		}
	}
}
