// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// layout has the offsets of ipt_entry (linux/netfilter_ipv4/ip_tables.h) or
// ip6t_entry (linux/netfilter_ipv6/ip6_tables.h) of a 64-bit kernel. Addresses
// and their masks come first, source, destination, masks; interfaces follow,
// in, out, masks.
type layout struct {
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

func layoutOf(family ruleset.Family) layout {
	if family == ruleset.IPv4 {
		return layout{family: family, address: 4, proto: 80, flags: 82, inverted: 83, steady: 84, target: 88, next: 90, size: 112,
			gotoFlag: 0x02, fragFlag: 0x01}
	}
	return layout{family: family, address: 16, proto: 128, flags: 131, inverted: 132, steady: 136, target: 140, next: 142, size: 168,
		gotoFlag: 0x04, protoFlag: 0x01}
}

// Inversion bits, the same in both headers. IPT_INV_TOS (0x04) has no effect
// and is written by nobody.
const (
	notIn    = 0x01
	notOut   = 0x02
	notSrc   = 0x08
	notDst   = 0x10
	notFrag  = 0x20
	notProto = 0x40
)

// linux/netfilter/x_tables.h: a match or target begins with its size, its name
// and its revision.
const (
	extensionNameSize = 29
	extensionRevision = 31
	extensionData     = 32
)

// hooks is NF_INET_NUMHOOKS.
const hooks = unix.NF_INET_NUMHOOKS

// info is struct ipt_getinfo, or its twin ip6t_getinfo, without the name.
type info struct {
	hooks     uint32
	entry     [hooks]uint32
	underflow [hooks]uint32
	count     uint32
	size      uint32
}

// table is one legacy table as the kernel hands it out. It is not changed once
// it is read.
type table struct {
	family ruleset.Family
	name   string
	info   info
	// data are the entries, a part of buffer.
	data, buffer []byte
}

// entry is one entry of a table, from its first byte to its last.
type entry struct {
	at    int
	bytes []byte
	// target is where the target begins.
	target int
}

func (e entry) end() int { return e.at + len(e.bytes) }

// entryAt returns the entry at an offset, or an error if it does not fit into
// what is left of the table.
func (l layout) entryAt(data []byte, at int) (entry, error) {
	rest := data[at:]
	if len(rest) < l.size {
		return entry{}, fmt.Errorf("entry at %d is cut short", at)
	}
	target, next := int(binary.NativeEndian.Uint16(rest[l.target:])), int(binary.NativeEndian.Uint16(rest[l.next:]))
	if target < l.size || next < target+extensionData || next > len(rest) {
		return entry{}, fmt.Errorf("entry at %d has its target at %d and its end at %d of %d", at, target, next, len(rest))
	}
	return entry{at: at, bytes: rest[:next], target: target}, nil
}

// same reports whether two reads of a table have the same rules: the same
// bytes but for the counters and the fields that the kernel uses itself. That
// is as cheap as any hash of them, and exact.
func (t *table) same(other *table) bool {
	if t.info != other.info || len(t.data) != len(other.data) {
		return false
	}
	l := layoutOf(t.family)
	a, b := t.data, other.data
	for len(a) > 0 {
		e, err := l.entryAt(a, 0)
		if err != nil {
			return bytes.Equal(a, b)
		}
		next := len(e.bytes)
		if !bytes.Equal(a[:l.steady], b[:l.steady]) || !bytes.Equal(a[l.target:l.next+2], b[l.target:l.next+2]) ||
			!bytes.Equal(a[l.size:next], b[l.size:next]) {
			return false
		}
		a, b = a[next:], b[next:]
	}
	return true
}

// extensions cuts a list of matches or targets up.
func extensions(data []byte) ([][]byte, error) {
	var all [][]byte
	for len(data) > 0 {
		if len(data) < extensionData {
			return nil, fmt.Errorf("%d bytes left", len(data))
		}
		size := int(binary.NativeEndian.Uint16(data))
		if size < extensionData || size > len(data) {
			return nil, fmt.Errorf("%d bytes of %d", size, len(data))
		}
		all = append(all, data[:size])
		data = data[size:]
	}
	return all, nil
}

func extensionName(extension []byte) string { return nlconn.Text(extension[2 : 2+extensionNameSize]) }

// isMarker reports whether the entry is no rule but begins a chain or ends the
// table.
func (e entry) isMarker() bool {
	const name = "ERROR\x00"
	return string(e.bytes[e.target+2:e.target+2+len(name)]) == name
}

// hookNumber is the kernel's number of a hook of IP.
func hookNumber(h ruleset.Hook) int {
	switch h {
	case ruleset.Prerouting:
		return unix.NF_INET_PRE_ROUTING
	case ruleset.Input:
		return unix.NF_INET_LOCAL_IN
	case ruleset.Forward:
		return unix.NF_INET_FORWARD
	case ruleset.Output:
		return unix.NF_INET_LOCAL_OUT
	case ruleset.Postrouting:
		return unix.NF_INET_POST_ROUTING
	case ruleset.Ingress:
	}
	return -1
}

// baseOf returns the base chain that a legacy table has at a hook, with the
// priority that its module registers it with.
func baseOf(table string, number int) (base ruleset.Base, name string, ok bool) {
	for _, c := range []struct {
		hook ruleset.Hook
		name string
	}{
		{ruleset.Prerouting, "PREROUTING"}, {ruleset.Input, "INPUT"}, {ruleset.Forward, "FORWARD"},
		{ruleset.Output, "OUTPUT"}, {ruleset.Postrouting, "POSTROUTING"},
	} {
		if hookNumber(c.hook) == number {
			base.Hook, name = c.hook, c.name
		}
	}
	switch table {
	case "raw":
		base.Priority = -300
	case "mangle":
		base.Priority = -150
	case "nat":
		base.NAT = true
		base.Priority = -100
		if base.Hook == ruleset.Input || base.Hook == ruleset.Postrouting {
			base.Priority = 100
		}
	case "filter":
	case "security":
		base.Priority = 50
	default:
		return ruleset.Base{}, "", false
	}
	return base, name, base.Hook != 0
}
