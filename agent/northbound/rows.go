// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"net/netip"
	"strings"

	"github.com/policygate/policygate/agent/northbound/match"
)

// id names a row of a table.
type id string

// port is a row of Logical_Switch_Port.
type port struct {
	id   id
	name string
	// kind is its type; a Pod's is empty.
	kind     string
	disabled bool
	// pod is the "namespace/name" that it is said to belong to, or "".
	pod       string
	addresses []netip.Addr
}

// namespace returns that of the port's Pod, or "".
func (p *port) namespace() string {
	namespace, _, _ := strings.Cut(p.pod, "/")
	return namespace
}

// portAddresses returns the IP addresses of a logical port. Entries are "router",
// "unknown", or an Ethernet address and IP addresses, some of which may be
// "dynamic": what they are is in the column dynamic_addresses.
func portAddresses(entries []string, dynamic string) []netip.Addr {
	var all []netip.Addr
	for _, entry := range append([]string{dynamic}, entries...) {
		for word := range strings.FieldsSeq(entry) {
			if a, err := netip.ParseAddr(word); err == nil && a.Zone() == "" {
				all = append(all, a.Unmap())
			}
		}
	}
	return all
}

// switchRow is a row of Logical_Switch.
type switchRow struct {
	id    id
	name  string
	ports []id
	acls  []id
}

// group is a row of Port_Group.
type group struct {
	id    id
	name  string
	ports map[id]struct{}
	acls  []id
	// policy is the "namespace/name" that it is said to be for, or "".
	policy string

	// The ACLs, by whom they judge: own only ports of this group, by direction;
	// all others are loose.
	own   [2][]*acl
	loose []*acl
}

// action is what an ACL does with what it matches.
type action uint8

const (
	// odd is an action that is not understood.
	odd action = iota
	// pass goes on to the next tier.
	pass
	allow
	// allowStateless may precede ACLs of higher priorities.
	allowStateless
	drop
)

func actionOf(text string) action {
	switch text {
	case "allow", "allow-related":
		return allow
	case "allow-stateless":
		return allowStateless
	case "drop", "reject":
		return drop
	case "pass":
		return pass
	}
	return odd
}

// direction is that of an ACL, and a bit in what one may judge.
type direction uint8

const (
	fromPort direction = iota
	toPort
)

// String returns it as OVN has it.
func (d direction) String() string {
	if d == fromPort {
		return "from-lport"
	}
	return "to-lport"
}

// side returns the port that ACLs of a direction are about.
func (d direction) side() match.Side {
	if d == fromPort {
		return match.Inport
	}
	return match.Outport
}

// acl is a row of ACL.
type acl struct {
	id        id
	name      string
	direction string
	action    string
	priority  int64
	// tier comes before priority. It is 0 before OVN 23.06.
	tier int64
	// afterLB: of from-lport ACLs, it is of the second stage.
	afterLB bool
	match   *match.Expr
}

// of returns the ACL's direction, if it is one that is known.
func (a *acl) of() (d direction, known bool) {
	switch a.direction {
	case fromPort.String():
		return fromPort, true
	case toPort.String():
		return toPort, true
	}
	return 0, false
}

// judges returns whether it is of the direction, or of one that is not known.
func (a *acl) judges(d direction) bool {
	of, known := a.of()
	return of == d || !known
}

// does returns what the ACL does with what it matches.
func (a *acl) does() action {
	if _, known := a.of(); !known {
		return odd
	}
	return actionOf(a.action)
}

// addressSet is a row of Address_Set.
type addressSet struct {
	id     id
	name   string
	policy string // what it is said to be for, or ""
	// single are addresses, networks those with a mask.
	single   map[netip.Addr]struct{}
	networks []netip.Prefix
	// partial are networks with bits beyond their mask: what OVN makes of them
	// is not known. illegible: there is more that is not.
	partial   []netip.Prefix
	illegible bool
	// ipv4 and ipv6: there are addresses of the family.
	ipv4, ipv6 bool
}

// read fills the set from what the row says.
func (s *addressSet) read(entries []string) {
	s.single = make(map[netip.Addr]struct{}, len(entries))
	for _, entry := range entries {
		p, ok := match.ParsePrefix(entry)
		if !ok {
			s.illegible = true
			continue
		}
		s.ipv4, s.ipv6 = s.ipv4 || p.Addr().Is4(), s.ipv6 || p.Addr().Is6()
		switch {
		case p.IsSingleIP():
			s.single[p.Addr()] = struct{}{}
		case p != p.Masked():
			s.partial = append(s.partial, p)
		default:
			s.networks = append(s.networks, p)
		}
	}
}

// holds returns whether an address is in the set.
func (s *addressSet) holds(a netip.Addr) match.Truth {
	if _, ok := s.single[a]; ok {
		return match.True
	}
	for _, p := range s.networks {
		if p.Contains(a) {
			return match.True
		}
	}
	for _, p := range s.partial {
		if p.Contains(a) {
			return match.Unknown
		}
	}
	if s.illegible {
		return match.Unknown
	}
	return match.False
}
