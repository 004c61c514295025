// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace

import (
	mathbits "math/bits"
	"net/netip"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// matches answers for a whole rule: No if any match says no, Yes if all say
// yes.
func (w *walk) matches(r *ruleset.Rule, s state) Ternary {
	answer := Yes
	for _, m := range r.Matches {
		switch w.match(m, s) {
		case No:
			return No
		case Unknown:
			answer = Unknown
		case Yes:
		}
	}
	return answer
}

func (w *walk) match(m ruleset.Match, s state) Ternary {
	switch m := m.(type) {
	case ruleset.Addr:
		return not(m.Not, Of(m.Contains(w.address(m.Dir))))
	case ruleset.AddrRange:
		return not(m.Not, inRange(w.address(m.Dir), m.From, m.To))
	case ruleset.Proto:
		return not(m.Not, Of(flow.Protocol(m.Number) == w.flow.Protocol))
	case ruleset.Ports:
		return not(m.Not, w.ports(m))
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
		return not(m.Not, Of(m.States&s.tracking.states() != 0))
	case ruleset.AddrType:
		return not(m.Not, w.addrType(m))
	case ruleset.Bridged:
		if w.at == ruleset.Forward || w.at == ruleset.Postrouting {
			return not(m.Not, w.path.Bridged)
		}
		// Only a packet whose output port is known counts as bridged.
		return not(m.Not, No)
	case ruleset.Set:
		return not(m.Not, w.member(m, s.mark))
	}
	return Unknown
}

func not(negated bool, t Ternary) Ternary {
	if negated {
		return t.Not()
	}
	return t
}

func (t tracking) states() ruleset.CTStates {
	switch t {
	case tracked:
		return ruleset.New
	case untracked:
		return ruleset.Untracked
	case before:
		return ruleset.Invalid
	}
	return 0
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

func (w *walk) ports(m ruleset.Ports) Ternary {
	dst := No
	for _, r := range m.Ranges {
		if r.From <= w.flow.Port && w.flow.Port <= r.To {
			dst = Yes
		}
	}
	if m.Dir == ruleset.Dst || (m.Dir == ruleset.Either && dst == Yes) {
		return dst
	}
	src := No
	for _, r := range m.Ranges {
		if r.From <= firstEphemeral && r.To == 65535 {
			return Yes
		}
		if r.To >= firstEphemeral {
			src = Unknown
		}
	}
	return src
}

// iface compares with the interface that the hook sees; a hook without one
// compares with the empty name, as the kernel does.
func (w *walk) iface(m ruleset.Iface) Ternary {
	in, out := w.interfaces()
	name, unknown := in, w.path.InUnknown
	if m.Out {
		name, unknown = out, w.path.OutUnknown
	}
	switch {
	case m.Prefix && m.Name == "":
		return Yes
	case w.at == ruleset.Postrouting && !m.Out:
		// Given to this hook since Linux 5.7 only.
		return Unknown
	case unknown:
		return Unknown
	case m.Prefix:
		return Of(strings.HasPrefix(name, m.Name))
	}
	return Of(name == m.Name)
}

// interfaces returns what the hook sees.
func (w *walk) interfaces() (in, out string) {
	switch w.at {
	case ruleset.Prerouting, ruleset.Input:
		return w.path.In, ""
	case ruleset.Output, ruleset.Postrouting:
		return "", w.path.Out
	case ruleset.Forward:
		return w.path.In, w.path.Out
	case ruleset.Ingress:
	}
	return w.path.In, ""
}

func (w *walk) addrType(m ruleset.AddrType) Ternary {
	have := w.path.DstType
	if m.Dir == ruleset.Src {
		have = w.path.SrcType
	}
	if have == 0 {
		return Unknown
	}
	if w.flow.Dst.Is6() && mathbits.OnesCount16(uint16(m.Types)) != 1 {
		// For IPv6 the kernel wants some of several types together.
		return Unknown
	}
	return Of(have&m.Types != 0)
}

func (w *walk) member(m ruleset.Set, mark bits) Ternary {
	in, out := w.interfaces()
	answer, _ := w.sets.Member(m.Name, m.Dims, Packet{
		Flow: w.flow, In: in, Out: out, Mark: mark.value, MarkKnown: mark.unknown == 0,
	})
	return answer
}
