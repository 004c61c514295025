// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/policygate/policygate/agent/northbound/match"
	"github.com/policygate/policygate/api/flow"
)

const (
	// longestReason is how long a reason may be, in bytes: more than is ever
	// told of it.
	longestReason = 400
	// mostNamed is how many objects a reason names of one kind.
	mostNamed = 2
)

// clean returns a reason as printable ASCII of bounded length.
func clean(reason string) string {
	reason = reason[:min(len(reason), longestReason)]
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, reason)
}

// String returns how people find the ACL.
func (h *hit) String() string {
	name := h.acl.name
	if name == "" {
		name = strconv.FormatInt(h.acl.priority, 10) + " " + h.acl.match.String()
		name = name[:min(len(name), 60)]
	}
	if h.holder == nil {
		return name
	}
	return name + " of port group " + h.holder.name
}

// denied says what dropped a packet, and what would have let it pass if it were
// there.
func (p *place) denied(f flow.Flow, by *hit) string {
	reason := fmt.Sprintf("%s: dropped by ACL %s", p.direction, by)
	if by.holder == nil {
		return reason + " on logical switch " + p.on.name
	}
	lacks, allowing := p.lacks(f, by.acl)
	switch {
	case len(lacks) > 0:
		return reason + "; no ACL allows it: " + strings.Join(lacks, ", ")
	case allowing == 0:
		return reason + "; no ACL of its port groups allows anything in this direction"
	}
	return fmt.Sprintf("%s; none of %d ACLs that allow something does %s port %d with it", reason, allowing, f.Protocol, f.Port)
}

// lacks returns for the sake of which address sets alone no ACL allows a packet
// before another drops it, and how many ACLs of the port's groups allow anything
// before that.
func (p *place) lacks(f flow.Flow, by *acl) (lacks []string, allowing int) {
	for g := range p.model.groupsOf[p.judged().id] {
		for _, a := range g.own[p.direction] {
			does := a.does()
			if does != allow && does != allowStateless || a.tier > by.tier || a.tier == by.tier && a.priority <= by.priority {
				continue
			}
			allowing++
			l, ok := a.match.Lacks(f, p)
			switch {
			case !ok:
			case l.Holds:
				lacks = append(lacks, fmt.Sprintf("address set %s excepts %s", l.Set, l.Address))
			case p.model.setsByName[l.Set] != nil:
				lacks = append(lacks, fmt.Sprintf("address set %s lacks %s", l.Set, l.Address))
			}
		}
	}
	slices.Sort(lacks)
	lacks = slices.Compact(lacks)
	return lacks[:min(len(lacks), mostNamed)], allowing
}

// unjudged says why no ACL matches a packet.
func (p *place) unjudged() string {
	at := p.judged()
	if at == nil {
		return fmt.Sprintf("%s: no ACL of logical switch %s matches", p.direction, p.on.name)
	}
	judging, empty := 0, []string(nil)
	for g := range p.model.groupsOf[at.id] {
		switch {
		case len(g.own[p.direction]) > 0:
			judging++
		case g.policy != "":
			empty = append(empty, g.name)
		}
	}
	if judging > 0 {
		return fmt.Sprintf("%s: no ACL matches of the port groups of logical port %s", p.direction, at.name)
	}
	if len(empty) > 0 {
		slices.Sort(empty)
		return fmt.Sprintf("%s: the ACLs are missing: port group %s has none in this direction",
			p.direction, strings.Join(empty[:min(len(empty), mostNamed)], ", "))
	}
	reason := fmt.Sprintf("%s: logical port %s is in no port group that denies", p.direction, at.name)
	if lack := p.model.without(at); len(lack) > 0 {
		reason += "; that of a policy of its namespace lacks it: " + strings.Join(lack, ", ")
	}
	return reason
}

// without returns the names of some port groups, of policies in the namespace of
// the port's Pod, that do not have the port.
func (m *model) without(at *port) []string {
	var names []string
	for _, g := range m.policyGroups[at.namespace()] {
		if _, in := g.ports[at.id]; in {
			continue
		}
		if names = append(names, g.name); len(names) == mostNamed {
			break
		}
	}
	return names
}

var _ match.World = (*place)(nil)
