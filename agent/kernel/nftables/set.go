// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// linux/netfilter/nf_tables.h, where x/sys has no number.
const (
	// elementCatchall is NFT_SET_ELEM_CATCHALL, Linux 5.13.
	elementCatchall = 0x2
	// elementKeyEnd and elementExpressions are NFTA_SET_ELEM_KEY_END and
	// NFTA_SET_ELEM_EXPRESSIONS, Linux 5.6 and 5.11.
	elementKeyEnd      = 10
	elementExpressions = 11
	// descConcat and fieldLength are NFTA_SET_DESC_CONCAT and
	// NFTA_SET_FIELD_LEN, Linux 5.6.
	descConcat  = 2
	fieldLength = 1
	// longestKey is NFT_DATA_VALUE_MAXLEN, and mostFields NFT_REG32_COUNT.
	longestKey = 64
	mostFields = 16
)

// setHeader is what nf_tables says of a set as a whole.
type setHeader struct {
	flags      uint32
	keyLength  int
	dataType   uint32
	dataLength int
	// objects is the type of the objects that the set's elements name.
	objects uint32
	// fields are the lengths of a concatenation's fields in bytes, of which
	// the kernel tells for concatenations of intervals only; then zeros.
	fields [mostFields]uint8
}

// concatenates reports whether the set has intervals of several fields.
func (h setHeader) concatenates() bool { return h.has(unix.NFT_SET_INTERVAL) && h.fields[0] != 0 }

func (h setHeader) has(flag uint32) bool { return h.flags&flag != 0 }

// verdicts reports whether the set is a map whose data are verdicts.
func (h setHeader) verdicts() bool {
	return h.has(unix.NFT_SET_MAP) && h.dataType == unix.NFT_DATA_VERDICT
}

// nftSets reads the headers of a table's sets, without elements. It pins
// nothing. The kernel looks for a set by going through all of them, so one list
// costs less than a question for each.
func nftSets(c *nlconn.Conn, table tableKey) (map[string]setHeader, error) {
	headers := map[string]setHeader{}
	request := nlconn.Attribute(nlconn.NFGenMsg(table.family, 0), unix.NFTA_SET_TABLE, terminated(table.name))
	err := c.Ask(subsysNFTables|unix.NFT_MSG_GETSET, unix.NLM_F_DUMP, request, func(body []byte) error {
		name, h, err := readSet(body)
		if err == nil {
			headers[name] = h
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the sets of nf_tables table %s: %w", table, err)
	}
	return headers, nil
}

// readSet reads the message that describes a set.
func readSet(body []byte) (name string, h setHeader, err error) {
	if len(body) < nlconn.NFGenMsgLen {
		return "", setHeader{}, errors.New("answer without header")
	}
	keyLength, dataLength := uint32(0), uint32(0)
	var nested error
	err = nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
		switch kind {
		case unix.NFTA_SET_NAME:
			name = nlconn.Text(value)
		case unix.NFTA_SET_FLAGS:
			h.flags = nlconn.BE32(value)
		case unix.NFTA_SET_KEY_LEN:
			keyLength = nlconn.BE32(value)
		case unix.NFTA_SET_DATA_TYPE:
			h.dataType = nlconn.BE32(value)
		case unix.NFTA_SET_DATA_LEN:
			dataLength = nlconn.BE32(value)
		case unix.NFTA_SET_OBJ_TYPE:
			h.objects = nlconn.BE32(value)
		case unix.NFTA_SET_DESC:
			h.fields, nested = concatenation(value)
		}
	})
	err = errors.Join(err, nested)
	if err == nil && (name == "" || keyLength == 0 || keyLength > longestKey || dataLength > longestKey) {
		err = fmt.Errorf("set %q with keys of %d and data of %d bytes: want 1 to %d and at most %d", name, keyLength, dataLength, longestKey, longestKey)
	}
	h.keyLength, h.dataLength = int(keyLength), int(dataLength)
	return name, h, err
}

// concatenation reads the lengths of a set's fields from its NFTA_SET_DESC.
func concatenation(desc []byte) (fields [mostFields]uint8, err error) {
	a, err := parseAttrs(desc)
	if err != nil {
		return fields, err
	}
	var nested error
	count := 0
	err = nlconn.Attributes(a.values[descConcat], func(_ uint16, value []byte) {
		field, err := parseAttrs(value)
		length, ok := field.number(fieldLength)
		if err != nil || !ok || length == 0 || length > longestKey || count == mostFields {
			nested = fmt.Errorf("field %d of a concatenation is malformed or too long", count)
			return
		}
		fields[count] = uint8(length)
		count++
	})
	return fields, errors.Join(err, nested)
}

// set is a set or map of nf_tables in one view.
type set struct {
	view   *view
	name   string
	header setHeader
	// plain and inverted are what the model asks: inverted in a lookup that is
	// negated, where a catch-all element means the opposite.
	plain, inverted ruleset.NativeSet

	mu sync.Mutex // guards the following fields
	// catchall is the set's catch-all element, if it was asked for; else nil.
	// That of a set with timeouts is asked for each time.
	catchall *answer
	// listed are the elements of a set that cannot be asked, if they were
	// listed; those of a set with timeouts are listed each time.
	listed []element
}

// answer is the element that was found, if any.
type answer struct {
	element element
	found   bool
}

