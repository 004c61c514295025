// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package tracev1

import (
	"strings"

	"github.com/policygate/policygate/api/flow"
)

// Verdict is one of three.
type Verdict string

// Verdicts.
const (
	Allowed      Verdict = "Allowed"
	Denied       Verdict = "Denied"
	Inconclusive Verdict = "Inconclusive"
)

// VerdictOf returns the word for a; one that is not known is Inconclusive.
func VerdictOf(a flow.Answer) Verdict {
	switch a {
	case flow.Allowed:
		return Allowed
	case flow.Denied:
		return Denied
	case flow.Inconclusive:
	}
	return Inconclusive
}

// Answer is what would become of the connection asked for.
type Answer struct {
	// Verdict joins those of the flows: Denied if any is, else Inconclusive
	// if any is, else Allowed. Without flows it is Inconclusive.
	Verdict Verdict `json:"verdict"`
	// Flows has one element for each IP family, at least one.
	Flows []Flow `json:"flows"`
}

// Flow is the connection in one IP family.
type Flow struct {
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string `json:"protocol"`
	// Source and Destination are IP addresses.
	Source      string `json:"source"`
	Destination string `json:"destination"`
	Port        uint16 `json:"port"`
	// SourceName and DestinationName say whose addresses these are, such as
	// "Pod shop/mysql" or "Node n1"; empty if that is not known.
	SourceName      string `json:"sourceName,omitempty"`
	DestinationName string `json:"destinationName,omitempty"`
	// Verdict joins those of the nodes in the same way.
	Verdict Verdict `json:"verdict"`
	// Nodes are those that judge the flow, in the order in which the packet
	// passes them.
	Nodes []Node `json:"nodes"`
}

// Node is what one node says of a flow.
type Node struct {
	// Name is the node's; empty stands for the one that the command runs on.
	Name    string  `json:"name,omitempty"`
	Verdict Verdict `json:"verdict"`
	// Reason is the rule that decided, or what could not be decided.
	Reason string `json:"reason,omitempty"`
	// Error says why the node did not answer. Then it has no hops, and the
	// verdict is Inconclusive.
	Error string `json:"error,omitempty"`
	// Hops are the ways in which the packet can pass the node: one, or more
	// where a virtual server or a mark may lead it elsewhere.
	Hops []Hop `json:"hops,omitempty"`
}

// Hop is one way of a packet through a node.
type Hop struct {
	// Way is "forwarded", "delivered" (to the node itself), "sent" (by the
	// node itself) or "switched" (by OVN); empty if the node does not know.
	Way string `json:"way,omitempty"`
	// In and Out are interfaces; empty if there is none on this way or it is
	// not known which.
	In  string `json:"in,omitempty"`
	Out string `json:"out,omitempty"`
	// Routed is whether the node has routes for the flow, there and back.
	Routed  bool    `json:"routed"`
	Verdict Verdict `json:"verdict"`
	Reason  string  `json:"reason,omitempty"`
	// Steps are the rules that the packet meets and that match or may match,
	// in order. Where the walk forks, those of all branches are there.
	Steps []Step `json:"steps,omitempty"`
	// LeftOut counts the steps that were left out in the middle of Steps,
	// since there were more than MaxSteps.
	LeftOut uint32 `json:"leftOut,omitempty"`
	// NearMisses are rules that the packet came to and that would have matched
	// if but one set had held one more element, or one less; or that matched
	// and would not have. At most MaxNearMisses. With any of them turned the
	// verdict would be Allowed in place of Denied, or the other way round. If
	// there are none of these, and the verdict is not Allowed, they are rules
	// that would have accepted the packet or set a mark, or that would not have
	// refused it. Those that were made for such packets come first.
	NearMisses []NearMiss `json:"nearMisses,omitempty"`
}

