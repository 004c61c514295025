// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// moment is what is asked for in each look, at most once and only if a flow
// needs it, because the kernel tells of no change.
type moment struct {
	virtual *bool
	calls   map[ruleset.Family]calls
	ports   map[portKey]string
}

// calls is whether bridges hand their packets to the IP hooks.
type calls struct{ loaded, on bool }

// portKey is an address behind a bridge.
type portKey struct {
	bridge  int
	address netip.Addr
}

// virtualServers reports whether the node has any (IPVS): they may send a
// packet that they redirected through output in place of forward.
func (t *Topology) virtualServers() (bool, error) {
	if t.look.virtual == nil {
		servers, err := t.files.virtual.Read()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return false, fmt.Errorf("read virtual servers: %w", err)
		}
		// Three lines of heading.
		t.look.virtual = new(strings.Count(servers, "\n") > 3)
	}
	return *t.look.virtual, nil
}

// bridgeCalls returns the sysctl by which every bridge of the namespace hands
// bridged packets to the IP hooks. Without br_netfilter there is none and the
// bridges' own attributes have no effect either.
func (t *Topology) bridgeCalls(family ruleset.Family) (calls, error) {
	if c, ok := t.look.calls[family]; ok {
		return c, nil
	}
	file := t.files.callIPTables
	if family == ruleset.IPv6 {
		file = t.files.callIP6Tables
	}
	value, err := file.Read()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return calls{}, fmt.Errorf("read whether bridged packets meet the rules: %w", err)
	}
	c := calls{loaded: err == nil, on: err == nil && strings.TrimSpace(value) != "0"}
	if t.look.calls == nil {
		t.look.calls = map[ruleset.Family]calls{}
	}
	t.look.calls[family] = c
	return c, nil
}

// port returns the name of the bridge's port that an address is behind, or ""
// if the node has not learned it: from its neighbours, which hardware address
// has it, and from the bridge, behind which port that is. Both questions are
// for one entry (since Linux 5.0, before that nothing is known).
func (t *Topology) port(bridge int, address netip.Addr) string {
	key := portKey{bridge, address}
	name, ok := t.look.ports[key]
	if ok {
		return name
	}
	if hardware := t.neighbour(bridge, address); hardware != nil {
		name = t.known.links[t.forwarding(bridge, hardware)].name
	}
	if t.look.ports == nil {
		t.look.ports = map[portKey]string{}
	}
	t.look.ports[key] = name
	return name
}

// usable are the states of a neighbour in which its address is believed.
const usable = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY

// ndMsg returns struct ndmsg, linux/neighbour.h.
func ndMsg(family uint8, index int) []byte {
	b := []byte{family, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index)) //nolint:gosec // Interface indices are positive.
	return append(b, 0, 0, 0, 0)
}

// neighbour returns the hardware address of a neighbour, or nil.
func (t *Topology) neighbour(index int, address netip.Addr) []byte {
	var hardware []byte
	request := nlconn.Attribute(ndMsg(familyOf(address), index), unix.NDA_DST, address.AsSlice())
	err := t.conn.Ask(unix.RTM_GETNEIGH, 0, request, func(body []byte) error {
		if len(body) < unix.SizeofNdMsg {
			return errors.New("answer without header")
		}
		if binary.NativeEndian.Uint16(body[8:])&usable == 0 {
			return nil
		}
		return nlconn.Attributes(body[unix.SizeofNdMsg:], func(kind uint16, value []byte) {
			if kind == unix.NDA_LLADDR {
				hardware = bytes.Clone(value)
			}
		})
	})
	if err != nil {
		return nil
	}
	return hardware
}

// forwarding returns the index of the port behind which the bridge has learned
// a hardware address, or 0. The bridge's own address is behind the bridge,
// which is no port.
func (t *Topology) forwarding(bridge int, hardware []byte) int {
	index := 0
	request := nlconn.Attribute(ndMsg(unix.AF_BRIDGE, 0), unix.NDA_LLADDR, hardware)
	request = nlconn.Attribute(request, unix.NDA_MASTER, binary.NativeEndian.AppendUint32(nil, uint32(bridge))) //nolint:gosec // Interface indices are positive.
	err := t.conn.Ask(unix.RTM_GETNEIGH, 0, request, func(body []byte) error {
		if len(body) < unix.SizeofNdMsg {
			return errors.New("answer without header")
		}
		index = int(int32(binary.NativeEndian.Uint32(body[4:]))) //nolint:gosec // The index is a signed number.
		return nil
	})
	if err != nil || index == bridge {
		return 0
	}
	return index
}
