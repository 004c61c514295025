// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package match

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const (
	// longest is how long a text may be. Kube-OVN lists what an ipBlock excepts,
	// and an object of Kubernetes has less than 2 MiB.
	longest = 2 << 20
	// deepest is how deeply parentheses may be nested, as in OVN.
	deepest = 100
)

// Parse reads a text. What cannot be read becomes an expression that is always
// Unknown, and has a Doubt.
func Parse(text string) *Expr {
	e := &Expr{text: text}
	p := parser{lexer: lexer{text: text}, expr: e}
	root, err := p.whole()
	if err != nil {
		e.root = node{test: test{text: "the match cannot be read: " + err.Error()}}
		e.doubt = e.root.test.text
		return e
	}
	e.root = root
	return e
}

type parser struct {
	lexer lexer
	token token
	expr  *Expr
	depth int
	// negative: what is being read is behind an odd number of negations.
	negative bool
}

func (p *parser) whole() (node, error) {
	if len(p.lexer.text) > longest {
		return node{}, fmt.Errorf("%d bytes: want at most %d", len(p.lexer.text), longest)
	}
	if err := p.advance(); err != nil {
		return node{}, err
	}
	n, err := p.junction()
	if err == nil && p.token.kind != end {
		err = p.unexpected("&&, || or the end")
	}
	return n, err
}

func (p *parser) advance() (err error) {
	p.token, err = p.lexer.next()
	return err
}

func (p *parser) unexpected(want string) error {
	return fmt.Errorf("at %d: %q: want %s", p.token.at, p.token.text, want)
}

// is returns whether the token is the operator.
func (p *parser) is(o string) bool { return p.token.kind == operator && p.token.text == o }

// take takes the operator, if it is there.
func (p *parser) take(o string) (bool, error) {
	if !p.is(o) {
		return false, nil
	}
	return true, p.advance()
}

// junction reads operands that are joined by && or by ||.
func (p *parser) junction() (node, error) {
	if p.depth++; p.depth > deepest {
		return node{}, fmt.Errorf("at %d: parentheses nested more than %d deep", p.token.at, deepest)
	}
	defer func() { p.depth-- }()
	first, err := p.operand()
	if err != nil || !p.is("&&") && !p.is("||") {
		return first, err
	}
	joined := node{junction: and}
	by := p.token.text
	if by == "||" {
		joined.junction = or
		p.expr.alternatives = p.expr.alternatives || p.depth == 1
	}
	joined.add(first)
	for p.is(by) {
		if err := p.advance(); err != nil {
			return node{}, err
		}
		n, err := p.operand()
		if err != nil {
			return node{}, err
		}
		joined.add(n)
	}
	if p.is("&&") || p.is("||") {
		return node{}, fmt.Errorf("at %d: && and || need parentheses when used together", p.token.at)
	}
	return joined, nil
}

// add joins another node, or those of one that is joined in the same way.
func (n *node) add(other node) {
	if other.junction == n.junction {
		n.nodes = append(n.nodes, other.nodes...)
		return
	}
	n.nodes = append(n.nodes, other)
}

// operand reads what && and || join.
func (p *parser) operand() (node, error) {
	negated, err := p.take("!")
	if err != nil {
		return node{}, err
	}
	at := p.token.at
	p.negative = p.negative != negated
	n, atomic, err := p.primary()
	p.negative = p.negative != negated
	switch {
	case err != nil:
		return node{}, err
	case negated && !atomic:
		return node{}, fmt.Errorf("at %d: ! needs parentheses around a comparison", at)
	case negated:
		return n.not(), nil
	}
	return n, nil
}

// primary reads parentheses, a predicate or a comparison. atomic: it may be
// negated as it stands.
func (p *parser) primary() (n node, atomic bool, err error) {
	if parenthesized, err := p.take("("); parenthesized || err != nil {
		if err != nil {
			return node{}, false, err
		}
		n, err := p.junction()
		if err == nil && !p.is(")") {
			err = p.unexpected(")")
		}
		if err != nil {
			return node{}, false, err
		}
		return n, true, p.advance()
	}
	from := p.token.at
	if p.token.kind == symbol {
		n, atomic, err = p.symbolFirst()
	} else {
		n, atomic, err = p.constantFirst()
	}
	if err == nil && n.junction == leaf {
		n.test.text = strings.TrimSpace(p.lexer.text[from:p.token.at])
	}
	return n, atomic, err
}

// operandSymbol is a symbol as it is used.
type operandSymbol struct {
	meaning
	name string
	// part: some of its bits are meant.
	part bool
}

