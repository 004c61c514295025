// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// The way to an answer by the text that tools print: what the native readers
// are compared with. It evaluates by the same agent/trace and is given the
// flows' ways through the node for nothing.

// textVerdicts runs the tools and answers from what they print. With test,
// sets are not printed but asked one element at a time, by ipset test. What
// the sets are asked is noted in count.
func (l *large) textVerdicts(ctx context.Context, flows []flow.Flow, test bool, count map[setElement]bool) ([]flow.Verdict, error) {
	printed, err := exec.CommandContext(ctx, l.dump[0], l.dump[1:]...).Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", l.dump[0], err)
	}
	tables, sets, err := l.read(printed)
	if err != nil {
		return nil, err
	}
	var membership trace.Membership = sets
	switch {
	case test:
		membership = &testedSets{ctx: ctx, answers: map[setElement]trace.Ternary{}}
	case l.ipsets != "":
		saved, err := exec.CommandContext(ctx, "ipset", "save").Output()
		if err != nil {
			return nil, fmt.Errorf("ipset save: %w", err)
		}
		if sets, err = readIPSets(saved); err != nil {
			return nil, err
		}
		membership = sets
	}
	membership = countedSets{membership, count}
	verdicts := make([]flow.Verdict, 0, len(flows))
	for _, f := range flows {
		verdicts = append(verdicts, trace.Trace(tables, largePath(f), f, membership))
	}
	return verdicts, nil
}

// readSave reads what iptables-save of a backend prints. It has no sets.
func readSave(backend ruleset.Backend) func([]byte) ([]ruleset.Table, textSets, error) {
	return func(printed []byte) ([]ruleset.Table, textSets, error) {
		tables, err := savetext.Parse(ruleset.IPv4, backend, string(printed))
		return tables, nil, err
	}
}

// textSets are sets of addresses and prefixes by name.
type textSets map[string]*textSet

type textSet struct {
	addresses map[netip.Addr]bool
	// prefixes is true for those that are in the set and false for nomatch.
	prefixes map[netip.Prefix]bool
	// lengths are those of the prefixes, the longest first.
	lengths []int
}

func newTextSet() *textSet {
	return &textSet{addresses: map[netip.Addr]bool{}, prefixes: map[netip.Prefix]bool{}}
}

func (s *textSet) addPrefix(text string, in bool) error {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return err
	}
	s.prefixes[prefix] = in
	if at, found := slices.BinarySearchFunc(s.lengths, prefix.Bits(), func(a, b int) int { return b - a }); !found {
		s.lengths = slices.Insert(s.lengths, at, prefix.Bits())
	}
	return nil
}

func (s *textSet) contains(a netip.Addr) bool {
	if s.addresses[a] {
		return true
	}
	for _, bits := range s.lengths {
		prefix, err := a.Prefix(bits)
		if err != nil {
			return false
		}
		if in, found := s.prefixes[prefix]; found {
			return in
		}
	}
	return false
}

// readIPSets reads what ipset save prints of sets of addresses and networks.
func readIPSets(saved []byte) (textSets, error) {
	sets := textSets{}
	for lines := bufio.NewScanner(bytes.NewReader(saved)); lines.Scan(); {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		name, rest, _ := strings.Cut(rest, " ")
		what, rest, _ := strings.Cut(rest, " ")
		set := sets[name]
		var err error
		switch {
		case verb == "create" && (what == "hash:ip" || what == "hash:net"):
			sets[name] = newTextSet()
		case verb != "add" || set == nil:
			err = errors.New("want a set of addresses or networks, or an element of one")
		case strings.Contains(what, "/"):
			err = set.addPrefix(what, !strings.HasSuffix(rest, "nomatch"))
		default:
			var addr netip.Addr
			addr, err = netip.ParseAddr(what)
			set.addresses[addr] = true
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
	}
	return sets, nil
}

// Member implements trace.Membership.
func (s textSets) Member(name string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	set := s[name]
	if set == nil {
		return trace.Unknown, "no set " + name
	}
	return trace.Of(set.contains(asked(dims, p))), ""
}

// Element implements trace.Membership.
func (textSets) Element(*ruleset.NativeSet, []byte) (ruleset.Element, error) {
	return ruleset.Element{}, errors.New("no set of the text is native")
}

func asked(dims []ruleset.Direction, p trace.Packet) netip.Addr {
	if dims[0] == ruleset.Dst {
		return p.Flow.Dst
	}
	return p.Flow.Src
}

// setElement is what one ipset test asks.
type setElement struct {
	set     string
	address netip.Addr
}

// testedSets asks ipset test for each element once.
type testedSets struct {
	textSets

	ctx     context.Context //nolint:containedctx // trace.Membership has none, and the value lives for one call.
	answers map[setElement]trace.Ternary
}

// Member implements trace.Membership.
func (s *testedSets) Member(name string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	e := setElement{name, asked(dims, p)}
	if answer, known := s.answers[e]; known {
		return answer, ""
	}
	err := exec.CommandContext(s.ctx, "ipset", "test", "-q", e.set, e.address.String()).Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		return trace.Unknown, err.Error()
	}
	s.answers[e] = trace.Of(err == nil)
	return s.answers[e], ""
}

// countedSets notes what is asked.
type countedSets struct {
	trace.Membership

	asked map[setElement]bool
}

// Member implements trace.Membership.
func (s countedSets) Member(name string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	s.asked[setElement{name, asked(dims, p)}] = true
	return s.Membership.Member(name, dims, p)
}
