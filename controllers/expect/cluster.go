// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"slices"

	"github.com/google/btree"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
)

// Cluster is the state that expectations are computed from. Pods, Policies,
// Namespaces and Nodes given to it are kept, and must not be changed; a change
// is a new value. Each method that changes it returns the footprint of what it
// changed. It is not safe for concurrent use, reading included: what nobody
// asked for yet is put in order when somebody does.
//
// Label sets and selectors are interned. A new label set is matched with the
// selectors that reach its namespace, a new selector with the label sets that
// it reaches, a namespaceSelector with each namespace's labels, and a Pod with
// nothing.
type Cluster struct {
	pods map[types.UID]*entry
	// What follows has peers only.
	family    [2]*ages
	addresses *btree.BTreeG[held]
	byNode    map[string][]*Pod
	named     map[PortName]*named
	// byAddr has every Pod that is not finished and not on the host's network.
	byAddr map[netip.Addr][]*Pod
	// youngest is the highest Seq that any Pod had.
	youngest uint64

	spaces map[string]*space
	// nowhere stands for Pods of namespaces of which nothing is known.
	nowhere *LabelSet
	reaches map[string]*reach
	// serial is the id of the latest selector.
	serial uint64
	bound  map[*Policy]*bound
	// sharing counts the policies of each concatenation.
	sharing map[string]int

	nodes *Nodes
}

var _ World = (*Cluster)(nil)

// NewCluster returns a Cluster with nothing in it.
func NewCluster() *Cluster {
	return &Cluster{
		pods:      map[types.UID]*entry{},
		family:    [2]*ages{newAges(), newAges()},
		addresses: btree.NewG(treeDegree, byAddress),
		byNode:    map[string][]*Pod{},
		named:     map[PortName]*named{},
		byAddr:    map[netip.Addr][]*Pod{},
		spaces:    map[string]*space{},
		nowhere:   &LabelSet{},
		reaches:   map[string]*reach{},
		bound:     map[*Policy]*bound{},
		sharing:   map[string]int{},
		nodes:     NewNodes(),
	}
}

// Expect is Expect of this cluster.
func (c *Cluster) Expect(s Subject, options Options) Result { return Expect(c, s, options) }

// Admission returns what policies say of x in direction d. All of them select
// the end of x that d isolates: the destination for Ingress, the source for
// Egress. A Pod that is not isolated admits everything.
func (c *Cluster) Admission(policies []*Policy, d Direction, x Conn) Admission {
	return semantics{World: c}.admission(policies, d, x)
}

// Demand returns what node must do with a new connection, and whether a node
// that does not is known to deviate. Inconclusive means that nothing can be
// demanded. An address that several Pods have is taken for that of the oldest.
func (c *Cluster) Demand(node string, f flow.Flow) (want flow.Answer, advisory bool) {
	end := func(addr netip.Addr) End {
		for _, p := range c.byAddr[addr] {
			if p.Peer() {
				return End{Addr: addr, Pod: p}
			}
		}
		return End{Addr: addr}
	}
	x := Conn{Src: end(f.Src), Dst: end(f.Dst), Protocol: f.Protocol, Port: f.Port}
	return semantics{World: c}.judged(node, x).Answer()
}

func insert[T any](list []T, v T, compare func(a, b T) int) []T {
	// What arrives is most often the youngest.
	if len(list) == 0 || compare(list[len(list)-1], v) < 0 {
		return append(list, v)
	}
	i, found := slices.BinarySearchFunc(list, v, compare)
	if found {
		list[i] = v
		return list
	}
	return slices.Insert(list, i, v)
}

func remove[T any](list []T, v T, compare func(a, b T) int) []T {
	i, found := slices.BinarySearchFunc(list, v, compare)
	if !found {
		return list
	}
	return slices.Delete(list, i, i+1)
}

func removeFrom[K comparable, T any](lists map[K][]T, key K, v T, compare func(a, b T) int) {
	if lists[key] = remove(lists[key], v, compare); len(lists[key]) == 0 {
		delete(lists, key)
	}
}
