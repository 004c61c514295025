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
	// Depends names in words, as printable ASCII, what the verdict rests on
	// beside the path: the rules' stamps, and each question to a set with its
	// answer.
	Depends []string
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

// parts returns the parts of an element as TEST takes it, which their lengths
// tell apart: addresses in network order, a port, a protocol, a name.
func parts(element []byte) []string {
	var all []string
	err := nlconn.Attributes(element, func(_ uint16, value []byte) {
		nested := false
		_ = nlconn.Attributes(value, func(_ uint16, inner []byte) {
			if address, ok := netip.AddrFromSlice(inner); ok {
				all, nested = append(all, address.String()), true
			}
		})
		switch {
		case nested:
		case len(value) == 1:
			all = append(all, "protocol "+strconv.Itoa(int(value[0])))
		case len(value) == 2:
			all = append(all, "port "+strconv.Itoa(int(binary.BigEndian.Uint16(value))))
		case len(value) == 4:
			all = append(all, "mark 0x"+strconv.FormatUint(uint64(binary.BigEndian.Uint32(value)), 16))
		default:
			all = append(all, nlconn.Text(value))
		}
	})
	if err != nil {
		return []string{"?"}
	}
	return all
}
