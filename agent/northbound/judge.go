// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/policygate/policygate/agent/northbound/match"
	"github.com/policygate/policygate/api/flow"
)

// place is where on its way a packet meets ACLs: in one direction of one logical
// switch. It is the match.World of their matches.
type place struct {
	model     *model
	on        *switchRow
	direction direction
	// in and out are the ports that the packet passes. nil: one that is no
	// Pod's, but a router's or the like. ACLs from-lport know no outport.
	in, out *port
	// turned is an ACL that is taken to match, or nil.
	turned *acl
}

// judged is the port whose ACLs judge the packet, or nil.
func (p *place) judged() *port {
	if p.direction == fromPort {
		return p.in
	}
	return p.out
}

// SetFault implements match.World.
func (p *place) SetFault(name string, ipv6 bool) string { return p.model.setFault(name, ipv6) }

// GroupFault implements match.World. The southbound database has a port group once
// for each switch on which it has ports, and OVN refuses its name on others.
func (p *place) GroupFault(name string) string {
	g := p.model.groupsByName[name]
	if g == nil {
		return "there is no port group " + name
	}
	if at := p.judged(); at != nil {
		if _, in := g.ports[at.id]; in {
			return ""
		}
	}
	for i := range g.ports {
		if p.model.switchOf[i] == p.on {
			return ""
		}
	}
	return "port group " + name + " has no port on logical switch " + p.on.name
}

// InSet implements match.World.
func (p *place) InSet(name string, a netip.Addr) match.Truth { return p.model.inSet(name, a) }

// InGroup implements match.World.
func (p *place) InGroup(s match.Side, name string) match.Truth {
	g := p.model.groupsByName[name]
	at, known := p.side(s)
	switch {
	case !known || g == nil:
		return match.Unknown
	case at != nil:
		_, in := g.ports[at.id]
		return match.Of(in)
	}
	// It is a router's port, or one to another network: groups of Pods' ports
	// have none.
	for i := range g.ports {
		if other := p.model.ports[i]; other != nil && other.kind != "" && p.model.switchOf[i] == p.on {
			return match.Unknown
		}
	}
	return match.False
}

// IsPort implements match.World.
func (p *place) IsPort(s match.Side, name string) match.Truth {
	at, known := p.side(s)
	switch {
	case !known:
		return match.Unknown
	case at != nil:
		return match.Of(at.name == name)
	}
	for _, i := range p.on.ports {
		if other := p.model.ports[i]; other != nil && other.kind != "" && other.name == name {
			return match.Unknown
		}
	}
	return match.False
}

func (p *place) side(s match.Side) (at *port, known bool) {
	if s == match.Inport {
		return p.in, true
	}
	return p.out, p.direction == toPort
}

// hit is an ACL that matches, or may.
type hit struct {
	acl *acl
	// holder has the ACL, nil if a switch has.
	holder *group
	sure   bool
	// why it may only.
	why string
}

// ruling is what is done with a packet at one place.
type ruling struct {
	answer flow.Answer
	// reason says why, in words for people.
	reason string
}

// judge returns what the ACLs of a place do with the first packet of f.
func (p *place) judge(f flow.Flow) ruling {
	p.model.sort()
	hits := p.hits(f)
	if p.direction == toPort {
		return p.stage(f, hits)
	}
	// What comes before the load balancers has to let it pass, and what comes
	// behind.
	var before, behind []hit
	for _, h := range hits {
		if h.acl.afterLB {
			behind = append(behind, h)
		} else {
			before = append(before, h)
		}
	}
	first, second := p.stage(f, before), p.stage(f, behind)
	switch {
	case first.answer == flow.Denied, second.answer == flow.Allowed && len(before) > 0,
		first.answer == flow.Inconclusive && second.answer != flow.Denied:
		return first
	}
	return second
}

