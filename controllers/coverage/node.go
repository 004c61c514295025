// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/controllers/expect"
)

// node is what the index keeps of a Node.
type node struct {
	cidrs     []netip.Prefix
	addresses []netip.Addr
	bootID    string
	// notReadySince is since when the node has not been ready, by the index's
	// clock, zero while it is; transition is the same by the API server's, which
	// may differ by any amount.
	notReadySince, transition time.Time
}

// newNode returns what the index keeps of n, as the successor of before, which
// may be nil.
func newNode(n *corev1.Node, before *node, now time.Time) *node {
	out := &node{bootID: n.Status.NodeInfo.BootID}
	for _, text := range n.Spec.PodCIDRs {
		if cidr, err := netip.ParsePrefix(text); err == nil {
			out.cidrs = append(out.cidrs, cidr.Masked())
		}
	}
	for _, a := range n.Status.Addresses {
		// A Hostname is no address.
		if addr, err := netip.ParseAddr(a.Address); err == nil {
			out.addresses = append(out.addresses, addr.Unmap())
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
			out.notReadySince, out.transition = now, c.LastTransitionTime.Time
			if before != nil && !before.notReadySince.IsZero() {
				out.notReadySince = before.notReadySince
			}
		}
	}
	return out
}

func (n *node) same(b *node) bool {
	return slices.Equal(n.cidrs, b.cidrs) && slices.Equal(n.addresses, b.addresses) &&
		n.notReadySince.Equal(b.notReadySince)
}

// SetNode takes a Node that was added or changed.
func (x *Index) SetNode(n *corev1.Node) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.date(n)
	before := x.nodes[n.Name]
	next := newNode(n, before, x.options.Clock.Now())
	x.nodes[n.Name] = next
	if before == nil || !next.same(before) {
		x.awaitReady(n.Name)
	}
	if before == nil || before.bootID != next.bootID {
		x.reviewBoot(n.Name)
	}
}

// awaitReady puts a node into the cluster as it is now, and minds the time if
// it is not ready.
func (x *Index) awaitReady(name string) {
	delete(x.expiring, name)
	x.meet(x.placeNode(name))
	n, now := x.nodes[name], x.options.Clock.Now()
	if out := n.notReadySince.Add(x.options.NotReadyLimit); !n.notReadySince.IsZero() && now.Before(out) {
		x.expiring[name] = struct{}{}
		x.schedule(out, now)
	}
}

// notReadyBefore has the nodes that are not ready count as such from when they
// were not, as far as that can be told: by the API server's own times it is at
// least as late as when it created anything.
func (x *Index) notReadyBefore() {
	for name, n := range x.nodes {
		if n.notReadySince.IsZero() || n.transition.IsZero() || !n.transition.Before(x.newest) {
			continue
		}
		if since := x.options.Clock.Now().Add(n.transition.Sub(x.newest)); since.Before(n.notReadySince) {
			n.notReadySince = since
			x.awaitReady(name)
		}
	}
}

// reviewBoot looks again at the Pods of a node whose boot has changed.
func (x *Index) reviewBoot(name string) {
	for _, p := range x.cluster.PeersOn(name) {
		if p := x.pods[p.UID]; p.gate != nil {
			x.review(p, true)
		}
	}
}

// DeleteNode takes a node that is gone; one that is not held is no error.
func (x *Index) DeleteNode(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, ok := x.nodes[name]; !ok {
		return
	}
	delete(x.nodes, name)
	delete(x.expiring, name)
	x.meet(x.cluster.DeleteNode(name))
	x.reviewBoot(name)
}

// Reach says whether a node can be asked, whatever its Node says: one that can
// be does not leave the spans of others for not being ready. An API server that
// was away has all nodes be not ready, though all of them enforce what they did.
func (x *Index) Reach(name string, reached bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, was := x.reached[name]; was == reached {
		return
	}
	if reached {
		x.reached[name] = struct{}{}
	} else {
		delete(x.reached, name)
	}
	if n := x.nodes[name]; n != nil && !n.notReadySince.IsZero() {
		x.meet(x.placeNode(name))
	}
}

// out reports whether nobody on another node waits for the node any more.
func (x *Index) out(name string) bool {
	n := x.nodes[name]
	_, reached := x.reached[name]
	return !reached && !n.notReadySince.IsZero() && x.options.Clock.Since(n.notReadySince) >= x.options.NotReadyLimit
}

// placeNode puts a node into the cluster as it is now, and returns what that
// changed.
func (x *Index) placeNode(name string) expect.Footprint {
	n := x.nodes[name]
	return x.cluster.SetNode(&expect.Node{
		Name:      name,
		PodCIDRs:  n.cidrs,
		Addresses: n.addresses,
		Out:       x.out(name),
	})
}
