// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// Explanation is what becomes of a flow on one of the ways that it may take
// through the node, and why.
type Explanation struct {
	// Path is the way. It is zero if Routed is false or if the way could not
	// be told, which the verdict then says.
	Path trace.Path
	// Verdict is that of this way alone: where several are possible, they
	// have to agree.
	Verdict flow.Verdict
	// Routed is false if the node has no route for the flow.
	Routed bool
	// Steps are the rules that the packet met, in the order of the walk.
	Steps []trace.Step
	// NearMisses are rules that would have matched if one set had held one
	// element more, or one less.
	NearMisses []trace.NearMiss
	// Depends names in words, as printable ASCII, what the verdict rests on
	// beside the path: the rules' stamps, and each question to a set with its
	// answer.
	Depends []string
}

// explainAlong explains what becomes of a flow on one way. What the steps and
// the near misses alone ask is nothing that the verdict depends on.
func (n *Netfilter) explainAlong(r *reading, p trace.Path, f flow.Flow) Explanation {
	w := n.memory.witness(r)
	e := Explanation{Path: p, Routed: true, Verdict: trace.Trace(r.tables, p, f, w), Depends: w.depends(r)}
	_, e.Steps, e.NearMisses = trace.Explain(r.tables, p, f, speller{n.memory.witness(r), r.sets})
	return e
}

// speller answers a walk that is explained.
type speller struct {
	*witness
	sets *ipset.Sets
}

var _ trace.Speller = speller{}

// Spell implements trace.Speller. Of a list of sets it names the member that
// holds the packet, or else the first that could.
func (s speller) Spell(set string, dims []ruleset.Direction, p trace.Packet) (in, element string) {
	var asked ipset.Question
	_, _ = s.sets.Noting(func(q ipset.Question, a ipset.Answer) {
		if q.Element != "" && (asked.Element == "" || a.In == trace.Yes) {
			asked = q
		}
	}).Member(set, dims, p)
	return asked.Set, strings.Join(parts([]byte(asked.Element)), ",")
}

// depends returns what was taken down in words.
func (w *witness) depends(r *reading) []string {
	depends := make([]string, 0, len(r.stamps)+len(w.facts)+len(w.lookups))
	for _, stamp := range r.stamps {
		depends = append(depends, trace.Clean(stamp))
	}
	for _, g := range w.facts {
		depends = append(depends, trace.Clean(asked(g.fact.question)+": "+word(g.answer)))
	}
	for _, l := range w.lookups {
		word := "not in"
		if l.element.In {
			word = "in"
		}
		if l.err != "" {
			word = l.err
		}
		depends = append(depends, trace.Clean("volatile set "+l.set.Table+" "+l.set.Name+": "+word))
	}
	return depends
}

func word(a ipset.Answer) string {
	switch a.In {
	case trace.Yes:
		return "in"
	case trace.No:
		return "not in"
	case trace.Unknown:
	}
	return a.Text
}

// asked returns a question to a set in words: the set and the element.
func asked(q ipset.Question) string {
	if q.Element == "" {
		return "set " + q.Set
	}
	return "set " + q.Set + " " + strings.Join(parts([]byte(q.Element)), ",")
}

// Attributes of an element that TEST takes, linux/netfilter/ipset/ip_set.h;
// addresses are nested and names have others.
const (
	ipsetAttrPort  = 4
	ipsetAttrProto = 7
	ipsetAttrMark  = 10
)

// parts returns the parts of an element as ipset takes them: addresses, a port
// with the protocol in front, a mark, a name.
func parts(element []byte) []string {
	var all []string
	err := nlconn.Attributes(element, func(kind uint16, value []byte) {
		switch {
		case kind == ipsetAttrProto && len(value) == 1 && len(all) > 0:
			// It follows the port that it belongs to.
			all[len(all)-1] = protocolName(value[0]) + ":" + all[len(all)-1]
			return
		case kind == ipsetAttrPort && len(value) == 2:
			all = append(all, strconv.Itoa(int(binary.BigEndian.Uint16(value))))
			return
		case kind == ipsetAttrMark && len(value) == 4:
			all = append(all, "0x"+strconv.FormatUint(uint64(binary.BigEndian.Uint32(value)), 16))
			return
		}
		nested := false
		_ = nlconn.Attributes(value, func(_ uint16, inner []byte) {
			if address, ok := netip.AddrFromSlice(inner); ok {
				all, nested = append(all, address.String()), true
			}
		})
		if !nested {
			all = append(all, nlconn.Text(value))
		}
	})
	if err != nil {
		return []string{"?"}
	}
	return all
}

// protocolName returns the name of a protocol that flows can have, or else the
// number.
func protocolName(number uint8) string {
	switch p := flow.Protocol(number); p {
	case flow.TCP, flow.UDP, flow.SCTP:
		return p.String()
	}
	return strconv.Itoa(int(number))
}
