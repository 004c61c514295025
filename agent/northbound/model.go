// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/northbound/match"
)

// model is the rows with what finds them. Rows refer to others that may come
// later, or never. It is made by newModel and not safe for concurrent use.
type model struct {
	ports    map[id]*port
	switches map[id]*switchRow
	groups   map[id]*group
	acls     map[id]*acl
	sets     map[id]*addressSet
	// defaultDrop: what no ACL matches may be dropped.
	defaultDrop bool

	byAddress    map[netip.Addr][]*port
	switchOf     map[id]*switchRow
	groupsOf     map[id]map[*group]struct{}
	groupsByName map[string]*group
	// policyGroups are the groups of policies, by namespace and sorted by name.
	policyGroups map[string][]*group
	setsByName   map[string]*addressSet
	// holders are the groups that have an ACL.
	holders map[id]map[*group]struct{}
	// matches are the texts that were read, with how many ACLs have each.
	matches map[string]*reading

	// unsorted are groups whose ACLs have changed.
	unsorted map[*group]struct{}
	// loose are groups that have loose ACLs, and looseOn those and the
	// switches' own that judge packets on a switch. It is nil after a change.
	loose   map[*group]struct{}
	looseOn map[*switchRow][]*acl
}

type reading struct {
	expr *match.Expr
	uses int
}

func newModel() *model {
	return &model{
		ports: map[id]*port{}, switches: map[id]*switchRow{}, groups: map[id]*group{}, acls: map[id]*acl{},
		sets: map[id]*addressSet{}, byAddress: map[netip.Addr][]*port{}, switchOf: map[id]*switchRow{},
		groupsOf: map[id]map[*group]struct{}{}, groupsByName: map[string]*group{}, policyGroups: map[string][]*group{},
		setsByName: map[string]*addressSet{}, holders: map[id]map[*group]struct{}{}, matches: map[string]*reading{},
		unsorted: map[*group]struct{}{}, loose: map[*group]struct{}{},
	}
}

// putPort takes in a row that is new or has changed; so do the others.
func (m *model) putPort(p *port) {
	m.dropPort(p.id)
	m.ports[p.id] = p
	for _, a := range p.addresses {
		if !slices.Contains(m.byAddress[a], p) {
			m.byAddress[a] = append(m.byAddress[a], p)
		}
	}
}

// dropPort forgets a row, if there is one; so do the others.
func (m *model) dropPort(i id) {
	p := m.ports[i]
	if p == nil {
		return
	}
	delete(m.ports, i)
	for _, a := range p.addresses {
		rest := slices.DeleteFunc(m.byAddress[a], func(other *port) bool { return other == p })
		if len(rest) == 0 {
			delete(m.byAddress, a)
			continue
		}
		m.byAddress[a] = rest
	}
}

func (m *model) putSwitch(s *switchRow) {
	m.dropSwitch(s.id)
	m.switches[s.id] = s
	for _, p := range s.ports {
		m.switchOf[p] = s
	}
}

func (m *model) dropSwitch(i id) {
	m.looseOn = nil
	s := m.switches[i]
	if s == nil {
		return
	}
	delete(m.switches, i)
	for _, p := range s.ports {
		if m.switchOf[p] == s {
			delete(m.switchOf, p)
		}
	}
}

func (m *model) putGroup(g *group) {
	m.dropGroup(g.id)
	m.groups[g.id], m.groupsByName[g.name] = g, g
	for p := range g.ports {
		join(m.groupsOf, p, g)
	}
	for _, a := range g.acls {
		join(m.holders, a, g)
	}
	m.unsorted[g] = struct{}{}
	if namespace, _, ok := strings.Cut(g.policy, "/"); ok {
		m.policyGroups[namespace] = insert(m.policyGroups[namespace], g)
	}
}

func (m *model) dropGroup(i id) {
	m.looseOn = nil
	g := m.groups[i]
	if g == nil {
		return
	}
	delete(m.groups, i)
	if m.groupsByName[g.name] == g {
		delete(m.groupsByName, g.name)
	}
	for p := range g.ports {
		leave(m.groupsOf, p, g)
	}
	for _, a := range g.acls {
		leave(m.holders, a, g)
	}
	delete(m.unsorted, g)
	delete(m.loose, g)
	namespace, _, _ := strings.Cut(g.policy, "/")
	if rest := slices.DeleteFunc(m.policyGroups[namespace], func(other *group) bool { return other == g }); len(rest) > 0 {
		m.policyGroups[namespace] = rest
	} else {
		delete(m.policyGroups, namespace)
	}
}

