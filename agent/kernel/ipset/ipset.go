// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipset asks the kernel's sets: whether an element is in one, and what
// the set is called that a rule refers to by its index.
//
// It asks by TEST, HEADER and GET_BYINDEX, none of which is ever in the way of
// a policy engine. A LIST in flight pins its set and lets the engine's swap,
// destroy or rename fail, so only a list:set is listed (describe.go says why
// that harms nobody). The package changes nothing and keeps nothing beyond one
// look.
package ipset

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
)

// The ipset protocol, linux/netfilter/ipset/ip_set.h.
const (
	subsysIPSet = unix.NFNL_SUBSYS_IPSET << 8

	// ipsetProtocol 6 is understood by every kernel since 2.6.39.
	ipsetProtocol = 6

	ipsetList   = 7
	ipsetTest   = 11
	ipsetHeader = 12

	ipsetAttrProtocol = 1
	ipsetAttrSetName  = 2
	ipsetAttrTypeName = 3
	ipsetAttrFamily   = 5
	ipsetAttrData     = 7
	ipsetAttrADT      = 8

	// ipsetNotAdded (IPSET_ERR_EXIST) is TEST's answer for what is not in.
	// It is the answer to an element that the set's type cannot make sense of,
	// too, so that elements must be right by construction.
	ipsetNotAdded = unix.Errno(4103)
)

// Conn asks the kernel one thing, as nlconn.Conn does.
type Conn interface {
	Ask(kind, flags uint16, body []byte, each func([]byte) error) error
}

// Question is one thing that can be asked of one set. It is comparable and
// means the same to every Sets: who keeps the questions that a verdict rests
// on can put them again without the rules, as long as these are unchanged. A
// set that a rule refers to can only be swapped for one of the same features
// and family, so an element keeps its meaning.
type Question struct {
	// Set is the set's name.
	Set string
	// Element is the element in the form that TEST takes; empty asks what the
	// set is: its type, its family and, of a list:set, its members.
	Element string
}

// Answer is what the kernel says to a Question. It is comparable: a verdict
// that rests on equal answers to the same questions is the same.
type Answer struct {
	// In is whether the element is in the set. It is Unknown, and Text says
	// why, if the kernel refuses to tell; it is always Unknown for a question
	// without an element, and Text is then what the set is.
	In   trace.Ternary
	Text string
}

// Sets asks sets, each question once: answers are remembered for the life of
// the value, which is one look. It is safe for concurrent use.
type Sets struct {
	conn Conn

	mu        sync.Mutex // guards the following fields
	answers   map[Question]Answer
	described map[string]description
	// request is where requests are built.
	request []byte
}

// New returns Sets without answers, asked over c.
func New(c Conn) *Sets {
	return &Sets{conn: c, answers: map[Question]Answer{}, described: map[string]description{}}
}

// Ask returns the answer to a question, asking the kernel unless it has been
// asked before.
func (s *Sets) Ask(q Question) Answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ask(q, nil)
}

// Member answers as trace.Membership asks.
func (s *Sets) Member(name string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.member(name, dims, p, nil)
}

// Noted answers as Sets does and passes on what the answers rest on.
type Noted struct {
	sets *Sets
	note func(Question, Answer)
}

// Noting returns a view of s that calls note for every question whose answer a
// Member rests on, also if it was asked before. note must not call s.
func (s *Sets) Noting(note func(Question, Answer)) Noted { return Noted{s, note} }

// Member answers as trace.Membership asks.
func (n Noted) Member(name string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	n.sets.mu.Lock()
	defer n.sets.mu.Unlock()
	return n.sets.member(name, dims, p, n.note)
}

// ask calls note, if there is one, with what it returns.
func (s *Sets) ask(q Question, note func(Question, Answer)) Answer {
	a, ok := s.answers[q]
	if !ok {
		if q.Element == "" {
			a = s.describe(q.Set).answer()
		} else {
			a = s.test(q)
		}
		s.answers[q] = a
	}
	if note != nil {
		note(q, a)
	}
	return a
}

// describe returns what a set is, asking once.
func (s *Sets) describe(name string) description {
	d, ok := s.described[name]
	if !ok {
		d = describe(s.conn, name)
		s.described[name] = d
	}
	return d
}

func (s *Sets) member(name string, dims []ruleset.Direction, p trace.Packet, note func(Question, Answer)) (trace.Ternary, string) {
	d := s.describe(name)
	if d.err != "" || d.isList() {
		s.ask(Question{Set: name}, note)
	}
	if d.err != "" {
		return trace.Unknown, d.err
	}
	if !d.isList() {
		return s.single(name, d, dims, p, note)
	}
	// The kernel asks the members in turn, each with the dimensions of the
	// match, until one holds the packet.
	answer, why := trace.No, ""
	for _, member := range d.members {
		// A member that leaves the list can be destroyed, and another type of
		// set take its name.
		s.ask(Question{Set: member}, note)
		d := s.describe(member)
		in, because := trace.Unknown, d.err
		switch {
		case d.isList():
			because = "set " + name + " has a list:set among its members"
		case d.err == "":
			in, because = s.single(member, d, dims, p, note)
		}
		switch in {
		case trace.Yes:
			return trace.Yes, ""
		case trace.Unknown:
			answer, why = trace.Unknown, because
		case trace.No:
		}
	}
	return answer, why
}

// single answers for a set that is no list of sets.
func (s *Sets) single(name string, d description, dims []ruleset.Direction, p trace.Packet, note func(Question, Answer)) (trace.Ternary, string) {
	var space [elementSpace]byte
	element, answer, why := d.element(space[:0], dims, p)
	if element == nil {
		return answer, why
	}
	a := s.ask(Question{Set: name, Element: string(element)}, note)
	return a.In, a.Text
}

func (s *Sets) test(q Question) Answer {
	s.request = setRequest(s.request[:0], q.Set)
	s.request = attribute(s.request, ipsetAttrData|unix.NLA_F_NESTED, q.Element)
	err := s.conn.Ask(subsysIPSet|ipsetTest, 0, s.request, ignore)
	switch {
	case err == nil:
		return Answer{In: trace.Yes}
	case errors.Is(err, ipsetNotAdded):
		return Answer{In: trace.No}
	}
	return Answer{Text: fmt.Sprintf("test of set %s: %v", q.Set, err)}
}

// ignore is for answers that are no more than an acknowledgement.
func ignore([]byte) error { return nil }

// setRequest appends the beginning of a request about one set.
func setRequest(b []byte, name string) []byte {
	b = append(b, unix.AF_INET, unix.NFNETLINK_V0, 0, 0)
	b = attribute(b, ipsetAttrProtocol, string(rune(ipsetProtocol)))
	return attribute(b, ipsetAttrSetName, name+"\x00")
}

// attribute appends one netlink attribute.
func attribute(b []byte, kind uint16, value string) []byte {
	return nlconn.Attribute(b, kind, []byte(value))
}
