// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
)

// reading is what `ofproto/trace` printed: one section for the packet as it
// came, and one for each time that it was recirculated.
type reading struct {
	sections []section
}

// section is one pass of the packet through the tables. Of the tables
// themselves nothing is kept but what a packet header is set to: their numbers
// and contents are different in each version of OVN.
type section struct {
	// recirculated is the id that this pass resumes; "" for the first.
	recirculated string
	// flow is the packet at the beginning, final at the end, with OVN's
	// registers. In a part that a router or another switch went through
	// without recirculation, final is as it was before.
	flow, final fields
	// outputs are the OpenFlow ports that it is sent to, in their order.
	outputs []int
	// controllers are the user data of what is sent to ovn-controller.
	controllers []string
	// sources and destinations are the hardware addresses that it is given.
	sources, destinations []string
	// notes are remarks of the tracer that explain an end.
	notes []string
	// actions is what the datapath is told to do.
	actions string
}

// fields are those of a flow as the tracer prints it.
type fields map[string]string

// number returns the value of a field that is a number, 0 if it has none: a
// register that is 0 is not printed.
func (f fields) number(name string) uint64 {
	n, err := strconv.ParseUint(f[name], 0, 64)
	if err != nil {
		return 0
	}
	return n
}

// mostText bounds what is read of a trace. The longest that was measured, at
// 44,000 flows and three recirculations, has 40 kB.
const mostText = 1 << 20

// headerOf matches the title of a section that resumes after connection
// tracking, with a packet that is the first of its connection.
var headerOf = regexp.MustCompile(`^recirc\((0x[0-9a-f]+)\) - resume conntrack with default ct_state=trk\|new \(use --ct-next to customize\)$`)

var (
	outputOf  = regexp.MustCompile(`^output:([0-9]{1,5})$`)
	headingOf = regexp.MustCompile(`^set_field:([0-9a-f]{2}(?::[0-9a-f]{2}){5})->eth_(src|dst)$`)
	dataOf    = regexp.MustCompile(`^controller\(userdata=([0-9a-f]{2}(?:\.[0-9a-f]{2})*)[,)]`)
)

// read takes a trace's text apart. The error says what is missing or is not
// understood.
func read(text string) (reading, error) {
	if len(text) > mostText {
		return reading{}, fmt.Errorf("the trace is longer than %d bytes", mostText)
	}
	r := reader{lines: strings.Split(strings.TrimRight(text, "\n"), "\n")}
	var all reading
	for {
		s, err := r.section(len(all.sections) == 0)
		if err != nil {
			return reading{}, err
		}
		all.sections = append(all.sections, s)
		if r.at == len(r.lines) {
			return all, nil
		}
	}
}

// reader goes through the lines.
type reader struct {
	lines []string
	at    int
}

// next returns the next line, false behind the last.
func (r *reader) next() (string, bool) {
	if r.at == len(r.lines) {
		return "", false
	}
	r.at++
	return r.lines[r.at-1], true
}

var errTruncated = errors.New("the trace ends before its datapath actions")

// section reads one section up to the title of the next, or to the end.
func (r *reader) section(first bool) (section, error) {
	var s section
	if !first {
		if err := r.title(&s); err != nil {
			return s, err
		}
	}
	line, ok := r.next()
	if !ok {
		return s, errTruncated
	}
	text, ok := strings.CutPrefix(line, "Flow: ")
	if !ok {
		return s, fmt.Errorf("where a flow was expected there is %q", line)
	}
	var err error
	if s.flow, err = parseFields(text); err != nil {
		return s, err
	}
	if err := r.tables(&s); err != nil {
		return s, err
	}
	if line, ok = r.next(); !ok || !strings.HasPrefix(line, "Megaflow: ") {
		return s, errTruncated
	}
	if line, ok = r.next(); !ok {
		return s, errTruncated
	}
	if s.actions, ok = strings.CutPrefix(line, "Datapath actions: "); !ok || s.actions == "" {
		return s, errTruncated
	}
	return s, r.rest()
}

