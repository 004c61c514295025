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

// refusalKey names Pods of which the same others are refused.
type refusalKey struct {
	class     class
	direction Direction
	v6        bool
}

// elsewhere returns the Pods that do not run on node, oldest first.
func (k *plan) elsewhere(node string, v6 bool) iter.Seq[End] {
	return func(yield func(End) bool) {
		for p := range k.Peers(Anywhere{V6: v6}, OldestFirst, nil) {
			if p.Node == node {
				continue
			}
			if e, ok := k.end(p, v6); ok && !yield(e) {
				return
			}
		}
	}
}

// open returns the Pods on node that are not isolated in direction d, oldest
// first.
func (k *plan) open(node string, d Direction, v6 bool) iter.Seq[End] {
	return func(yield func(End) bool) {
		looked := 0
		for p := range k.Peers(On{node}, OldestFirst, nil) {
			if looked++; k.near > 0 && looked > k.near {
				return
			}
			if Isolated(k.Selecting(p), d) {
				continue
			}
			if e, ok := k.end(p, v6); ok && !yield(e) {
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
		for _, other := range k.strange(t, d) {
			if other.Pod.Node != node && !try(other) {
				break
			}
		}
		if found == (Conn{}) {
			tries = 0
			k.unused(node, v6, bare)
		}
	case fromSameNode:
		for e := range k.open(node, d.opposite(), v6) {
			if e.Pod.UID != t.Pod.UID && !try(e) {
				break
			}
		}
	case fromOutside:
		slices.Values(outsiders(v6))(bare)
	}
	return found, found != Conn{}
}

// strange returns Pods that the policies of t refuse, of the oldest in the
// cluster: two, on different nodes, so that they serve all Pods that are like
// t, which may be among them itself.
func (k *plan) strange(t End, d Direction) []End {
	v6 := t.Addr.Is6()
	key := refusalKey{k.alike(k.Selecting(t.Pod), t.Pod), d, v6}
	if known, ok := k.refusals[key]; ok && key.class != (class{}) {
		return known
	}
	var out []End
	tries := 0
	for p := range k.Peers(Anywhere{V6: v6}, OldestFirst, nil) {
		if len(out) == 1 && out[0].Pod.Node == p.Node {
			continue
		}
		e, ok := k.end(p, v6)
		if !ok {
			continue
		}
		if _, ok := k.refused(t, d, e); ok {
			out = append(out, e)
		}
		if tries++; len(out) == 2 || tries == maxStrangers {
			break
		}
	}
	if key.class != (class{}) {
		k.refusals[key] = out
	}
	return out
}

// refused returns a connection between t and other that t's policies refuse
// and no engine is known to admit.
func (k *plan) refused(t End, d Direction, other End) (Conn, bool) {
	policies := k.Selecting(t.Pod)
	protocols := []flow.Protocol{flow.TCP, flow.UDP}
	if namesSCTP(policies, d) {
		protocols = append(protocols, flow.SCTP)
	}
	x := between(t, d, other)
	x.Port = freePort(policies, d, x.Dst.Pod)
	for _, protocol := range protocols {
		x.Protocol = protocol
		if k.admission(policies, d, x) == Refused {
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
	// end returns the end of a range that has port, or 0.
	end := func(port int) int {
		for _, q := range policies {
			for i := range q.Rules[d] {
				for _, t := range q.Rules[d][i].Ports {
					if t.First != 0 && int(t.First) <= port && port <= int(t.Last) {
						return int(t.Last)
					}
				}
			}
		}
		if dst != nil && slices.ContainsFunc(dst.Ports, func(t ContainerPort) bool { return int(t.Number) == port }) {
			return port
		}
		return 0
	}
	for _, bounds := range [][2]int{{firstFreePort, 65535}, {1, firstFreePort - 1}} {
		for port := bounds[0]; port <= bounds[1]; {
			taken := end(port)
			if taken == 0 {
				return uint16(port)
			}
			port = taken + 1
		}
	}
	return firstFreePort
}
