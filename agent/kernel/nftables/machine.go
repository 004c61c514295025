// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/xtblob"
	"github.com/policygate/policygate/agent/ruleset"
)

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

// optional returns a big endian attribute, 0 if it is not there; false if it is
// not of 4 bytes.
func (a *attrs) optional(kind int) (uint32, bool) {
	if a.values[kind] == nil {
		return 0, true
	}
	return a.number(kind)
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

// cell is what is known of one byte of a register, and if nothing is, what was
// loaded.
type cell struct {
	ruleset.Byte
	what origin
}

// origin names what was loaded, as text only when somebody asks.
type origin struct {
	text string
	// number follows the text if numbered is set.
	number   uint32
	numbered bool
}

// String returns a few words such as "meta key 10".
func (o origin) String() string {
	if o.numbered {
		return o.text + " " + strconv.FormatUint(uint64(o.number), 10)
	}
	return o.text
}

// surroundings are what a rule refers to by name or by index.
type surroundings interface {
	xtblob.Sets
	// chain returns a chain that a jump can lead to, nil if there is none.
	chain(name string) *ruleset.Chain
	// set returns a set or map of the rule's table.
	set(name string) (*set, error)
	// isRead reports whether any rule looks anything up in the set.
	isRead(set string) (bool, error)
}

// machine evaluates the expressions of one rule with registers of which each
// byte is known, or is not. Whatever it does not understand ends as an Unknown
// match, if all it can do is to let the rule match or not, or as an
// UnknownTarget.
type machine struct {
	family    ruleset.Family
	from      surroundings
	registers [registersSize]cell
	// before are the steps of the rule that are complete: a rule of the model
	// has one target, which comes last, and nf_tables' may set a mark and go
	// on.
	before []ruleset.Rule
	// rule is the current step.
	rule    ruleset.Rule
	comment string
	// acted is set once the step has a target.
	acted bool
	// open is set once the step has an Unknown match.
	open bool
	// flags is set once a match of the step looks at the flags of a TCP header.
	flags bool
	// never is set once a condition cannot hold for this family: what comes
	// after it is not evaluated.
	never bool
	// err is the first reason for which the rule cannot be told.
	err error
}

// decodeRule returns the rule of a chain that the list of expressions is. It
// returns an error if the list is malformed or refers to what is not there.
func decodeRule(family ruleset.Family, chain string, expressions, userdata []byte, from surroundings) (ruleset.Rule, error) {
	m := machine{family: family, from: from, rule: ruleset.Rule{Target: ruleset.Target{Kind: ruleset.Continue}}}
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
		if !m.never {
			m.expression(name, &a)
		}
	})
	if err := errors.Join(append(nested, err, m.err)...); err != nil {
		return ruleset.Rule{}, err
	}
	if m.comment == "" {
		m.comment = comment(userdata)
	}
	return m.finish(chain), nil
}

// finish returns the rule. One of several steps leads to a chain of its own
// that has the steps. Only that has a text: of the others Render makes it if
// somebody asks.
func (m *machine) finish(chain string) ruleset.Rule {
	m.seal()
	steps := slices.Concat(m.before, []ruleset.Rule{m.rule})
	whole := ruleset.Rule{Matches: steps[0].Matches, Target: steps[0].Target, Comment: m.comment}
	if len(steps) == 1 {
		return whole
	}
	whole.Raw = ruleset.Render(chain, &whole)
	for i := range steps[1:] {
		whole.Raw += strings.TrimPrefix(ruleset.Render("", &steps[i+1]), "-A ")
	}
	whole.Target = ruleset.Target{Kind: ruleset.Jump, Name: restOfRule}
	switch last := steps[len(steps)-1].Target.Kind; {
	case last == ruleset.Decide, leaves(last) && slices.ContainsFunc(steps[1:], func(r ruleset.Rule) bool { return len(r.Matches) > 0 }):
		// The chain of the steps would be left in place of the rule's own.
		whole.Target = ruleset.Target{Kind: ruleset.UnknownTarget, Name: "more than one target"}
		return whole
	case leaves(last):
		whole.Target.Kind = ruleset.Goto
	}
	steps[0].Matches = nil
	for i := range steps {
		steps[i].Raw, steps[i].Comment = whole.Raw, m.comment
	}
	whole.Target.Chain = &ruleset.Chain{Name: chain, Rules: steps}
	return whole
}

// restOfRule names the chain that is made of a rule's steps.
const restOfRule = "the rest of the rule"

// leaves reports whether a target goes back to where its chain was called.
func leaves(kind ruleset.TargetKind) bool { return kind == ruleset.Return || kind == ruleset.Goto }

// seal completes the current step.
func (m *machine) seal() {
	isTCP := func(r ruleset.Rule) bool {
		return slices.Contains(r.Matches, ruleset.Match(ruleset.Proto{Number: unix.IPPROTO_TCP}))
	}
	if m.flags && !isTCP(m.rule) && !slices.ContainsFunc(m.before, isTCP) {
		m.rule.Matches = append(m.rule.Matches, ruleset.Unknown{Text: "transport header at 13"})
	}
	ruleset.Order(m.rule.Matches)
}

