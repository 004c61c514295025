// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"fmt"
	"net/netip"

	"github.com/policygate/policygate/api/flow"
)

// end is one end of a flow.
type end struct {
	address netip.Addr
	// port is its logical port, nil if none has the address, and on the switch
	// that has the port.
	port *port
	on   *switchRow
	// unclear is why it cannot be told which port it is, or what becomes of
	// packets there, or "".
	unclear string
}

// end returns the end of a flow that has the address.
func (m *model) end(a netip.Addr) end {
	e := end{address: a}
	switch ports := m.byAddress[a]; len(ports) {
	case 0:
		return e
	case 1:
		e.port = ports[0]
	default:
		e.unclear = fmt.Sprintf("%d logical ports have the address %s, %s and %s among them", len(ports), a, ports[0].name, ports[1].name)
		return e
	}
	e.on = m.switchOf[e.port.id]
	switch {
	case e.port.kind != "":
		e.unclear = fmt.Sprintf("logical port %s with the address %s is of type %q", e.port.name, a, e.port.kind)
	case e.port.disabled:
		e.unclear = fmt.Sprintf("logical port %s with the address %s is disabled", e.port.name, a)
	case e.on == nil:
		e.unclear = fmt.Sprintf("logical port %s with the address %s is of no logical switch", e.port.name, a)
	}
	return e
}

// verdict returns what is done with the first packet of f.
func (m *model) verdict(f flow.Flow) flow.Verdict {
	if err := f.Validate(); err != nil {
		return flow.Verdict{Reason: clean(err.Error())}
	}
	src, dst := m.end(f.Src), m.end(f.Dst)
	for _, e := range []end{src, dst} {
		if e.unclear != "" {
			return flow.Verdict{Reason: clean(e.unclear)}
		}
	}
	if src.port == nil && dst.port == nil {
		return flow.Verdict{Reason: fmt.Sprintf("%s: no logical port has the address %s, or %s, yet", flow.NoRoute, f.Src, f.Dst)}
	}
	v := walk(m.places(src, dst), f)
	for _, e := range []end{src, dst} {
		if e.port == nil {
			v.Reason = fmt.Sprintf("no logical port has the address %s (yet); ", e.address) + v.Reason
		}
	}
	v.Reason = clean(v.Reason)
	return v
}

// walk returns what is done with the first packet of f at all of the places, each
// of which has to let it pass.
func walk(places []place, f flow.Flow) flow.Verdict {
	v := flow.Verdict{Answer: flow.Allowed}
	for i := range places {
		p := &places[i]
		r := p.judge(f)
		switch {
		case r.answer == flow.Denied:
			return flow.Verdict{Answer: flow.Denied, Reason: r.reason}
		case v.Answer == flow.Inconclusive:
		case r.answer == flow.Inconclusive:
			v = flow.Verdict{Reason: r.reason}
		case p.judged() != nil && v.Reason == "":
			v.Reason = r.reason
		case p.judged() != nil:
			v.Reason += "; " + r.reason
		}
	}
	return v
}

// places returns where ACLs meet a packet from one end to the other.
func (m *model) places(src, dst end) []place {
	var all []place
	direct := src.on != nil && src.on == dst.on
	if src.port != nil {
		all = append(all, place{model: m, on: src.on, direction: fromPort, in: src.port})
		if !direct {
			// Out by a port to a router.
			all = append(all, place{model: m, on: src.on, direction: toPort, in: src.port})
		}
	}
	if dst.port != nil {
		into := place{model: m, on: dst.on, direction: toPort, out: dst.port}
		if direct {
			into.in = src.port
		} else {
			// In by a port from a router.
			all = append(all, place{model: m, on: dst.on, direction: fromPort})
		}
		all = append(all, into)
	}
	return all
}
