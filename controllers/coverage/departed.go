// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"net/netip"
	"slices"
	"time"

	"github.com/policygate/policygate/controllers/expect"
)

// reuseWindow is how long what an engine keeps of a Pod may outlive it: full
// periodic syncs of the known ones are at most 5 minutes apart.
const reuseWindow = 10 * time.Minute

// maxPredecessors bounds what is kept of one address.
const maxPredecessors = 4

// departed remembers whose an address was. The zero value is not usable.
type departed struct {
	byAddress map[netip.Addr][]departure
	// queue has every address in the order of departure.
	queue []departure
}

type departure struct {
	addr netip.Addr
	pod  *expect.Pod
	at   time.Time
}

// add notes that p gave up addrs at now.
func (d *departed) add(p *expect.Pod, addrs []netip.Addr, now time.Time) {
	d.expire(now)
	if p.HostNetwork {
		return
	}
	for _, addr := range addrs {
		gone := departure{addr, p, now}
		list := slices.DeleteFunc(d.byAddress[addr], func(other departure) bool { return other.pod.UID == p.UID })
		list = append(list, gone)
		d.byAddress[addr] = list[max(0, len(list)-maxPredecessors):]
		d.queue = append(d.queue, gone)
	}
}

// expire forgets what is older than the window.
func (d *departed) expire(now time.Time) {
	n := 0
	for n < len(d.queue) && now.Sub(d.queue[n].at) >= reuseWindow {
		addr := d.queue[n].addr
		list := slices.DeleteFunc(d.byAddress[addr], func(g departure) bool { return now.Sub(g.at) >= reuseWindow })
		if len(list) == 0 {
			delete(d.byAddress, addr)
		} else {
			d.byAddress[addr] = list
		}
		n++
	}
	clear(d.queue[:n])
	d.queue = d.queue[n:]
}

// predecessors returns whose the addresses of p were within the window, the
// Pods that are being deleted and still have one included; and when the first
// of those that are gone will be forgotten, zero if none will.
func (x *Index) predecessors(p *pod) (former map[netip.Addr][]*expect.Pod, until time.Time) {
	now := x.options.Clock.Now()
	add := func(addr netip.Addr, other *expect.Pod) {
		if former == nil {
			former = map[netip.Addr][]*expect.Pod{}
		}
		former[addr] = append(former[addr], other)
	}
	for _, addr := range p.IPs {
		for _, g := range x.departed.byAddress[addr] {
			if g.pod.UID == p.UID || now.Sub(g.at) >= reuseWindow {
				continue
			}
			add(addr, g.pod)
			if end := g.at.Add(reuseWindow); until.IsZero() || end.Before(until) {
				until = end
			}
		}
		for _, other := range x.cluster.Holding(addr) {
			known := slices.ContainsFunc(former[addr], func(g *expect.Pod) bool { return g.UID == other.UID })
			if other.UID != p.UID && !other.Peer() && !known {
				add(addr, other)
			}
		}
	}
	return former, until
}
