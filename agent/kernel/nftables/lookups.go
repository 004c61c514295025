// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// lookup asks a set for the key in a register and, if it is a map, copies the
// element's data to another.
func (m *machine) lookup(a *attrs) {
	name := nlconn.Text(a.values[unix.NFTA_LOOKUP_SET])
	what := "lookup of set " + name
	flags, ok := a.optional(unix.NFTA_LOOKUP_FLAGS)
	dreg, ok2 := a.optional(unix.NFTA_LOOKUP_DREG)
	maps := a.values[unix.NFTA_LOOKUP_DREG] != nil
	if !ok || !ok2 || flags&^unix.NFT_LOOKUP_F_INV != 0 || (maps && flags != 0) ||
		!a.only(unix.NFTA_LOOKUP_SET, unix.NFTA_LOOKUP_SREG, unix.NFTA_LOOKUP_DREG, unix.NFTA_LOOKUP_FLAGS) {
		m.notUnderstood(what)
		return
	}
	s, key, ok := m.key(a, unix.NFTA_LOOKUP_SREG, name)
	switch {
	case !ok:
		m.notUnderstood(what)
	case !maps && flags != 0:
		m.match(ruleset.Lookup{Set: &s.inverted, Key: key, Not: true})
	case !maps:
		m.match(ruleset.Lookup{Set: &s.plain, Key: key})
	case dreg == unix.NFT_REG_VERDICT && s.plain.Verdicts:
		m.act(ruleset.Target{Kind: ruleset.Decide, Name: "vmap @" + name, Map: &s.plain, Key: key})
	case dreg != unix.NFT_REG_VERDICT && !s.plain.Verdicts && s.header.dataLength > 0:
		m.match(ruleset.Lookup{Set: &s.plain, Key: key})
		m.load(a, unix.NFTA_LOOKUP_DREG, unknownCells(s.header.dataLength, origin{text: what}), origin{text: what})
	default:
		m.notUnderstood(what)
	}
}

// notUnderstood says that an expression may decide, or load anything.
func (m *machine) notUnderstood(what string) {
	m.spoil(what)
	m.forget(origin{text: what})
}

// key returns the set of that name and what a register holds of its key.
func (m *machine) key(a *attrs, sreg int, name string) (*set, ruleset.Value, bool) {
	s, err := m.from.set(name)
	if err != nil {
		m.fail(err)
		return nil, nil, false
	}
	cells, ok := m.get(a, sreg, s.header.keyLength)
	if !ok {
		return nil, nil, false
	}
	return s, m.value(cells), true
}

// objref has an object do what it does: one that is named, or that an element
// of a set names.
func (m *machine) objref(a *attrs) {
	if kind, ok := a.number(unix.NFTA_OBJREF_IMM_TYPE); ok && a.only(unix.NFTA_OBJREF_IMM_TYPE, unix.NFTA_OBJREF_IMM_NAME) {
		m.object(kind)
		return
	}
	name := nlconn.Text(a.values[unix.NFTA_OBJREF_SET_NAME])
	what := "objref of map " + name
	if name == "" || !a.only(unix.NFTA_OBJREF_SET_NAME, unix.NFTA_OBJREF_SET_SREG) {
		m.spoil(what)
		return
	}
	s, key, ok := m.key(a, unix.NFTA_OBJREF_SET_SREG, name)
	if !ok || !s.header.has(unix.NFT_SET_OBJECT) {
		m.spoil(what)
		return
	}
	m.match(ruleset.Lookup{Set: &s.plain, Key: key})
	m.object(s.header.objects)
}

// object does what an object of that type does to a packet.
func (m *machine) object(kind uint32) {
	switch kind {
	case unix.NFT_OBJECT_COUNTER, unix.NFT_OBJECT_CT_HELPER, unix.NFT_OBJECT_CT_TIMEOUT, unix.NFT_OBJECT_SECMARK:
		// They count, or note something that no match of the model reads.
	case unix.NFT_OBJECT_QUOTA, unix.NFT_OBJECT_LIMIT, unix.NFT_OBJECT_CONNLIMIT:
		// They let a packet pass on to the next expression or not.
		m.unknown(fmt.Sprintf("object of type %d", kind))
	default:
		// A tunnel sends it elsewhere, an expectation or a proxy can drop it.
		m.spoil(fmt.Sprintf("object of type %d", kind))
	}
}

// dynset adds the packet to a set, or takes it out, and ends the rule if it
// cannot. A later lookup would find it there, and who asks the kernel now does
// not: so a set that is looked up makes the rest of the way unknown.
func (m *machine) dynset(a *attrs) {
	name := nlconn.Text(a.values[unix.NFTA_DYNSET_SET_NAME])
	if name == "" {
		m.fail(errors.New("dynset without a set"))
		return
	}
	read, err := m.from.isRead(name)
	switch {
	case err != nil:
		m.fail(err)
	case read:
		m.spoil("dynset of set " + name)
	default:
		m.unknown("dynset of set " + name)
	}
}
