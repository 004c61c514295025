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
// Inconclusive, naming the rule, if they do not. A rule or a chain of which
// nobody knows what it does ends the walk: it is Inconclusive.
//
// # What it costs
//
// Rules that are for the addresses of others are passed over by their digests
// (ruleset.Listing). A long walk remembers what became of a state in a chain,
// so that rules which jump to the same chains over and over cost no more than
// their number, and a budget bounds the rest.
//
// Only what the packet meets on this node as an unestablished flow is judged:
// a rewritten destination makes it Inconclusive, and so does a rewritten
// source where another node will judge the flow by its source.
package trace

import (
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
	// error says why it cannot be told. The key is only to be read, and only
	// during the call.
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

// Trace returns the verdict on a flow. f must be valid. Tables of families
// that cannot see the flow are ignored. It is safe for concurrent use if m is.
func Trace(tables []ruleset.Table, path Path, f flow.Flow, m Membership) flow.Verdict {
	w := walk{path: path, flow: f, sets: m}
	return w.run(tables)
}

// Step is one thing that happened on the packet's walk.
type Step struct {
	Hook ruleset.Hook
	// Base names the base chain, such as "nft ip filter/FORWARD", and Chain
	// the chain within it.
	Base, Chain string
	// Depth is how many jumps lead to the chain.
	Depth int
	// Rule is the rule as text, "" for what is no rule's doing, such as the
	// policy at the end of a base chain.
	Rule string
	// Effect says what came of it in a few words, such as "jumps to a",
	// "accepts", "sets mark 0x1/0x1", "policy drops".
	Effect string
	// Maybe, if not empty, says why this is only a possibility.
	Maybe string
}

// Explain returns what Trace does, the rules that the packet met and that
// matched or may have, in the order of the walk, and those that nearly did.
// Where the walk forked, the steps of all branches are there. Texts are
// printable ASCII. There are at most some 2,000 steps: then the last one says
// that there were more.
//
// Near misses are those without which the verdict would be Allowed in place of
// Denied, or the other way round. If there are none of these, and the packet is
// not Allowed, they are the rules that would have accepted it or set a mark, and
// those that would not have refused it.
func Explain(tables []ruleset.Table, path Path, f flow.Flow, m Speller) (flow.Verdict, []Step, []NearMiss) {
	w := walk{path: path, flow: f, sets: m, record: &record{speller: m}}
	w.run(tables)
	verdict := Trace(tables, path, f, m)
	return verdict, w.record.steps, w.nearMisses(tables, verdict.Answer)
}
