// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/xtblob"
	"github.com/policygate/policygate/agent/ruleset"
)

// Verdicts of the standard target (linux/netfilter.h, less one and negated);
// others below zero are not known, others are the offset of a chain's first
// entry.
const (
	verdictDrop   = -1
	verdictAccept = -2
	verdictQueue  = -4
	verdictReturn = -5
)

// names has the names of sets by their indices.
type names interface {
	xtblob.Sets
	// Resolve announces indices of which the names will be asked for.
	Resolve(indices []uint16)
}

// decoder makes rules of the entries of one table.
type decoder struct {
	layout layout
	data   []byte
	sets   names
	// heads are the chains that a jump can lead to, by the offset of their
	// first entry.
	heads map[int]*ruleset.Chain
}

// rules decodes the entries from one offset to another.
func (d *decoder) rules(from, to int) ([]ruleset.Rule, error) {
	d.sets.Resolve(d.asked(from, to))
	var all []ruleset.Rule
	for at := from; at < to; {
		e, err := d.layout.entryAt(d.data[:to], at)
		if err != nil {
			return nil, err
		}
		r, err := d.rule(e)
		if err != nil {
			return nil, fmt.Errorf("entry at %d: %w", at, err)
		}
		all = append(all, r)
		at = e.end()
	}
	return all, nil
}

// asked returns the indices of the sets that entries ask, as far as these are
// well-formed. Each revision of the match begins with the index.
func (d *decoder) asked(from, to int) []uint16 {
	var indices []uint16
	for at := from; at < to; {
		e, err := d.layout.entryAt(d.data[:to], at)
		if err != nil {
			break
		}
		at = e.end()
		matches, err := extensions(e.bytes[d.layout.size:e.target])
		if err != nil {
			break
		}
		for _, m := range matches {
			if extensionName(m) == "set" && len(m) > extensionData+2 {
				indices = append(indices, binary.NativeEndian.Uint16(m[extensionData:]))
			}
		}
	}
	return indices
}

func (d *decoder) rule(e entry) (ruleset.Rule, error) {
	r := ruleset.Rule{Matches: d.plain(e.bytes)}
	matches, err := extensions(e.bytes[d.layout.size:e.target])
	if err != nil {
		return r, fmt.Errorf("matches: %w", err)
	}
	for _, m := range matches {
		more, comment := xtblob.Match(d.layout.family, extensionName(m), m[extensionRevision], m[extensionData:], d.sets)
		r.Matches = append(r.Matches, more...)
		if comment != "" {
			r.Comment = comment
		}
	}
	ruleset.Order(r.Matches)
	r.Target, err = d.target(e)
	return r, err
}

// unconditional reports whether an entry matches everything, as the kernel's
// own unconditional() does.
func (l layout) unconditional(e entry) bool {
	if e.target != l.size {
		return false
	}
	for _, b := range e.bytes[:l.steady] {
		if b != 0 {
			return false
		}
	}
	return true
}

// plain returns the conditions of the entry itself, in the order of
// iptables-save.
func (d *decoder) plain(h []byte) []ruleset.Match {
	l := d.layout
	flags, inverted := h[l.flags], h[l.inverted]
	var all []ruleset.Match
	src, dst := h[:l.address], h[l.address:2*l.address]
	srcMask, dstMask := h[2*l.address:3*l.address], h[3*l.address:4*l.address]
	all = append(all, address(ruleset.Src, src, srcMask, inverted&notSrc != 0)...)
	all = append(all, address(ruleset.Dst, dst, dstMask, inverted&notDst != 0)...)
	in := h[4*l.address:]
	all = append(all, iface(false, in[:unix.IFNAMSIZ], in[2*unix.IFNAMSIZ:], inverted&notIn != 0)...)
	all = append(all, iface(true, in[unix.IFNAMSIZ:], in[3*unix.IFNAMSIZ:], inverted&notOut != 0)...)

	proto, negated := binary.NativeEndian.Uint16(h[l.proto:]), inverted&notProto != 0
	switch {
	case proto == 0 && !negated:
	case proto == 0 || proto > 255 || flags&l.protoFlag != l.protoFlag:
		all = append(all, ruleset.Unknown{Text: fmt.Sprintf("-p %d, with flags %#x", proto, flags)})
	default:
		all = append(all, ruleset.Proto{Number: uint8(proto), Not: negated})
	}
	fragment, notFragment := flags&l.fragFlag != 0, inverted&notFrag != 0
	if fragment {
		all = append(all, ruleset.Fragment{Not: notFragment})
	}
	strange := flags &^ (l.gotoFlag | l.protoFlag | l.fragFlag)
	const known = notIn | notOut | notSrc | notDst | notFrag | notProto
	if strange != 0 || inverted&^known != 0 || (notFragment && !fragment) {
		all = append(all, ruleset.Unknown{Text: fmt.Sprintf("flags %#x, inverted %#x", flags, inverted)})
	}
	return all
}

