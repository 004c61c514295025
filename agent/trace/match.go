// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// matches answers for a whole rule: No if any match says no, Yes if all say
// yes. w.why is of the first that cannot tell.
func (w *walk) matches(r *ruleset.Rule, s *state) Ternary {
	answer, why := Yes, ""
	for i := range r.Matches {
		w.why = ""
		switch w.match(r.Matches[i], s) {
		case No:
			return No
		case Unknown:
			if answer == Yes {
				answer, why = Unknown, w.why
			}
		case Yes:
		}
	}
	w.why = why
	return answer
}

func (w *walk) match(m ruleset.Match, s *state) Ternary {
	switch m := m.(type) {
	case ruleset.Addr:
		if m.Dir == ruleset.Src && s.resourced {
			return w.sourceless()
		}
		return not(m.Not, Of(m.Contains(w.address(m.Dir))))
	case ruleset.AddrRange:
		if m.Dir == ruleset.Src && s.resourced {
			return w.sourceless()
		}
		return not(m.Not, inRange(w.address(m.Dir), m.From, m.To))
	case ruleset.Proto:
		return not(m.Not, Of(flow.Protocol(m.Number) == w.flow.Protocol))
	case ruleset.Ports:
		return not(m.Not, w.ports(m.Dir, m.Ranges, s))
	case ruleset.TCPFlags:
		// A SYN alone: ECN's two bits are none that a rule can name.
		return not(m.Not, Of(ruleset.SYN&m.Mask == m.Set))
	case ruleset.Fragment:
		return not(m.Not, No)
	case ruleset.Iface:
		return not(m.Not, w.iface(m))
	case ruleset.Mark:
		if !m.Conn {
			return not(m.Not, s.mark.match(m.Value, m.Mask))
		}
		if s.tracking != tracked {
			// Without a connection the kernel's connmark matches never,
			// negated or not.
			return No
		}
		return not(m.Not, s.connMark.match(m.Value, m.Mask))
	case ruleset.CTState:
		return not(m.Not, w.ctState(m, s))
	case ruleset.AddrType:
		if m.Dir == ruleset.Src && s.resourced {
			return w.sourceless()
		}
		return not(m.Not, w.addrType(m))
	case ruleset.Bridged:
		if w.at == ruleset.Forward || w.at == ruleset.Postrouting {
			return not(m.Not, w.path.Bridged)
		}
		// Only a packet whose output port is known counts as bridged.
		return not(m.Not, No)
	case ruleset.BridgePort:
		return not(m.Not, w.bridgePort(m))
	case ruleset.ReversePath:
		return not(m.Not, w.reversePath(m))
	case ruleset.Set:
		return not(m.Not, w.member(m, s))
	case ruleset.Compare:
		return w.compare(&m, s)
	case ruleset.Lookup:
		return w.lookup(&m, s)
	}
	return Unknown
}

// sourceless answers for a packet whose source was rewritten to what the rules
// alone do not tell.
func (w *walk) sourceless() Ternary {
	w.why = "the source was rewritten"
	return Unknown
}

func not(negated bool, t Ternary) Ternary {
	if negated {
		return t.Not()
	}
	return t
}

func (w *walk) address(d ruleset.Direction) netip.Addr {
	if d == ruleset.Src {
		return w.flow.Src
	}
	return w.flow.Dst
}

func inRange(a, from, to netip.Addr) Ternary {
	if a.BitLen() != from.BitLen() {
		return No
	}
	return Of(from.Compare(a) <= 0 && a.Compare(to) <= 0)
}

// firstEphemeral is the lowest source port that an unprivileged client may
// get (ip_unprivileged_port_start).
const firstEphemeral = 1024

func (w *walk) ports(dir ruleset.Direction, ranges []ruleset.PortRange, s *state) Ternary {
	if dir != ruleset.Src {
		for _, r := range ranges {
			if r.From <= w.flow.Port && w.flow.Port <= r.To {
				return Yes
			}
		}
		if dir == ruleset.Dst {
			return No
		}
	}
	first := uint16(firstEphemeral)
	if s.resourced {
		// Source NAT keeps a port where it can, or takes another.
		first = 1
	}
	src := No
	for _, r := range ranges {
		if r.From <= first && r.To == 65535 {
			return Yes
		}
		if r.To >= first {
			w.why = "the source port may be any from " + portName(first) + " on"
			src = Unknown
		}
	}
	return src
}

func portName(p uint16) string {
	if p == 1 {
		return "1"
	}
	return "1024"
}

// device is an interface as a hook sees it.
type device struct {
	// name is "" and index 0 for none.
	name  string
	index uint32
	// unnamed and unnumbered say that there is one, of which that is not
	// known.
	unnamed, unnumbered bool
	// perhaps: the kernel may have forgotten it.
	perhaps bool
}