// next begins another step.
func (m *machine) next() {
	m.seal()
	m.before = append(m.before, m.rule)
	m.rule = ruleset.Rule{Target: ruleset.Target{Kind: ruleset.Continue}}
	m.acted, m.open, m.flags = false, false, false
}

// goesOn reports whether a rule goes on after a target.
func goesOn(kind ruleset.TargetKind) bool {
	switch kind {
	case ruleset.SetMark, ruleset.SetConnMark, ruleset.SaveMark, ruleset.RestoreMark, ruleset.NoTrack, ruleset.Continue:
		return true
	case ruleset.UnknownTarget, ruleset.Accept, ruleset.Drop, ruleset.Return, ruleset.Jump, ruleset.Goto,
		ruleset.Decide, ruleset.NewDestination, ruleset.NewSource:
	}
	return false
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
		if !goesOn(m.rule.Target.Kind) {
			m.spoil("a condition after the target")
			return
		}
		m.next()
	}
	m.rule.Matches = append(m.rule.Matches, c)
}

// unknown adds a condition that may or may not hold. One is as good as many.
func (m *machine) unknown(what string) {
	if !m.open || m.acted {
		m.match(ruleset.Unknown{Text: what})
		m.open = true
	}
}

// impossible adds a condition that cannot hold.
func (m *machine) impossible() {
	m.match(ruleset.Compare{Value: ruleset.Value{{Known: true}}, From: []byte{1}, To: []byte{1}})
	m.never = true
}

// act sets what the rule does.
func (m *machine) act(t ruleset.Target) {
	if m.acted {
		if !goesOn(m.rule.Target.Kind) {
			m.spoil("more than one target")
			return
		}
		m.next()
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
func (m *machine) forget(what origin) {
	for i := range m.registers {
		m.registers[i] = cell{what: what}
	}
}

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
	case "byteorder":
		m.byteorder(a)
	case "immediate":
		m.immediate(a)
	case "meta":
		m.meta(a)
	case "payload":
		m.payload(a)
	case "ct":
		m.ct(a)
	case "fib":
		m.fib(a)
	case "lookup":
		m.lookup(a)
	case "match":
		m.xtMatch(a)
	case "target":
		m.xtTarget(a)
	case "objref":
		m.objref(a)
	case "dynset":
		m.dynset(a)
	case "exthdr":
		m.exthdr(a)
	default:
		m.simple(name, a)
	}
}

// simple evaluates the expressions whose attributes say little.
func (m *machine) simple(name string, a *attrs) {
	switch name {
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
	case "limit", "quota", "connlimit", "flow_offload":
		// They let a packet pass on to the next expression or not.
		m.unknown(name)
	case "hash", "numgen":
		// They put a number into a register, and always do.
		dreg := unix.NFTA_HASH_DREG
		if name == "numgen" {
			dreg = unix.NFTA_NG_DREG
		}
		m.load(a, dreg, unknownCells(4, origin{text: name}), origin{text: name})
	case "inner", "osf", "rt", "socket", "tunnel", "xfrm":
		// They put something into registers, or end the rule.
		m.unknown(name)
		m.forget(origin{text: name})
	default:
		// queue, tproxy, synproxy and fwd decide, as may what is not known.
		m.spoil("expression " + name)
		m.forget(origin{text: name})
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

func (m *machine) nat(a *attrs) {
	other := uint32(unix.NFPROTO_IPV6)
	if m.family == ruleset.IPv6 {
		other = unix.NFPROTO_IPV4
	}
	if family, ok := a.number(unix.NFTA_NAT_FAMILY); ok && family == other {
		// In a table of family inet it lets packets of the other one pass on
		// (nft_nat_inet_eval).
		return
	}
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

func (m *machine) immediate(a *attrs) {
	if !a.only(unix.NFTA_IMMEDIATE_DREG, unix.NFTA_IMMEDIATE_DATA) {
		m.spoil("immediate")
		m.forget(origin{text: "immediate"})
		return
	}
	if dreg, ok := a.number(unix.NFTA_IMMEDIATE_DREG); ok && dreg == unix.NFT_REG_VERDICT {
		m.verdict(a.values[unix.NFTA_IMMEDIATE_DATA])
		return
	}
	data, ok := a.data(unix.NFTA_IMMEDIATE_DATA)
	if !ok {
		m.forget(origin{text: "immediate"})
		m.unknown("immediate")
		return
	}
	m.load(a, unix.NFTA_IMMEDIATE_DREG, constant(data...), origin{text: "immediate"})
}

func (m *machine) verdict(data []byte) {
	v, ok := readVerdict(data)
	if !ok {
		m.spoil("verdict")
		return
	}
	target, err := v.target(m.from)
	if err != nil {
		m.fail(err)
		return
	}
	if target.Kind == ruleset.UnknownTarget {
		m.spoil(target.Name)
	} else if target.Kind != ruleset.Continue {
		m.act(target)
	}
}

// fail says that the rule cannot be told, and decides nothing.
func (m *machine) fail(err error) {
	if m.err == nil {
		m.err = err
	}
	m.spoil("unreadable")
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
	matches, comment := xtblob.Match(m.family, name, revision, a.values[unix.NFTA_MATCH_INFO], m.from)
	if comment != "" {
		m.comment = comment
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
