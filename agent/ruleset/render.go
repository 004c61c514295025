// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Render returns a rule of a chain as text much like that of iptables-save,
// made from the model: for people, not to be read back. An unknown match is
// printed as its text, and a target's parameters only as far as the model has
// them. The rule's Raw is not looked at.
func Render(chain string, r *Rule) string {
	words := []string{"-A", chain}
	for _, m := range r.Matches {
		words = append(words, renderMatch(m))
	}
	if r.Comment != "" {
		words = append(words, "-m comment --comment "+strconv.Quote(r.Comment))
	}
	if target := renderTarget(r.Target); target != "" {
		words = append(words, target)
	}
	return strings.Join(words, " ")
}

func renderMatch(m Match) string {
	switch m := m.(type) {
	case Addr:
		return not(m.Not) + pick(m.Dir == Src, "-s ", "-d ") + network(m.Addr, m.Mask)
	case AddrRange:
		return "-m iprange " + not(m.Not) + "--" + m.Dir.String() + "-range " + m.From.String() + "-" + m.To.String()
	case Iface:
		return not(m.Not) + pick(m.Out, "-o ", "-i ") + m.Name + pick(m.Prefix, "+", "")
	case Proto:
		return not(m.Not) + "-p " + protocolName(m.Number)
	case Ports:
		return renderPorts(m)
	case TCPFlags:
		return not(m.Not) + "--tcp-flags " + flagNames(m.Mask) + " " + flagNames(m.Set)
	case Fragment:
		return not(m.Not) + "-f"
	case Set:
		dims := make([]string, len(m.Dims))
		for i, d := range m.Dims {
			dims[i] = d.String()
		}
		return "-m set " + not(m.Not) + "--match-set " + m.Name + " " + strings.Join(dims, ",")
	case Mark:
		return "-m " + pick(m.Conn, "connmark ", "mark ") + not(m.Not) + "--mark " + masked(m.Value, m.Mask)
	case CTState:
		return "-m conntrack " + not(m.Not) + "--ctstate " + names(uint32(m.States), "INVALID", "ESTABLISHED", "RELATED", "NEW", "UNTRACKED", "SNAT", "DNAT")
	case AddrType:
		return "-m addrtype " + not(m.Not) + "--" + m.Dir.String() + "-type " + names(uint32(m.Types),
			"UNSPEC", "UNICAST", "LOCAL", "BROADCAST", "ANYCAST", "MULTICAST", "BLACKHOLE", "UNREACHABLE", "PROHIBIT")
	case Bridged:
		return "-m physdev " + not(m.Not) + "--physdev-is-bridged"
	case BridgePort:
		return "-m physdev " + not(m.Not) + pick(m.Out, "--physdev-out ", "--physdev-in ") + m.Name + pick(m.Prefix, "+", "")
	case ReversePath:
		return "-m rpfilter" + pick(m.Loose, " --loose", "") + pick(m.Not, " --invert", "")
	case Compare:
		return nft(renderCompare(m))
	case Lookup:
		return nft(renderKey(m.Key) + pick(m.Not, " != @", " @") + m.Set.Name)
	case Unknown:
		return m.Text
	}
	return fmt.Sprintf("-m %T", m)
}

// nft marks what iptables has no words for.
func nft(text string) string { return `-m nft "` + text + `"` }

func not(negated bool) string { return pick(negated, "! ", "") }

func pick(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// network writes a mask that is a prefix as its length.
func network(addr, mask netip.Addr) string {
	ones, _ := netip.AddrFromSlice(bytes.Repeat([]byte{0xff}, mask.BitLen()/8))
	for bits := range mask.BitLen() + 1 {
		if prefix, _ := ones.Prefix(bits); prefix.Addr() == mask {
			return addr.String() + "/" + strconv.Itoa(bits)
		}
	}
	return addr.String() + "/" + mask.String()
}

func protocolName(number uint8) string {
	switch number {
	case 1:
		return "icmp"
	case 6:
		return "tcp"
	case 17:
		return "udp"
	case 58:
		return "ipv6-icmp"
	case 132:
		return "sctp"
	}
	return strconv.Itoa(int(number))
}

func renderPorts(m Ports) string {
	ranges := make([]string, len(m.Ranges))
	for i, r := range m.Ranges {
		ranges[i] = strconv.Itoa(int(r.From))
		if r.To != r.From {
			ranges[i] += ":" + strconv.Itoa(int(r.To))
		}
	}
	list := strings.Join(ranges, ",")
	option := map[Direction]string{Src: "--sport", Dst: "--dport", Either: "--port"}[m.Dir]
	if len(ranges) == 1 && m.Dir != Either {
		return not(m.Not) + option + " " + list
	}
	return "-m multiport " + not(m.Not) + option + "s " + list
}

func masked(value, mask uint32) string {
	if mask == 0xffffffff {
		return fmt.Sprintf("%#x", value)
	}
	return fmt.Sprintf("%#x/%#x", value, mask)
}

func flagNames(flags uint8) string {
	if flags == 0 {
		return "NONE"
	}
	return names(uint32(flags), "FIN", "SYN", "RST", "PSH", "ACK", "URG")
}

// names returns the names of the bits that are set; of are the names, lowest
// bit first.
func names(bits uint32, of ...string) string {
	var set []string
	for i, name := range of {
		if bits&(1<<i) != 0 {
			set = append(set, name)
		}
	}
	return strings.Join(set, ",")
}

func renderTarget(t Target) string {
	name := t.Name
	switch t.Kind {
	case Jump, Goto:
		return pick(t.Kind == Goto, "-g ", "-j ") + name
	case SetMark, SetConnMark:
		return fmt.Sprintf("-j %s --set-xmark %#x/%#x", name, t.Value, t.Mask)
	case SaveMark:
		return fmt.Sprintf("-j %s --save-mark --nfmask %#x --ctmask %#x", name, t.Mask, t.CTMask)
	case RestoreMark:
		return fmt.Sprintf("-j %s --restore-mark --nfmask %#x --ctmask %#x", name, t.Mask, t.CTMask)
	case Decide:
		return nft(renderKey(t.Key) + " vmap @" + t.Map.Name)
	case UnknownTarget, Continue, Accept, Drop, Return, NoTrack, NewDestination, NewSource:
	}
	if name == "" {
		return ""
	}
	return "-j " + name
}
