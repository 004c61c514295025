// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package trace decides what a node's loaded rules do with the first packet
// of a new connection.
//
// It walks the base chains of every hook that the packet meets, in priority
// order and of both backends at once, through jump, goto, return and policy,
// and carries the packet's mark, its connection's mark and its tracking state
// along. It knows no policy engine and reads no kernel: the rules, the path
// and the membership of sets are given to it.
//
// # Three answers
//
// A match that cannot be decided is followed both ways. The walk keeps every
// state that the packet can be in and every fate that it can meet; states that
// agree are one again, so an unknown in front of a rule that only logs costs
// nothing. The verdict is Allowed or Denied if all fates agree and
// Inconclusive, naming the rule, if they do not.
//
// Only what the packet meets on this node as an unestablished flow is judged:
// a rewritten destination makes it Inconclusive, and so does a rewritten
// source where another node will judge the flow by its source.
package trace

import (
	"cmp"
	"slices"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/api/flow"
)

// Ternary is yes, no or unknown; the zero value is Unknown.
type Ternary uint8

// Ternary values.
const (
	Unknown Ternary = iota
	Yes
	No
)

// Of returns Yes for true and No for false.
func Of(b bool) Ternary {
	if b {
		return Yes
	}
	return No
}

// Not returns the opposite; the opposite of Unknown is Unknown.
func (t Ternary) Not() Ternary {
	switch t {
	case Yes:
		return No
	case No:
		return Yes
	case Unknown:
		return Unknown
	}
	return Unknown
}

// Packet is what a set can be asked about.
type Packet struct {
	Flow flow.Flow
	// In and Out are the interfaces at this hook, "" for none or not known.
	In, Out string
	// Mark is the packet's mark, if all of it is known.
	Mark      uint32
	MarkKnown bool
}

// Membership answers whether a packet is in a set.
type Membership interface {
	// Member asks the set of that name with one direction per dimension, as
	// the set match does: a set of another family or of more dimensions holds
	// nothing. Unknown comes with the reason.
	Member(set string, dims []ruleset.Direction, p Packet) (answer Ternary, why string)
	// Element asks a native set for the element that a key falls into. An
	// error says why it cannot be told.
	Element(set *ruleset.NativeSet, key []byte) (ruleset.Element, error)
}

// Way is how a packet passes a node.
type Way uint8

// Ways. The zero Way is not one.
const (
	// Forwarded packets meet prerouting, forward and postrouting.
	Forwarded Way = iota + 1
	// Delivered packets meet prerouting and input.
	Delivered
	// Sent packets, made on the node, meet output and postrouting.
	Sent
)

// Path is what the node's interfaces, addresses and routes say of a flow.
type Path struct {
	Way Way
	// In and Out are interface names; "" if there is none on this way.
	In, Out string
	// InUnknown and OutUnknown say that there is one but not which.
	InUnknown, OutUnknown bool
	// InIndex and OutIndex are the interfaces' indices, 0 if there is none on
	// this way or it is not known which.
	InIndex, OutIndex uint32
	// Bridged is whether the packet passes from port to port of one bridge.
	Bridged Ternary
	// InPort and OutPort are the names of those ports, "" if not known.
	InPort, OutPort string
	// Returns is whether the source has a route back by the input interface.
	Returns Ternary
	// OnBridge says that the input or output interface is a bridge, so that
	// bridge family chains can see the packet.
	OnBridge bool
	// Unseen, if not empty, says why no IP hook sees the packet: then
	// nothing but a bridge family chain can refuse it.
	Unseen string
	// Onward says that another node judges the flow after this one, by its
	// source address.
	Onward bool
	// SrcType and DstType are the types of the two addresses, 0 if unknown.
	SrcType, DstType ruleset.AddrTypes
}

// budget bounds the visits of one verdict: a rule seen in one state is a
// visit. Large clusters have some hundred rules on a path (319 of 3,149 at
// 110 pods and 100 policies), so this is only met by what is not a ruleset.
const budget = 100_000

// depth bounds nested jumps. nf_tables allows 16 and xtables as many as there
// are chains; engines use fewer than ten.
const depth = 64

