// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
)

// The routing rules, linux/fib_rules.h: struct fib_rule_hdr and the attributes
// FRA_. Kernels to come may add selectors, so what is not named here counts as
// one that is not known.
const (
	ruleHeader = 12
	ruleTOS    = 3 // where the header has the type of service

	fraDst             = 1
	fraSrc             = 2
	fraIIFName         = 3
	fraGoto            = 4
	fraPriority        = 6
	fraFWMark          = 10
	fraFlow            = 11
	fraSuppressIfgroup = 13
	fraSuppressPrefix  = 14
	fraTable           = 15
	fraFWMask          = 16
	fraOIFName         = 17
	fraPad             = 18
	fraL3MDev          = 19
	fraProtocol        = 21
	fraIPProto         = 22
	fraDportRange      = 24
	fraDportMask       = 29
)

// ruleSet is what the routing rules of one family select by, beside what every
// question for a route names (the addresses and the input interface).
type ruleSet struct {
	// marks are values that a packet's mark can have, so that for each
	// combination of rules that select by it there is one.
	marks []uint32
	// ports: a rule selects by protocol or destination port.
	ports bool
	// obscure, if not empty, says by what a rule selects that is not known of
	// a flow.
	obscure string
	// custom: there are more rules than the kernel's own, so that a route may
	// depend on the other address.
	custom bool
}

// mostMarks bounds the marks that a route is asked for. Three rules with
// masks of their own need 27.
const mostMarks = 32

// readRules lists the routing rules of both families.
func readRules(c *nlconn.Conn) (map[uint8]ruleSet, error) {
	all := map[uint8]ruleSet{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		set, count := ruleSet{marks: []uint32{0}}, 0
		request := make([]byte, ruleHeader)
		request[0] = family
		err := c.Ask(unix.RTM_GETRULE, unix.NLM_F_DUMP, request, func(body []byte) error {
			count++
			return set.add(body)
		})
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			// A kernel without the family, or without policy routing.
			err = nil
		}
		if err != nil {
			return nil, fmt.Errorf("list routing rules: %w", err)
		}
		// The kernel's own are local, main and, for IPv4, default.
		own := 3
		if family == unix.AF_INET6 {
			own = 2
		}
		set.custom = count > own
		all[family] = set
	}
	return all, nil
}

// add takes in one rule as the kernel lists it.
func (s *ruleSet) add(body []byte) error {
	if len(body) < ruleHeader {
		return errors.New("routing rule without header")
	}
	if body[ruleTOS] != 0 {
		s.obscure = "type of service"
	}
	var mark, mask uint32
	err := nlconn.Attributes(body[ruleHeader:], func(kind uint16, value []byte) {
		number := func() uint32 {
			if len(value) < 4 {
				s.obscure = "a malformed mark"
				return 0
			}
			return binary.NativeEndian.Uint32(value)
		}
		switch kind {
		case fraDst, fraSrc, fraIIFName, fraGoto, fraPriority, fraFlow, fraSuppressIfgroup, fraSuppressPrefix,
			fraTable, fraPad, fraL3MDev, fraProtocol:
		case fraOIFName:
			// Selects what a socket is bound to: no flow is.
		case fraFWMark:
			mark = number()
		case fraFWMask:
			mask = number()
		case fraIPProto, fraDportRange, fraDportMask:
			s.ports = true
		default:
			s.obscure = fmt.Sprintf("selector %d", kind)
		}
	})
	if mask != 0 {
		s.mark(mark, mask)
	}
	return err
}

// mark makes sure that for each value so far there is one that the rule
// matches and one that it does not.
func (s *ruleSet) mark(mark, mask uint32) {
	for _, m := range slices.Clone(s.marks) {
		for _, like := range []uint32{m&^mask | mark&mask, m&^mask | ^mark&mask} {
			if !slices.Contains(s.marks, like) {
				s.marks = append(s.marks, like)
			}
		}
	}
	if len(s.marks) > mostMarks {
		s.marks, s.obscure = s.marks[:1], "too many different marks"
	}
}
