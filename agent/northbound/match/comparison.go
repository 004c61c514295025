// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package match

import (
	"net/netip"
	"slices"

	"github.com/policygate/policygate/api/flow"
)

// field is what a test looks at.
type field uint8

const (
	unknown  field = iota // what is not understood
	always                // nothing: what it needs is all of it
	address               // ip4.src, ip6.dst, ...
	protocol              // ip.proto
	number                // the destination port
	port                  // inport, outport
)

// op is a relation.
type op uint8

const (
	equal op = iota
	unequal
	less
	lessOrEqual
	greater
	greaterOrEqual
)

// opposite returns the relation that holds where o does not.
func (o op) opposite() op {
	return [...]op{unequal, equal, greaterOrEqual, greater, lessOrEqual, less}[o]
}

// mirrored returns the relation with its sides exchanged: 1 < x is x > 1.
func (o op) mirrored() op {
	return [...]op{equal, unequal, greater, greaterOrEqual, less, lessOrEqual}[o]
}

func (o op) holds(a, b uint64) bool {
	switch o {
	case equal:
		return a == b
	case unequal:
		return a != b
	case less:
		return a < b
	case lessOrEqual:
		return a <= b
	case greater:
		return a > b
	case greaterOrEqual:
		return a >= b
	}
	return false
}

// family is one of IP's versions, or zero: any.
type family uint8

// needs is what a symbol implies of a packet. The zero needs is nothing.
type needs struct {
	family family
	// protocol is 0 for any.
	protocol flow.Protocol
	// never: no first packet of a flow of TCP, UDP or SCTP has it.
	never bool
}

func (n needs) hold(f flow.Flow) bool {
	if n.never || n.protocol != 0 && n.protocol != f.Protocol {
		return false
	}
	return n.family == 0 || (n.family == 4) == f.Dst.Is4()
}

// test is a predicate, or the comparison of a field with constants.
type test struct {
	text  string
	field field
	op    op
	needs needs
	// inverted: a predicate is to be false. Comparisons have another op.
	inverted bool

	source bool // of address: the source, else the destination
	side   Side // of port

	numbers  []uint64
	prefixes []netip.Prefix
	sets     []string
	ports    []string
	groups   []string
}

func (t test) not() test {
	switch t.field {
	case always:
		t.inverted = !t.inverted
	case unknown:
	case address, protocol, number, port:
		t.op = t.op.opposite()
	}
	t.text = "!(" + t.text + ")"
	return t
}

// applies returns whether the packet has what a comparison needs.
func (t *test) applies(f flow.Flow) bool { return t.needs.hold(f) }

// address returns the packet's address that the test looks at.
func (t *test) address(f flow.Flow) netip.Addr {
	if t.source {
		return f.Src
	}
	return f.Dst
}

func (t *test) eval(f flow.Flow, w World) Truth {
	if t.field == always {
		return Of(t.needs.hold(f) != t.inverted)
	}
	if !t.needs.hold(f) {
		return False
	}
	among := Unknown
	switch t.field {
	case unknown, always:
		return Unknown
	case protocol, number:
		value := uint64(f.Protocol)
		if t.field == number {
			value = uint64(f.Port)
		}
		if t.op != equal && t.op != unequal {
			return Of(t.op.holds(value, t.numbers[0]))
		}
		among = Of(slices.Contains(t.numbers, value))
	case address:
		among = t.amongAddresses(t.address(f), w)
	case port:
		among = t.amongPorts(w)
		// OVN compares ports for equality alone, and refuses all else.
		if t.op != equal {
			return Unknown
		}
	}
	if t.op == unequal {
		return among.Not()
	}
	return among
}

// amongAddresses returns whether a is among the constants.
func (t *test) amongAddresses(a netip.Addr, w World) Truth {
	result := Of(slices.ContainsFunc(t.prefixes, func(p netip.Prefix) bool { return p.Contains(a) }))
	for _, s := range t.sets {
		result = either(result, w.InSet(s, a))
	}
	return result
}

func (t *test) amongPorts(w World) Truth {
	result := False
	for _, name := range t.ports {
		result = either(result, w.IsPort(t.side, name))
	}
	for _, name := range t.groups {
		result = either(result, w.InGroup(t.side, name))
	}
	return result
}

// either returns whether one of two holds.
func either(a, b Truth) Truth {
	switch {
	case a == True || b == True:
		return True
	case a == Unknown || b == Unknown:
		return Unknown
	}
	return False
}
