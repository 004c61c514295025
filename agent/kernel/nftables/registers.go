// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/ruleset"
)

// hasRoute stands for the one bit that "fib saddr . iif oif exists" puts into
// a register, and anyRoute for that of "fib saddr oif exists". The model has
// matches for the questions, not for the bits, so no Value has these fields.
const (
	hasRoute ruleset.Field = 0xff - iota
	anyRoute
)

// whole returns the register that holds all bytes of a field.
func whole(f ruleset.Field, size int) []cell {
	cells := make([]cell, size, words(size))
	for i := range cells {
		cells[i].Byte = ruleset.Byte{Known: true, Field: f, Index: uint8(i), Mask: 0xff}
	}
	return cells
}

func constant(values ...byte) []cell {
	cells := make([]cell, len(values), words(len(values)))
	for i, b := range values {
		cells[i].Byte = ruleset.Byte{Known: true, Xor: b}
	}
	return cells
}

// words returns the length of whole registers for that many bytes.
func words(size int) int { return (size + 3) &^ 3 }

func unknownCells(size int, what origin) []cell {
	cells := make([]cell, size, words(size))
	for i := range cells {
		cells[i].what = what
	}
	return cells
}

// put writes cells to a register. One that they do not fit into makes all
// registers unknown.
func (m *machine) put(a *attrs, dreg int, cells []cell, what origin) bool {
	number, ok := a.number(dreg)
	at, isRegister := register(number)
	if !ok || !isRegister || at+len(cells) > registersSize {
		m.forget(what)
		return false
	}
	copy(m.registers[at:], cells)
	return true
}

// get returns the cells of a register.
func (m *machine) get(a *attrs, sreg, length int) ([]cell, bool) {
	number, ok := a.number(sreg)
	at, isRegister := register(number)
	if !ok || !isRegister || length > registersSize-at {
		return nil, false
	}
	return m.registers[at : at+length], true
}

// load puts cells into a register and clears what is left of its last 4
// bytes, as nft_data_copy, nft_reg_store8 and 16 and the expressions that copy
// on their own do.
func (m *machine) load(a *attrs, dreg int, cells []cell, what origin) {
	for len(cells)%4 != 0 {
		cells = append(cells, cell{Byte: ruleset.Byte{Known: true}})
	}
	if !m.put(a, dreg, cells, what) {
		m.unknown(what.String())
	}
}

// Attributes and operations of linux/netfilter/nf_tables.h: NFTA_BITWISE_OP is
// new in Linux 5.6, NFTA_BITWISE_DATA with it and NFTA_BITWISE_SREG2 in 6.13.
const (
	bitwiseOperation = 6
	bitwiseData      = 7
	bitwiseSource2   = 8

	// bitwiseLast is NFT_BITWISE_XOR, the last operation known.
	bitwiseLast = 5
)

func (m *machine) bitwise(a *attrs) {
	what := origin{text: "bitwise"}
	operation, ok := a.optional(bitwiseOperation)
	length, ok2 := a.number(unix.NFTA_BITWISE_LEN)
	if !ok || !ok2 || length == 0 || length > registersSize || operation > bitwiseLast ||
		!a.only(unix.NFTA_BITWISE_SREG, unix.NFTA_BITWISE_DREG, unix.NFTA_BITWISE_LEN, unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR,
			bitwiseOperation, bitwiseData, bitwiseSource2) {
		m.unknown(what.String())
		m.forget(what)
		return
	}
	from, ok := m.get(a, unix.NFTA_BITWISE_SREG, int(length))
	mask, ok2 := a.data(unix.NFTA_BITWISE_MASK)
	xor, ok3 := a.data(unix.NFTA_BITWISE_XOR)
	if operation != 0 || a.values[bitwiseData] != nil || a.values[bitwiseSource2] != nil {
		// Shifts, and operations on two registers. They work on whole words
		// of 4 bytes and always come to a result.
		m.load(a, unix.NFTA_BITWISE_DREG, unknownCells(words(int(length)), what), what)
		return
	}
	if !ok || !ok2 || !ok3 || len(mask) != len(from) || len(xor) != len(from) {
		m.unknown(what.String())
		m.forget(what)
		return
	}
	cells := slices.Grow(slices.Clone(from), 3)
	for i := range cells {
		if c := &cells[i]; c.Known || mask[i] == 0 {
			c.Known, c.Mask, c.Xor = true, c.Mask&mask[i], c.Xor&mask[i]^xor[i]
		}
	}
	m.load(a, unix.NFTA_BITWISE_DREG, cells, what)
}

