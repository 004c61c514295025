// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package xtblob decodes the structs that the matches and targets of xtables
// keep in the kernel, as the legacy tables and nf_tables' compat expressions
// hand them out. It does no I/O of its own: who reads rules brings the bytes.
//
// The structs are those of a 64-bit kernel, in host byte order where their
// header does not say otherwise. What is not known, or is not of the size
// that its revision has, is never left out: it becomes an unknown match or
// target.
package xtblob

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/policygate/policygate/agent/ruleset"
)

// Sets names an ipset by the index that rules refer to it by.
type Sets interface {
	SetName(index uint16) (string, error)
}

// Match returns the conditions of one match. What it does not know, or finds
// malformed, is one ruleset.Unknown that names extension, revision and why.
// comment is set for the comment match only; then matches is empty. A match
// without any condition, like "-m tcp" alone, has none either.
func Match(family ruleset.Family, name string, revision uint8, data []byte, sets Sets) (matches []ruleset.Match, comment string) {
	if name == "comment" && revision == 0 && len(data) == commentSize {
		return nil, cString(data)
	}
	matches, err := match(family, name, revision, data, sets)
	if err != nil {
		return []ruleset.Match{ruleset.Unknown{Text: fmt.Sprintf("-m %s (revision %d: %v)", name, revision, err)}}, ""
	}
	return matches, ""
}

// commentSize is the size of linux/netfilter/xt_comment.h's only struct.
const commentSize = 256

var (
	errUnknown  = errors.New("not understood")
	errRevision = errors.New("unknown revision")
	errFlags    = errors.New("unknown flags")
	errRange    = errors.New("a range ends before it begins")
)

// match returns the conditions of every match but the comment.
func match(family ruleset.Family, name string, revision uint8, data []byte, sets Sets) ([]ruleset.Match, error) {
	switch name {
	case "set":
		return setMatch(revision, data, sets)
	case "mark", "connmark":
		return markMatch(name == "connmark", revision, data)
	case "conntrack":
		return conntrackMatch(family, revision, data)
	case "state":
		if revision > 0 {
			// A newer kernel's alias of conntrack.
			return conntrackMatch(family, revision, data)
		}
		return stateMatch(data)
	case "tcp":
		return tcpMatch(revision, data)
	case "udp":
		return udpMatch(revision, data)
	case "sctp":
		return sctpMatch(revision, data)
	case "multiport":
		return multiportMatch(revision, data)
	case "iprange":
		return iprangeMatch(family, revision, data)
	case "addrtype":
		return addrtypeMatch(revision, data)
	case "physdev":
		return physdevMatch(revision, data)
	case "rpfilter":
		return rpfilterMatch(revision, data)
	case "rt", "frag", "hbh", "dst":
		return headerMatch(family, name, revision, data)
	}
	return nil, errUnknown
}

// blob is a struct whose size has been looked at.
type blob []byte

func (b blob) u16(at int) uint16 { return binary.NativeEndian.Uint16(b[at:]) }
func (b blob) u32(at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }

// sized returns data as a blob if it is a struct of the given size, padded to
// xtables' alignment of 8 or not.
func sized(data []byte, size int) (blob, error) {
	if len(data) != size && len(data) != (size+7)&^7 {
		return nil, fmt.Errorf("%d bytes, want %d", len(data), size)
	}
	return blob(data[:size]), nil
}

// one returns the struct of an extension of which only one revision is known.
func one(revision, known uint8, data []byte, size int) (blob, error) {
	if revision != known {
		return nil, errRevision
	}
	return sized(data, size)
}

// boolean reads a byte that the kernel combines by exclusive or, so that any
// other value means neither.
func (b blob) boolean(at int) (bool, error) {
	if b[at] > 1 {
		return false, errFlags
	}
	return b[at] == 1, nil
}

// InterfaceName reads the name of an interface and its mask, of 16 bytes each.
// The mask covers a name with its NUL, or the start of a name, or nothing for
// "+"; ok is false if it is another.
func InterfaceName(name, mask []byte) (text string, prefix, ok bool) {
	covered := 0
	for covered < len(mask) && mask[covered] == 0xff {
		covered++
	}
	text = cString(name[:covered])
	for i := range mask {
		if (i >= covered && mask[i] != 0) || (i >= len(text) && i < covered && name[i] != 0) {
			return "", false, false
		}
	}
	return text, len(text) == covered, true
}

// address reads a union nf_inet_addr.
func (b blob) address(family ruleset.Family, at int) netip.Addr {
	if family == ruleset.IPv4 {
		return netip.AddrFrom4([4]byte(b[at : at+4]))
	}
	return netip.AddrFrom16([16]byte(b[at : at+16]))
}

// cString returns what precedes the first NUL, or all.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