// hits returns the ACLs of the place that match, or may.
func (p *place) hits(f flow.Flow) []hit {
	var hits []hit
	ask := func(a *acl, holder *group) {
		t, why := a.match.Match(f, p)
		if a == p.turned {
			t = match.True
		}
		if t == match.True && a.action == "reject" && a.match.Alternatives() {
			// Seen in OVN 23.03: northd puts a term before it, and no parentheses
			// around it, which makes a match that is refused.
			t, why = match.Unknown, "|| outside of parentheses, in an ACL that rejects"
		}
		switch t {
		case match.True:
			hits = append(hits, hit{acl: a, holder: holder, sure: true})
		case match.Unknown:
			hits = append(hits, hit{acl: a, holder: holder, why: why})
		case match.False:
		}
	}
	if at := p.judged(); at != nil {
		for g := range p.model.groupsOf[at.id] {
			for _, a := range g.own[p.direction] {
				ask(a, g)
			}
		}
	}
	for _, a := range p.model.looseFor(p.on) {
		if a.judges(p.direction) {
			ask(a, nil)
		}
	}
	// The same answer has the same reason each time.
	slices.SortFunc(hits, func(a, b hit) int {
		return cmp.Or(cmp.Compare(a.acl.tier, b.acl.tier), cmp.Compare(b.acl.priority, a.acl.priority),
			cmp.Compare(a.acl.id, b.acl.id))
	})
	return hits
}

// outcomes is what may become of a packet, each with an ACL that may do it.
type outcomes struct {
	allow, drop, odd *hit
	// tie: ACLs of one priority match for sure and do different things.
	tie *hit
	// none: it may be that no ACL decides.
	none bool
}

// outcomesOf returns what may become of a packet by ACLs that are in order.
func outcomesOf(hits []hit) outcomes {
	var o outcomes
	for len(hits) > 0 {
		first := hits[0].acl
		level := hits[:lengthOf(hits, func(a *acl) bool { return a.tier == first.tier && a.priority == first.priority })]
		hits = hits[len(level):]
		decided, passed := false, false
		for i := range level {
			h := &level[i]
			switch h.acl.does() {
			case pass:
				passed = passed || h.sure
				if !h.sure {
					o.odd = cmp.Or(o.odd, h)
				}
				continue
			case allow, allowStateless:
				o.allow = cmp.Or(o.allow, h)
			case drop:
				o.drop = cmp.Or(o.drop, h)
			case odd:
				o.odd = cmp.Or(o.odd, h)
			}
			decided = decided || h.sure
		}
		if passed && decided {
			o.tie = &level[0]
		}
		if decided {
			return o
		}
		if passed {
			hits = hits[lengthOf(hits, func(a *acl) bool { return a.tier == first.tier }):]
		}
	}
	o.none = true
	return o
}

// lengthOf returns how many hits from the first on are as is asked for.
func lengthOf(hits []hit, are func(*acl) bool) int {
	if i := slices.IndexFunc(hits, func(h hit) bool { return !are(h.acl) }); i >= 0 {
		return i
	}
	return len(hits)
}

// stage decides among ACLs of one stage, which are in order.
func (p *place) stage(f flow.Flow, hits []hit) ruling {
	o := outcomesOf(hits)
	switch {
	case o.tie != nil:
		return p.inconclusive("ACLs of priority %d that match do different things, one of them %s", o.tie.acl.priority, o.tie)
	case o.odd != nil && o.odd.sure:
		return p.inconclusive("what ACL %s does is not known: %q %q", o.odd, o.odd.acl.direction, o.odd.acl.action)
	case o.odd != nil:
		return p.inconclusive("ACL %s may match: %s", o.odd, o.odd.why)
	case o.drop != nil && o.allow != nil && o.drop.sure && o.allow.sure:
		return p.inconclusive("ACLs of priority %d that match do different things: %s and %s", o.drop.acl.priority, o.allow, o.drop)
	case o.drop != nil && (o.allow != nil || o.none):
		doubtful := o.drop
		if doubtful.sure {
			doubtful = o.allow
		}
		return p.inconclusive("ACL %s may match: %s", doubtful, doubtful.why)
	case o.none && p.model.defaultDrop:
		return p.inconclusive("no ACL decides, and the option default_acl_drop is set")
	case o.allow != nil:
		return ruling{answer: flow.Allowed, reason: fmt.Sprintf("%s: allowed by ACL %s", p.direction, o.allow)}
	case o.drop == nil:
		return ruling{answer: flow.Allowed, reason: p.unjudged()}
	}
	if i := slices.IndexFunc(hits, func(h hit) bool { return h.acl.does() == allowStateless }); i >= 0 {
		return p.inconclusive("ACL %s is stateless and may precede %s", &hits[i], o.drop)
	}
	return ruling{answer: flow.Denied, reason: p.denied(f, o.drop)}
}

func (p *place) inconclusive(format string, values ...any) ruling {
	return ruling{reason: fmt.Sprintf("%s: ", p.direction) + fmt.Sprintf(format, values...)}
}