// field reads a symbol, with the bits of it that are meant.
func (p *parser) field() (operandSymbol, error) {
	s := operandSymbol{name: p.token.text}
	if p.token.kind != symbol {
		return s, p.unexpected("a symbol")
	}
	var documented bool
	if s.meaning, documented = meaningOf(s.name); !documented {
		p.suspect("OVN may have no symbol " + s.name)
	}
	if err := p.advance(); err != nil {
		return s, err
	}
	for _, brackets := range [][2]string{{"[", "]"}, {"(", ")"}} {
		closing := brackets[1]
		opened, err := p.take(brackets[0])
		if err != nil {
			return s, err
		}
		if !opened {
			continue
		}
		s.part = true
		if s.field != unknown {
			p.suspect("OVN may refuse how " + s.name + " is used")
		}
		for !p.is(closing) {
			if p.token.kind == end {
				return s, p.unexpected(closing)
			}
			if err := p.advance(); err != nil {
				return s, err
			}
		}
		return s, p.advance()
	}
	return s, nil
}

// suspect notes why OVN may refuse the text.
func (p *parser) suspect(why string) {
	if p.expr.doubt == "" {
		p.expr.doubt = why
	}
}

// nominal notes that OVN has protocols, families and ports tested for being
// something, and not for not being it, negations around it taken into account.
func (p *parser) nominal(s operandSymbol, o op) {
	if (o == equal) == p.negative {
		p.suspect("OVN refuses to test what " + s.name + " is not")
	}
}

// symbolFirst reads a predicate, or a comparison that begins with the field.
func (p *parser) symbolFirst() (n node, atomic bool, err error) {
	s, err := p.field()
	if err != nil {
		return node{}, false, err
	}
	o, compared, err := p.relation()
	if err != nil {
		return node{}, false, err
	}
	if !compared {
		t := test{needs: s.needs}
		if s.field == always && !s.part {
			t.field = always
			p.nominal(s, equal)
		}
		return node{test: t}, true, nil
	}
	c, err := p.constants()
	if err != nil {
		return node{}, false, err
	}
	return node{test: p.compare(s, o, c)}, false, nil
}

// constantFirst reads 0 or 1, a comparison that begins with the constant, or a
// range.
func (p *parser) constantFirst() (n node, atomic bool, err error) {
	c, err := p.constants()
	if err != nil {
		return node{}, false, err
	}
	first, compared, err := p.relation()
	if err != nil {
		return node{}, false, err
	}
	if !compared {
		if len(c.numbers) == 1 && c.count == 1 && c.numbers[0] <= 1 {
			return node{test: test{field: always, inverted: c.numbers[0] == 0}}, true, nil
		}
		return node{}, false, p.unexpected("a relation")
	}
	s, err := p.field()
	if err != nil {
		return node{}, false, err
	}
	lower := p.compare(s, first.mirrored(), c)
	second, ranged, err := p.relation()
	if err != nil || !ranged {
		return node{test: lower}, false, err
	}
	upwards := (first == less || first == lessOrEqual) && (second == less || second == lessOrEqual)
	downwards := (first == greater || first == greaterOrEqual) && (second == greater || second == greaterOrEqual)
	if !upwards && !downwards {
		return node{}, false, p.unexpected("a range such as 1 <= x <= 2")
	}
	if c, err = p.constants(); err != nil {
		return node{}, false, err
	}
	upper := p.compare(s, second, c)
	lower.text, upper.text = "a range of "+s.name, "a range of "+s.name
	return node{junction: and, nodes: []node{{test: lower}, {test: upper}}}, false, nil
}

// relation reads a relation, if there is one.
func (p *parser) relation() (op, bool, error) {
	for o, text := range map[op]string{
		equal: "==", unequal: "!=", less: "<", lessOrEqual: "<=", greater: ">", greaterOrEqual: ">=",
	} {
		if p.is(text) {
			return o, true, p.advance()
		}
	}
	return 0, false, nil
}

// constants are what a field is compared with.
type constants struct {
	// count is how many there are of all kinds.
	count    int
	numbers  []uint64
	prefixes []netip.Prefix
	sets     []string
	ports    []string
	groups   []string
	// odd: there is one that is not understood.
	odd bool
}

// constants reads a constant, or several in braces.
func (p *parser) constants() (constants, error) {
	var c constants
	several, err := p.take("{")
	if err != nil {
		return c, err
	}
	if !several {
		return c, p.constant(&c)
	}
	for c.count == 0 || !p.is("}") {
		if err := p.constant(&c); err != nil {
			return c, err
		}
		if _, err := p.take(","); err != nil {
			return c, err
		}
	}
	return c, p.advance()
}