// byteorder swaps bytes where the host's order is not the network's. Only one
// number of 2 or 8 bytes is understood: for more than one, kernels before 6.5
// read and wrote at other places. What is shorter than the number is left
// alone, also what was in the destination.
func (m *machine) byteorder(a *attrs) {
	what := origin{text: "byteorder"}
	operation, ok := a.number(unix.NFTA_BYTEORDER_OP)
	length, ok2 := a.number(unix.NFTA_BYTEORDER_LEN)
	size, ok3 := a.number(unix.NFTA_BYTEORDER_SIZE)
	if !ok || !ok2 || !ok3 || operation > unix.NFT_BYTEORDER_HTON || length == 0 || length > registersSize ||
		(size != 2 && size != 4 && size != 8) || (size != 4 && length >= 2*size) ||
		!a.only(unix.NFTA_BYTEORDER_SREG, unix.NFTA_BYTEORDER_DREG, unix.NFTA_BYTEORDER_OP, unix.NFTA_BYTEORDER_LEN, unix.NFTA_BYTEORDER_SIZE) {
		m.unknown(what.String())
		m.forget(what)
		return
	}
	from, ok := m.get(a, unix.NFTA_BYTEORDER_SREG, int(length-length%size))
	if !ok {
		m.unknown(what.String())
		m.forget(what)
		return
	}
	cells := slices.Clone(from)
	if binary.NativeEndian.Uint16([]byte{0, 1}) != 1 {
		for number := range slices.Chunk(cells, int(size)) {
			slices.Reverse(number)
		}
	}
	// The rest of the last 4 bytes stays what it was.
	if !m.put(a, unix.NFTA_BYTEORDER_DREG, cells, what) {
		m.unknown(what.String())
	}
}

// setMark writes the register's value to a mark, of which it is the field; or
// the other mark's, which is copied to it.
func (m *machine) setMark(a *attrs, sreg int, of ruleset.Field) {
	cells, ok := m.get(a, sreg, 4)
	if !ok {
		m.spoil("mark set")
		return
	}
	var mask, xor [4]byte
	from := ruleset.Constant
	for i, c := range cells {
		if !c.Known || (c.Mask != 0 && (int(c.Index) != i || (from != ruleset.Constant && c.Field != from))) {
			m.spoil("mark set to what is not known")
			return
		}
		if c.Mask != 0 {
			from = c.Field
		}
		mask[i], xor[i] = c.Mask, c.Xor
	}
	if from == ruleset.ConnMark {
		m.tracked()
	}
	keep, value := binary.NativeEndian.Uint32(mask[:]), binary.NativeEndian.Uint32(xor[:])
	const all = 0xffffffff
	switch {
	case of == ruleset.PacketMark && (from == of || from == ruleset.Constant):
		m.act(ruleset.Target{Kind: ruleset.SetMark, Name: "MARK", Value: value, Mask: ^keep})
	case of == ruleset.ConnMark && (from == of || from == ruleset.Constant):
		m.act(ruleset.Target{Kind: ruleset.SetConnMark, Name: "CONNMARK", Value: value, Mask: ^keep})
	case of == ruleset.PacketMark && from == ruleset.ConnMark && value == 0:
		m.act(ruleset.Target{Kind: ruleset.RestoreMark, Name: "CONNMARK", Mask: all, CTMask: keep})
	case of == ruleset.ConnMark && from == ruleset.PacketMark && value == 0:
		m.act(ruleset.Target{Kind: ruleset.SaveMark, Name: "CONNMARK", Mask: keep, CTMask: all})
	default:
		m.spoil("mark set to what is not known")
	}
}
