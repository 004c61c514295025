// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"net/netip"
	"strings"
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
	matches, ok := moduleMatches(name, words)
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

func moduleMatches(name string, words []string) ([]Match, bool) {
	if name == "set" {
		return setMatch(words)
	}
	opts, ok := options(words)
	if !ok {
		return nil, false
	}
	if len(opts) == 0 {
		// "-m tcp" alone: the protocol was named by -p.
		return nil, name == "tcp" || name == "udp" || name == "sctp"
	}
	matches := make([]Match, 0, len(opts))
	for _, o := range opts {
		var m Match
		switch name {
		case "tcp", "udp", "sctp":
			m, ok = transportOption(name, o)
		case "multiport":
			m, ok = multiportOption(o)
		case "mark", "connmark":
			m, ok = markOption(name == "connmark", o)
		case "conntrack", "state":
			// Beside its state, conntrack's other options ask for what the
			// connection was before any rewriting; on an untracked packet
			// they are skipped. Only the state alone is understood.
			m, ok = stateOption(o)
			ok = ok && len(opts) == 1
		case "physdev":
			m, ok = Bridged{Not: o.not}, o.name == "--physdev-is-bridged" && o.value == ""
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

func transportOption(module string, o option) (Match, bool) {
	switch o.name {
	case "--sport", "--dport":
		ports, ok := portRange(o.value)
		dir := Src
		if o.name == "--dport" {
			dir = Dst
		}
		return Ports{Dir: dir, Ranges: []PortRange{ports}, Not: o.not}, ok
	}
	if module != "tcp" {
		return nil, false
	}
	if o.name == "--syn" && o.value == "" {
		return TCPFlags{Mask: FIN | SYN | RST | ACK, Set: SYN, Not: o.not}, true
	}
	if o.name != "--tcp-flags" {
		return nil, false
	}
	mask, set, _ := strings.Cut(o.value, " ")
	m, ok := tcpFlags(mask)
	s, ok2 := tcpFlags(set)
	return TCPFlags{Mask: m, Set: s, Not: o.not}, ok && ok2
}

func tcpFlags(text string) (uint8, bool) {
	var flags uint8
	for name := range strings.SplitSeq(text, ",") {
		switch name {
		case "FIN":
			flags |= FIN
		case "SYN":
			flags |= SYN
		case "RST":
			flags |= RST
		case "PSH":
			flags |= PSH
		case "ACK":
			flags |= ACK
		case "URG":
			flags |= URG
		case "ALL":
			flags |= FIN | SYN | RST | PSH | ACK | URG
		case "NONE":
		default:
			return 0, false
		}
	}
	return flags, true
}

func multiportOption(o option) (Match, bool) {
	m := Ports{Not: o.not}
	switch o.name {
	case "--sports":
		m.Dir = Src
	case "--dports":
		m.Dir = Dst
	case "--ports":
		m.Dir = Either
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

func markOption(conn bool, o option) (Match, bool) {
	value, mask, ok := number(o.value)
	return Mark{Conn: conn, Value: value, Mask: mask, Not: o.not}, ok && o.name == "--mark"
}

func stateOption(o option) (Match, bool) {
	if o.name != "--ctstate" && o.name != "--state" {
		return nil, false
	}
	m := CTState{Not: o.not}
	for name := range strings.SplitSeq(o.value, ",") {
		switch name {
		case "INVALID":
			m.States |= Invalid
		case "NEW":
			m.States |= New
		case "RELATED":
			m.States |= Related
		case "ESTABLISHED":
			m.States |= Established
		case "UNTRACKED":
			m.States |= Untracked
		case "SNAT":
			m.States |= SNATed
		case "DNAT":
			m.States |= DNATed
		default:
			return nil, false
		}
	}
	return m, true
}

func addrTypeOption(o option) (Match, bool) {
	m := AddrType{Not: o.not}
	switch o.name {
	case "--src-type":
		m.Dir = Src
	case "--dst-type":
		m.Dir = Dst
	default:
		// --limit-iface-in and -out narrow what LOCAL means.
		return nil, false
	}
	for name := range strings.SplitSeq(o.value, ",") {
		switch name {
		case "UNSPEC":
			m.Types |= Unspec
		case "UNICAST":
			m.Types |= Unicast
		case "LOCAL":
			m.Types |= Local
		case "BROADCAST":
			m.Types |= Broadcast
		case "ANYCAST":
			m.Types |= Anycast
		case "MULTICAST":
			m.Types |= Multicast
		case "BLACKHOLE":
			m.Types |= Blackhole
		case "UNREACHABLE":
			m.Types |= Unreachable
		case "PROHIBIT":
			m.Types |= Prohibit
		default:
			return nil, false
		}
	}
	return m, true
}

func rangeOption(o option) (Match, bool) {
	m := AddrRange{Not: o.not}
	switch o.name {
	case "--src-range":
		m.Dir = Src
	case "--dst-range":
		m.Dir = Dst
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

// setMatch reads "[!] --match-set NAME DIMS". Options that look at the
// counters or change the meaning of nomatch are not known.
func setMatch(words []string) ([]Match, bool) {
	m := Set{}
	if len(words) > 0 && words[0] == "!" {
		m.Not, words = true, words[1:]
	}
	if len(words) != 3 || words[0] != "--match-set" {
		return nil, false
	}
	m.Name = words[1]
	for dim := range strings.SplitSeq(words[2], ",") {
		switch dim {
		case "src":
			m.Dims = append(m.Dims, Src)
		case "dst":
			m.Dims = append(m.Dims, Dst)
		default:
			return nil, false
		}
	}
	// The kernel's IPSET_DIM_MAX.
	return []Match{m}, len(m.Dims) <= 6
}