// Trace returns the verdict on a flow. f must be valid. Tables of families
// that cannot see the flow are ignored. It is safe for concurrent use if m is.
func Trace(tables []ruleset.Table, path Path, f flow.Flow, m Membership) flow.Verdict {
	w := walk{path: path, flow: f, sets: m, left: budget}
	w.link(tables)
	states := []state{{}}
	if path.Unseen == "" {
		family := ruleset.IPv6
		if f.Dst.Is4() {
			family = ruleset.IPv4
		}
		for _, hook := range path.hooks() {
			states = w.hook(tables, family, hook, states)
		}
	}
	return w.verdict(states)
}

// Step is one thing that happened on the packet's walk.
type Step struct {
	Hook ruleset.Hook
	// Base names the base chain, such as "nft ip filter/FORWARD", and Chain
	// the chain within it.
	Base, Chain string
	// Depth is how many jumps lead to the chain.
	Depth int
	// Rule is the rule as text, "" for the policy at the end of a base chain.
	Rule string
	// Effect says what came of it in a few words, such as "jumps to a",
	// "accepts", "sets mark 0x1/0x1", "policy drops".
	Effect string
	// Maybe, if not empty, says why this is only a possibility.
	Maybe string
}

// Explain returns what Trace does, and the rules that the packet met and that
// matched or may have, in the order of the walk. Where the walk forked, the
// steps of all branches are there. Texts are printable ASCII.
func Explain(tables []ruleset.Table, path Path, f flow.Flow, m Membership) (flow.Verdict, []Step) {
	return Trace(tables, path, f, m), nil
}

func (p Path) hooks() []ruleset.Hook {
	switch p.Way {
	case Forwarded:
		return []ruleset.Hook{ruleset.Prerouting, ruleset.Forward, ruleset.Postrouting}
	case Delivered:
		return []ruleset.Hook{ruleset.Prerouting, ruleset.Input}
	case Sent:
		return []ruleset.Hook{ruleset.Output, ruleset.Postrouting}
	}
	return nil
}

// base is a base chain and the table it belongs to.
type base struct {
	table *ruleset.Table
	chain *ruleset.Chain
}

// link takes note of the link layer chains that can see the packet. Their
// rules are never readable, so one of them decides that nothing is decided.
func (w *walk) link(tables []ruleset.Table) {
	for i := range tables {
		t := &tables[i]
		if t.Family != ruleset.Netdev && (t.Family != ruleset.Bridge || !w.path.OnBridge) {
			continue
		}
		for _, c := range t.Chains {
			if c.Base != nil {
				w.unsure(base{t, c}.name() + ": " + c.Opaque)
			}
		}
	}
}

// hook walks the states through all base chains of a hook.
func (w *walk) hook(tables []ruleset.Table, family ruleset.Family, hook ruleset.Hook, states []state) []state {
	var bases []base
	for i := range tables {
		t := &tables[i]
		if t.Family != family {
			continue
		}
		for _, c := range t.Chains {
			if c.Base != nil && c.Base.Hook == hook && !idle(c) {
				bases = append(bases, base{t, c})
			}
		}
	}
	slices.SortStableFunc(bases, func(a, b base) int {
		return cmp.Compare(a.chain.Base.Priority, b.chain.Base.Priority)
	})
	w.at = hook
	for len(bases) > 0 && len(states) > 0 {
		end := 1
		for end < len(bases) && bases[end].chain.Base.Priority == bases[0].chain.Base.Priority {
			end++
		}
		states = w.tied(bases[:end], states)
		bases = bases[end:]
	}
	return states
}

// tied walks base chains of one priority. Which of them the kernel calls
// first depends on which was registered first, so both orders are walked and
// where they end in different states both stay.
func (w *walk) tied(bases []base, states []state) []state {
	forth := states
	for _, b := range bases {
		forth = w.base(b, forth)
	}
	if len(bases) == 1 {
		return forth
	}
	back := states
	for _, b := range slices.Backward(bases) {
		back = w.base(b, back)
	}
	out := newStates(len(forth))
	for _, s := range forth {
		out.add(s)
	}
	for _, s := range back {
		s.because("the order of " + bases[0].name() + " and " + bases[1].name() + ", which have one priority")
		out.add(s)
	}
	return out.list
}

// idle reports whether a base chain lets every packet pass untouched.
func idle(c *ruleset.Chain) bool {
	return len(c.Rules) == 0 && c.Opaque == "" && !c.Base.Drop
}

func (b base) name() string {
	return b.table.Backend.String() + " " + b.table.Family.String() + " " + b.table.Name + "/" + b.chain.Name
}
