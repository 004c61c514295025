// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// named is what is known of a port name.
type named struct {
	// numbers counts the peers that give it a number.
	numbers map[uint16]int
	// pods has, of each namespace, the peers that have it.
	pods map[string]*ages
	// namespaces are the keys of pods, sorted.
	namespaces []string
}

// SetPod adds p, or replaces the Pod of the same UID. A Pod that became known
// after all others, by its Seq, is no peer of those and of concern to them by
// its addresses only.
func (c *Cluster) SetPod(p *Pod) Footprint {
	f := c.newChange()
	e, ok := c.pods[p.UID]
	if !ok {
		e = &entry{Pod: &Pod{}}
		c.pods[p.UID] = e
	}
	before := e.Pod
	if ok && before.same(p) {
		return f.footprint
	}
	switch {
	case before.Peer() && p.Peer() && before.sameEnd(p):
		c.relabel(f, e, p)
		return f.footprint
	case before.Peer() || p.Peer():
		f.pod(p.UID)
	}
	c.takeOut(f, e)
	e.Pod = p
	c.putIn(f, e)
	if p.Peer() && p.Seq <= c.youngest {
		// It may come between any two that were looked at.
		f.everything()
	}
	c.youngest = max(c.youngest, p.Seq)
	f.footprint.Addresses = distinct(f.footprint.Addresses)
	return f.footprint
}

// DeletePod removes a Pod; one that is not there is no error.
func (c *Cluster) DeletePod(uid types.UID) Footprint {
	f := c.newChange()
	e, ok := c.pods[uid]
	if !ok {
		return f.footprint
	}
	if e.Peer() {
		f.pod(uid)
	}
	c.takeOut(f, e)
	delete(c.pods, uid)
	return f.footprint
}