// NearMiss is a rule that did not match for one element that a set lacks, or
// holds. Or it did match for that.
type NearMiss struct {
	Hook  string `json:"hook"`
	Base  string `json:"base"`
	Chain string `json:"chain"`
	Rule  string `json:"rule"`
	// Matched: the rule did match, and would not have.
	Matched bool `json:"matched,omitempty"`
	// Set is the set's name, and Element what it does not hold, as a person
	// would add it: "10.1.2.3", "10.1.2.3,tcp:80", or in nf_tables
	// "10.1.2.3 . 80". A set of nf_tables without a name is called by what it
	// is asked for, such as "ip saddr {...}".
	Set     string `json:"set"`
	Element string `json:"element"`
	// Held: the set holds the element, and would have to hold it no more.
	Held bool `json:"held,omitempty"`
	// Effect is what the rule does where it matches, such as "accepts".
	Effect string `json:"effect"`
	// Verdict is what the hop's would be if the set held the element, or held
	// it no more.
	Verdict Verdict `json:"verdict,omitempty"`
}

// Words say what would have to be otherwise, without the rule: "would have
// matched if set KUBE-SRC-X held 10.1.2.3".
func (m *NearMiss) Words() string {
	words := "would have matched"
	if m.Matched {
		words = "would not have matched"
	}
	held := " held "
	if m.Held {
		held = " did not hold "
	}
	return words + " if set " + m.Set + held + m.Element
}

// Step is one thing that happens to a packet.
type Step struct {
	// Hook is where in the kernel's stack, such as "forward".
	Hook string `json:"hook"`
	// Base names the base chain, such as "nft ip filter/FORWARD", and Chain
	// the chain within it.
	Base  string `json:"base"`
	Chain string `json:"chain"`
	// Depth is how many jumps lead to the chain.
	Depth uint32 `json:"depth"`
	// Rule is the rule as text; empty for the policy of a base chain.
	Rule string `json:"rule,omitempty"`
	// Effect is what comes of it, such as "jumps to a" or "accepts".
	Effect string `json:"effect"`
	// Maybe, if not empty, says why this is only a possibility.
	Maybe string `json:"maybe,omitempty"`
}

const (
	// MaxSteps bounds the steps of a hop. A path through kube-router's rules
	// matches some 20 of them.
	MaxSteps = 128
	// MaxNearMisses bounds the near misses of a hop: under kube-router's rules
	// there is one for each rule of each policy of the Pod.
	MaxNearMisses = 16
	// MaxHops bounds the hops of a node: virtual servers and routing by marks
	// make two or three. A node with more does not answer.
	MaxHops = 4
	// MaxText bounds each text of a hop in bytes. Rules with kube-router's
	// comments take 300.
	MaxText = 512
)

// Bound returns h as it may leave a node: printable ASCII within the limits.
// Whatever is cut says so. h is not changed.
func (h Hop) Bound() Hop {
	h.Way, h.In, h.Out, h.Reason = Clean(h.Way), Clean(h.In), Clean(h.Out), Clean(h.Reason)
	steps := h.Steps
	if over := len(steps) - MaxSteps; over > 0 {
		// The first say where the packet went, the last what decided.
		h.LeftOut += uint32(over) //nolint:gosec // a walk is bounded far below
		first, last := steps[:MaxSteps/2], steps[len(steps)-MaxSteps/2:]
		steps = append(append(make([]Step, 0, MaxSteps), first...), last...)
	}
	h.Steps = make([]Step, 0, len(steps))
	for _, s := range steps {
		h.Steps = append(h.Steps, Step{
			Hook: Clean(s.Hook), Base: Clean(s.Base), Chain: Clean(s.Chain), Depth: s.Depth,
			Rule: Clean(s.Rule), Effect: Clean(s.Effect), Maybe: Clean(s.Maybe),
		})
	}
	var misses []NearMiss
	for _, m := range h.NearMisses[:min(len(h.NearMisses), MaxNearMisses)] {
		misses = append(misses, NearMiss{
			Hook: Clean(m.Hook), Base: Clean(m.Base), Chain: Clean(m.Chain), Rule: Clean(m.Rule), Matched: m.Matched,
			Set: Clean(m.Set), Element: Clean(m.Element), Held: m.Held, Effect: Clean(m.Effect), Verdict: m.Verdict,
		})
	}
	h.NearMisses = misses
	return h
}

