// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"fmt"
	"slices"
	"strings"
)

// end is what becomes of a traced packet.
type end uint8

const (
	// unclear: nothing may be concluded.
	unclear end = iota
	// output: it is sent to one port or tunnel, once.
	output
	// dropped: it is sent nowhere, and the datapath is told so.
	dropped
)

// outcome is a trace and what it says of the packet.
type outcome struct {
	reading

	end end
	// why it is unclear, in the trace's own words as far as it has some.
	why string
	// source and destination: what leaves has another address.
	source, destination bool
}

// outcomeOf reads a trace. It never fails: what is not understood is unclear.
func outcomeOf(text string) outcome {
	r, err := read(text)
	if err != nil {
		return outcome{why: "the trace is not understood: " + err.Error()}
	}
	o := outcome{reading: r}
	for i := range r.sections {
		s := &r.sections[i]
		e, err := effectOf(s.actions)
		if err != nil {
			o.why = err.Error()
			return o
		}
		o.source = o.source || e.source || s.flow.another(r.sections[0].flow, "nw_src", "ipv6_src")
		o.destination = o.destination || e.destination || s.flow.another(r.sections[0].flow, "nw_dst", "ipv6_dst")
		// A copy for the log of ovn-controller changes nothing.
		if e.controllers != len(s.controllers) || slices.ContainsFunc(s.controllers, isNoLog) {
			o.why = "the packet is sent to ovn-controller: " + s.actions
			return o
		}
		if i+1 < len(r.sections) {
			if e.drop || e.outputs != 0 || !slices.Equal(e.recirculations, []string{r.sections[i+1].recirculated}) {
				o.why = "the trace does not go on with the packet alone: " + s.actions
				return o
			}
			continue
		}
		o.conclude(s, e)
	}
	return o
}

// another reports whether one of the fields has another value.
func (f fields) another(than fields, names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return f[name] != than[name] })
}

func isNoLog(data string) bool { return opcode(data) != opcodeLog }

// conclude reads the last section.
func (o *outcome) conclude(s *section, e effect) {
	switch {
	case len(e.recirculations) > 0:
		o.why = strings.Join(append([]string{"the trace does not go on after " + s.actions}, s.notes...), ", ")
	case e.outputs > 1:
		o.why = "the packet is sent to several ports: " + s.actions
	case e.outputs == 1:
		o.end = output
	case e.drop, e.controllers > 0 && len(mustSplit(s.actions)) == e.controllers:
		o.end = dropped
	default:
		o.why = "the packet ends without being sent or dropped: " + s.actions
	}
}

// mustSplit splits actions that were read before.
func mustSplit(actions string) []string {
	all, _ := split(actions)
	return all
}

// entry returns the keys with which the packet came into the logical network.
// They are unknown if the bridge has no flow for the port.
func (o outcome) entry() keys {
	if len(o.sections) == 0 {
		return keys{}
	}
	f := o.sections[0].final
	return keys{f.number("metadata"), f.number("reg14")}
}

// place returns where the packet was last, as far as that is told: the keys of
// the switch or router and of the port that it is to leave it by, 0 before
// that is decided.
func (o outcome) place() keys {
	if len(o.sections) == 0 {
		return keys{}
	}
	f := o.sections[len(o.sections)-1].final
	return keys{f.number("metadata"), f.number("reg15")}
}

// outputs returns the OpenFlow ports that the packet was last sent to.
func (o outcome) outputs() []int {
	if len(o.sections) == 0 {
		return nil
	}
	return o.sections[len(o.sections)-1].outputs
}

// reaches reports whether the packet is sent to that port and to no other.
func (o outcome) reaches(p *port) bool {
	return o.end == output && len(o.outputs()) == 1 && int64(o.outputs()[0]) == p.ofport
}

// String returns the end in words.
func (o outcome) String() string {
	switch o.end {
	case output:
		return fmt.Sprintf("sent to OpenFlow ports %d", o.outputs())
	case dropped:
		return "dropped"
	case unclear:
	}
	return o.why
}
