// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"bytes"
	"encoding/binary"
	mathbits "math/bits"
	"net/netip"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// readable says how much of a value is known.
type readable uint8

const (
	// whole: every bit is known.
	whole readable = iota
	// partly: w.unknown says which bits are not.
	partly
	// missing: the kernel has nothing to read and the rule does not match
	// (NFT_BREAK), negated or not.
	missing
	// unreadable: it may be missing.
	unreadable
)

// Numbers of the kernel that registers hold.
const (
	// IP_CT_NEW and NF_CT_STATE_INVALID_BIT as NF_CT_STATE_BIT,
	// linux/netfilter/nf_conntrack_common.h.
	stateInvalid   = 1
	stateNew       = 8
	stateUntracked = 64
	// Bits of ct status that a first packet does not have, which are all but
	// those of nat (which are set when its hook is passed, whether or not
	// anything was rewritten), of a helper and of offloading.
	statusSourceNAT = 1 << 4
	statusUnknown   = 1<<7 | 1<<8 | 1<<10 | 1<<13 | 1<<14 | 1<<15
	// IFNAMSIZ, linux/if.h.
	nameBytes = 16
	// The flags of an IPv4 header's fragment field that a first packet may
	// have: the reserved one and DF.
	fragmentFlags = 0xc0
	// ECN's flags of a TCP header's byte 13: ECE and CWR.
	ecnFlags = 0xc0
)

// read puts the value together in w.bytes, and in w.unknown the bits that are
// not known, which are 0 in w.bytes.
func (w *walk) read(v ruleset.Value, s *state) readable {
	w.bytes, w.unknown = w.bytes[:0], w.unknown[:0]
	answer := whole
	for i := range v {
		b := &v[i]
		value, unknown, how := byte(0), byte(0xff), whole
		if b.Known {
			value, unknown, how = w.field(b.Field, int(b.Index), s)
			value, unknown = value&b.Mask^b.Xor, unknown&b.Mask
		}
		switch {
		case how == missing:
			return missing
		case how == unreadable:
			answer = unreadable
		case unknown != 0 && answer == whole:
			answer = partly
		}
		w.bytes = append(w.bytes, value&^unknown)
		w.unknown = append(w.unknown, unknown)
	}
	return answer
}

// field returns a byte of a field, of which some bits may be unknown.
func (w *walk) field(f ruleset.Field, index int, s *state) (value, unknown byte, how readable) {
	switch f {
	case ruleset.Constant:
		return 0, 0, whole
	case ruleset.SrcAddr:
		if s.resourced {
			return 0, 0xff, whole
		}
		return addressByte(w.flow.Src, index)
	case ruleset.DstAddr:
		return addressByte(w.flow.Dst, index)
	case ruleset.L4Proto:
		if index > 0 {
			return 0, 0xff, unreadable
		}
		return byte(w.flow.Protocol), 0, whole
	case ruleset.FragOff:
		switch {
		case w.flow.Dst.Is6() || index > 1:
			return 0, 0xff, unreadable
		case index == 0:
			return 0, fragmentFlags, whole
		}
		return 0, 0, whole
	case ruleset.SrcPort:
		return 0, 0xff, whole
	case ruleset.DstPort:
		switch index {
		case 0:
			return byte(w.flow.Port >> 8), 0, whole
		case 1:
			return byte(w.flow.Port & 0xff), 0, whole
		}
		return 0, 0xff, unreadable
	case ruleset.TCPFlagBits:
		if w.flow.Protocol != flow.TCP || index > 0 {
			// A short datagram has no such byte.
			return 0, 0xff, unreadable
		}
		return ruleset.SYN, ecnFlags, whole
	case ruleset.InName:
		return w.in.nameByte(index)
	case ruleset.OutName:
		return w.out.nameByte(index)
	case ruleset.InIndex:
		return w.in.indexByte(index)
	case ruleset.OutIndex:
		return w.out.indexByte(index)
	case ruleset.PacketMark:
		return s.mark.byte(index)
	case ruleset.ConnMark:
		if s.tracking != tracked {
			return 0, 0, missing
		}
		return s.connMark.byte(index)
	case ruleset.ConnState:
		return bits{value: s.tracking.bit()}.byte(index)
	case ruleset.ConnStatus:
		if s.tracking != tracked {
			return 0, 0, missing
		}
		status := bits{unknown: statusUnknown}
		if s.resourced {
			status.unknown |= statusSourceNAT
		}
		return status.byte(index)
	case ruleset.SrcType:
		if s.resourced {
			return 0, 0xff, whole
		}
		return routeType(w.path.SrcType).byte(index)
	case ruleset.DstType:
		return routeType(w.path.DstType).byte(index)
	case ruleset.ReverseIndex:
		return w.reverseIndex().byte(index)
	}
	return 0, 0xff, unreadable
}

