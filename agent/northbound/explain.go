// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/policygate/policygate/api/flow"
)

// Explanation is what the database has of a flow, for a person.
type Explanation struct {
	Verdict flow.Verdict
	// In and Out are the logical ports of its ends; empty for one without.
	In, Out string
	// Steps are the ACLs that match, or may, where the packet comes to them.
	Steps []Step
	// NearMisses are ACLs that would have matched if but one address set had held
	// one address more, or one less, and that allow. If the verdict is Denied, and
	// it would be Allowed with any of them, all are such.
	NearMisses []NearMiss
}

// Step is an ACL that matches, or may.
type Step struct {
	// Direction is "from-lport" or "to-lport", of the logical switch.
	Direction, Switch string
	// Group is the port group that has the ACL; empty if that is not one of the
	// judged port's.
	Group string
	// Rule is the ACL as text, and Effect what it does, such as "drops".
	Rule, Effect string
	// Maybe, if not empty, says why this is only a possibility.
	Maybe string
}

// NearMiss is an ACL that does not match for the sake of one address set.
type NearMiss struct {
	Step
	// Set is the address set, and Address what it lacks, or holds.
	Set, Address string
	Held         bool
	// Otherwise is what the verdict would be.
	Otherwise flow.Answer
}

// explain returns what is done with the first packet of f, and why.
func (m *model) explain(f flow.Flow) Explanation {
	e := Explanation{Verdict: m.verdict(f)}
	if f.Validate() != nil {
		return e
	}
	src, dst := m.end(f.Src), m.end(f.Dst)
	if src.unclear != "" || dst.unclear != "" {
		return e
	}
	if src.port != nil {
		e.In = clean(src.port.name)
	}
	if dst.port != nil {
		e.Out = clean(dst.port.name)
	}
	places := m.places(src, dst)
	for i := range places {
		p := &places[i]
		for _, h := range p.hits(f) {
			s := p.step(h.acl, h.holder)
			s.Maybe = clean(h.why)
			e.Steps = append(e.Steps, s)
		}
		e.NearMisses = append(e.NearMisses, p.nearMisses(f, func(a *acl) flow.Answer {
			turned := slices.Clone(places)
			turned[i].turned = a
			return walk(turned, f).Answer
		})...)
	}
	decides := func(n NearMiss) bool { return n.Otherwise == flow.Allowed }
	if e.Verdict.Answer == flow.Denied && slices.ContainsFunc(e.NearMisses, decides) {
		e.NearMisses = slices.DeleteFunc(e.NearMisses, func(n NearMiss) bool { return !decides(n) })
	}
	return e
}

// step returns an ACL as it stands where the packet comes to it.
func (p *place) step(a *acl, holder *group) Step {
	s := Step{
		Direction: p.direction.String(), Switch: clean(p.on.name),
		Rule: clean(fmt.Sprintf("tier %d, priority %d: %s", a.tier, a.priority, a.match)), Effect: clean("does " + a.action),
	}
	switch a.does() {
	case allow, allowStateless:
		s.Effect = "allows"
	case drop:
		s.Effect = "drops"
	case pass:
		s.Effect = "leaves it to the next tier"
	case odd:
	}
	if holder != nil {
		s.Group = clean(holder.name)
	}
	return s
}

// nearMisses returns the ACLs of the judged port's groups that would allow the
// packet but for one address set. otherwise is what the verdict would be if an ACL
// did match.
func (p *place) nearMisses(f flow.Flow, otherwise func(*acl) flow.Answer) []NearMiss {
	at := p.judged()
	if at == nil {
		return nil
	}
	var all []NearMiss
	for g := range p.model.groupsOf[at.id] {
		for _, a := range g.own[p.direction] {
			if does := a.does(); does != allow && does != allowStateless {
				continue
			}
			if l, ok := a.match.Lacks(f, p); ok {
				all = append(all, NearMiss{
					Step: p.step(a, g), Set: l.Set, Address: l.Address.String(), Held: l.Holds, Otherwise: otherwise(a),
				})
			}
		}
	}
	slices.SortFunc(all, func(a, b NearMiss) int {
		return cmp.Or(strings.Compare(a.Set, b.Set), strings.Compare(a.Rule, b.Rule))
	})
	return all
}
