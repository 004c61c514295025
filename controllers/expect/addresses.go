// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"slices"
)

// martians are never on the wire between two hosts.
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

// span is all addresses from first to last.
type span struct{ first, last netip.Addr }

// ranges are spans of one family, sorted, with a gap between any two.
type ranges []span

// newRanges returns what the prefixes, all of one family, have. It is not nil.
func newRanges(prefixes []netip.Prefix) ranges {
	out := ranges{}
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	for _, p := range prefixes {
		s := span{p.Masked().Addr(), last(p)}
		if n := len(out); n > 0 && (s.first.Compare(out[n-1].last) <= 0 || s.first == out[n-1].last.Next()) {
			if out[n-1].last.Less(s.last) {
				out[n-1].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// around returns the end of the span that has addr; false if none has.
func (r ranges) around(addr netip.Addr) (netip.Addr, bool) {
	i, _ := slices.BinarySearchFunc(r, addr, func(s span, addr netip.Addr) int { return s.last.Compare(addr) })
	if i < len(r) && r[i].first.Compare(addr) <= 0 {
		return r[i].last, true
	}
	return netip.Addr{}, false
}

// pick returns an address of within that neither avoid nor besides have, the
// same for the same arguments; false if there is none. It is the second of the
// first subnet that is free, for the first address is often a network's own.
func pick(within netip.Prefix, avoid ranges, besides []netip.Prefix) (netip.Addr, bool) {
	taken := func(addr netip.Addr) (netip.Addr, bool) {
		if end, ok := avoid.around(addr); ok {
			return end, true
		}
		for _, p := range besides {
			if p.Contains(addr) {
				return last(p), true
			}
		}
		return netip.Addr{}, false
	}
	addr := within.Masked().Addr()
	for {
		end, ok := taken(addr)
		if !ok {
			break
		}
		// Behind the last address of all there is none.
		if addr = end.Next(); !within.Contains(addr) {
			return netip.Addr{}, false
		}
	}
	raw := addr.AsSlice()
	if next := addr.Next(); raw[len(raw)-1]%2 == 0 && within.Contains(next) {
		if _, ok := taken(next); !ok {
			return next, true
		}
	}
	return addr, true
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

// inside returns what of one family belongs to the cluster: pod CIDRs and node
// addresses, and whatever else the options name.
func (k *plan) inside(v6 bool) (ranges, []netip.Prefix) {
	var besides []netip.Prefix
	for _, p := range k.options.Avoid {
		if p.Addr().Is6() == v6 {
			besides = append(besides, p)
		}
	}
	return k.looks.ranges().within(v6), besides
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
	for _, name := range k.looks.ranges().names {
		if name == node {
			continue
		}
		n := k.looks.node(name)
		if n.Out {
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
				taken := len(k.looks.Holding(addr)) > 0 || slices.Contains(n.Addresses, addr)
				if !taken && !yield(addr) {
					return
				}
			}
		}
	}
}
