// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package tracev1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/policygate/policygate/api/flow"
)

// WriteText writes the answer for people: per flow and node the way, the
// verdict in words and the rules that the packet meets, and one line over all
// at the end. Control characters of a hostile answer do not come through.
func (a *Answer) WriteText(w io.Writer) error {
	out := &text{bufio.NewWriter(w)}
	for i := range a.Flows {
		if i > 0 {
			out.line(0, "")
		}
		out.flow(&a.Flows[i])
	}
	out.line(0, "")
	out.line(0, "%s", a.summary())
	return out.Flush()
}

// text writes lines; the first error is that of Flush.
type text struct{ *bufio.Writer }

// line writes a line, indented by two spaces a level.
func (t *text) line(level int, format string, args ...any) {
	line := Printable(strings.Repeat("  ", level) + fmt.Sprintf(format, args...))
	_, _ = t.WriteString(strings.TrimRight(line, " ") + "\n")
}

func (t *text) flow(f *Flow) {
	t.line(0, "%s %s -> %s", f.Protocol, end(f.Source, f.SourceName),
		end(net.JoinHostPort(f.Destination, strconv.Itoa(int(f.Port))), f.DestinationName))
	for i := range f.Nodes {
		t.line(0, "")
		t.node(&f.Nodes[i])
	}
}

func end(address, name string) string {
	if name == "" {
		return address
	}
	return address + " (" + name + ")"
}

func (t *text) node(n *Node) {
	t.line(0, "%s", Capital(n.title()))
	if n.Error != "" {
		t.line(1, "No answer: %s", n.Error)
		return
	}
	for i := range n.Hops {
		t.hop(&n.Hops[i])
	}
	t.line(1, "%s", n.words())
	if n.Verdict == Inconclusive {
		t.line(1, "%s", n.remedy())
	}
}

// title is how a node is called within a sentence.
func (n *Node) title() string {
	if n.Name == "" {
		return "this node"
	}
	return "node " + n.Name
}

// words is the verdict and what decided.
func (n *Node) words() string {
	because := ""
	if n.Reason != "" {
		because = ": " + n.Reason
	}
	switch n.Verdict {
	case Allowed:
		return "=> " + n.title() + " would let it pass" + because
	case Denied:
		return "=> " + n.title() + " would refuse it" + because
	case Inconclusive:
	}
	return "=> it cannot be told what " + n.title() + " would do" + because
}

// remedy says what a person can do about an Inconclusive. The reasons' first
// words are agent/trace's.
func (n *Node) remedy() string {
	switch reason := n.Reason; {
	case slices.ContainsFunc(n.Hops, func(h Hop) bool { return !h.Routed }):
		return "See the node's routes, and whether the addresses are in use."
	case slices.ContainsFunc(n.Hops, func(h Hop) bool { return h.Way == "" }):
		return "No rule was asked: the node could not tell how the packet passes it."
	case strings.HasPrefix(reason, flow.DestinationRewritten):
		return "The destination is a virtual address, such as a Service's. Trace the connection to an address behind it."
	case strings.HasPrefix(reason, flow.SourceRewritten):
		return "Behind this rule other nodes see another source. Trace from the address that the node gives it."
	case strings.HasPrefix(reason, "the ways differ"):
		return "A virtual server may take the packet. Trace the connection to an address behind it."
	}
	return "A rule on the way asks for what a trace cannot know or does not understand; where the walk met it, it says \"perhaps\"."
}

func (t *text) hop(h *Hop) {
	words := []string{h.Way}
	switch h.Way {
	case "":
		words[0] = "on a way that is not known"
	case "delivered":
		words[0] = "delivered to the node itself"
	case "switched":
		words[0] = "switched by OVN"
	case "sent":
		words[0] = "sent by the node itself"
	}
	if h.In != "" {
		words = append(words, "in by "+h.In)
	}
	if h.Out != "" {
		words = append(words, "out by "+h.Out)
	}
	if !h.Routed {
		words = append(words, "without a route there and back")
	}
	t.line(1, "%s", strings.Join(words, ", "))
	last := ""
	for i := range h.Steps {
		s := &h.Steps[i]
		if h.LeftOut > 0 && i == len(h.Steps)/2 {
			t.line(2, "... %d more rules ...", h.LeftOut)
		}
		if here := s.Hook + ": " + s.Base; here != last {
			t.line(2, "%s", here)
			last = here
		}
		t.step(s)
	}
	if h.Verdict == Denied {
		t.nearMisses(h.NearMisses)
	}
}

// nearMisses writes what would have let the packet pass, or came closest to it.
func (t *text) nearMisses(misses []NearMiss) {
	if len(misses) == 0 {
		return
	}
	if misses[0].Verdict == Allowed {
		t.line(2, "one change of a set would let it pass:")
	} else {
		t.line(2, "no one change of a set would let it pass; closest to it are:")
	}
	for i := range misses {
		t.line(3, "%s: %s", misses[i].Words(), misses[i].Rule)
	}
}

// deepest bounds the indentation; nf_tables allows 16 nested jumps.
const deepest = 16

func (t *text) step(s *Step) {
	level := 3 + int(min(s.Depth, deepest))
	words := s.Effect
	if s.Maybe != "" && !strings.HasPrefix(words, "may ") {
		words = "perhaps " + words
	}
	if s.Rule != "" {
		// The chain stands above, behind "jumps to" or as the base chain.
		words += ": " + strings.TrimPrefix(s.Rule, "-A "+s.Chain+" ")
	}
	t.line(level, "%s", words)
	if s.Maybe != "" && s.Maybe != s.Rule {
		t.line(level+1, "not certain: %s", s.Maybe)
	}
}

// summary is one line over all nodes.
func (a *Answer) summary() string {
	var refused, unknown []string
	for i := range a.Flows {
		for j := range a.Flows[i].Nodes {
			n := &a.Flows[i].Nodes[j]
			name := n.title()
			if len(a.Flows) > 1 {
				name += " (" + a.Flows[i].family() + ")"
			}
			switch n.Verdict {
			case Denied:
				refused = append(refused, name)
			case Allowed:
			case Inconclusive:
				unknown = append(unknown, name)
			default:
				unknown = append(unknown, name)
			}
		}
	}
	switch a.Verdict {
	case Denied:
		return "Denied: refused by " + strings.Join(refused, ", ") + "."
	case Allowed:
		if len(a.Flows) == 1 && len(a.Flows[0].Nodes) == 1 {
			return "Allowed: " + a.Flows[0].Nodes[0].title() + " would let it pass."
		}
		return "Allowed: every node on the path would let it pass."
	case Inconclusive:
	}
	return "Inconclusive: it cannot be told for " + strings.Join(unknown, ", ") + "."
}

func (f *Flow) family() string {
	if strings.Contains(f.Source, ":") {
		return "IPv6"
	}
	return "IPv4"
}

// Capital returns words, which are ASCII, with a capital at their beginning.
func Capital(words string) string {
	if words == "" {
		return words
	}
	return strings.ToUpper(words[:1]) + words[1:]
}

// Printable returns text with a question mark for each character that is not
// printable ASCII: no terminal obeys what came over the network, or from a kernel.
func Printable(line string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, line)
}
