// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// link is an interface of the node.
type link struct {
	index int
	name  string
	// kind is the driver's, "" for a device of hardware.
	kind string
	// xdp: an XDP program sees the interface's packets first.
	xdp bool
	// master is the index of the bridge, or the like, that it is a port of, or 0.
	master int
	// callIPTables and callIP6Tables are a bridge's own attributes.
	callIPTables, callIP6Tables bool
}

// onsite reports whether what is directly behind the interface runs on this
// node: containers are behind veths, bridges and netkits, virtual machines
// behind taps. Neighbours behind hardware and tunnels are other nodes.
func (l link) onsite() bool {
	switch l.kind {
	case "veth", "bridge", "netkit", "tun":
		return true
	}
	return false
}

// readLinks lists the interfaces of the namespace.
func readLinks(c *nlconn.Conn) (map[int]link, error) {
	links := map[int]link{}
	request := make([]byte, unix.SizeofIfInfomsg)
	err := c.Ask(unix.RTM_GETLINK, unix.NLM_F_DUMP, request, func(body []byte) error {
		if len(body) < unix.SizeofIfInfomsg {
			return errors.New("answer without header")
		}
		l := link{index: int(int32(binary.NativeEndian.Uint32(body[4:])))} //nolint:gosec // The index is a signed number.
		var nested error
		err := nlconn.Attributes(body[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
			switch kind {
			case unix.IFLA_IFNAME:
				l.name = nlconn.Text(value)
			case unix.IFLA_MASTER:
				if len(value) == 4 {
					l.master = int(int32(binary.NativeEndian.Uint32(value))) //nolint:gosec // The index is a signed number.
				}
			case unix.IFLA_LINKINFO:
				nested = errors.Join(nested, l.info(value))
			case unix.IFLA_XDP:
				nested = errors.Join(nested, nlconn.Attributes(value, func(kind uint16, value []byte) {
					if kind == unix.IFLA_XDP_ATTACHED && len(value) > 0 {
						l.xdp = value[0] != 0 // XDP_ATTACHED_NONE
					}
				}))
			}
		})
		links[l.index] = l
		return errors.Join(err, nested)
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	return links, nil
}

func (l *link) info(b []byte) error {
	var nested error
	err := nlconn.Attributes(b, func(kind uint16, value []byte) {
		switch kind {
		case unix.IFLA_INFO_KIND:
			l.kind = nlconn.Text(value)
		case unix.IFLA_INFO_DATA:
			if l.kind != "bridge" {
				return
			}
			nested = nlconn.Attributes(value, func(kind uint16, value []byte) {
				on := len(value) > 0 && value[0] != 0
				switch kind {
				case unix.IFLA_BR_NF_CALL_IPTABLES:
					l.callIPTables = on
				case unix.IFLA_BR_NF_CALL_IP6TABLES:
					l.callIP6Tables = on
				}
			})
		}
	})
	return errors.Join(err, nested)
}

// localTable is the kernel's routing table of its own addresses (RT_TABLE_LOCAL).
const localTable = 255

// addresses knows the types of addresses as the addrtype match does.
type addresses struct {
	types map[netip.Prefix]ruleset.AddrTypes
	// lengths are the prefix lengths in types, by family.
	lengths4, lengths6 map[int]bool
}

func readAddresses(h *netlink.Handle) (addresses, error) {
	a := addresses{types: map[netip.Prefix]ruleset.AddrTypes{}, lengths4: map[int]bool{}, lengths6: map[int]bool{}}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Table: localTable}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return a, fmt.Errorf("list local addresses: %w", err)
		}
		for _, r := range routes {
			a.add(r)
		}
	}
	return a, nil
}

func (a *addresses) add(r netlink.Route) {
	var kind ruleset.AddrTypes
	switch r.Type {
	case unix.RTN_LOCAL:
		kind = ruleset.Local
	case unix.RTN_BROADCAST:
		kind = ruleset.Broadcast
	case unix.RTN_ANYCAST:
		kind = ruleset.Anycast
	default:
		return
	}
	if r.Dst == nil {
		return
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	if !ok {
		return
	}
	addr = addr.Unmap()
	lengths := a.lengths6
	if addr.Is4() {
		lengths = a.lengths4
	}
	lengths[bits] = true
	a.types[netip.PrefixFrom(addr, bits).Masked()] = kind
}

// of returns the types of an address. For IPv4 the kernel looks into the
// local table only and gives one type; for IPv6 unicast is a property of the
// address and goes with local.
func (a *addresses) of(ip netip.Addr) ruleset.AddrTypes {
	if ip.IsMulticast() {
		return ruleset.Multicast
	}
	lengths := a.lengths6
	if ip.Is4() {
		lengths = a.lengths4
		if b := ip.As4(); b[0] == 0 || b == [4]byte{255, 255, 255, 255} {
			return ruleset.Broadcast
		}
	}
	for bits := ip.BitLen(); bits > 0; bits-- {
		if !lengths[bits] {
			continue
		}
		prefix, err := ip.Prefix(bits)
		if err != nil {
			continue
		}
		if kind := a.types[prefix]; kind != 0 {
			if ip.Is4() {
				return kind
			}
			return kind | ruleset.Unicast
		}
	}
	return ruleset.Unicast
}