func distinct(addrs []netip.Addr) []netip.Addr {
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// same reports whether nothing differs that a Result can be made of.
func (p *Pod) same(other *Pod) bool {
	return p.Namespace == other.Namespace && p.Name == other.Name && p.HostNetwork == other.HostNetwork &&
		p.Finished == other.Finished && p.Terminating == other.Terminating &&
		p.sameEnd(other) && maps.Equal(p.Labels, other.Labels)
}

// sameEnd reports whether two peers differ in their labels at most.
func (p *Pod) sameEnd(other *Pod) bool {
	return p.UID == other.UID && p.Namespace == other.Namespace && p.Name == other.Name && p.Node == other.Node &&
		p.Seq == other.Seq && p.Created.Equal(other.Created) &&
		slices.Equal(p.IPs, other.IPs) && slices.Equal(p.Ports, other.Ports)
}

// addressed reports whether p has its addresses to itself, if as a peer or not.
func (p *Pod) addressed() bool { return !p.Finished && !p.HostNetwork }

// takeOut removes e from all that leads to it but its UID.
func (c *Cluster) takeOut(f *change, e *entry) {
	p := e.Pod
	if p.addressed() {
		for _, ip := range p.IPs {
			f.addr(ip)
			removeFrom(c.byAddr, ip, p, byAge)
		}
	}
	if !p.Peer() {
		return
	}
	for _, ip := range p.IPs {
		c.addresses.Delete(held{ip, p})
		c.family[bit(ip.Is6())].Delete(p)
	}
	removeFrom(c.byNode, p.Node, p, byAge)
	c.unnamePorts(f, e)
	c.leaveSet(f, e, nil)
}

// putIn has everything that leads to e do so.
func (c *Cluster) putIn(f *change, e *entry) {
	p := e.Pod
	if p.addressed() {
		for _, ip := range p.IPs {
			f.addr(ip)
			c.byAddr[ip] = insert(c.byAddr[ip], p, byAge)
		}
	}
	if !p.Peer() {
		return
	}
	for _, ip := range p.IPs {
		c.addresses.ReplaceOrInsert(held{ip, p})
		c.family[bit(ip.Is6())].ReplaceOrInsert(p)
	}
	c.byNode[p.Node] = insert(c.byNode[p.Node], p, byAge)
	c.joinSet(f, e)
	c.namePorts(f, e)
}

// relabel gives e, which is a peer and stays one at its addresses, other
// labels. Only selectors that match the new ones and did not match the old
// can have anybody meet it who has not looked at it.
func (c *Cluster) relabel(f *change, e *entry, p *Pod) {
	f.pod(p.UID)
	next := &entry{Pod: p}
	c.pods[p.UID] = next
	for _, ip := range p.IPs {
		c.byAddr[ip] = insert(c.byAddr[ip], p, byAge)
		c.addresses.ReplaceOrInsert(held{ip, p})
		c.family[bit(ip.Is6())].ReplaceOrInsert(p)
	}
	c.byNode[p.Node] = insert(c.byNode[p.Node], p, byAge)
	for _, port := range e.set.ports {
		c.named[PortName{port.Name, port.Protocol}].pods[p.Namespace].ReplaceOrInsert(p)
	}
	was := slices.Clone(e.set.selectors)
	c.joinSet(f, next)
	c.leaveSet(f, e, next.set)
	for _, s := range next.set.selectors {
		if slices.Contains(was, s) {
			continue
		}
		for q := range s.selects {
			f.whomMeans(c.bound[q])
			f.subject(q)
		}
		for r := range s.rules {
			f.whomSelects(c.bound[r.Policy])
		}
	}
}

// joinSet adds e to its label set, and to what matches that.
func (c *Cluster) joinSet(f *change, e *entry) {
	sp := c.space(f, e.Namespace)
	key := labelKey(e.Pod)
	l, ok := sp.sets[key]
	if !ok {
		l = &LabelSet{Namespace: e.Namespace, key: key, labels: e.Labels, ports: e.namedPorts()}
		sp.sets[key] = l
		c.matchSet(f, l, sp)
	}
	l.add(e)
	for _, s := range l.selectors {
		s.count(f, l, 1)
		if s.byAge != nil {
			s.byAge.ReplaceOrInsert(e.Pod)
		}
	}
}

// matchSet matches a new label set with the selectors that reach its namespace.
func (c *Cluster) matchSet(f *change, l *LabelSet, sp *space) {
	for _, s := range sp.fixed {
		if s.pods.Matches(l.labels) {
			s.match(f, l)
		}
	}
	for r := range sp.reached {
		for _, s := range r.selectors {
			if s.pods.Matches(l.labels) {
				s.match(f, l)
			}
		}
	}
}

// leaveSet takes e out of its label set, and out of what matches that and not
// next, the set that the Pod belongs to from now on, or nil.
func (c *Cluster) leaveSet(f *change, e *entry, next *LabelSet) {
	l := e.set
	for _, s := range l.selectors {
		s.count(f, l, -1)
		if s.byAge != nil && (next == nil || !slices.Contains(next.selectors, s)) {
			s.byAge.Delete(e.Pod)
		}
	}
	l.drop(e)
	if len(l.pods) > 0 {
		return
	}
	for _, s := range l.selectors {
		delete(s.sets, l)
	}
	l.selectors, l.selecting, l.stamp = nil, nil, 0
	sp := c.spaces[l.Namespace]
	delete(sp.sets, l.key)
	c.leave(f, sp)
}

// namePorts notes the numbers and names of e's ports.
func (c *Cluster) namePorts(f *change, e *entry) {
	for _, port := range e.set.ports {
		name := PortName{port.Name, port.Protocol}
		n, ok := c.named[name]
		if !ok {
			n = &named{numbers: map[uint16]int{}, pods: map[string]*ages{}}
			c.named[name] = n
		}
		if n.numbers[port.Number]++; n.numbers[port.Number] == 1 {
			f.port(name)
		}
		if n.pods[e.Namespace] == nil {
			n.pods[e.Namespace] = newAges()
			n.namespaces = insert(n.namespaces, e.Namespace, strings.Compare)
		}
		n.pods[e.Namespace].ReplaceOrInsert(e.Pod)
	}
}

func (c *Cluster) unnamePorts(f *change, e *entry) {
	for _, port := range e.set.ports {
		name := PortName{port.Name, port.Protocol}
		n := c.named[name]
		if n.numbers[port.Number]--; n.numbers[port.Number] == 0 {
			delete(n.numbers, port.Number)
			f.port(name)
		}
		if list := n.pods[e.Namespace]; list != nil {
			list.Delete(e.Pod)
			if list.Len() == 0 {
				delete(n.pods, e.Namespace)
				n.namespaces = remove(n.namespaces, e.Namespace, strings.Compare)
			}
		}
		if len(n.numbers) == 0 {
			delete(c.named, name)
		}
	}
}

// Pod returns the Pod of that UID, or nil. If it was set again without a
// difference, it is the former one.
func (c *Cluster) Pod(uid types.UID) *Pod {
	if e, ok := c.pods[uid]; ok {
		return e.Pod
	}
	return nil
}

// PeersOn returns the Pods of a node that can be peers, oldest first. The
// slice must not be changed.
func (c *Cluster) PeersOn(node string) []*Pod { return c.byNode[node] }

// PeersIn returns the Pods of a namespace that can be peers, oldest first. It
// collects and sorts them.
func (c *Cluster) PeersIn(namespace string) []*Pod {
	sp, ok := c.spaces[namespace]
	if !ok {
		return nil
	}
	var out []*Pod
	for _, l := range sp.sets {
		for _, e := range l.pods {
			out = append(out, e.Pod)
		}
	}
	slices.SortFunc(out, byAge)
	return out
}

// Holding returns the Pods whose address it is, oldest first, those that are
// being deleted included. The slice must not be changed.
func (c *Cluster) Holding(addr netip.Addr) []*Pod { return c.byAddr[addr] }