// Clean reduces text to printable ASCII and MaxText bytes; what is cut ends in
// "...".
func Clean(text string) string {
	const more = "..."
	cut := len(text) > MaxText
	if cut {
		text = text[:MaxText-len(more)]
	}
	clean := []byte(text)
	for i, c := range clean {
		if c < ' ' || c > '~' {
			clean[i] = '?'
		}
	}
	if cut {
		return string(clean) + more
	}
	return string(clean)
}

// NewNode returns the answer of a node with these hops, which have to agree:
// otherwise it is Inconclusive. Without hops it is Inconclusive, too.
func NewNode(name string, hops []Hop) Node {
	n := Node{Name: name, Verdict: Inconclusive, Reason: "the node knows no way for the packet", Hops: hops}
	for i, h := range hops {
		if i == 0 {
			n.Verdict, n.Reason = h.Verdict, h.Reason
			continue
		}
		switch {
		case h.Verdict == n.Verdict:
		case h.Verdict == Inconclusive:
			n.Verdict, n.Reason = h.Verdict, h.Reason
		case n.Verdict != Inconclusive:
			n.Verdict, n.Reason = Inconclusive, differ(hops)
		}
	}
	return n
}

func differ(hops []Hop) string {
	words := make([]string, 0, len(hops))
	for _, h := range hops {
		words = append(words, h.Way+" it is "+strings.ToLower(string(h.Verdict)))
	}
	return "the ways differ: " + strings.Join(words, ", ")
}

// Unanswered returns the answer of a node that gave none.
func Unanswered(name, why string) Node {
	return Node{Name: name, Verdict: Inconclusive, Error: why}
}

// NewFlow returns the answer for f with the nodes' answers.
func NewFlow(f flow.Flow, sourceName, destinationName string, nodes []Node) Flow {
	verdicts := make([]Verdict, 0, len(nodes))
	for i := range nodes {
		verdicts = append(verdicts, nodes[i].Verdict)
	}
	return Flow{
		Protocol: f.Protocol.String(), Source: f.Src.String(), Destination: f.Dst.String(), Port: f.Port,
		SourceName: sourceName, DestinationName: destinationName,
		Verdict: join(verdicts), Nodes: nodes,
	}
}

// NewAnswer returns the answer with these flows.
func NewAnswer(flows []Flow) *Answer {
	verdicts := make([]Verdict, 0, len(flows))
	for i := range flows {
		verdicts = append(verdicts, flows[i].Verdict)
	}
	return &Answer{Verdict: join(verdicts), Flows: flows}
}

// join returns Denied if any verdict is, else Allowed if there are any and all
// are, else Inconclusive: a packet that one node refuses does not arrive,
// whatever the others would do.
func join(verdicts []Verdict) Verdict {
	joined := Inconclusive
	for i, v := range verdicts {
		switch {
		case v == Denied:
			return Denied
		case v != Allowed:
			joined = Inconclusive
		case i == 0:
			joined = Allowed
		}
	}
	return joined
}

// Exit statuses of the trace commands. 1 says that there is no answer: a
// wrong command line, or an error on the way.
const (
	ExitAllowed      = 0
	ExitError        = 1
	ExitDenied       = 2
	ExitInconclusive = 3
)

// ExitStatus returns the exit status that tells a script of the verdict.
func (v Verdict) ExitStatus() int {
	switch v {
	case Allowed:
		return ExitAllowed
	case Denied:
		return ExitDenied
	case Inconclusive:
	}
	return ExitInconclusive
}
