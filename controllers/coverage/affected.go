// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/controllers/expect"
)

// links leads from a key to the held subjects that have it.
type links[K comparable] map[K]map[types.UID]struct{}

func (l links[K]) add(key K, uid types.UID) {
	if l[key] == nil {
		l[key] = map[types.UID]struct{}{}
	}
	l[key][uid] = struct{}{}
}

func (l links[K]) remove(key K, uid types.UID) {
	if delete(l[key], uid); len(l[key]) == 0 {
		delete(l, key)
	}
}

// link notes what the last assignment of a held subject was made of.
func (x *Index) link(uid types.UID, h *held, p *pod, r *expect.Result) {
	x.unlink(uid, h)
	seen := map[netip.Addr]struct{}{}
	for _, addr := range p.IPs {
		seen[addr] = struct{}{}
	}
	for _, list := range r.Nodes {
		for _, e := range list {
			seen[e.Flow.Src] = struct{}{}
			seen[e.Flow.Dst] = struct{}{}
		}
	}
	for addr := range seen {
		h.addresses = append(h.addresses, addr)
		x.addresses.add(addr, uid)
	}
	h.policies = r.Policies
	for _, key := range h.policies {
		x.policies.add(key, uid)
	}
}

func (x *Index) unlink(uid types.UID, h *held) {
	for _, addr := range h.addresses {
		x.addresses.remove(addr, uid)
	}
	for _, key := range h.policies {
		x.policies.remove(key, uid)
	}
	h.addresses, h.policies = nil, nil
}

func (x *Index) touch(uid types.UID) {
	x.affected[uid] = struct{}{}
	x.signal()
}

// signal needs no lock.
func (x *Index) signal() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

func (x *Index) touchAll() {
	for uid := range x.held {
		x.touch(uid)
	}
}

// touchAddresses marks the subjects that an address was last asked of: their
// obligations may shrink, a stranger may have gone, or a second Pod may have
// come to have the address.
func (x *Index) touchAddresses(addrs []netip.Addr) {
	for _, addr := range addrs {
		for uid := range x.addresses[addr] {
			x.touch(uid)
		}
	}
}

func (x *Index) touchDependents(q *expect.Policy) {
	for uid := range x.policies[types.NamespacedName{Namespace: q.Namespace, Name: q.Name}] {
		x.touch(uid)
	}
}

// touchMeaning marks the subjects that depend on a policy that selects p or
// means it as a peer.
func (x *Index) touchMeaning(p *expect.Pod) {
	for _, q := range x.cluster.PoliciesIn(p.Namespace) {
		if q.Selects(p) {
			x.touchDependents(q)
		}
	}
	for _, q := range x.cluster.Naming(p) {
		x.touchDependents(q)
	}
}

// touchPolicy marks the subjects that q, which is in the cluster or about to
// leave it, can affect: those that it selects or names; those of which a Pod
// that it selects is asked; and those of a policy that an engine cannot tell
// from q. A nil q affects nobody.
func (x *Index) touchPolicy(q *expect.Policy) {
	if q == nil {
		return
	}
	for uid := range x.held {
		p := x.pods[uid].Pod
		if q.Selects(p) || x.cluster.Names(q, p) || q.Err != nil && q.Namespace == p.Namespace {
			x.touch(uid)
		}
	}
	for _, p := range x.cluster.PeersIn(q.Namespace) {
		if q.Err != nil || q.Selects(p) {
			x.touchAddresses(p.IPs)
		}
	}
	for _, other := range x.cluster.Sharing(q) {
		x.touchDependents(other)
	}
}

// touchNamespace marks the subjects that the namespace's labels, as they are
// now, can affect.
func (x *Index) touchNamespace(name string) {
	for uid := range x.held {
		if x.pods[uid].Namespace == name {
			x.touch(uid)
		}
	}
	for _, q := range slices.Concat(x.cluster.PoliciesIn(name), x.cluster.Reaching(name)) {
		x.touchDependents(q)
	}
	for _, p := range x.cluster.PeersIn(name) {
		x.touchAddresses(p.IPs)
	}
}