func addressByte(a netip.Addr, index int) (value, unknown byte, how readable) {
	all := a.As16()
	if a.Is4() {
		index += 12
	}
	if index >= len(all) {
		return 0, 0xff, unreadable
	}
	return all[index], 0, whole
}

// bit returns the state as the kernel has it in a register.
func (t tracking) bit() uint32 {
	switch t {
	case tracked:
		return stateNew
	case untracked:
		return stateUntracked
	case before:
	}
	return stateInvalid
}

// byte returns one byte of the number in the host's order.
func (b bits) byte(index int) (value, unknown byte, how readable) {
	if index > 3 {
		return 0, 0xff, unreadable
	}
	var v, u [4]byte
	binary.NativeEndian.PutUint32(v[:], b.value)
	binary.NativeEndian.PutUint32(u[:], b.unknown)
	return v[index], u[index], whole
}

func (d *device) nameByte(index int) (value, unknown byte, how readable) {
	switch {
	case index >= nameBytes:
		return 0, 0xff, unreadable
	case d.unnamed:
		return 0, 0xff, whole
	}
	if index < len(d.name) {
		value = d.name[index]
	}
	if d.perhaps {
		return 0, value, whole
	}
	return value, 0, whole
}

func (d *device) indexByte(index int) (value, unknown byte, how readable) {
	switch {
	case d.unnumbered:
		return 0, 0xff, whole
	case d.perhaps:
		return bits{unknown: d.index}.byte(index)
	}
	return bits{value: d.index}.byte(index)
}

// routeType returns an address's type as the kernel's RTN_ number, whose order
// is that of ruleset.AddrTypes. Of the two that an IPv6 address of the node
// has, it gives the one that is not unicast (nft_fib6_eval_type).
func routeType(t ruleset.AddrTypes) bits {
	if t != ruleset.Unicast {
		t &^= ruleset.Unicast
	}
	if mathbits.OnesCount16(uint16(t)) != 1 {
		return bits{unknown: 0xffffffff}
	}
	return bits{value: uint32(mathbits.TrailingZeros16(uint16(t)))} //nolint:gosec // At most 16.
}

// entered reports whether the hook is one at which the kernel looks for routes
// back (nft_fib_validate).
func (w *walk) entered() bool {
	return w.at == ruleset.Prerouting || w.at == ruleset.Input || w.at == ruleset.Forward
}

func (w *walk) reverseIndex() bits {
	if w.entered() {
		if w.path.Returns == No {
			return bits{}
		}
		if w.path.Returns == Yes && !w.in.unnumbered {
			return bits{value: w.in.index}
		}
	}
	return bits{unknown: 0xffffffff}
}

// plain reports whether v is a field as it is, in its first length bytes.
func plain(v ruleset.Value, f ruleset.Field, length int) bool {
	if len(v) != length {
		return false
	}
	for i, b := range v {
		if !b.Known || b.Field != f || int(b.Index) != i || b.Mask != 0xff || b.Xor != 0 {
			return false
		}
	}
	return true
}