// address returns the condition on one address, none if every one will do.
func address(dir ruleset.Direction, addr, mask []byte, not bool) []ruleset.Match {
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

// iface returns the condition on an interface, none if every one will do.
func iface(out bool, name, mask []byte, not bool) []ruleset.Match {
	name, mask = name[:unix.IFNAMSIZ], mask[:unix.IFNAMSIZ]
	text, prefix, ok := xtblob.InterfaceName(name, mask)
	if !ok {
		return []ruleset.Match{ruleset.Unknown{Text: fmt.Sprintf("interface %q under mask %x", name, mask)}}
	}
	if prefix && text == "" && !not {
		return nil
	}
	return []ruleset.Match{ruleset.Iface{Out: out, Name: text, Prefix: prefix, Not: not}}
}

// targetBytes returns the entry's only target.
func (e entry) targetBytes() ([]byte, error) {
	targets, err := extensions(e.bytes[e.target:])
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if len(targets) != 1 {
		return nil, fmt.Errorf("%d targets, want 1", len(targets))
	}
	return targets[0], nil
}

// standardVerdict returns the number that a standard target holds; standard is
// false if the target is an extension.
func standardVerdict(target []byte) (verdict int, standard bool, err error) {
	if target[2] != 0 {
		return 0, false, nil
	}
	if len(target) < extensionData+4 || target[extensionRevision] != 0 {
		return 0, false, fmt.Errorf("standard target of %d bytes, revision %d", len(target), target[extensionRevision])
	}
	return int(int32(binary.NativeEndian.Uint32(target[extensionData:]))), true, nil //nolint:gosec // A signed number by definition.
}

func (d *decoder) target(e entry) (ruleset.Target, error) {
	t, err := e.targetBytes()
	if err != nil {
		return ruleset.Target{}, err
	}
	verdict, standard, err := standardVerdict(t)
	if err != nil {
		return ruleset.Target{}, err
	}
	if !standard {
		return xtblob.Target(d.layout.family, extensionName(t), t[extensionRevision], t[extensionData:]), nil
	}
	switch verdict {
	case verdictDrop:
		return ruleset.Target{Kind: ruleset.Drop, Name: "DROP"}, nil
	case verdictAccept:
		return ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}, nil
	case verdictReturn:
		return ruleset.Target{Kind: ruleset.Return, Name: "RETURN"}, nil
	case verdictQueue:
		return ruleset.Target{Kind: ruleset.UnknownTarget, Name: "QUEUE"}, nil
	case e.end():
		// A rule without a target.
		return ruleset.Target{Kind: ruleset.Continue}, nil
	}
	if verdict < 0 {
		return ruleset.Target{Kind: ruleset.UnknownTarget, Name: fmt.Sprintf("verdict %d", verdict)}, nil
	}
	chain := d.heads[verdict]
	if chain == nil {
		return ruleset.Target{}, fmt.Errorf("leads to %d, where no chain begins", verdict)
	}
	r := ruleset.Target{Kind: ruleset.Jump, Chain: chain, Name: chain.Name}
	if e.bytes[d.layout.flags]&d.layout.gotoFlag != 0 {
		r.Kind = ruleset.Goto
	}
	return r, nil
}
