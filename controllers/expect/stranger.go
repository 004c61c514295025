// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/policygate/policygate/api/flow"
)

// maxStrangers bounds how many Pods are tried as the stranger of one path. It
// is reached only where rules admit nearly everyone.
const maxStrangers = 64

// firstFreePort starts the search for a port that no rule names: above Linux's
// default ephemeral range, where nothing is commonly declared.
const firstFreePort = 61001

// path is the way by which a connection reaches a node: a stranger on one path
// says nothing of another.
type path uint8

const (
	fromOtherNode path = iota
	fromSameNode
	fromOutside
)

func (p path) String() string {
	switch p {
	case fromSameNode:
		return "same node"
	case fromOutside:
		return "external"
	case fromOtherNode:
	}
	return "other node"
}

// older returns the Pods of list that were known when the subject was, oldest
// first, with their addresses of one family.
func (k *plan) older(list []*Pod, v6 bool) iter.Seq[End] {
	return func(yield func(End) bool) {
		for _, p := range list {
			if p.UID == k.subject.UID || p.Seq > k.subject.Seq {
				continue
			}
			if e, ok := k.cluster.end(p, v6); ok && !yield(e) {
				return
			}
		}
	}
}

// elsewhere returns the older Pods that do not run on node.
func (k *plan) elsewhere(node string, v6 bool) iter.Seq[End] {
	return func(yield func(End) bool) {
		for e := range k.older(k.cluster.peers, v6) {
			if e.Pod.Node != node && !yield(e) {
				return
			}
		}
	}
}

// stranger returns a connection on one path that only the policies of t, the
// isolated end in direction d on node, refuse. It returns false if they refuse
// nobody on that path.
func (k *plan) stranger(t End, d Direction, by path) (Conn, bool) {
	node, v6 := t.Pod.Node, t.Addr.Is6()
	var found Conn
	tries := 0
	try := func(other End) bool {
		tries++
		x, ok := k.refused(t, d, other)
		if ok {
			found = x
		}
		return !ok && tries < maxStrangers
	}
	bare := func(addr netip.Addr) bool { return try(End{Addr: addr}) }
	switch by {
	case fromOtherNode:
		k.elsewhere(node, v6)(try)
		if found == (Conn{}) {
			tries = 0
			k.unused(node, v6, bare)
		}
	case fromSameNode:
		k.older(k.cluster.byNode[node], v6)(func(e End) bool {
			return e.Pod.UID == t.Pod.UID || Isolated(k.policies(e.Pod), d.opposite()) || try(e)
		})
	case fromOutside:
		slices.Values(outsiders(v6))(bare)
	}
	return found, found != Conn{}
}

// refused returns a connection between t and other that t's policies refuse
// and no engine is known to admit.
func (k *plan) refused(t End, d Direction, other End) (Conn, bool) {
	policies := k.policies(t.Pod)
	protocols := []flow.Protocol{flow.TCP, flow.UDP}
	if namesSCTP(policies, d) {
		protocols = append(protocols, flow.SCTP)
	}
	x := between(t, d, other)
	x.Port = freePort(policies, d, x.Dst.Pod)
	for _, protocol := range protocols {
		x.Protocol = protocol
		if k.cluster.Admission(policies, d, x) == Refused {
			return x, true
		}
	}
	return Conn{}, false
}

// between returns a connection whose end t is the one that d isolates.
func between(t End, d Direction, other End) Conn {
	if d == Ingress {
		return Conn{Src: other, Dst: t}
	}
	return Conn{Src: t, Dst: other}
}

func namesSCTP(policies []*Policy, d Direction) bool {
	for _, q := range policies {
		for i := range q.Rules[d] {
			for _, port := range q.Rules[d][i].Ports {
				if port.Protocol == flow.SCTP {
					return true
				}
			}
		}
	}
	return false
}

// freePort returns a port that no rule of direction d names and dst does not
// declare. If rules name them all, any port is as good as another.
func freePort(policies []*Policy, d Direction, dst *Pod) uint16 {
	var taken []Port
	for _, q := range policies {
		for i := range q.Rules[d] {
			taken = append(taken, q.Rules[d][i].Ports...)
		}
	}
	if dst != nil {
		for _, port := range dst.Ports {
			taken = append(taken, Port{First: port.Number, Last: port.Number})
		}
	}
	for _, bounds := range [][2]int{{firstFreePort, 65535}, {1, firstFreePort - 1}} {
		for port := bounds[0]; port <= bounds[1]; {
			i := slices.IndexFunc(taken, func(t Port) bool {
				return t.First != 0 && int(t.First) <= port && port <= int(t.Last)
			})
			if i < 0 {
				return uint16(port) //nolint:gosec // at most 65535
			}
			port = int(taken[i].Last) + 1
		}
	}
	return firstFreePort
}
