// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package savetext

import (
	"net/netip"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
)

// module reads the options of one "-m NAME". If any of them is not known,
// the whole module is one Unknown match.
func (r *ruleParser) module(name string) {
	words := r.moduleWords(name)
	if name == "comment" {
		if len(words) == 2 && words[0] == "--comment" {
			r.comment = words[1]
			return
		}
		r.unknown(append([]string{"-m", name}, words...))
		return
	}
	matches, ok := r.moduleMatches(name, words)
	if !ok {
		r.unknown(append([]string{"-m", name}, words...))
		return
	}
	r.matches = append(r.matches, matches...)
}

// moduleWords takes the words of a module. A comment is always one word, so
// that one which reads "-j" ends nothing.
func (r *ruleParser) moduleWords(name string) []string {
	end := 0
	if name == "comment" && len(r.words) > 1 && r.words[0] == "--comment" {
		end = 2
	}
	for end < len(r.words) && !boundary(r.words[end]) {
		end++
	}
	words := r.words[:end]
	r.words = r.words[end:]
	return words
}

// option is "[!] --name [value]".
type option struct {
	not   bool
	name  string
	value string
}

// options groups the words of a module. It returns false if they are not a
// list of options with at most one value each.
func options(words []string) ([]option, bool) {
	var all []option
	for len(words) > 0 {
		var o option
		if words[0] == "!" {
			o.not, words = true, words[1:]
		}
		if len(words) == 0 || !strings.HasPrefix(words[0], "--") {
			return nil, false
		}
		o.name, words = words[0], words[1:]
		if len(words) > 0 && words[0] != "!" && !strings.HasPrefix(words[0], "--") {
			o.value, words = words[0], words[1:]
		}
		if o.name == "--tcp-flags" && len(words) > 0 {
			// The one option of two values: the mask and what must be set.
			o.value, words = o.value+" "+words[0], words[1:]
		}
		all = append(all, o)
	}
	return all, true
}

func (r *ruleParser) moduleMatches(name string, words []string) ([]ruleset.Match, bool) {
	if name == "set" {
		return setMatch(words)
	}
	opts, ok := options(words)
	if !ok {
		return nil, false
	}
	switch name {
	case "conntrack", "state":
		return r.connectionMatch(opts)
	case "rpfilter":
		return reversePathMatch(opts)
	case "rt", "frag", "hbh", "dst":
		return headerMatch(name)
	}
	if len(opts) == 0 {
		// "-m tcp" alone: the protocol was named by -p.
		return nil, name == "tcp" || name == "udp" || name == "sctp"
	}
	matches := make([]ruleset.Match, 0, len(opts))
	for _, o := range opts {
		var m ruleset.Match
		switch name {
		case "tcp", "udp", "sctp":
			m, ok = transportOption(name, o)
		case "multiport":
			m, ok = multiportOption(o)
		case "mark", "connmark":
			m, ok = markOption(name == "connmark", o)
		case "physdev":
			m, ok = physdevOption(o, opts)
		case "addrtype":
			m, ok = addrTypeOption(o)
		case "iprange":
			m, ok = rangeOption(o)
		default:
			return nil, false
		}
		if !ok {
			return nil, false
		}
		matches = append(matches, m)
	}
	return matches, true
}

func transportOption(module string, o option) (ruleset.Match, bool) {
	switch o.name {
	case "--sport", "--dport":
		ports, ok := portRange(o.value)
		dir := ruleset.Src
		if o.name == "--dport" {
			dir = ruleset.Dst
		}
		return ruleset.Ports{Dir: dir, Ranges: []ruleset.PortRange{ports}, Not: o.not}, ok
	}
	if module != "tcp" {
		return nil, false
	}
	if o.name == "--syn" && o.value == "" {
		return ruleset.TCPFlags{Mask: ruleset.FIN | ruleset.SYN | ruleset.RST | ruleset.ACK, Set: ruleset.SYN, Not: o.not}, true
	}
	if o.name != "--tcp-flags" {
		return nil, false
	}
	mask, set, _ := strings.Cut(o.value, " ")
	m, ok := tcpFlags(mask)
	s, ok2 := tcpFlags(set)
	return ruleset.TCPFlags{Mask: m, Set: s, Not: o.not}, ok && ok2
}

func tcpFlags(text string) (uint8, bool) {
	var flags uint8
	for name := range strings.SplitSeq(text, ",") {
		switch name {
		case "FIN":
			flags |= ruleset.FIN
		case "SYN":
			flags |= ruleset.SYN
		case "RST":
			flags |= ruleset.RST
		case "PSH":
			flags |= ruleset.PSH
		case "ACK":
			flags |= ruleset.ACK
		case "URG":
			flags |= ruleset.URG
		case "ALL":
			flags |= ruleset.FIN | ruleset.SYN | ruleset.RST | ruleset.PSH | ruleset.ACK | ruleset.URG
		case "NONE":
		default:
			return 0, false
		}
	}
	return flags, true
}

