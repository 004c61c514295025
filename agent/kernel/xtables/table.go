// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/kernel/xtblob"
	"github.com/policygate/policygate/agent/ruleset"
)

// xtLayout has the offsets of ipt_entry (linux/netfilter_ipv4/ip_tables.h) or
// ip6t_entry (linux/netfilter_ipv6/ip6_tables.h) of a 64-bit kernel. Addresses
// and their masks come first, source, destination, masks; interfaces follow,
// in, out, masks.
type xtLayout struct {
	family  ruleset.Family
	address int
	// proto, flags and inverted are in the address part, steady where it ends
	// and the kernel's own nfcache begins.
	proto, flags, inverted, steady int
	// target and next are the offsets of the entry's two offsets; between the
	// second one and the matches at size are comefrom and the counters.
	target, next, size int
	// gotoFlag is the flag of -g, protoFlag the one without which the protocol
	// is not looked at, fragFlag the one of -f; 0 where there is none.
	gotoFlag, protoFlag, fragFlag byte
}

func layoutOf(family ruleset.Family) xtLayout {
	if family == ruleset.IPv4 {
		return xtLayout{family: family, address: 4, proto: 80, flags: 82, inverted: 83, steady: 84, target: 88, next: 90, size: 112,
			gotoFlag: 0x02, fragFlag: 0x01}
	}
	return xtLayout{family: family, address: 16, proto: 128, flags: 131, inverted: 132, steady: 136, target: 140, next: 142, size: 168,
		gotoFlag: 0x04, protoFlag: 0x01}
}

// Inversion bits, the same in both headers. IPT_INV_TOS (0x04) has no effect
// and is written by nobody.
const (
	xtNotIn    = 0x01
	xtNotOut   = 0x02
	xtNotSrc   = 0x08
	xtNotDst   = 0x10
	xtNotFrag  = 0x20
	xtNotProto = 0x40
)

// linux/netfilter/x_tables.h: a match or target begins with its size, its name
// and its revision.
const (
	xtExtensionName = 29
	xtRevision      = 31
	xtExtensionData = 32
)

// Verdicts of the standard target; others below zero are not known, others
// are the offset of a chain's first entry.
const (
	xtDrop   = -1
	xtAccept = -2
	xtQueue  = -4
	xtReturn = -5
)

// xtHooks is NF_INET_NUMHOOKS.
const xtHooks = 5

// xtTable is one legacy table as the kernel hands it out.
type xtTable struct {
	family ruleset.Family
	name   string
	info   xtInfo
	// data are the entries, a part of buffer if they were read into one.
	data, buffer []byte
}

// xtInfo is struct ipt_getinfo, or its twin ip6t_getinfo, without the name.
type xtInfo struct {
	hooks     uint32
	entry     [xtHooks]uint32
	underflow [xtHooks]uint32
	count     uint32
	size      uint32
}

// xtEntry is one entry of a table.
type xtEntry struct {
	at, next int
	// header is the part before the matches; the bodies of the matches and the
	// target begin with their sizes.
	header  []byte
	matches [][]byte
	target  []byte
}

func (e xtEntry) targetName() string { return extensionName(e.target) }

func extensionName(extension []byte) string { return nlconn.Text(extension[2 : 2+xtExtensionName]) }

// walk calls each with the bytes of every entry and the offset of its target,
// or returns an error if they do not fit together.
func (t *xtTable) walk(each func(at int, entry []byte, target int) error) error {
	l := layoutOf(t.family)
	for at := 0; at < len(t.data); {
		rest := t.data[at:]
		if len(rest) < l.size {
			return fmt.Errorf("entry at %d is cut short", at)
		}
		target, next := int(binary.NativeEndian.Uint16(rest[l.target:])), int(binary.NativeEndian.Uint16(rest[l.next:]))
		if target < l.size || next < target || next > len(rest) {
			return fmt.Errorf("entry at %d has its target at %d and its end at %d of %d", at, target, next, len(rest))
		}
		if err := each(at, rest[:next], target); err != nil {
			return fmt.Errorf("entry at %d: %w", at, err)
		}
		at += next
	}
	return nil
}

// wipe removes what changes without the rules: counters and the fields that
// the kernel uses itself.
func (t *xtTable) wipe() error {
	l := layoutOf(t.family)
	return t.walk(func(_ int, entry []byte, _ int) error {
		clear(entry[l.steady:l.target])
		clear(entry[l.next+2 : l.size])
		return nil
	})
}