func (w *walk) compare(m *ruleset.Compare, s *state) Ternary {
	if len(m.From) != len(m.Value) || len(m.To) != len(m.Value) {
		w.why = "a comparison of different lengths"
		return Unknown
	}
	switch {
	case plain(m.Value, ruleset.SrcPort, 2):
		ports := []ruleset.PortRange{{From: binary.BigEndian.Uint16(m.From), To: binary.BigEndian.Uint16(m.To)}}
		if ports[0].From > ports[0].To {
			ports = nil
		}
		return not(m.Not, w.ports(ruleset.Src, ports, s))
	case plain(m.Value, ruleset.ReverseIndex, 4) && w.path.Returns == Yes && w.entered() && zero(m.From) && zero(m.To):
		// Some interface, whichever it is.
		return not(m.Not, No)
	}
	switch w.read(m.Value, s) {
	case missing:
		return No
	case unreadable:
		w.why = "a value that is not known"
		return Unknown
	case whole, partly:
	}
	answer := within(w.bytes, w.unknown, m.From, m.To)
	if answer == Unknown {
		w.why = "a value that is not known"
	}
	return not(m.Not, answer)
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// within reports whether a value, whatever its unknown bits are, lies between
// two others of its length.
func within(value, unknown, from, to []byte) Ternary {
	if bytes.Compare(from, to) > 0 {
		return No
	}
	// It cannot be below the value, where unknown bits are 0, nor above the
	// most that it can be.
	most := make([]byte, len(value))
	for i := range value {
		most[i] = value[i] | unknown[i]
	}
	if bytes.Compare(from, value) <= 0 && bytes.Compare(most, to) <= 0 {
		return Yes
	}
	if first, ok := ceiling(value, unknown, from); !ok || bytes.Compare(first, to) > 0 {
		return No
	}
	return Unknown
}

// ceiling returns the least that the value can be without being below bound;
// false if it is below in any case.
func ceiling(value, unknown, bound []byte) ([]byte, bool) {
	for i := range value {
		differ := (value[i] ^ bound[i]) &^ unknown[i]
		if differ == 0 {
			continue
		}
		// Up to here it can equal the bound. Now it is above, or has to be
		// so at the last place before where it can.
		at := i*8 + mathbits.LeadingZeros8(differ)
		if bitAt(value, at) {
			return above(value, bound, at), true
		}
		for at--; at >= 0; at-- {
			if !bitAt(bound, at) && bitAt(unknown, at) {
				return above(value, bound, at), true
			}
		}
		return nil, false
	}
	return bound, true
}

func bitAt(b []byte, at int) bool { return b[at/8]&(0x80>>(at%8)) != 0 }

// above returns the least value that equals bound before a bit and has that.
func above(value, bound []byte, at int) []byte {
	result := bytes.Clone(value)
	copy(result, bound[:at/8])
	bit := byte(0x80) >> (at % 8)
	result[at/8] = bound[at/8]&^(bit<<1-1) | bit | value[at/8]&(bit-1)
	return result
}

// answered says what came of asking a set for an element.
type answered uint8

const (
	// told: the element is known.
	told answered = iota
	// untold: w.why says why it is not.
	untold
	// broken: there is no key, so that the rule does not match (NFT_BREAK).
	broken
)

// lookup answers whether the key is in the set.
func (w *walk) lookup(m *ruleset.Lookup, s *state) Ternary {
	found, how := w.element(m.Set, m.Key, s)
	switch {
	case how == broken:
		return No
	case how == untold:
		return Unknown
	case found.In && found.Unknown != "":
		w.why = found.Unknown
		return Unknown
	}
	return not(m.Not, Of(found.In))
}

// element asks a set for a key's element.
func (w *walk) element(set *ruleset.NativeSet, key ruleset.Value, s *state) (ruleset.Element, answered) {
	switch w.read(key, s) {
	case missing:
		return ruleset.Element{}, broken
	case partly, unreadable:
		w.why = "the key for " + set.Name + " is not known"
		return ruleset.Element{}, untold
	case whole:
	}
	found, err := w.sets.Element(set, w.bytes)
	if err != nil {
		w.why = err.Error()
		if w.why == "" {
			w.why = set.Name + " cannot be asked"
		}
		return ruleset.Element{}, untold
	}
	return found, told
}