// The tracer's words where connection tracking would rewrite addresses. It has
// no entry for a packet that is the first of its connection, so it shows the
// same flow, or none, before and after.
const (
	rewrites = "Replacing src/dst IP/ports to simulate NAT:"
	initial  = " Initial flow: "
	modified = " Modified flow: "
)

// title reads the title of a section, which stands between two rules.
func (r *reader) title(s *section) error {
	isRule := func(line string) bool { return len(line) > 9 && strings.Trim(line, "=") == "" }
	if line, _ := r.next(); !isRule(line) {
		return fmt.Errorf("where a section was to begin there is %q", line)
	}
	line, _ := r.next()
	id := headerOf.FindStringSubmatch(line)
	if id == nil {
		return fmt.Errorf("where a packet was to resume after connection tracking there is %q", line)
	}
	s.recirculated = id[1]
	line, _ = r.next()
	if line == rewrites {
		before, _ := r.next()
		after, _ := r.next()
		from, isInitial := strings.CutPrefix(before, initial)
		to, isModified := strings.CutPrefix(after, modified)
		if !isInitial || !isModified || from != to {
			return fmt.Errorf("connection tracking rewrites %q to %q", before, after)
		}
		line, _ = r.next()
	}
	if empty, ok := r.next(); !isRule(line) || !ok || empty != "" {
		return fmt.Errorf("the title of a section ends with %q", line)
	}
	return nil
}

// tables reads what the packet met up to its final flow.
func (r *reader) tables(s *section) error {
	for {
		line, ok := r.next()
		if !ok {
			return errTruncated
		}
		if text, ok := strings.CutPrefix(line, "Final flow: "); ok {
			if text == "unchanged" {
				s.final = s.flow
				return nil
			}
			var err error
			s.final, err = parseFields(text)
			return err
		}
		s.step(strings.TrimSpace(line))
	}
}

// step takes down what a line among the tables says of the packet itself.
func (s *section) step(line string) {
	if strings.HasPrefix(line, "output:") {
		if m := outputOf.FindStringSubmatch(line); m != nil {
			port, _ := strconv.Atoi(m[1]) // at most five digits
			s.outputs = append(s.outputs, port)
		}
		return
	}
	if strings.HasPrefix(line, "set_field:") && strings.Contains(line, "->eth_") {
		switch m := headingOf.FindStringSubmatch(line); {
		case m == nil:
		case m[2] == "src":
			s.sources = append(s.sources, m[1])
		default:
			s.destinations = append(s.destinations, m[1])
		}
		return
	}
	if strings.HasPrefix(line, "controller(") {
		data := ""
		if m := dataOf.FindStringSubmatch(line); m != nil {
			data = m[1]
		}
		s.controllers = append(s.controllers, data)
		return
	}
	if note, ok := strings.CutPrefix(line, "-> "); ok && strings.HasPrefix(note, "no live bucket") {
		s.notes = append(s.notes, note)
	}
}

// slowPath is how the tracer says that vswitchd itself has to do the actions,
// which is as good; reasons follow, a line each.
const slowPath = "This flow is handled by the userspace slow path because it:"

// rest reads what is behind the datapath actions up to the next section.
func (r *reader) rest() error {
	for r.at < len(r.lines) {
		line := r.lines[r.at]
		if strings.HasPrefix(line, "==") {
			return nil
		}
		r.at++
		if line == "" || line == slowPath || strings.HasPrefix(line, "  - ") {
			continue
		}
		return fmt.Errorf("behind the datapath actions there is %q", line)
	}
	return nil
}

// parseFields parses a flow as the tracer prints it.
func parseFields(text string) (fields, error) {
	parsed := fields{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		if _, twice := parsed[name]; twice || name == "" {
			return nil, fmt.Errorf("a flow has the field %q twice, or one without a name", name)
		}
		parsed[name] = value
	}
	return parsed, nil
}

// hardwareAddress returns a parsed Ethernet address in its usual form, "" if it
// is none or no single station's.
func hardwareAddress(text string) string {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || mac.String() == noMAC {
		return ""
	}
	return mac.String()
}
