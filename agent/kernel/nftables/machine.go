// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/xtblob"
	"github.com/policygate/policygate/agent/ruleset"
)

// NFTA_BITWISE_OP is new in Linux 5.6; operation 0 is mask and xor.
const bitwiseOperation = 6

// objectCounter is NFT_OBJECT_COUNTER.
const objectCounter = 1

// attrs are the attributes of one expression. Numbers that no expression known
// here has are counted as foreign: what a later kernel says with them may
// change what the others mean.
type attrs struct {
	values  [16][]byte
	foreign bool
}

func parseAttrs(data []byte) (attrs, error) {
	var a attrs
	err := nlconn.Attributes(data, func(kind uint16, value []byte) {
		if int(kind) >= len(a.values) {
			a.foreign = true
			return
		}
		if value == nil {
			value = []byte{}
		}
		a.values[kind] = value
	})
	return a, err
}

// only reports whether there are no attributes but the given.
func (a *attrs) only(kinds ...int) bool {
	for kind, value := range a.values {
		if value != nil && !slices.Contains(kinds, kind) {
			return false
		}
	}
	return !a.foreign
}

// number returns a big endian attribute; false if there is none of 4 bytes.
func (a *attrs) number(kind int) (uint32, bool) {
	if len(a.values[kind]) != 4 {
		return 0, false
	}
	return nlconn.BE32(a.values[kind]), true
}

// data returns the bytes within an NFTA_DATA_VALUE; false if there are none.
func (a *attrs) data(kind int) ([]byte, bool) {
	inner, err := parseAttrs(a.values[kind])
	value := inner.values[unix.NFTA_DATA_VALUE]
	return value, err == nil && inner.only(unix.NFTA_DATA_VALUE) && len(value) > 0
}

// registersSize is that of nf_tables' register file without the verdict: 16
// registers of 4 bytes, or 4 of 16 bytes in the same place.
const registersSize = 64

// register returns where a register begins; false for the verdict and for
// numbers that are none.
func register(number uint32) (int, bool) {
	switch {
	case number >= unix.NFT_REG_1 && number <= unix.NFT_REG_4:
		return int(number-unix.NFT_REG_1) * 16, true
	case number >= unix.NFT_REG32_00 && number <= unix.NFT_REG32_15:
		return int(number-unix.NFT_REG32_00) * 4, true
	}
	return 0, false
}

// cell is what is known of one byte of a register: byte index of a field,
// under a mask and then flipped by xor. A constant has a mask of 0. The zero
// cell is not known.
type cell struct {
	known     bool
	source    source
	index     uint8
	mask, xor byte
}

// machine evaluates the expressions of one rule with registers of which each
// byte is known, or is not. Whatever it does not understand ends as an Unknown
// match, if all it can do is to let the rule match or not, or as an
// UnknownTarget.
type machine struct {
	family    ruleset.Family
	sets      xtblob.Sets
	registers [registersSize]cell
	rule      ruleset.Rule
	// acted is set once the rule has done what a match after it could not
	// take back. The model has one target, which comes last.
	acted bool
	// open is set once the rule has an Unknown match.
	open bool
	// flags is set once a match looks at the flags of a TCP header.
	flags bool
}

