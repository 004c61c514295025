// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package savetext

import (
	"slices"
	"strconv"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
)

// none are the states of a packet without a connection.
const none = ruleset.Invalid | ruleset.Untracked

// connectionMatch reads the options of conntrack and state. On a packet
// without a connection all but the state are skipped, and without a condition
// on the state nothing matches it.
func (r *ruleParser) connectionMatch(opts []option) ([]ruleset.Match, bool) {
	var state, rest []ruleset.Match
	for _, o := range opts {
		if o.name == "--ctstate" || o.name == "--state" {
			option, ok := stateOption(o)
			m, isState := option.(ruleset.CTState)
			if !ok || !isState {
				return nil, false
			}
			if len(opts) > 1 && (m.States&none != 0) != m.Not {
				return nil, false
			}
			state = append(state, m)
			continue
		}
		m, ok := r.connectionOption(o)
		if !ok {
			return nil, false
		}
		rest = append(rest, m...)
	}
	if len(opts) == 0 {
		return nil, false
	}
	if len(state) == 0 {
		state = append(state, ruleset.CTState{States: none, Not: true})
	}
	return append(state, rest...), true
}

// connectionOption reads an option that asks what the connection was at first,
// which is what a new flow is.
func (r *ruleParser) connectionOption(o option) ([]ruleset.Match, bool) {
	never := []ruleset.Match{ruleset.CTState{States: ruleset.Established | ruleset.Related}}
	switch o.name {
	case "--ctdir":
		if o.not || (o.value != "ORIGINAL" && o.value != "REPLY") {
			return nil, false
		}
		if o.value == "ORIGINAL" {
			return nil, true
		}
		return never, true
	case "--ctstatus":
		for name := range strings.SplitSeq(o.value, ",") {
			if !slices.Contains([]string{"NONE", "EXPECTED", "SEEN_REPLY", "ASSURED", "CONFIRMED"}, name) {
				return nil, false
			}
		}
		if o.not {
			return nil, true
		}
		return never, true
	case "--ctproto":
		number, ok := protocol(o.value)
		return []ruleset.Match{ruleset.Proto{Number: number, Not: o.not}}, ok
	case "--ctorigsrc", "--ctorigdst":
		dir := ruleset.Src
		if o.name == "--ctorigdst" {
			dir = ruleset.Dst
		}
		addr, mask, err := r.network(o.value)
		return []ruleset.Match{ruleset.Addr{Dir: dir, Addr: addr, Mask: mask, Not: o.not}}, err == nil
	case "--ctorigsrcport", "--ctorigdstport":
		dir := ruleset.Src
		if o.name == "--ctorigdstport" {
			dir = ruleset.Dst
		}
		ports, ok := portRange(o.value)
		return []ruleset.Match{ruleset.Ports{Dir: dir, Ranges: []ruleset.PortRange{ports}, Not: o.not}}, ok
	}
	return nil, false
}

// physdevOption reads one of the options of physdev; all are the others with
// it.
func physdevOption(o option, all []option) (ruleset.Match, bool) {
	bridged := slices.ContainsFunc(all, func(o option) bool { return o.name == "--physdev-is-bridged" && !o.not })
	out := strings.HasSuffix(o.name, "-out")
	switch o.name {
	case "--physdev-is-bridged":
		return ruleset.Bridged{Not: o.not}, o.value == ""
	case "--physdev-is-in", "--physdev-is-out":
		return ruleset.BridgePort{Out: out, Not: !o.not}, o.value == ""
	case "--physdev-in", "--physdev-out":
		if out && o.not && !bridged {
			// Kernels differ in what this means for packets that are routed.
			return nil, false
		}
		name, prefix := strings.CutSuffix(o.value, "+")
		if name == "" {
			return ruleset.BridgePort{Out: out, Not: !o.not}, prefix
		}
		return ruleset.BridgePort{Out: out, Name: name, Prefix: prefix, Not: o.not}, true
	}
	return nil, false
}

// reversePathMatch reads the options of rpfilter.
func reversePathMatch(opts []option) ([]ruleset.Match, bool) {
	m := ruleset.ReversePath{}
	for _, o := range opts {
		switch o.name {
		case "--loose":
			m.Loose = true
		case "--invert":
			m.Not = true
		default:
			return nil, false
		}
	}
	return []ruleset.Match{m}, true
}

// headerMatch is for matches on extension headers of IPv6, which no flow
// begins with.
func headerMatch(name string) ([]ruleset.Match, bool) {
	number := map[string]uint8{"hbh": 0, "rt": 43, "frag": 44, "dst": 60}[name]
	return []ruleset.Match{ruleset.Proto{Number: number}, ruleset.Unknown{Text: "-m " + name + " (header " + strconv.Itoa(int(number)) + ")"}}, true
}
