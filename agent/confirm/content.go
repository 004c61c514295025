// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// content is what an assignment asks, whichever replica sent it. It is never
// written to. What thousands of subjects have in common is in the description.
type content struct {
	description *Description
	// policy: the subject is a NetworkPolicy.
	policy bool
	// ips are the subject's addresses, sorted, and own has the one of each
	// family, for flows that leave it out. A policy has none.
	ips []string
	own [families]netip.Addr
	// excused are the whys of which no Allowed is awaited, ascending.
	excused []uint32
	// ownNode: the subject runs on this node.
	ownNode bool
	// settle: an address was another Pod's a short while ago.
	settle bool
	// excuseFamilies: a family that is not enforced may be left out.
	excuseFamilies bool
	// northboundConfig is what OVN must have acknowledged on this node before a
	// policy is confirmed; 0: nothing.
	northboundConfig uint64
	// malformed says why this cannot be judged, or is nil.
	malformed *unmet
}

// contentOf returns what a asks. d is nil if a names a description that was
// not sent.
func contentOf(a *hubv1.Assign, d *Description) content {
	c := content{
		description:    d,
		policy:         a.GetPolicy(),
		ips:            slices.Sorted(slices.Values(a.GetSubject().GetIps())),
		excused:        a.GetExcused(),
		ownNode:        a.GetOwnNode(),
		settle:         a.GetSettle(),
		excuseFamilies: a.GetExcuseFamilies(),

		northboundConfig: a.GetNorthboundConfig(),
	}
	if d == nil {
		// A report on it has to name an expectation.
		c.description = &Description{count: 1}
		c.malformed = malformedWhole(fmt.Errorf("it names description %d, which was not sent: want a Describe of it first", a.GetDescription()))
		return c
	}
	found, err := c.takeAddresses()
	if err == nil {
		err = c.checkExcused()
	}
	if err == nil {
		err = c.checkPolicy()
	}
	if err != nil {
		c.malformed = malformedWhole(err)
		return c
	}
	c.malformed = d.malformed
	for f, index := range d.own {
		if index < 0 || found[f] == 1 || c.malformed != nil && c.malformed.index <= index {
			continue
		}
		lacks := fmt.Errorf("it leaves out the subject's own %s address: want a subject with one, this has %d", family(f), found[f])
		if c.policy {
			lacks = fmt.Errorf("it leaves out an end of a %s flow: want both of a policy's", family(f))
		}
		c.malformed = malformedAt(index, lacks)
	}
	return c
}

// checkPolicy returns an error if a policy has what only Pods have, or a Pod
// what only policies do.
func (c *content) checkPolicy() error {
	switch {
	case !c.policy && c.northboundConfig > 0:
		return fmt.Errorf("a Pod has northbound_config %d: want it of a policy only", c.northboundConfig)
	case !c.policy:
	case len(c.ips) > 0:
		return fmt.Errorf("a policy has addresses %v: want none", c.ips)
	case c.ownNode:
		return errors.New("a policy has own_node: want it of a Pod only")
	case c.settle:
		return errors.New("a policy has settle: want it of a Pod only")
	}
	return nil
}

// malformedWhole says that an assignment cannot be judged as a whole. A report
// has to name an expectation: the first.
func malformedWhole(err error) *unmet {
	return &unmet{reason: printable(fmt.Sprintf("%sassignment: %v", hubv1.ReasonMalformed, err))}
}

// takeAddresses sets c.own, and returns how many addresses there are of each
// family.
func (c *content) takeAddresses() (found [families]int, err error) {
	for _, text := range c.ips {
		a, err := netip.ParseAddr(text)
		if err != nil || a.Is4In6() || a.Zone() != "" {
			return found, fmt.Errorf("subject address %q: want an IPv4 or IPv6 address without zone", text)
		}
		f := ipv6
		if a.Is4() {
			f = ipv4
		}
		c.own[f] = a
		found[f]++
	}
	return found, nil
}

// checkExcused returns an error if the indexes are not as hub.proto says.
func (c *content) checkExcused() error {
	for i, why := range c.excused {
		if int64(why) >= int64(c.description.whys) || i > 0 && why <= c.excused[i-1] {
			return fmt.Errorf("excused[%d] is %d: want ascending indexes into %d whys", i, why, c.description.whys)
		}
	}
	return nil
}

// flow returns the flow of one of the description's expectations, with the
// subject's own address where that was left out.
func (c *content) flow(e *expectation) flow.Flow {
	f := e.flow
	switch e.own {
	case source:
		f.Src = c.own[familyOf(f)]
	case destination:
		f.Dst = c.own[familyOf(f)]
	case neither:
	}
	return f
}

// awaits reports whether the subject is not confirmed without e, or without e
// or some time if e is advisory. A Denied is never excused.
func (c *content) awaits(e *expectation) bool {
	if e.want == flow.Denied {
		return true
	}
	return !e.witness && !c.excuses(e.why)
}

// excuses reports whether no Allowed of the why is awaited.
func (c *content) excuses(why uint32) bool {
	_, excused := slices.BinarySearch(c.excused, why)
	return excused
}

// required counts the expectations that are awaited and not advisory.
func (c *content) required() int {
	n := 0
	for i := range c.description.expectations {
		if e := &c.description.expectations[i]; !e.advisory && c.awaits(e) {
			n++
		}
	}
	return n
}

// questions appends to all what to ask: for each expectation in its order, or
// for those of the given indexes only.
func (c *content) questions(all []Question, indexes []int) []Question {
	ask := func(e *expectation) {
		all = append(all, Question{Flow: c.flow(e), External: e.external})
	}
	if indexes == nil {
		for i := range c.description.expectations {
			ask(&c.description.expectations[i])
		}
	}
	for _, i := range indexes {
		ask(&c.description.expectations[i])
	}
	return all
}

// lacks reports whether one of the expectations of the given indexes does not
// hold by the answers, which are in their order.
func (c *content) lacks(indexes []int, answers []Answer) bool {
	for i, index := range indexes {
		e := &c.description.expectations[index]
		if (!e.external || answers[i].Routed) && answers[i].Verdict.Answer != e.want {
			return true
		}
	}
	return false
}

// contentKey identifies a content. Assignments of one subject and one key have
// the same answer, whichever replica sent them and why.
type contentKey [sha256.Size]byte

func keyOf(a *hubv1.Assign, d *Description) contentKey {
	var b []byte
	add := func(text string) {
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	add(a.GetSubject().GetUid())
	b = binary.AppendUvarint(b, uint64(len(a.GetSubject().GetIps())))
	for _, ip := range slices.Sorted(slices.Values(a.GetSubject().GetIps())) {
		add(ip)
	}
	b = binary.AppendUvarint(b, uint64(len(a.GetExcused())))
	for _, why := range a.GetExcused() {
		b = binary.AppendUvarint(b, uint64(why))
	}
	for _, flag := range []bool{a.GetOwnNode(), a.GetSettle(), a.GetExcuseFamilies(), a.GetPolicy(), d != nil} {
		if flag {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = binary.AppendUvarint(b, a.GetNorthboundConfig())
	if d != nil {
		b = append(b, d.hash[:]...)
	}
	return sha256.Sum256(b)
}