func newSet(v *view, name string, h setHeader) *set {
	s := &set{view: v, name: name, header: h}
	s.plain = ruleset.NativeSet{
		Table: v.key.name, Name: name, KeyLength: h.keyLength, Verdicts: h.verdicts(),
		Volatile: h.has(unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL), Get: s.get,
	}
	s.inverted = s.plain
	s.inverted.Get = s.getInverted
	return s
}

// get answers as nft_lookup_eval does (net/netfilter/nft_lookup.c): the element
// that the key falls into, or else the catch-all element.
func (s *set) get(key []byte) (ruleset.Element, error) {
	e, found, err := s.find(key)
	if err == nil && !found {
		e, found, err = s.findCatchall()
	}
	if err != nil || !found {
		return ruleset.Element{}, err
	}
	return s.model(e)
}

// getInverted answers for a negated lookup, which lets a key pass that is not
// in the set. What it does if the set has a catch-all element depends on the
// kernel: it used to let every key pass, and lets none pass since it was
// corrected, in 2026 and in the stable versions of that time.
func (s *set) getInverted(key []byte) (ruleset.Element, error) {
	_, all, err := s.findCatchall()
	if err != nil {
		return ruleset.Element{}, err
	}
	if all {
		return ruleset.Element{In: true, Unknown: "a catch-all element in a negated lookup"}, nil
	}
	e, found, err := s.find(key)
	// Elements' expressions are not evaluated: those that are found end the rule.
	return ruleset.Element{In: found, Unknown: e.doubtful}, err
}

// find asks for the element that the key falls into, but for the catch-all.
func (s *set) find(key []byte) (element, bool, error) {
	if len(key) != s.header.keyLength {
		return element{}, false, fmt.Errorf("key of %d bytes for set %s, whose keys have %d", len(key), s.name, s.header.keyLength)
	}
	if s.header.concatenates() && s.view.of.listsConcatenations {
		return s.search(key)
	}
	e, found, err := s.ask(s.view.of.conn, key, 0)
	if err != nil {
		s.view.of.fail()
		return element{}, false, err
	}
	interval, anonymous := s.header.has(unix.NFT_SET_INTERVAL), s.header.has(unix.NFT_SET_ANONYMOUS)
	switch {
	case !found && interval && !anonymous:
		s.view.of.misses.add(s, key)
	case found && !interval && string(e.key) != string(key):
		return element{}, false, fmt.Errorf("set %s has answered key %x for %x", s.name, e.key, key)
	case found && interval && anonymous && string(e.key) == string(key):
		e.doubtful, err = s.endsToo(key)
	}
	return e, found, err
}

// endsToo returns why it is not known whether the packets' path finds the
// element that begins with key: in an anonymous set it stops at the end of
// another interval that is the same key, if it meets that first
// (nft_rbtree_lookup). No tool of nftables writes such sets.
func (s *set) endsToo(key []byte) (string, error) {
	end, found, err := s.ask(s.view.of.conn, key, unix.NFT_SET_ELEM_INTERVAL_END)
	if err != nil {
		s.view.of.fail()
		return "", err
	}
	if found && end.flags&unix.NFT_SET_ELEM_INTERVAL_END != 0 && string(end.key) == string(key) {
		return "an interval begins where another ends", nil
	}
	return "", nil
}

// findCatchall asks for the catch-all element.
func (s *set) findCatchall() (element, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.catchall != nil {
		return s.catchall.element, s.catchall.found, nil
	}
	e, found, err := s.ask(s.view.of.conn, nil, elementCatchall)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		// A kernel that has no such elements.
		e, found, err = element{}, false, nil
	}
	if err != nil {
		s.view.of.fail()
		return element{}, false, err
	}
	if !s.plain.Volatile {
		s.catchall = &answer{e, found}
	}
	return e, found, nil
}

// model returns the element as the model has it.
func (s *set) model(e element) (ruleset.Element, error) {
	m := ruleset.Element{In: true, Unknown: e.unknown()}
	if !s.plain.Verdicts {
		return m, nil
	}
	if e.verdict == nil {
		return ruleset.Element{}, fmt.Errorf("element %x of the map %s has no verdict", e.key, s.name)
	}
	target, err := e.verdict.target(s.view)
	if err != nil {
		return ruleset.Element{}, fmt.Errorf("element %x of the map %s: %w", e.key, s.name, err)
	}
	m.Verdict = target
	return m, nil
}

// ask asks for one element over c: with flags 0 for the one that the key falls
// into, which of an interval is the one that it begins with, and with
// NFT_SET_ELEM_INTERVAL_END for the one that it ends before. A set that was
// deleted has no elements; then the generation is another as well.
func (s *set) ask(c *nlconn.Conn, key []byte, flags uint32) (e element, found bool, err error) {
	err = c.Ask(subsysNFTables|unix.NFT_MSG_GETSETELEM, 0, elementRequest(s.view.key, s.name, key, flags), func(body []byte) error {
		var err error
		e, err = readElement(body)
		found = err == nil
		return err
	})
	if errors.Is(err, unix.ENOENT) {
		return element{}, false, nil
	}
	if err == nil && !found {
		err = errors.New("no answer")
	}
	if err != nil {
		return element{}, false, fmt.Errorf("ask set %s of nf_tables table %s for %x: %w", s.name, s.view.key, key, err)
	}
	return e, true, nil
}
