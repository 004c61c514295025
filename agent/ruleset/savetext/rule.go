// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package savetext

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
)

// ruleParser reads the words of one rule after "-A CHAIN". Each word must be
// consumed by what it belongs to; one that is not known makes everything up
// to the next "-m" or "-j" an Unknown match.
type ruleParser struct {
	family  ruleset.Family
	words   []string
	matches []ruleset.Match
	target  ruleset.Target
	comment string
	// targetWords are the words after the target's name.
	targetWords []string
}

func (r *ruleParser) parse() {
	r.target = ruleset.Target{Kind: ruleset.Continue}
	for len(r.words) > 0 {
		switch r.words[0] {
		case "-m", "--match":
			if len(r.words) < 2 {
				r.unknown(r.words)
				r.words = nil
				return
			}
			module := r.words[1]
			r.words = r.words[2:]
			r.module(module)
			continue
		case "-j", "-g", "--jump", "--goto":
			r.readTarget()
			return
		}
		if !r.plain() {
			r.unknown(r.section())
		}
	}
}

// section takes the words up to the next module or target.
func (r *ruleParser) section() []string {
	end := 1
	for end < len(r.words) && !boundary(r.words[end]) {
		end++
	}
	end = min(end, len(r.words))
	taken := r.words[:end]
	r.words = r.words[end:]
	return taken
}

// boundary reports whether a word begins a module or a target. An argument
// that looks like one only makes more of the rule unknown.
func boundary(word string) bool {
	switch word {
	case "-m", "--match", "-j", "-g", "--jump", "--goto":
		return true
	}
	return false
}

func (r *ruleParser) unknown(words []string) {
	r.matches = append(r.matches, ruleset.Unknown{Text: strings.Join(words, " ")})
}

// plain reads one option that belongs to no module and reports whether it
// knew it; if not, no word is consumed.
func (r *ruleParser) plain() bool {
	words, not := r.words, false
	if words[0] == "!" {
		words, not = words[1:], true
	}
	if len(words) > 0 && words[0] == "-f" {
		r.matches = append(r.matches, ruleset.Fragment{Not: not})
		r.words = words[1:]
		return true
	}
	if len(words) < 2 {
		return false
	}
	m, ok := r.plainOption(words[0], words[1], not)
	if !ok {
		return false
	}
	r.matches = append(r.matches, m)
	r.words = words[2:]
	return true
}

func (r *ruleParser) plainOption(option, value string, not bool) (ruleset.Match, bool) {
	switch option {
	case "-s", "-d":
		dir := ruleset.Src
		if option == "-d" {
			dir = ruleset.Dst
		}
		addr, mask, err := r.network(value)
		return ruleset.Addr{Dir: dir, Addr: addr, Mask: mask, Not: not}, err == nil
	case "-i", "-o":
		name, prefix := strings.CutSuffix(value, "+")
		return ruleset.Iface{Out: option == "-o", Name: name, Prefix: prefix, Not: not}, true
	case "-p":
		number, ok := protocol(value)
		return ruleset.Proto{Number: number, Not: not}, ok
	}
	return nil, false
}

// network reads "ADDR", "ADDR/BITS" or "ADDR/MASK".
func (r *ruleParser) network(text string) (addr, mask netip.Addr, err error) {
	host, bits, masked := strings.Cut(text, "/")
	addr, err = netip.ParseAddr(host)
	if err != nil {
		return addr, mask, err
	}
	if addr.Is4() != (r.family == ruleset.IPv4) || addr.Is4In6() || addr.Zone() != "" {
		return addr, mask, fmt.Errorf("address %q is not of family %s", text, r.family)
	}
	length := addr.BitLen()
	if masked {
		if mask, err = netip.ParseAddr(bits); err == nil {
			if mask.BitLen() != addr.BitLen() || mask.Zone() != "" {
				return addr, mask, fmt.Errorf("mask %q is not of family %s", bits, r.family)
			}
			return addr, mask, nil
		}
		if length, err = strconv.Atoi(bits); err != nil {
			return addr, mask, fmt.Errorf("prefix length %q of %q: want a number", bits, text)
		}
	}
	ones, _ := netip.AddrFromSlice(bytes.Repeat([]byte{0xff}, addr.BitLen()/8))
	prefix, err := ones.Prefix(length)
	return addr, prefix.Addr(), err
}

// protocol returns the number of the names that iptables-save prints on hosts
// with a common /etc/protocols. Another name may be any number.
func protocol(name string) (uint8, bool) {
	switch name {
	case "icmp":
		return 1, true
	case "igmp":
		return 2, true
	case "ipencap":
		return 4, true
	case "tcp":
		return 6, true
	case "udp":
		return 17, true
	case "dccp":
		return 33, true
	case "gre":
		return 47, true
	case "esp":
		return 50, true
	case "ah":
		return 51, true
	case "icmpv6", "ipv6-icmp":
		return 58, true
	case "ospf":
		return 89, true
	case "vrrp":
		return 112, true
	case "sctp":
		return 132, true
	case "udplite":
		return 136, true
	}
	n, err := strconv.ParseUint(name, 10, 8)
	// 0 would be "all", which iptables-save never prints.
	return uint8(n), err == nil && n != 0
}

// number reads "VALUE" or "VALUE/MASK", decimal or hexadecimal.
func number(text string) (value, mask uint32, ok bool) {
	v, m, masked := strings.Cut(text, "/")
	n, err := strconv.ParseUint(v, 0, 32)
	if err != nil {
		return 0, 0, false
	}
	if !masked {
		return uint32(n), 0xffffffff, true
	}
	k, err := strconv.ParseUint(m, 0, 32)
	return uint32(n), uint32(k), err == nil
}