// putACL takes in a row; text is its match.
func (m *model) putACL(a *acl, text string) {
	// The same text is often that of the row that is replaced.
	r := m.matches[text]
	if r == nil {
		r = &reading{expr: match.Parse(text)}
		m.matches[text] = r
	}
	r.uses++
	m.dropACL(a.id)
	a.match = r.expr
	m.acls[a.id] = a
}

func (m *model) dropACL(i id) {
	m.looseOn = nil
	for g := range m.holders[i] {
		m.unsorted[g] = struct{}{}
	}
	a := m.acls[i]
	if a == nil {
		return
	}
	delete(m.acls, i)
	text := a.match.String()
	if r := m.matches[text]; r.uses > 1 {
		r.uses--
	} else {
		delete(m.matches, text)
	}
}

func (m *model) putSet(s *addressSet) {
	m.dropSet(s.id)
	m.sets[s.id], m.setsByName[s.name] = s, s
}

func (m *model) dropSet(i id) {
	s := m.sets[i]
	if s == nil {
		return
	}
	delete(m.sets, i)
	if m.setsByName[s.name] == s {
		delete(m.setsByName, s.name)
	}
}

// sort sorts the ACLs of groups that have changed by whom they judge.
func (m *model) sort() {
	for g := range m.unsorted {
		g.own, g.loose = [2][]*acl{}, nil
		for _, i := range g.acls {
			a := m.acls[i]
			if a == nil {
				continue
			}
			if d, known := a.of(); known && a.match.OnlyFor(d.side(), g.name) {
				g.own[d] = append(g.own[d], a)
			} else {
				g.loose = append(g.loose, a)
			}
		}
		if len(g.loose) > 0 {
			m.loose[g] = struct{}{}
		} else {
			delete(m.loose, g)
		}
	}
	clear(m.unsorted)
}

// looseFor returns the ACLs that judge packets on a switch whatever their ports
// are, or that say so in a way of their own.
func (m *model) looseFor(s *switchRow) []*acl {
	if all, ok := m.looseOn[s]; ok {
		return all
	}
	var all []*acl
	for _, i := range s.acls {
		if a := m.acls[i]; a != nil {
			all = append(all, a)
		}
	}
	for g := range m.loose {
		for p := range g.ports {
			if m.switchOf[p] == s {
				all = append(all, g.loose...)
				break
			}
		}
	}
	if m.looseOn == nil {
		m.looseOn = map[*switchRow][]*acl{}
	}
	m.looseOn[s] = all
	return all
}

// inSet returns whether an address is in the address set of that name. Each port
// group has two of its ports' addresses.
func (m *model) inSet(name string, a netip.Addr) match.Truth {
	s, g := m.setsByName[name], m.groupOfSet(name)
	switch {
	case s != nil && g != nil:
		// Which of them OVN takes is not known.
		return match.Unknown
	case s != nil:
		return s.holds(a)
	case g != nil:
		for _, p := range m.byAddress[a] {
			if _, in := g.ports[p.id]; in && strings.HasSuffix(name, suffixOf(a)) {
				return match.True
			}
		}
		return match.False
	}
	return match.Unknown
}

// setFault returns why OVN may refuse to compare addresses of a family with the
// address set of that name, or "".
func (m *model) setFault(name string, ipv6 bool) string {
	s, g := m.setsByName[name], m.groupOfSet(name)
	switch {
	case s == nil && g == nil:
		return "there is no address set " + name
	case s != nil && (ipv6 && s.ipv4 || !ipv6 && s.ipv6),
		g != nil && len(g.ports) > 0 && strings.HasSuffix(name, suffixIPv6) != ipv6:
		return "address set " + name + " has addresses of the other family"
	}
	return ""
}

const suffixIPv4, suffixIPv6 = "_ip4", "_ip6"

func suffixOf(a netip.Addr) string {
	if a.Is4() {
		return suffixIPv4
	}
	return suffixIPv6
}

// groupOfSet returns the port group whose ports' addresses the set has, or nil.
func (m *model) groupOfSet(name string) *group {
	for _, suffix := range []string{suffixIPv4, suffixIPv6} {
		if of, ok := strings.CutSuffix(name, suffix); ok {
			return m.groupsByName[of]
		}
	}
	return nil
}

// join and leave keep who refers to a row.
func join(of map[id]map[*group]struct{}, i id, g *group) {
	all := of[i]
	if all == nil {
		all = map[*group]struct{}{}
		of[i] = all
	}
	all[g] = struct{}{}
}

func leave(of map[id]map[*group]struct{}, i id, g *group) {
	delete(of[i], g)
	if len(of[i]) == 0 {
		delete(of, i)
	}
}

// insert puts a group among others that are sorted by name.
func insert(all []*group, g *group) []*group {
	at, _ := slices.BinarySearchFunc(all, g, func(a, b *group) int { return strings.Compare(a.name, b.name) })
	return slices.Insert(all, at, g)
}