// decodeRule returns the rule of a chain that the list of expressions is, with
// a name but no chain in a jump. It returns an error if the list is malformed.
func decodeRule(family ruleset.Family, chain string, expressions, userdata []byte, sets xtblob.Sets) (ruleset.Rule, error) {
	m := machine{family: family, sets: sets, rule: ruleset.Rule{Target: ruleset.Target{Kind: ruleset.Continue}}}
	var nested []error
	err := nlconn.Attributes(expressions, func(_ uint16, element []byte) {
		expression, err := parseAttrs(element)
		if err != nil {
			nested = append(nested, err)
			return
		}
		name := nlconn.Text(expression.values[unix.NFTA_EXPR_NAME])
		a, err := parseAttrs(expression.values[unix.NFTA_EXPR_DATA])
		if err != nil {
			nested = append(nested, fmt.Errorf("expression %q: %w", name, err))
			return
		}
		m.expression(name, &a)
	})
	if err := errors.Join(append(nested, err)...); err != nil {
		return ruleset.Rule{}, err
	}
	if m.flags && !slices.Contains(m.rule.Matches, ruleset.Match(ruleset.Proto{Number: unix.IPPROTO_TCP})) {
		m.rule.Matches = append(m.rule.Matches, ruleset.Unknown{Text: "transport header at 13"})
	}
	ruleset.Order(m.rule.Matches)
	if m.rule.Comment == "" {
		m.rule.Comment = comment(userdata)
	}
	m.rule.Raw = ruleset.Render(chain, &m.rule)
	return m.rule, nil
}

// comment returns the comment of a rule's userdata, which only programs read:
// a list of type, length and value, of which type 0 is nft's comment.
func comment(userdata []byte) string {
	for len(userdata) >= 2 {
		kind, length := userdata[0], int(userdata[1])
		if length > len(userdata)-2 {
			return ""
		}
		if kind == 0 {
			return nlconn.Text(userdata[2 : 2+length])
		}
		userdata = userdata[2+length:]
	}
	return ""
}

// match adds a condition.
func (m *machine) match(c ruleset.Match) {
	if m.acted {
		m.spoil("a condition after the target")
		return
	}
	m.rule.Matches = append(m.rule.Matches, c)
}

// unknown adds a condition that may or may not hold. One is as good as many.
func (m *machine) unknown(what string) {
	if !m.open || m.acted {
		m.open = true
		m.match(ruleset.Unknown{Text: what})
	}
}

// act sets what the rule does.
func (m *machine) act(t ruleset.Target) {
	if m.acted {
		m.spoil("more than one target")
		return
	}
	m.rule.Target = t
	m.acted = t.Kind != ruleset.Continue
}

// spoil says that nobody knows what the rule does from here on.
func (m *machine) spoil(what string) {
	m.rule.Target = ruleset.Target{Kind: ruleset.UnknownTarget, Name: what}
	m.acted = true
}

// forget makes all registers unknown.
func (m *machine) forget() { m.registers = [registersSize]cell{} }

// expression evaluates one expression. It knows all that Linux has by name;
// another may be able to do anything.
func (m *machine) expression(name string, a *attrs) {
	switch name {
	case "counter", "last", "dup":
		// They count or copy, and go on.
	case "log":
		m.log(a)
	case "cmp":
		m.cmp(a)
	case "range":
		m.between(a)
	case "bitwise":
		m.bitwise(a)
	case "immediate":
		m.immediate(a)
	case "meta":
		m.meta(a)
	case "payload":
		m.payload(a)
	case "ct":
		m.ct(a)
	case "match":
		m.xtMatch(a)
	case "target":
		m.xtTarget(a)
	case "reject":
		m.act(ruleset.Target{Kind: ruleset.Drop, Name: "REJECT"})
	case "notrack":
		m.act(ruleset.Target{Kind: ruleset.NoTrack, Name: "NOTRACK"})
	case "masq":
		m.act(ruleset.Target{Kind: ruleset.NewSource, Name: "MASQUERADE"})
	case "redir":
		m.act(ruleset.Target{Kind: ruleset.NewDestination, Name: "REDIRECT"})
	case "nat":
		m.nat(a)
	case "lookup":
		m.lookup(a)
	case "objref":
		if kind, ok := a.number(unix.NFTA_OBJREF_IMM_TYPE); !ok || kind != objectCounter {
			m.spoil("objref")
		}
	case "limit", "quota", "connlimit", "dynset", "flow_offload":
		// They let a packet pass on to the next expression or not.
		m.unknown(name)
	case "byteorder", "exthdr", "fib", "hash", "inner", "numgen", "osf", "rt", "socket", "tunnel", "xfrm":
		// They put something into registers, or end the rule.
		m.unknown(name)
		m.forget()
	default:
		// queue, tproxy, synproxy and fwd decide, as may what is not known.
		m.spoil("expression " + name)
		m.forget()
	}
}

