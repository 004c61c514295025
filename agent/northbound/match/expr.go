// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package match

import (
	"net/netip"
	"slices"

	"github.com/policygate/policygate/api/flow"
)

// Truth is what is known of a condition. The zero Truth is Unknown.
type Truth uint8

// Only True and False are conclusive.
const (
	Unknown Truth = iota
	False
	True
)

// String returns "unknown", "false" or "true".
func (t Truth) String() string {
	switch t {
	case Unknown:
		return "unknown"
	case False:
		return "false"
	case True:
		return "true"
	}
	return "truth out of range"
}

// Of returns True or False.
func Of(b bool) Truth {
	if b {
		return True
	}
	return False
}

// Not returns the opposite; that of Unknown is Unknown.
func (t Truth) Not() Truth {
	switch t {
	case False:
		return True
	case True:
		return False
	case Unknown:
	}
	return Unknown
}

// Side is a logical port of a packet's way through a logical switch.
type Side uint8

// A packet comes in by its inport and goes out by its outport.
const (
	Inport Side = iota
	Outport
)

// String returns the symbol: "inport" or "outport".
func (s Side) String() string {
	if s == Inport {
		return "inport"
	}
	return "outport"
}

// World says what the names in an expression stand for, and through which ports
// the packet goes.
type World interface {
	// SetFault returns why OVN may refuse to compare addresses of a family with
	// the address set of that name, or "": it does not exist, for instance.
	SetFault(name string, ipv6 bool) string
	// GroupFault returns why OVN may refuse the port group of that name, or "".
	GroupFault(name string) string
	// InSet returns whether the address set holds a.
	InSet(name string, a netip.Addr) Truth
	// InGroup returns whether the packet's port is in the port group.
	InGroup(s Side, name string) Truth
	// IsPort returns whether the packet's port has the name.
	IsPort(s Side, name string) Truth
}

// Expr is an expression that was read. It is immutable, and safe for concurrent
// use. It is made by Parse.
type Expr struct {
	text string
	root node
	// sets and groups are all names that are in it.
	sets   []comparedSet
	groups []string
	// doubt is why OVN may refuse the text, or "".
	doubt string
	// alternatives: it is joined by || outside of parentheses.
	alternatives bool
}

// comparedSet is an address set that addresses of a family are compared with.
type comparedSet struct {
	name string
	ipv6 bool
}

// String returns the text that was read.
func (e *Expr) String() string { return e.text }

// Doubt returns why the text may not be one that OVN accepts, or "".
func (e *Expr) Doubt() string { return e.doubt }

// junction is how the nodes of a node are joined.
type junction uint8

const (
	leaf junction = iota
	and
	or
)

type node struct {
	junction junction
	// nodes are those of an and or an or.
	nodes []node
	// test is that of a leaf.
	test test
}

// not returns the node's negation.
func (n node) not() node {
	switch n.junction {
	case and:
		n.junction = or
	case or:
		n.junction = and
	case leaf:
		n.test = n.test.not()
		return n
	}
	nodes := make([]node, len(n.nodes))
	for i, k := range n.nodes {
		nodes[i] = k.not()
	}
	n.nodes = nodes
	return n
}

// Alternatives returns whether the text is joined by || outside of parentheses.
func (e *Expr) Alternatives() bool { return e.alternatives }

// Match returns whether the first packet of f matches. why names, for Unknown,
// what is not known.
func (e *Expr) Match(f flow.Flow, w World) (t Truth, why string) {
	t, why = e.root.eval(f, w)
	if t != True {
		return t, why
	}
	if why := e.Refused(w); why != "" {
		return Unknown, why
	}
	return t, ""
}

// Refused returns why OVN may not have the expression in force, whatever the
// packet: the text is one that it may not accept, or it names what does not
// exist. It returns "" if it has.
func (e *Expr) Refused(w World) string {
	if e.doubt != "" {
		return e.doubt
	}
	for _, s := range e.sets {
		if why := w.SetFault(s.name, s.ipv6); why != "" {
			return why
		}
	}
	for _, g := range e.groups {
		if why := w.GroupFault(g); why != "" {
			return why
		}
	}
	return ""
}

func (n *node) eval(f flow.Flow, w World) (t Truth, why string) {
	if n.junction == leaf {
		if t = n.test.eval(f, w); t == Unknown {
			why = n.test.text
		}
		return t, why
	}
	decides, otherwise := False, True
	if n.junction == or {
		decides, otherwise = True, False
	}
	t = otherwise
	for i := range n.nodes {
		one, unknown := n.nodes[i].eval(f, w)
		switch {
		case one == decides:
			return decides, ""
		case one == Unknown && t != Unknown:
			t, why = Unknown, unknown
		}
	}
	return t, why
}

// terms returns the nodes that all have to hold.
func (e *Expr) terms() []node {
	if e.root.junction == and {
		return e.root.nodes
	}
	return []node{e.root}
}

// OnlyFor returns whether no packet matches whose port is not in the group.
func (e *Expr) OnlyFor(s Side, group string) bool {
	return slices.ContainsFunc(e.terms(), func(n node) bool {
		return n.junction == leaf && n.test.field == port && n.test.side == s && n.test.op == equal &&
			len(n.test.ports) == 0 && len(n.test.groups) == 1 && n.test.groups[0] == group
	})
}

// Lack is an address set for the sake of which alone a packet does not match.
type Lack struct {
	Set     string
	Address netip.Addr
	// Holds: the set holds the address, and matches only others. Else it does
	// not hold it.
	Holds bool
}

// Lacks returns the address set for the sake of which alone the packet does not
// match, if there is one.
func (e *Expr) Lacks(f flow.Flow, w World) (Lack, bool) {
	var lack Lack
	found := false
	terms := e.terms()
	for i := range terms {
		n := &terms[i]
		if t, _ := n.eval(f, w); t == True {
			continue
		}
		if found || n.junction != leaf || n.test.field != address || len(n.test.sets) != 1 || !n.test.applies(f) {
			return Lack{}, false
		}
		found = true
		lack = Lack{Set: n.test.sets[0], Address: n.test.address(f), Holds: n.test.op == unequal}
	}
	return lack, found
}