// turn makes the walk be at a hook.
//
// A hook without an interface of one side compares it as the empty name and as
// the number 0: legacy always has, nf_tables since Linux 5.3 (before, such a
// condition did not hold, negated or not). Prerouting and input have no
// output; output has no input, and neither has what it sends at postrouting.
// There, forwarded packets have an input since Linux 5.7, and bridged ones
// have none.
func (w *walk) turn(hook ruleset.Hook) {
	w.at, w.in, w.out = hook, device{}, device{}
	w.asked = [4]question{}
	if p := &w.path; p.Way != Sent && hook != ruleset.Output {
		w.in = newDevice(p.In, p.InIndex, p.InUnknown)
		w.in.perhaps = hook == ruleset.Postrouting
	}
	if p := &w.path; p.Way != Delivered && (hook == ruleset.Forward || hook == ruleset.Output || hook == ruleset.Postrouting) {
		w.out = newDevice(p.Out, p.OutIndex, p.OutUnknown)
	}
}

func newDevice(name string, index uint32, unknown bool) device {
	if unknown {
		return device{unnamed: true, unnumbered: true}
	}
	return device{name: name, index: index, unnumbered: index == 0 && name != ""}
}

func (w *walk) iface(m ruleset.Iface) Ternary {
	d := &w.in
	if m.Out {
		d = &w.out
	}
	switch {
	case m.Prefix && m.Name == "":
		return Yes
	case d.unnamed:
		w.why = "the interface is not known"
		return Unknown
	}
	answer := named(d.name, m.Name, m.Prefix)
	if d.perhaps && answer != named("", m.Name, m.Prefix) {
		w.why = "the kernel may have forgotten the input interface"
		return Unknown
	}
	return answer
}

func named(have, want string, prefix bool) Ternary {
	if prefix {
		return Of(strings.HasPrefix(have, want))
	}
	return Of(have == want)
}

// ctState knows what may still be unsure of a first packet: whether its source
// was rewritten.
func (w *walk) ctState(m ruleset.CTState, s *state) Ternary {
	if m.States&s.tracking.states() != 0 {
		return Yes
	}
	if m.States&ruleset.SNATed != 0 && s.resourced {
		return w.sourceless()
	}
	return No
}

func (w *walk) addrType(m ruleset.AddrType) Ternary {
	have := w.path.DstType
	if m.Dir == ruleset.Src {
		have = w.path.SrcType
	}
	if have == 0 {
		w.why = "the address's type is not known"
		return Unknown
	}
	if w.flow.Dst.Is4() {
		return Of(have&m.Types != 0)
	}
	// An IPv6 address has to have all the types that are its own, and one of
	// those that its route has (match_type6 of net/netfilter/xt_addrtype.c).
	const own, routed = ruleset.Multicast | ruleset.Unicast | ruleset.Unspec, ruleset.Local | ruleset.Anycast | ruleset.Unreachable
	switch {
	case m.Types&^(own|routed) != 0:
		w.why = "a type that the kernel refuses for IPv6"
		return Unknown
	case m.Types&own&^have != 0:
		return No
	}
	return Of(m.Types&routed == 0 || m.Types&routed&have != 0)
}

// bridgePort compares as xt_physdev does. The port of entry stays known when a
// packet from a bridge is routed; the port of leaving is set for bridged
// packets only, right before forward. A packet that never was on a bridge has
// neither, and then no name matches.
func (w *walk) bridgePort(m ruleset.BridgePort) Ternary {
	port, bridged := w.path.InPort, w.path.Bridged
	switch {
	case m.Out && w.at != ruleset.Forward && w.at != ruleset.Postrouting:
		bridged = No
	case m.Out:
		port = w.path.OutPort
	case w.path.Way == Sent:
		bridged = No
	case bridged == No && w.path.OnBridge:
		// Whether bridges hand their packets to the IP hooks decides.
		bridged = Unknown
	}
	everything := m.Prefix && m.Name == ""
	switch {
	case bridged == Yes && (port != "" || everything):
		return named(port, m.Name, m.Prefix)
	case bridged == No && !everything:
		return named("", m.Name, m.Prefix)
	}
	w.why = "the bridge's port is not known"
	return Unknown
}

func (w *walk) reversePath(m ruleset.ReversePath) Ternary {
	switch {
	case !w.entered():
		// The kernel has no such match there.
	case w.path.Returns == Yes, !m.Loose:
		if w.path.Returns == Unknown {
			w.why = "the route back to the source is not known"
		}
		return w.path.Returns
	}
	w.why = "the route back to the source is not known"
	return Unknown
}

// question is what a set was asked, and the answer.
type question struct {
	set    string
	dims   []ruleset.Direction
	answer Ternary
	why    string
}

func (w *walk) member(m ruleset.Set, s *state) Ternary {
	if s.resourced && slices.Contains(m.Dims, ruleset.Src) {
		return w.sourceless()
	}
	// Engines ask the same in two rules after each other: one sets a mark, and
	// one returns.
	for i := range w.asked {
		if q := &w.asked[i]; q.set == m.Name && slices.Equal(q.dims, m.Dims) {
			w.why = q.why
			return q.answer
		}
	}
	q := &w.asked[w.questions%len(w.asked)]
	w.questions++
	q.set, q.dims = m.Name, m.Dims
	q.answer, q.why = w.sets.Member(m.Name, m.Dims, w.packet())
	w.why = q.why
	return q.answer
}

// packet is what sets are asked about at this hook.
func (w *walk) packet() Packet {
	p := Packet{Flow: w.flow, In: w.in.name, Out: w.out.name}
	if w.in.perhaps {
		// A set of interfaces is not asked for one that may be forgotten.
		p.In = ""
	}
	return p
}