// entries cuts the table's data up.
func (t *xtTable) entries() ([]xtEntry, error) {
	l := layoutOf(t.family)
	var all []xtEntry
	err := t.walk(func(at int, entry []byte, target int) error {
		matches, err := extensions(entry[l.size:target])
		if err != nil {
			return fmt.Errorf("matches: %w", err)
		}
		targets, err := extensions(entry[target:])
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		if len(targets) != 1 {
			return fmt.Errorf("%d targets, want 1", len(targets))
		}
		all = append(all, xtEntry{at: at, next: at + len(entry), header: entry[:l.size], matches: matches, target: targets[0]})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if uint64(len(all)) != uint64(t.info.count) {
		return nil, fmt.Errorf("%d entries, want %d", len(all), t.info.count)
	}
	return all, nil
}

// extensions cuts a list of matches or targets up.
func extensions(data []byte) ([][]byte, error) {
	var all [][]byte
	for len(data) > 0 {
		if len(data) < xtExtensionData {
			return nil, fmt.Errorf("%d bytes left", len(data))
		}
		size := int(binary.NativeEndian.Uint16(data))
		if size < xtExtensionData || size > len(data) {
			return nil, fmt.Errorf("%d bytes of %d", size, len(data))
		}
		all = append(all, data[:size])
		data = data[size:]
	}
	return all, nil
}

// errPolicy means that a base chain does not end as iptables ends it.
var errPolicy = errors.New("no policy at its end")

// parse returns the table in terms of the model.
func (t *xtTable) parse(sets xtblob.Sets) (ruleset.Table, error) {
	p := xtParser{layout: layoutOf(t.family), sets: sets, table: ruleset.Table{Family: t.family, Backend: ruleset.Legacy, Name: t.name}, heads: map[int]*ruleset.Chain{}}
	entries, err := t.entries()
	if err != nil {
		return ruleset.Table{}, err
	}
	chains, err := p.chains(t.info, entries)
	if err != nil {
		return ruleset.Table{}, err
	}
	for _, c := range chains {
		if err := p.fill(c); err != nil {
			return ruleset.Table{}, fmt.Errorf("chain %s: %w", c.chain.Name, err)
		}
	}
	return p.table, nil
}

type xtParser struct {
	layout xtLayout
	sets   xtblob.Sets
	table  ruleset.Table
	// heads are the chains that a jump can lead to, by the offset of their
	// first entry.
	heads map[int]*ruleset.Chain
}

// xtChain is a chain and its entries, without the last, which is its policy or
// the way back.
type xtChain struct {
	chain   *ruleset.Chain
	entries []xtEntry
}

// chains splits the entries. A base chain begins where the table's info says
// and ends with its policy; any other begins after an ERROR target that holds
// its name and ends with a RETURN. An ERROR target ends the table, too.
func (p *xtParser) chains(info xtInfo, entries []xtEntry) ([]xtChain, error) {
	bases, err := p.bases(info)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 || entries[len(entries)-1].targetName() != "ERROR" {
		return nil, errors.New("no end marker")
	}
	var all []xtChain
	for i := 0; i < len(entries)-1; {
		c := xtChain{chain: bases[entries[i].at]}
		var last int
		if c.chain != nil {
			end := int(info.underflow[hookNumber(c.chain.Base.Hook)])
			delete(bases, entries[i].at)
			last = slices.IndexFunc(entries, func(e xtEntry) bool { return e.at == end })
		} else {
			if entries[i].targetName() != "ERROR" {
				return nil, fmt.Errorf("entry at %d is in no chain", entries[i].at)
			}
			c.chain = &ruleset.Chain{Name: nlconn.Text(entries[i].target[xtExtensionData:])}
			i++
			p.heads[entries[i].at] = c.chain
			for last = i; last < len(entries)-1 && entries[last+1].targetName() != "ERROR"; last++ {
			}
		}
		if last < i || last >= len(entries)-1 {
			return nil, fmt.Errorf("chain %s has no end", c.chain.Name)
		}
		c.entries = entries[i:last]
		if err := p.finish(c.chain, entries[last]); err != nil {
			return nil, fmt.Errorf("chain %s: %w", c.chain.Name, err)
		}
		all = append(all, c)
		p.table.Chains = append(p.table.Chains, c.chain)
		i = last + 1
	}
	if len(bases) > 0 {
		return nil, fmt.Errorf("%d base chains begin nowhere", len(bases))
	}
	return all, nil
}

// bases returns the base chains by the offset of their first entry.
func (p *xtParser) bases(info xtInfo) (map[int]*ruleset.Chain, error) {
	bases := map[int]*ruleset.Chain{}
	if info.hooks >= 1<<xtHooks {
		return nil, fmt.Errorf("hooks %#x: want %d at most", info.hooks, xtHooks)
	}
	for number := range xtHooks {
		if info.hooks&(1<<number) == 0 {
			continue
		}
		base, name, ok := legacyBase(p.table.Name, number)
		if !ok {
			return nil, fmt.Errorf("hook %d of table %s is not known", number, p.table.Name)
		}
		at := int(info.entry[number])
		if bases[at] != nil {
			return nil, fmt.Errorf("chains %s and %s begin at %d", bases[at].Name, name, at)
		}
		bases[at] = &ruleset.Chain{Name: name, Base: &base}
	}
	return bases, nil
}

// finish reads a chain's last entry, which iptables adds to every chain.
func (p *xtParser) finish(chain *ruleset.Chain, e xtEntry) error {
	matches, _ := p.conditions(e)
	verdict, standard, err := standardVerdict(e.target)
	if err != nil {
		return err
	}
	if !standard || len(matches) > 0 {
		return errPolicy
	}
	switch {
	case chain.Base == nil && verdict == xtReturn:
	case chain.Base != nil && (verdict == xtAccept || verdict == xtDrop):
		chain.Base.Drop = verdict == xtDrop
	default:
		return errPolicy
	}
	return nil
}

func (p *xtParser) fill(c xtChain) error {
	c.chain.Rules = make([]ruleset.Rule, 0, len(c.entries))
	for _, e := range c.entries {
		r := ruleset.Rule{}
		r.Matches, r.Comment = p.conditions(e)
		var err error
		if r.Target, err = p.target(e); err != nil {
			return fmt.Errorf("entry at %d: %w", e.at, err)
		}
		ruleset.Order(r.Matches)
		r.Raw = ruleset.Render(c.chain.Name, &r)
		c.chain.Rules = append(c.chain.Rules, r)
	}
	return nil
}

// conditions returns the matches of an entry, in the order of iptables-save.
func (p *xtParser) conditions(e xtEntry) (matches []ruleset.Match, comment string) {
	matches = p.plain(e.header)
	for _, m := range e.matches {
		more, text := xtblob.Match(p.layout.family, extensionName(m), m[xtRevision], m[xtExtensionData:], p.sets)
		matches = append(matches, more...)
		if text != "" {
			comment = text
		}
	}
	return matches, comment
}

// plain returns the conditions of the entry itself.
func (p *xtParser) plain(h []byte) []ruleset.Match {
	l := p.layout
	flags, inverted := h[l.flags], h[l.inverted]
	var all []ruleset.Match
	src, dst := h[:l.address], h[l.address:2*l.address]
	srcMask, dstMask := h[2*l.address:3*l.address], h[3*l.address:4*l.address]
	all = append(all, xtAddress(ruleset.Src, src, srcMask, inverted&xtNotSrc != 0)...)
	all = append(all, xtAddress(ruleset.Dst, dst, dstMask, inverted&xtNotDst != 0)...)
	in := h[4*l.address:]
	all = append(all, xtIface(false, in[:unix.IFNAMSIZ], in[2*unix.IFNAMSIZ:], inverted&xtNotIn != 0)...)
	all = append(all, xtIface(true, in[unix.IFNAMSIZ:], in[3*unix.IFNAMSIZ:], inverted&xtNotOut != 0)...)

	proto, notProto := binary.NativeEndian.Uint16(h[l.proto:]), inverted&xtNotProto != 0
	switch {
	case proto == 0 && !notProto:
	case proto == 0 || proto > 255 || flags&l.protoFlag != l.protoFlag:
		all = append(all, ruleset.Unknown{Text: fmt.Sprintf("-p %d, with flags %#x", proto, flags)})
	default:
		all = append(all, ruleset.Proto{Number: uint8(proto), Not: notProto})
	}
	frag, notFrag := flags&l.fragFlag != 0, inverted&xtNotFrag != 0
	if frag {
		all = append(all, ruleset.Fragment{Not: notFrag})
	}
	strange := flags &^ (l.gotoFlag | l.protoFlag | l.fragFlag)
	const known = xtNotIn | xtNotOut | xtNotSrc | xtNotDst | xtNotFrag | xtNotProto
	if strange != 0 || inverted&^known != 0 || (notFrag && !frag) {
		all = append(all, ruleset.Unknown{Text: fmt.Sprintf("flags %#x, inverted %#x", flags, inverted)})
	}
	return all
}

// xtAddress returns the condition on one address, none if every one will do.
func xtAddress(dir ruleset.Direction, addr, mask []byte, not bool) []ruleset.Match {
	all := true
	for i := range mask {
		all = all && mask[i] == 0
		if addr[i]&^mask[i] != 0 {
			// The kernel masks the packet's address only: this cannot match.
			return []ruleset.Match{ruleset.Unknown{Text: fmt.Sprintf("%s address %x under mask %x", dir, addr, mask)}}
		}
	}
	if all && !not {
		return nil
	}
	a, _ := netip.AddrFromSlice(addr)
	m, _ := netip.AddrFromSlice(mask)
	return []ruleset.Match{ruleset.Addr{Dir: dir, Addr: a, Mask: m, Not: not}}
}

// xtIface returns the condition on an interface, none if every one will do.
// The mask covers a name with its NUL, or the start of a name, or nothing for
// "+".
func xtIface(out bool, name, mask []byte, not bool) []ruleset.Match {
	name, mask = name[:unix.IFNAMSIZ], mask[:unix.IFNAMSIZ]
	covered := 0
	for covered < len(mask) && mask[covered] == 0xff {
		covered++
	}
	m := ruleset.Iface{Out: out, Name: nlconn.Text(name[:covered]), Prefix: true, Not: not}
	m.Prefix = len(m.Name) == covered
	for i := range mask {
		if (i >= covered && mask[i] != 0) || (i >= len(m.Name) && i < covered && name[i] != 0) {
			return []ruleset.Match{ruleset.Unknown{Text: fmt.Sprintf("interface %q under mask %x", name, mask)}}
		}
	}
	if covered == 0 && !not {
		return nil
	}
	return []ruleset.Match{m}
}

// standardVerdict returns the number that a standard target holds; standard is
// false if the target is an extension.
func standardVerdict(target []byte) (verdict int, standard bool, err error) {
	if extensionName(target) != "" {
		return 0, false, nil
	}
	if len(target) < xtExtensionData+4 || target[xtRevision] != 0 {
		return 0, false, fmt.Errorf("standard target of %d bytes, revision %d", len(target), target[xtRevision])
	}
	return int(int32(binary.NativeEndian.Uint32(target[xtExtensionData:]))), true, nil //nolint:gosec // A signed number by definition.
}

func (p *xtParser) target(e xtEntry) (ruleset.Target, error) {
	verdict, standard, err := standardVerdict(e.target)
	if err != nil {
		return ruleset.Target{}, err
	}
	if !standard {
		return xtblob.Target(p.layout.family, e.targetName(), e.target[xtRevision], e.target[xtExtensionData:]), nil
	}
	switch verdict {
	case xtDrop:
		return ruleset.Target{Kind: ruleset.Drop, Name: "DROP"}, nil
	case xtAccept:
		return ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}, nil
	case xtReturn:
		return ruleset.Target{Kind: ruleset.Return, Name: "RETURN"}, nil
	case xtQueue:
		return ruleset.Target{Kind: ruleset.UnknownTarget, Name: "QUEUE"}, nil
	case e.next:
		// A rule without a target.
		return ruleset.Target{Kind: ruleset.Continue}, nil
	}
	if verdict < 0 {
		return ruleset.Target{Kind: ruleset.UnknownTarget, Name: fmt.Sprintf("verdict %d", verdict)}, nil
	}
	chain := p.heads[verdict]
	if chain == nil {
		return ruleset.Target{}, fmt.Errorf("leads to %d, where no chain begins", verdict)
	}
	t := ruleset.Target{Kind: ruleset.Jump, Chain: chain, Name: chain.Name}
	if e.header[p.layout.flags]&p.layout.gotoFlag != 0 {
		t.Kind = ruleset.Goto
	}
	return t, nil
}