// portRange reads "N" or "N:M".
func portRange(text string) (ruleset.PortRange, bool) {
	from, to, isRange := strings.Cut(text, ":")
	a, err := strconv.ParseUint(from, 10, 16)
	if err != nil {
		return ruleset.PortRange{}, false
	}
	if !isRange {
		return ruleset.PortRange{From: uint16(a), To: uint16(a)}, true
	}
	b, err := strconv.ParseUint(to, 10, 16)
	return ruleset.PortRange{From: uint16(a), To: uint16(b)}, err == nil && a <= b
}

// readTarget reads "-j NAME ..." to the end of the rule.
func (r *ruleParser) readTarget() {
	option := r.words[0]
	if len(r.words) < 2 {
		r.target = ruleset.Target{Kind: ruleset.UnknownTarget, Name: option}
		r.words = nil
		return
	}
	name, args := r.words[1], r.words[2:]
	r.words, r.targetWords = nil, args
	if option == "-g" || option == "--goto" {
		r.target = ruleset.Target{Kind: ruleset.Goto, Name: name}
		return
	}
	r.target = target(name, args)
}

// target returns what a target does. A name that is not known is a jump; the
// parser finds the chain, or that there is none, at COMMIT.
func target(name string, args []string) ruleset.Target {
	t := ruleset.Target{Kind: ruleset.UnknownTarget, Name: name}
	switch name {
	case "ACCEPT", "DROP", "RETURN":
		if len(args) == 0 {
			t.Kind = map[string]ruleset.TargetKind{"ACCEPT": ruleset.Accept, "DROP": ruleset.Drop, "RETURN": ruleset.Return}[name]
		}
	case "REJECT":
		t.Kind = ruleset.Drop
	case "LOG", "NFLOG", "TRACE", "AUDIT", "CHECKSUM", "CLASSIFY", "DSCP", "ECN", "IDLETIMER",
		"LED", "RATEEST", "SECMARK", "CONNSECMARK", "TCPMSS", "TCPOPTSTRIP", "TEE", "TOS":
		// They write what this model's matches never read, and go on.
		t.Kind = ruleset.Continue
	case "HL", "TTL":
		t.Kind = hopsTarget(args)
	case "MARK":
		t = markTarget(t, args)
	case "CONNMARK":
		t = connMarkTarget(t, args)
	case "NOTRACK":
		t.Kind = ruleset.NoTrack
	case "CT":
		t.Kind = ctTarget(args)
	case "DNAT", "REDIRECT", "DNPT":
		t.Kind = ruleset.NewDestination
	case "SNAT", "MASQUERADE":
		t.Kind = ruleset.NewSource
	case "NFQUEUE", "QUEUE", "TPROXY", "SYNPROXY", "NETMAP", "SET", "CLUSTERIP", "IDENTIFY", "SNPT", "ULOG", "HMARK":
		// Another program decides, or what they do depends on more than the
		// model holds.
	default:
		t.Kind = ruleset.Jump
	}
	return t
}

func markTarget(t ruleset.Target, args []string) ruleset.Target {
	if len(args) != 2 {
		return t
	}
	value, mask, ok := number(args[1])
	if !ok {
		return t
	}
	switch args[0] {
	case "--set-xmark":
		t.Kind, t.Value, t.Mask = ruleset.SetMark, value, mask
	case "--set-mark":
		t.Kind, t.Value, t.Mask = ruleset.SetMark, value, value|mask
	case "--or-mark":
		t.Kind, t.Value, t.Mask = ruleset.SetMark, value, value
	case "--and-mark":
		t.Kind, t.Value, t.Mask = ruleset.SetMark, 0, ^value
	case "--xor-mark":
		t.Kind, t.Value, t.Mask = ruleset.SetMark, value, 0
	}
	return t
}

func connMarkTarget(t ruleset.Target, args []string) ruleset.Target {
	if len(args) == 0 {
		return t
	}
	switch args[0] {
	case "--save-mark", "--restore-mark":
		t.Mask, t.CTMask = 0xffffffff, 0xffffffff
		for rest := args[1:]; len(rest) > 0; rest = rest[2:] {
			if len(rest) < 2 {
				return t
			}
			value, _, ok := number(rest[1])
			switch {
			case !ok:
				return t
			case rest[0] == "--nfmask":
				t.Mask = value
			case rest[0] == "--ctmask":
				t.CTMask = value
			case rest[0] == "--mask":
				t.Mask, t.CTMask = value, value
			default:
				return t
			}
		}
		t.Kind = map[string]ruleset.TargetKind{"--save-mark": ruleset.SaveMark, "--restore-mark": ruleset.RestoreMark}[args[0]]
		return t
	}
	t = markTarget(t, args)
	if t.Kind == ruleset.SetMark {
		t.Kind = ruleset.SetConnMark
	}
	return t
}

// hopsTarget knows what leaves a packet enough hops to be routed.
func hopsTarget(args []string) ruleset.TargetKind {
	if len(args) == 2 {
		value, err := strconv.ParseUint(args[1], 10, 8)
		switch {
		case err != nil:
		case args[0] == "--ttl-inc", args[0] == "--hl-inc", value > 1 && (args[0] == "--ttl-set" || args[0] == "--hl-set"):
			return ruleset.Continue
		}
	}
	return ruleset.UnknownTarget
}

// ctTarget knows --notrack alone: all else attaches a template, which later
// conditions on connections find.
func ctTarget(args []string) ruleset.TargetKind {
	if len(args) == 1 && args[0] == "--notrack" {
		return ruleset.NoTrack
	}
	return ruleset.UnknownTarget
}
