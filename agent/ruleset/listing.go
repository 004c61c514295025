// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"encoding/binary"
	"net/netip"
)

// Header is what a Listing knows of a packet, in a form that is quick to
// compare. The zero Header is of no packet.
type Header struct {
	// src and dst are the last 8 bytes of the addresses.
	src, dst uint64
	// anySource: no rule may be passed over for its source.
	anySource bool
	protocol  uint8
	port      uint16
}

// NewHeader returns the header of a packet to a port.
func NewHeader(src, dst netip.Addr, protocol uint8, port uint16) Header {
	return Header{src: tail(src), dst: tail(dst), protocol: protocol, port: port}
}

// AnySource returns the header of a packet of which the source is not known.
func (h Header) AnySource() Header {
	h.anySource = true
	return h
}

// tail returns the last 8 bytes of an address, of which IPv4 has 4. Where two
// IPv6 addresses differ on one node it is mostly there.
func tail(a netip.Addr) uint64 {
	b := a.As16()
	if a.Is4() {
		return uint64(binary.BigEndian.Uint32(b[12:]))
	}
	return binary.BigEndian.Uint64(b[8:])
}

// Listing is a chain's rules with a digest of their conditions on the header:
// of some hundred rules on a packet's path all but a few are for the addresses
// of others.
type Listing struct {
	Rules   []Rule
	digests []digest
}

// digest holds what a header has to be for a rule to match. A rule that asks
// for more than that is looked at in full.
type digest struct {
	src, srcMask, dst, dstMask uint64
	// from and to are the lowest and the highest destination port.
	from, to    uint16
	protocol    uint8
	anyProtocol bool
}

// Listing returns what List does, digested. The digest is made once: the
// reader of a chain fills Matches and Target and need not know of it.
func (c *Chain) Listing() (*Listing, error) {
	if l := c.listing.Load(); l != nil {
		return l, nil
	}
	rules, err := c.List()
	if err != nil {
		return nil, err
	}
	l := &Listing{Rules: rules, digests: make([]digest, len(rules))}
	for i := range rules {
		l.digests[i] = digestOf(rules[i].Matches)
	}
	c.listing.Store(l)
	return l, nil
}

// Next returns the index of the first rule, from the given index on, that the
// header alone does not keep from matching, or the number of rules if there
// is none.
func (l *Listing) Next(h *Header, from int) int {
	sources := ^uint64(0)
	if h.anySource {
		sources = 0
	}
	for i := from; i < len(l.digests); i++ {
		d := &l.digests[i]
		if (h.src^d.src)&d.srcMask&sources|(h.dst^d.dst)&d.dstMask != 0 {
			continue
		}
		if h.port < d.from || h.port > d.to || (h.protocol != d.protocol && !d.anyProtocol) {
			continue
		}
		return i
	}
	return len(l.Rules)
}

func digestOf(matches []Match) digest {
	d := digest{to: 65535, anyProtocol: true}
	for _, m := range matches {
		switch m := m.(type) {
		case Addr:
			// Of several for one end, one is enough.
			switch {
			case m.Not:
			case m.Dir == Src:
				d.src, d.srcMask = tail(m.Addr), tail(m.Mask)
			case m.Dir == Dst:
				d.dst, d.dstMask = tail(m.Addr), tail(m.Mask)
			}
		case Proto:
			if !m.Not {
				d.protocol, d.anyProtocol = m.Number, false
			}
		case Ports:
			if !m.Not && m.Dir == Dst && len(m.Ranges) == 1 {
				d.from, d.to = m.Ranges[0].From, m.Ranges[0].To
			}
		}
	}
	return d
}
