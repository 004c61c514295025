// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// term is a run of a value's bytes that are next to each other in one field.
type term struct {
	field Field
	known bool
	// at is where the run begins in the value, and first in the field.
	at, first int
	mask, xor []byte
}

// termsOf splits a value. The zeros that fill registers up are left out where
// there is anything else.
func termsOf(v Value) []term {
	var terms []term
	for i, b := range v {
		if n := len(terms); n > 0 {
			t := &terms[n-1]
			if t.known == b.Known && t.field == b.Field && (b.Field == Constant || int(b.Index) == t.first+len(t.mask)) {
				t.mask, t.xor = append(t.mask, b.Mask), append(t.xor, b.Xor)
				continue
			}
		}
		terms = append(terms, term{field: b.Field, known: b.Known, at: i, first: int(b.Index), mask: []byte{b.Mask}, xor: []byte{b.Xor}})
	}
	kept := terms[:0:0]
	for _, t := range terms {
		if !t.known || t.field != Constant || !zeros(t.xor) {
			kept = append(kept, t)
		}
	}
	if len(kept) == 0 {
		return terms
	}
	return kept
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func renderKey(v Value) string {
	terms := termsOf(v)
	words := make([]string, len(terms))
	for i := range terms {
		words[i] = terms[i].String()
	}
	return strings.Join(words, " . ")
}

// String returns the term much as nft writes it.
func (t *term) String() string {
	switch {
	case !t.known:
		return "unknown"
	case t.field == Constant:
		return t.number(t.xor)
	}
	text := t.name()
	if whole := strings.Repeat("\xff", len(t.mask)); string(t.mask) != whole {
		text += " & " + t.number(t.mask)
	}
	if !zeros(t.xor) {
		text += " ^ " + t.number(t.xor)
	}
	return text
}

func (t *term) name() string {
	ip := "ip "
	if t.first+len(t.mask) > 4 {
		ip = "ip6 "
	}
	switch t.field {
	case SrcAddr:
		return ip + "saddr"
	case DstAddr:
		return ip + "daddr"
	case L4Proto:
		return "meta l4proto"
	case FragOff:
		return "ip frag-off"
	case SrcPort:
		return "th sport"
	case DstPort:
		return "th dport"
	case TCPFlagBits:
		return "tcp flags"
	case InName:
		return "iifname"
	case OutName:
		return "oifname"
	case InIndex:
		return "iif"
	case OutIndex:
		return "oif"
	case PacketMark:
		return "meta mark"
	case ConnMark:
		return "ct mark"
	case ConnState:
		return "ct state"
	case ConnStatus:
		return "ct status"
	case SrcType:
		return "fib saddr type"
	case DstType:
		return "fib daddr type"
	case ReverseIndex:
		return "fib saddr . iif oif"
	case Constant:
	}
	return fmt.Sprintf("field %d", uint8(t.field))
}

// number writes bytes as a number, in the order that the field has.
func (t *term) number(b []byte) string {
	if t.hostOrder() {
		return fmt.Sprintf("%#x", binary.NativeEndian.Uint32(b))
	}
	return "0x" + hex.EncodeToString(b)
}

// hostOrder reports whether the term is a whole number in the host's order.
func (t *term) hostOrder() bool {
	numbers := []Field{InIndex, OutIndex, PacketMark, ConnMark, ConnState, ConnStatus, SrcType, DstType, ReverseIndex}
	return slices.Contains(numbers, t.field) && t.first == 0 && len(t.mask) == 4
}

// literal writes what the term is compared with.
func (t *term) literal(b []byte) string {
	isAddress, isPort, isName := t.field == SrcAddr || t.field == DstAddr, t.field == SrcPort || t.field == DstPort, t.field == InName || t.field == OutName
	if addr, ok := netip.AddrFromSlice(b); ok && isAddress && t.first == 0 {
		return addr.String()
	}
	switch {
	case isPort && len(b) == 2:
		return strconv.Itoa(int(binary.BigEndian.Uint16(b)))
	case t.field == L4Proto:
		return protocolName(b[0])
	case isName && t.first == 0:
		return interfaceName(b)
	}
	return t.number(b)
}

// interfaceName writes a name or, if it does not end, its beginning.
func interfaceName(b []byte) string {
	name, _, ends := strings.Cut(string(b), "\x00")
	return name + pick(ends || len(b) == 16, "", "*")
}

func renderCompare(c Compare) string {
	if len(c.From) != len(c.Value) || len(c.To) != len(c.Value) {
		return renderKey(c.Value) + " " + pick(c.Not, "!= ", "") + hex.EncodeToString(c.From) + "-" + hex.EncodeToString(c.To)
	}
	terms := termsOf(c.Value)
	from, to := make([]string, len(terms)), make([]string, len(terms))
	for i := range terms {
		t := &terms[i]
		from[i], to[i] = t.literal(c.From[t.at:t.at+len(t.mask)]), t.literal(c.To[t.at:t.at+len(t.mask)])
	}
	text := strings.Join(from, " . ")
	if string(c.From) != string(c.To) {
		text += "-" + strings.Join(to, " . ")
	}
	return renderKey(c.Value) + " " + pick(c.Not, "!= ", "") + text
}

// RenderElement writes an element of a set that is asked with such a key, as
// nft takes it: "10.0.0.1 . 80". It is "" for an element of another length.
func RenderElement(key Value, element []byte) string {
	if len(element) != len(key) {
		return ""
	}
	terms := termsOf(key)
	words := make([]string, len(terms))
	for i := range terms {
		t := &terms[i]
		words[i] = t.literal(element[t.at : t.at+len(t.mask)])
	}
	return strings.Join(words, " . ")
}

// SetName returns what a person knows the set by: its name or, where it is part
// of the rule, what it is asked for, as in "ip saddr {...}".
func (l *Lookup) SetName() string {
	if l.Set.Anonymous() {
		return renderKey(l.Key) + " {...}"
	}
	return l.Set.Name
}
