// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"slices"
	"strings"
)

// Node is what expectations need of a Node.
type Node struct {
	Name      string
	PodCIDRs  []netip.Prefix
	Addresses []netip.Addr
	// Out is set for a node that others do not wait for: not ready for too
	// long, or stalled.
	Out bool
}

// Nodes are the nodes of a cluster and the addresses that are theirs.
type Nodes struct {
	byName map[string]*Node
	// names are sorted.
	names []string
	// inside are the cluster's addresses of each family, martians included.
	// They are nil after a change.
	inside [2]ranges
}

// NewNodes returns the nodes given, of which no two have one name.
func NewNodes(nodes ...*Node) *Nodes {
	l := &Nodes{byName: map[string]*Node{}}
	for _, n := range nodes {
		l.set(n)
	}
	return l
}

// Node returns the node of that name, or nil.
func (l *Nodes) Node(name string) *Node { return l.byName[name] }

func (l *Nodes) set(n *Node) {
	if _, ok := l.byName[n.Name]; !ok {
		l.names = insert(l.names, n.Name, strings.Compare)
	}
	l.byName[n.Name] = n
}

// within returns the addresses of one family that belong to the cluster: pod
// CIDRs and node addresses, and those that are never on the wire.
func (l *Nodes) within(v6 bool) ranges {
	if l.inside[bit(v6)] != nil {
		return l.inside[bit(v6)]
	}
	prefixes := martians(v6)
	for _, n := range l.byName {
		for _, p := range n.PodCIDRs {
			if p.Addr().Is6() == v6 {
				prefixes = append(prefixes, p)
			}
		}
		for _, a := range n.Addresses {
			if a.Is6() == v6 {
				prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	l.inside[bit(v6)] = newRanges(prefixes)
	return l.inside[bit(v6)]
}

// SetNode adds or replaces a node.
func (c *Cluster) SetNode(n *Node) Footprint {
	f := c.newChange()
	before := c.nodes.byName[n.Name]
	c.nodes.set(n)
	moved := before == nil || !slices.Equal(before.PodCIDRs, n.PodCIDRs) || !slices.Equal(before.Addresses, n.Addresses)
	if moved {
		c.nodes.inside = [2]ranges{}
		f.footprint.Ranges = true
	}
	if before == nil || before.Out != n.Out {
		f.node(n.Name)
	}
	return f.footprint
}

// DeleteNode removes a node; one that is not there is no error.
func (c *Cluster) DeleteNode(name string) Footprint {
	f := c.newChange()
	if c.nodes.byName[name] == nil {
		return f.footprint
	}
	delete(c.nodes.byName, name)
	c.nodes.names = remove(c.nodes.names, name, strings.Compare)
	c.nodes.inside = [2]ranges{}
	f.footprint.Ranges = true
	f.node(name)
	return f.footprint
}

// Node returns the node of that name, or nil.
func (c *Cluster) Node(name string) *Node { return c.nodes.byName[name] }

// Nodes implements World.
func (c *Cluster) Nodes() *Nodes { return c.nodes }