func (m *machine) log(a *attrs) {
	const group = 1 // NFTA_LOG_GROUP
	if m.acted {
		return
	}
	m.rule.Target.Name = "LOG"
	if a.values[group] != nil {
		m.rule.Target.Name = "NFLOG"
	}
}

// put writes cells to a register. One that they do not fit into makes all
// registers unknown.
func (m *machine) put(a *attrs, dreg int, cells []cell) bool {
	number, ok := a.number(dreg)
	at, isRegister := register(number)
	if !ok || !isRegister || at+len(cells) > registersSize {
		m.forget()
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

func (m *machine) bitwise(a *attrs) {
	operation := uint32(0)
	if a.values[bitwiseOperation] != nil {
		operation, _ = a.number(bitwiseOperation)
	}
	length, ok := a.number(unix.NFTA_BITWISE_LEN)
	mask, ok2 := a.data(unix.NFTA_BITWISE_MASK)
	xor, ok3 := a.data(unix.NFTA_BITWISE_XOR)
	understood := ok && ok2 && ok3 && operation == 0 && int(length) == len(mask) && len(mask) == len(xor) &&
		a.only(unix.NFTA_BITWISE_SREG, unix.NFTA_BITWISE_DREG, unix.NFTA_BITWISE_LEN, unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR, bitwiseOperation)
	if !understood {
		m.unknown("bitwise")
		m.forget()
		return
	}
	from, ok := m.get(a, unix.NFTA_BITWISE_SREG, len(mask))
	if !ok {
		m.unknown("bitwise")
		m.forget()
		return
	}
	cells := make([]cell, len(mask), registersSize)
	for i, c := range from {
		if c.known {
			c.mask, c.xor = c.mask&mask[i], c.xor&mask[i]^xor[i]
		}
		cells[i] = c
	}
	m.load(a, unix.NFTA_BITWISE_DREG, cells, "bitwise")
}

// load puts cells into a register and clears what is left of its last 4
// bytes, as the kernel does for a value of 1 or 2 bytes. Where it does not for
// others, they are unknown.
func (m *machine) load(a *attrs, dreg int, cells []cell, what string) {
	for short := len(cells) < 4; len(cells)%4 != 0; {
		cells = append(cells, cell{known: short})
	}
	if !m.put(a, dreg, cells) {
		m.unknown(what)
	}
}

func (m *machine) immediate(a *attrs) {
	if !a.only(unix.NFTA_IMMEDIATE_DREG, unix.NFTA_IMMEDIATE_DATA) {
		m.spoil("immediate")
		m.forget()
		return
	}
	if dreg, ok := a.number(unix.NFTA_IMMEDIATE_DREG); ok && dreg == unix.NFT_REG_VERDICT {
		m.verdict(a.values[unix.NFTA_IMMEDIATE_DATA])
		return
	}
	data, ok := a.data(unix.NFTA_IMMEDIATE_DATA)
	if !ok {
		m.forget()
		m.unknown("immediate")
		return
	}
	cells := make([]cell, len(data), len(data)+3)
	for i, b := range data {
		cells[i] = cell{known: true, xor: b}
	}
	m.load(a, unix.NFTA_IMMEDIATE_DREG, cells, "immediate")
}

// Verdicts that x/sys has no number for, linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
)

func (m *machine) verdict(data []byte) {
	outer, err := parseAttrs(data)
	v, err2 := parseAttrs(outer.values[unix.NFTA_DATA_VERDICT])
	code, ok := v.number(unix.NFTA_VERDICT_CODE)
	if err != nil || err2 != nil || !ok {
		m.spoil("verdict")
		return
	}
	chain := nlconn.Text(v.values[unix.NFTA_VERDICT_CHAIN])
	switch int32(code) { //nolint:gosec // A signed number by definition.
	case nfAccept:
		m.act(ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"})
	case nfDrop:
		m.act(ruleset.Target{Kind: ruleset.Drop, Name: "DROP"})
	case unix.NFT_CONTINUE:
	case unix.NFT_RETURN:
		m.act(ruleset.Target{Kind: ruleset.Return, Name: "RETURN"})
	case unix.NFT_JUMP:
		m.act(ruleset.Target{Kind: ruleset.Jump, Name: chain})
	case unix.NFT_GOTO:
		m.act(ruleset.Target{Kind: ruleset.Goto, Name: chain})
	default:
		// A queue, or a break, which only a map would give.
		m.spoil(fmt.Sprintf("verdict %d", int32(code))) //nolint:gosec // As above.
	}
}

func (m *machine) lookup(a *attrs) {
	what := "lookup of set " + nlconn.Text(a.values[unix.NFTA_LOOKUP_SET])
	if dreg, ok := a.number(unix.NFTA_LOOKUP_DREG); ok && dreg == unix.NFT_REG_VERDICT {
		m.spoil(what)
		return
	}
	m.unknown(what)
	m.forget()
}

func (m *machine) nat(a *attrs) {
	kind, ok := a.number(unix.NFTA_NAT_TYPE)
	switch {
	case ok && kind == unix.NFT_NAT_SNAT:
		m.act(ruleset.Target{Kind: ruleset.NewSource, Name: "SNAT"})
	case ok && kind == unix.NFT_NAT_DNAT:
		m.act(ruleset.Target{Kind: ruleset.NewDestination, Name: "DNAT"})
	default:
		m.spoil("nat")
	}
}

// xtension returns what an extension of xtables is called in an expression;
// matches and targets have the same three attributes.
func xtension(a *attrs) (name string, revision uint8, ok bool) {
	name = nlconn.Text(a.values[unix.NFTA_MATCH_NAME])
	number, ok := a.number(unix.NFTA_MATCH_REV)
	return name, uint8(number), ok && number <= 255 && name != "" && //nolint:gosec // Checked right here.
		a.only(unix.NFTA_MATCH_NAME, unix.NFTA_MATCH_REV, unix.NFTA_MATCH_INFO)
}

func (m *machine) xtMatch(a *attrs) {
	name, revision, ok := xtension(a)
	if !ok {
		m.unknown("match " + name)
		return
	}
	matches, comment := xtblob.Match(m.family, name, revision, a.values[unix.NFTA_MATCH_INFO], m.sets)
	if comment != "" {
		m.rule.Comment = comment
	}
	for _, c := range matches {
		m.match(c)
	}
}

func (m *machine) xtTarget(a *attrs) {
	name, revision, ok := xtension(a)
	if !ok {
		m.spoil("target " + name)
		return
	}
	m.act(xtblob.Target(m.family, name, revision, a.values[unix.NFTA_TARGET_INFO]))
}

// setMark writes the register's value to a mark: (mark &^ Mask) ^ Value.
func (m *machine) setMark(a *attrs, sreg int, of source, t ruleset.Target) {
	cells, ok := m.get(a, sreg, 4)
	if !ok {
		m.spoil("mark set")
		return
	}
	var mask, xor [4]byte
	for i, c := range cells {
		if !c.known || (c.mask != 0 && (c.source != of || int(c.index) != i)) {
			m.spoil("mark set to what is not known")
			return
		}
		mask[i], xor[i] = c.mask, c.xor
	}
	t.Value, t.Mask = binary.NativeEndian.Uint32(xor[:]), ^binary.NativeEndian.Uint32(mask[:])
	m.act(t)
}