// constant reads one constant into c.
func (p *parser) constant(c *constants) error {
	text := p.token.text
	c.count++
	switch p.token.kind {
	case quoted:
		c.ports = append(c.ports, text)
	case setName:
		c.sets = append(c.sets, text)
	case group:
		c.groups = append(c.groups, text)
		p.expr.groups = append(p.expr.groups, text)
	case constant:
		return p.numeric(c)
	case end, symbol, operator:
		return p.unexpected("a constant")
	}
	return p.advance()
}

// numeric reads a number or an address, with its mask.
func (p *parser) numeric(c *constants) error {
	text := p.token.text
	if err := p.advance(); err != nil {
		return err
	}
	masked, err := p.take("/")
	if err != nil {
		return err
	}
	if masked {
		if p.token.kind != constant {
			return p.unexpected("a mask")
		}
		text += "/" + p.token.text
		if err := p.advance(); err != nil {
			return err
		}
	}
	if n, ok := parseNumber(text); ok {
		c.numbers = append(c.numbers, n)
		return nil
	}
	if prefix, ok := ParsePrefix(text); ok {
		if prefix != prefix.Masked() {
			p.suspect(text + " has bits beyond its mask")
		}
		c.prefixes = append(c.prefixes, prefix)
		return nil
	}
	c.odd = true
	return nil
}

// parseNumber reads a number, decimal or hexadecimal. What OVN makes of 010 is
// not known.
func parseNumber(text string) (uint64, bool) {
	base := 10
	if hexadecimal, ok := strings.CutPrefix(text, "0x"); ok {
		text, base = hexadecimal, 16
	} else if len(text) > 1 && text[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseUint(text, base, 64)
	return n, err == nil
}

// ParsePrefix reads an address, alone or with a mask of either form. ok is false
// for what is none, for one with a zone or mapped into IPv6, and for a mask with
// holes.
func ParsePrefix(text string) (prefix netip.Prefix, ok bool) {
	first, mask, masked := strings.Cut(text, "/")
	a, err := netip.ParseAddr(first)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Prefix{}, false
	}
	if !masked {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	if m, err := netip.ParseAddr(mask); err == nil {
		if m.BitLen() != a.BitLen() {
			return netip.Prefix{}, false
		}
		bits := 0
		slice := m.AsSlice()
		for bits < m.BitLen() && slice[bits/8]&(0x80>>(bits%8)) != 0 {
			bits++
		}
		full := netip.PrefixFrom(m, bits)
		return netip.PrefixFrom(a, bits), full.Masked().Addr() == m
	}
	// What OVN makes of 10.0.0.0/08 is not known.
	if mask == "" || len(mask) > 1 && mask[0] == '0' {
		return netip.Prefix{}, false
	}
	bits, err := strconv.ParseUint(mask, 10, 8)
	if err != nil || int(bits) > a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, int(bits)), true
}

// compare returns a comparison: one of the unknown, with what the symbol needs,
// if it is not understood.
func (p *parser) compare(s operandSymbol, o op, c constants) test {
	t := test{
		field: s.field, op: o, needs: s.needs, source: s.source, side: s.side,
		numbers: c.numbers, prefixes: c.prefixes, sets: c.sets, ports: c.ports, groups: c.groups,
	}
	ordered := o != equal && o != unequal
	understood := !s.part && !c.odd
	for _, name := range c.sets {
		p.expr.sets = append(p.expr.sets, comparedSet{name, s.needs.family == 6})
	}
	switch s.field {
	case unknown:
		return t
	case always:
		// ip == 1, icmp == 0: what it needs is not implied any more.
		t.field, t.needs = unknown, needs{}
		return t
	case address:
		understood = understood && !ordered && c.count == len(c.prefixes)+len(c.sets) &&
			!slices.ContainsFunc(c.prefixes, func(x netip.Prefix) bool { return x.Addr().Is4() != (s.needs.family == 4) })
	case protocol, number:
		most := uint64(math.MaxUint16)
		if s.field == protocol {
			most = math.MaxUint8
		}
		understood = understood && c.count == len(c.numbers) && (!ordered || c.count == 1 && s.field == number) &&
			!slices.ContainsFunc(c.numbers, func(n uint64) bool { return n > most })
		if s.field == protocol {
			p.nominal(s, o)
		}
	case port:
		understood = understood && !ordered && c.count == len(c.ports)+len(c.groups)
		p.nominal(s, o)
	}
	if !understood {
		t.field = unknown
		p.suspect("OVN may refuse how " + s.name + " is compared")
	}
	return t
}
