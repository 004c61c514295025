// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package ipset asks the kernel's sets: whether an element is in one, and what
// the set is called that a rule refers to by its index.
//
// It never lists a set in a loop: a LIST in flight pins the set and lets the
// swap, destroy or rename of the policy engine fail. It changes nothing.
package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// The ipset protocol, linux/netfilter/ipset/ip_set.h.
const (
	subsysIPSet = unix.NFNL_SUBSYS_IPSET << 8

	// ipsetProtocol 6 is understood by every kernel since 2.6.39.
	ipsetProtocol = 6

	ipsetTest   = 11
	ipsetHeader = 12

	ipsetAttrProtocol = 1
	ipsetAttrSetName  = 2
	ipsetAttrTypeName = 3
	ipsetAttrFamily   = 5
	ipsetAttrData     = 7

	ipsetAttrIP    = 1
	ipsetAttrPort  = 4
	ipsetAttrProto = 7
	ipsetAttrIP2   = 20
	ipsetAttrIface = 23

	ipsetAttrIPv4 = 1
	ipsetAttrIPv6 = 2

	// ipsetNotAdded (IPSET_ERR_EXIST) is TEST's answer for what is not in.
	ipsetNotAdded = unix.Errno(4103)
)

// Sets answers membership by TEST, one element at a time. Nothing is ever
// listed: a LIST in flight, even of headers, pins the set and lets the swap,
// destroy or rename of the policy engine fail.
//
// Answers are remembered for the life of the value, which is one look.
type Sets struct {
	conn *nlconn.Conn

	mu      sync.Mutex // guards the following fields
	headers map[string]header
	answers map[string]membership
}

// header is what a set is.
type header struct {
	kind   string
	family uint8
	err    error
}

type membership struct {
	answer trace.Ternary
	why    string
}

// New returns Sets without answers, asked over c.
func New(c *nlconn.Conn) *Sets {
	return &Sets{conn: c, headers: map[string]header{}, answers: map[string]membership{}}
}

// Member answers as trace.Membership asks.
func (s *Sets) Member(name string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.headers[name]
	if !ok {
		h = readHeader(s.conn, name)
		s.headers[name] = h
	}
	if h.err != nil {
		return trace.Unknown, h.err.Error()
	}
	data, early, why := element(h, dims, p)
	if data == nil {
		return early, why
	}
	key := name + "\x00" + string(data)
	if m, ok := s.answers[key]; ok {
		return m.answer, m.why
	}
	m := s.test(name, data)
	s.answers[key] = m
	return m.answer, m.why
}

func (s *Sets) test(name string, data []byte) membership {
	body := ipsetRequest(name)
	body = nlconn.Attribute(body, ipsetAttrData|unix.NLA_F_NESTED, data)
	err := s.conn.Ask(subsysIPSet|ipsetTest, 0, body, func([]byte) error { return nil })
	switch {
	case err == nil:
		return membership{answer: trace.Yes}
	case errors.Is(err, ipsetNotAdded):
		return membership{answer: trace.No}
	}
	return membership{why: fmt.Sprintf("test of set %s: %v", name, err)}
}

func ipsetRequest(name string) []byte {
	body := nlconn.NFGenMsg(unix.AF_INET, 0)
	body = nlconn.Attribute(body, ipsetAttrProtocol, []byte{ipsetProtocol})
	return nlconn.Attribute(body, ipsetAttrSetName, append([]byte(name), 0))
}

// readHeader asks for a set's type and family, which pins nothing.
func readHeader(c *nlconn.Conn, name string) header {
	h := header{}
	err := c.Ask(subsysIPSet|ipsetHeader, 0, ipsetRequest(name), func(body []byte) error {
		if len(body) < nlconn.NFGenMsgLen {
			return errors.New("answer without header")
		}
		return nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
			switch kind {
			case ipsetAttrTypeName:
				h.kind = nlconn.Text(value)
			case ipsetAttrFamily:
				if len(value) > 0 {
					h.family = value[0]
				}
			}
		})
	})
	if err != nil {
		h.err = fmt.Errorf("header of set %s: %w", name, err)
	}
	return h
}

// element returns the attributes of the element to test, or nil and the answer
// that needs no test.
func element(h header, dims []ruleset.Direction, p trace.Packet) (data []byte, answer trace.Ternary, why string) {
	_, fields, _ := strings.Cut(h.kind, ":")
	if fields == "" || fields == "set" {
		// TEST of an address in a list:set answers "not in" without looking.
		return nil, trace.Unknown, "sets of type " + h.kind + " cannot be tested"
	}
	names := strings.Split(fields, ",")
	family := uint8(unix.NFPROTO_IPV6)
	if p.Flow.Dst.Is4() {
		family = unix.NFPROTO_IPV4
	}
	// The kernel's ip_set_test: nothing of another family, or of fewer
	// dimensions than the set has, is in it.
	if len(dims) < len(names) || (h.family != unix.NFPROTO_UNSPEC && h.family != family) {
		return nil, trace.No, ""
	}
	data = []byte{}
	addresses := 0
	for i, name := range names {
		src := dims[i] == ruleset.Src
		switch name {
		case "ip", "net":
			if addresses++; addresses > 2 {
				return nil, trace.Unknown, "sets of type " + h.kind + " are not known"
			}
			attr := uint16(ipsetAttrIP)
			if addresses == 2 {
				attr = ipsetAttrIP2
			}
			data = address(data, attr, pick(src, p.Flow.Src, p.Flow.Dst))
		case "port":
			if src {
				return nil, trace.Unknown, "the source port is any"
			}
			data = port(data, p.Flow)
		case "iface":
			iface := pick(src, p.In, p.Out)
			if iface == "" {
				return nil, trace.Unknown, "the interface is not known"
			}
			data = nlconn.Attribute(data, ipsetAttrIface, append([]byte(iface), 0))
		default:
			return nil, trace.Unknown, "sets of type " + h.kind + " are not known"
		}
	}
	return data, trace.Unknown, ""
}

func pick[T any](first bool, a, b T) T {
	if first {
		return a
	}
	return b
}

func address(b []byte, kind uint16, a netip.Addr) []byte {
	inner := uint16(ipsetAttrIPv6)
	if a.Is4() {
		inner = ipsetAttrIPv4
	}
	return nlconn.Attribute(b, kind|unix.NLA_F_NESTED, nlconn.Attribute(nil, inner|unix.NLA_F_NET_BYTEORDER, a.AsSlice()))
}

func port(b []byte, f flow.Flow) []byte {
	b = nlconn.Attribute(b, ipsetAttrPort|unix.NLA_F_NET_BYTEORDER, binary.BigEndian.AppendUint16(nil, f.Port))
	return nlconn.Attribute(b, ipsetAttrProto, []byte{uint8(f.Protocol)})
}
