// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/flow"
)

// Routes is the routing table of the node.
type Routes interface {
	// NextHop returns the router to which the node sends what it sends to the
	// address by the interface of that name, and the node's own address there.
	NextHop(device string, to netip.Addr) (hop, own netip.Addr, err error)
}

const (
	// learnedFor is how long what was learned is used, and doubtedFor how long
	// at least if verdicts that rest on it are Inconclusive. It is proved by
	// each conclusive verdict; a wrong one leads to none.
	learnedFor = 30 * time.Second
	doubtedFor = 500 * time.Millisecond
	// mostLearned bounds each kind of what is known: ports that are gone are
	// only forgotten with all others.
	mostLearned = 8192
)

// learned is what traces told of the logical network, by the ground of the port
// that it was learned for.
type learned struct {
	clock  clock.PassiveClock
	routes Routes
	keys   map[string]learnedKeys
	routed map[string]learnedMACs
	peers  map[peer]learnedMAC
	// hops are by the address that they lead to, joins by the hop.
	hops  map[netip.Addr]learnedHop
	joins map[netip.Addr]learnedMAC
}

type learnedKeys struct {
	keys keys
	at   time.Time
}

// learnedMACs are the hardware addresses of a Pod and of the router at its
// switch.
type learnedMACs struct {
	mac, router string
	at          time.Time
}

type learnedMAC struct {
	mac string
	at  time.Time
}

type learnedHop struct {
	hop, own netip.Addr
	at       time.Time
}

type peer struct {
	ground string
	dst    netip.Addr
}

func newLearned(c clock.PassiveClock, routes Routes) *learned {
	l := &learned{clock: c, routes: routes}
	l.forget()
	return l
}

// forget forgets everything.
func (l *learned) forget() {
	l.keys, l.routed = map[string]learnedKeys{}, map[string]learnedMACs{}
	l.peers = map[peer]learnedMAC{}
	l.hops, l.joins = map[netip.Addr]learnedHop{}, map[netip.Addr]learnedMAC{}
}

// fresh reports whether what was learned then may be used.
func (l *learned) fresh(at time.Time) bool { return l.clock.Since(at) < learnedFor }

// doubt forgets what an Inconclusive verdict about the flow rests on, unless it
// was learned just now. That nothing was found out is forgotten at once.
func (l *learned) doubt(p *ports, f flow.Flow) {
	old := func(at time.Time) bool { return l.clock.Since(at) >= doubtedFor }
	s, d := p.ends(f.Src, f.Dst)
	for _, end := range []*port{s, d} {
		if end == nil {
			continue
		}
		if old(l.keys[end.ground].at) {
			delete(l.keys, end.ground)
		}
		if r := l.routed[end.ground]; old(r.at) || r.mac == "" || r.router == "" {
			delete(l.routed, end.ground)
		}
		if to := (peer{end.ground, f.Dst}); old(l.peers[to].at) || l.peers[to].mac == "" {
			delete(l.peers, to)
		}
	}
}

// keys returns those of a local port, as the first flow for a packet from there
// sets them.
func (b *batch) keys(ctx context.Context, p *port) keys {
	l := b.learned
	if known, ok := l.keys[p.ground]; ok && l.fresh(known.at) {
		return known.keys
	}
	o := b.trace(ctx, fmt.Sprintf("arp,in_port=%d", p.ofport))
	found := learnedKeys{o.entry(), l.clock.Now()}
	if !found.keys.known() {
		delete(l.keys, p.ground)
		return keys{}
	}
	if len(l.keys) >= mostLearned {
		clear(l.keys)
	}
	l.keys[p.ground] = found
	return found.keys
}

// peer returns the hardware address that the switch of a local port has for the
// flow's destination, "" if the destination is not at this switch.
func (b *batch) peer(ctx context.Context, s *port, mac string, f flow.Flow) string {
	l, to := b.learned, peer{s.ground, f.Dst}
	if known, ok := l.peers[to]; ok && l.fresh(known.at) {
		return known.mac
	}
	o := b.trace(ctx, neighbourRequest(way{in: s.ofport, from: mac}, f.Src, f.Dst))
	found := ""
	if len(o.sections) > 0 {
		found = answered(o.reading, f.Dst)
	}
	if len(l.peers) >= mostLearned {
		clear(l.peers)
	}
	l.peers[to] = learnedMAC{found, l.clock.Now()}
	return found
}

// routed returns the hardware addresses of a local Pod and of the router at its
// switch, as a packet shows them that the node sends to the Pod, whether or not
// it arrives there.
func (b *batch) routed(ctx context.Context, p *port) learnedMACs {
	l := b.learned
	if known, ok := l.routed[p.ground]; ok && l.fresh(known.at) {
		return known
	}
	found := learnedMACs{at: l.clock.Now()}
	if join := b.join(ctx, p.address); join != "" {
		w := way{in: b.ports.node.ofport, from: b.ports.nodeMAC, to: join}
		o := b.trace(ctx, first(w, flow.Flow{Protocol: flow.TCP, Src: documentation(p.address), Dst: p.address, Port: ephemeral}))
		for _, s := range o.sections {
			if n := len(s.sources); n > 0 {
				found.router = hardwareAddress(s.sources[n-1])
			}
			if n := len(s.destinations); n > 0 {
				found.mac = hardwareAddress(s.destinations[n-1])
			}
		}
	}
	if len(l.routed) >= mostLearned {
		clear(l.routed)
	}
	l.routed[p.ground] = found
	return found
}

// join returns the hardware address of the router that the node sends to when it
// sends to the address of a local Pod, "" if it is not known.
func (b *batch) join(ctx context.Context, address netip.Addr) string {
	l := b.learned
	if b.ports.node == nil || b.ports.node.ofport < 1 || l.routes == nil {
		return ""
	}
	via, ok := l.hops[address]
	if !ok || !l.fresh(via.at) {
		hop, own, err := l.routes.NextHop(nodePort, address)
		if err != nil {
			return ""
		}
		if len(l.hops) >= mostLearned {
			clear(l.hops)
		}
		via = learnedHop{hop, own, l.clock.Now()}
		l.hops[address] = via
	}
	if known, ok := l.joins[via.hop]; ok && l.fresh(known.at) {
		return known.mac
	}
	o := b.trace(ctx, neighbourRequest(way{in: b.ports.node.ofport, from: b.ports.nodeMAC}, via.own, via.hop))
	found := ""
	if len(o.sections) > 0 {
		found = answered(o.reading, via.hop)
	}
	if found != "" {
		l.joins[via.hop] = learnedMAC{found, l.clock.Now()}
	}
	return found
}