func multiportOption(o option) (ruleset.Match, bool) {
	m := ruleset.Ports{Not: o.not}
	switch o.name {
	case "--sports":
		m.Dir = ruleset.Src
	case "--dports":
		m.Dir = ruleset.Dst
	case "--ports":
		m.Dir = ruleset.Either
	default:
		return nil, false
	}
	for text := range strings.SplitSeq(o.value, ",") {
		ports, ok := portRange(text)
		if !ok {
			return nil, false
		}
		m.Ranges = append(m.Ranges, ports)
	}
	return m, true
}

func markOption(conn bool, o option) (ruleset.Match, bool) {
	value, mask, ok := number(o.value)
	return ruleset.Mark{Conn: conn, Value: value, Mask: mask, Not: o.not}, ok && o.name == "--mark"
}

func stateOption(o option) (ruleset.Match, bool) {
	if o.name != "--ctstate" && o.name != "--state" {
		return nil, false
	}
	m := ruleset.CTState{Not: o.not}
	for name := range strings.SplitSeq(o.value, ",") {
		switch name {
		case "INVALID":
			m.States |= ruleset.Invalid
		case "NEW":
			m.States |= ruleset.New
		case "RELATED":
			m.States |= ruleset.Related
		case "ESTABLISHED":
			m.States |= ruleset.Established
		case "UNTRACKED":
			m.States |= ruleset.Untracked
		case "SNAT":
			m.States |= ruleset.SNATed
		case "DNAT":
			m.States |= ruleset.DNATed
		default:
			return nil, false
		}
	}
	return m, true
}

func addrTypeOption(o option) (ruleset.Match, bool) {
	m := ruleset.AddrType{Not: o.not}
	switch o.name {
	case "--src-type":
		m.Dir = ruleset.Src
	case "--dst-type":
		m.Dir = ruleset.Dst
	default:
		// --limit-iface-in and -out narrow what LOCAL means.
		return nil, false
	}
	for name := range strings.SplitSeq(o.value, ",") {
		switch name {
		case "UNSPEC":
			m.Types |= ruleset.Unspec
		case "UNICAST":
			m.Types |= ruleset.Unicast
		case "LOCAL":
			m.Types |= ruleset.Local
		case "BROADCAST":
			m.Types |= ruleset.Broadcast
		case "ANYCAST":
			m.Types |= ruleset.Anycast
		case "MULTICAST":
			m.Types |= ruleset.Multicast
		case "BLACKHOLE":
			m.Types |= ruleset.Blackhole
		case "UNREACHABLE":
			m.Types |= ruleset.Unreachable
		case "PROHIBIT":
			m.Types |= ruleset.Prohibit
		default:
			return nil, false
		}
	}
	return m, true
}

func rangeOption(o option) (ruleset.Match, bool) {
	m := ruleset.AddrRange{Not: o.not}
	switch o.name {
	case "--src-range":
		m.Dir = ruleset.Src
	case "--dst-range":
		m.Dir = ruleset.Dst
	default:
		return nil, false
	}
	from, to, isRange := strings.Cut(o.value, "-")
	if !isRange {
		to = from
	}
	a, err := netip.ParseAddr(from)
	b, err2 := netip.ParseAddr(to)
	m.From, m.To = a, b
	return m, err == nil && err2 == nil && a.BitLen() == b.BitLen() && a.Zone() == "" && b.Zone() == ""
}

// setMatch reads "[!] --match-set NAME DIMS". Options that keep the counters
// as they are do not matter; others look at them or change the meaning of
// nomatch, and are not known.
func setMatch(words []string) ([]ruleset.Match, bool) {
	m := ruleset.Set{}
	if len(words) > 0 && words[0] == "!" {
		m.Not, words = true, words[1:]
	}
	for len(words) > 3 && words[3] == "!" && len(words) > 4 && (words[4] == "--update-counters" || words[4] == "--update-subcounters") {
		words = append(words[:3:3], words[5:]...)
	}
	if len(words) != 3 || words[0] != "--match-set" {
		return nil, false
	}
	m.Name = words[1]
	for dim := range strings.SplitSeq(words[2], ",") {
		switch dim {
		case "src":
			m.Dims = append(m.Dims, ruleset.Src)
		case "dst":
			m.Dims = append(m.Dims, ruleset.Dst)
		default:
			return nil, false
		}
	}
	// The kernel's IPSET_DIM_MAX.
	return []ruleset.Match{m}, len(m.Dims) <= 6
}
