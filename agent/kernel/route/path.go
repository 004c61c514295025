// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package route answers which way a flow takes through the node: by its
// interfaces, addresses, routes, routing rules and bridges. It also says what
// of them makes the node's dataplane one that netfilter's rules do not decide.
// It evaluates no rule of netfilter.
//
// What was read is kept until the kernel tells of a change; what it does not
// tell of (virtual servers, the bridge's switches, neighbours) is asked for in
// each look by the flows that need it.
package route

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// ErrNoRoute means that the node would not carry a flow at all, so that no
// rule of it judges the flow.
var ErrNoRoute = errors.New(flow.NoRoute)

// Topology is what one look knows of interfaces, addresses and routes. Routes
// are asked for one by one, when a flow needs them. It is safe for concurrent
// use.
type Topology struct {
	known *known
	conn  *nlconn.Conn
	files *files

	mu   sync.Mutex // guards moment and what known remembers
	look moment
}

// known is what was read and has not changed since.
type known struct {
	links     map[int]link
	addresses addresses
	rules     map[uint8]ruleSet
	routes    map[routeKey]routeAnswer
	ways      map[wayKey]ways
}

// mostKnown bounds the routes and ways that are remembered, each. A node's
// Pods and their peers are some thousand pairs.
const mostKnown = 8192

// wayKey is what the ways of a flow depend on. protocol and port are set where
// a routing rule selects by them.
type wayKey struct {
	src, dst netip.Addr
	protocol flow.Protocol
	port     uint16
	external bool
}

// ways are the ways that a flow may take as far as the topology says.
type ways struct {
	paths []trace.Path
	// segment is the bridge that carries the flow from port to port, if any.
	segment *link
	// served: virtual servers may have chosen the destination.
	served bool
}

// Paths returns the ways that a flow may take through the node: mostly one,
// more if it depends on the packet's mark or if the node's virtual servers may
// have chosen the destination. The slice is shared and must not be changed.
// external says that an end may be outside of the cluster, where nobody judges
// the flow by its source. The error is ErrNoRoute if the flow is not carried.
func (t *Topology) Paths(f flow.Flow, external bool) ([]trace.Path, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := wayKey{src: f.Src, dst: f.Dst, external: external}
	rules := t.known.rules[familyOf(f.Dst)]
	if rules.obscure != "" {
		return nil, errors.New("a routing rule selects by what is not known of a flow: " + rules.obscure)
	}
	if rules.ports {
		key.protocol, key.port = f.Protocol, f.Port
	}
	w, ok := t.known.ways[key]
	if !ok {
		var err error
		if w, err = t.find(f, external, rules); err != nil {
			return nil, err
		}
		if len(t.known.ways) >= mostKnown {
			clear(t.known.ways)
		}
		t.known.ways[key] = w
	}
	return t.complete(w, f)
}

// complete adds to the ways what has to be asked for in each look.
func (t *Topology) complete(w ways, f flow.Flow) ([]trace.Path, error) {
	paths := w.paths
	if w.segment != nil {
		paths = slices.Clone(paths)
		if err := t.bridge(&paths[0], w.segment, f); err != nil {
			return nil, err
		}
	}
	if !w.served || paths[0].Unseen != "" {
		return paths, nil
	}
	virtual, err := t.virtualServers()
	if err != nil || !virtual {
		return paths, err
	}
	all := slices.Clone(paths)
	for _, out := range paths {
		out.Way, out.Returns, out.Bridged = trace.Sent, trace.Unknown, trace.No
		out.In, out.InUnknown, out.InIndex, out.InPort, out.OutPort = "", false, 0, "", ""
		all = append(all, out)
	}
	return all, nil
}

// find returns the ways of a flow by every mark that its packet may have.
func (t *Topology) find(f flow.Flow, external bool, rules ruleSet) (ways, error) {
	w := ways{}
	for _, behind := range rules.marks {
		back, err := t.route(routeKey{dst: f.Src, mark: behind}, f, rules)
		if err != nil {
			return w, fmt.Errorf("route to source %s: %w", f.Src, err)
		}
		for _, ahead := range rules.marks {
			key := routeKey{dst: f.Dst, src: f.Src, iif: back.link.index, mark: ahead}
			if back.local {
				key.iif = 0
			}
			to, err := t.route(key, f, rules)
			if err != nil {
				return w, fmt.Errorf("route to %s: %w", f.Dst, err)
			}
			if back.local && to.local {
				return w, errors.New("source and destination are both the node's own addresses")
			}
			p := t.path(f, back, to, external)
			if p.Way == trace.Forwarded && sameSegment(back, to) {
				w.segment = &back.link
			}
			w.served = w.served || (p.Way == trace.Forwarded && back.onsite())
			if rules.custom && p.Way != trace.Sent {
				// A rule may select by the other address, which a question
				// for the route back cannot name.
				p.Returns = trace.Unknown
			}
			if !slices.Contains(w.paths, p) {
				w.paths = append(w.paths, p)
			}
		}
	}
	if w.segment != nil && len(w.paths) > 1 {
		return w, errors.New("whether it is bridged depends on the packet's mark")
	}
	return w, nil
}

// path returns the way of a flow between two hops.
func (t *Topology) path(f flow.Flow, back, to hop, external bool) trace.Path {
	p := trace.Path{
		Way: trace.Forwarded, Bridged: trace.No,
		SrcType: t.known.addresses.of(f.Src), DstType: t.known.addresses.of(f.Dst),
	}
	switch {
	case back.local:
		p.Way = trace.Sent
	case to.local:
		p.Way = trace.Delivered
	}
	if p.Way != trace.Sent {
		p.In, p.InUnknown, p.InIndex = back.link.name, back.several, index(back)
		// The input interface is where the route back leads.
		if p.Returns = trace.Yes; back.several {
			p.Returns = trace.Unknown
		}
	}
	if p.Way != trace.Delivered {
		p.Out, p.OutUnknown, p.OutIndex = to.link.name, to.several, index(to)
	}
	p.OnBridge = (p.Way != trace.Sent && back.link.kind == "bridge") || (p.Way != trace.Delivered && to.link.kind == "bridge")
	// What may be outside leaves the cluster by the default route, and nobody
	// of us judges it again. A Pod can be behind that route as well.
	p.Onward = p.Way != trace.Delivered && back.onsite() && !to.onsite() && (!external || to.prefix.Bits() > 0)
	return p
}

func index(h hop) uint32 {
	if h.several {
		return 0
	}
	return uint32(h.link.index) //nolint:gosec // Interface indices are positive.
}

// sameSegment reports whether both ends are behind one bridge and in one
// subnet of it: then the frames go from port to port and are not routed.
func sameSegment(a, b hop) bool {
	return a.link.kind == "bridge" && a.link.index == b.link.index && a.direct && b.direct &&
		!a.several && !b.several && a.prefix == b.prefix
}

// bridge adds to the path of a packet that a bridge passes on whether the IP
// hooks see it, and between which ports it passes.
func (t *Topology) bridge(p *trace.Path, l *link, f flow.Flow) error {
	family := ruleset.IPv4
	if f.Dst.Is6() {
		family = ruleset.IPv6
	}
	calls, err := t.bridgeCalls(family)
	if err != nil {
		return err
	}
	p.Bridged = trace.Yes
	if l.unseen(calls, family) {
		p.Unseen = "bridge " + l.name + " passes it on without asking any rule (bridge-nf-call is off)"
		return nil
	}
	p.InPort, p.OutPort = t.port(l.index, f.Src), t.port(l.index, f.Dst)
	return nil
}

// familyOf returns the family's number as netlink has it.
func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
