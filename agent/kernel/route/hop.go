// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/api/flow"
)

// hop is where a route leads.
type hop struct {
	link link
	// several: the route has more next hops than this one.
	several bool
	// local: the address is the node's own.
	local bool
	// direct: there is no gateway in between.
	direct bool
	// prefix is what the route is for.
	prefix netip.Prefix
}

// onsite reports whether the address runs on this node.
func (h hop) onsite() bool { return h.local || (h.direct && h.link.onsite()) }

// routeKey is a question for a route: of a packet from src, if valid, that
// came in by the interface iif, if not 0. protocol and port are set where a
// routing rule selects by them.
type routeKey struct {
	dst, src netip.Addr
	iif      int
	mark     uint32
	protocol flow.Protocol
	port     uint16
}

type routeAnswer struct {
	hop hop
	err error
}

// route returns where a route leads, asking the kernel once until something
// changes. The error is ErrNoRoute if the kernel has none.
func (t *Topology) route(key routeKey, f flow.Flow, rules ruleSet) (hop, error) {
	if rules.ports {
		key.protocol, key.port = f.Protocol, f.Port
	}
	if known, ok := t.known.routes[key]; ok {
		return known.hop, known.err
	}
	h, err := t.ask(key)
	if err == nil || errors.Is(err, ErrNoRoute) {
		if len(t.known.routes) >= mostKnown {
			clear(t.known.routes)
		}
		t.known.routes[key] = routeAnswer{h, err}
	}
	return h, err
}

// question returns the request for a route: struct rtmsg and attributes,
// linux/rtnetlink.h. RTM_F_FIB_MATCH asks for the route that was found, not
// for what became of it.
func (k routeKey) question() []byte {
	bits := byte(k.dst.BitLen()) //nolint:gosec // 32 or 128.
	b := []byte{familyOf(k.dst), bits, 0, 0, 0, 0, 0, 0}
	if k.src.IsValid() {
		b[2] = bits
	}
	b = binary.NativeEndian.AppendUint32(b, unix.RTM_F_LOOKUP_TABLE|unix.RTM_F_FIB_MATCH)
	b = nlconn.Attribute(b, unix.RTA_DST, k.dst.AsSlice())
	if k.src.IsValid() {
		b = nlconn.Attribute(b, unix.RTA_SRC, k.src.AsSlice())
	}
	if k.iif != 0 {
		b = nlconn.Attribute(b, unix.RTA_IIF, binary.NativeEndian.AppendUint32(nil, uint32(k.iif))) //nolint:gosec // Interface indices are positive.
	}
	if k.mark != 0 {
		b = nlconn.Attribute(b, unix.RTA_MARK, binary.NativeEndian.AppendUint32(nil, k.mark))
	}
	if k.protocol != 0 {
		b = nlconn.Attribute(b, unix.RTA_IP_PROTO, []byte{byte(k.protocol)})
		b = nlconn.Attribute(b, unix.RTA_DPORT, binary.BigEndian.AppendUint16(nil, k.port))
	}
	return b
}

// ask asks the kernel for a route.
func (t *Topology) ask(key routeKey) (hop, error) {
	var found []foundRoute
	err := t.conn.Ask(unix.RTM_GETROUTE, 0, key.question(), func(body []byte) error {
		r, err := readRoute(body)
		found = append(found, r)
		return err
	})
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) {
		return hop{}, fmt.Errorf("%w: %w", ErrNoRoute, err)
	}
	if err != nil {
		return hop{}, fmt.Errorf("ask for the route: %w", err)
	}
	if len(found) != 1 {
		return hop{}, fmt.Errorf("ask for the route: the kernel gave %d", len(found))
	}
	r := found[0]
	switch r.kind {
	case unix.RTN_UNICAST:
	case unix.RTN_LOCAL:
		return hop{local: true, link: t.known.links[r.outIndex]}, nil
	default:
		return hop{}, fmt.Errorf("%w: the route is of type %d", ErrNoRoute, r.kind)
	}
	h := hop{several: r.hops > 1, direct: !r.gateway}
	var known bool
	if h.link, known = t.known.links[r.outIndex]; !known {
		return hop{}, fmt.Errorf("interface %d of the route is not known", r.outIndex)
	}
	if h.prefix, err = key.dst.Prefix(r.bits); err != nil {
		return hop{}, fmt.Errorf("ask for the route: %w", err)
	}
	return h, nil
}

// foundRoute is a route as the kernel gives it.
type foundRoute struct {
	kind uint8
	bits int
	// outIndex is the index of the output interface: that of the first next
	// hop if there are several, 0 if the kernel does not say.
	outIndex int
	gateway  bool
	hops     int
}

// readRoute reads one answer.
func readRoute(body []byte) (foundRoute, error) {
	if len(body) < unix.SizeofRtMsg {
		return foundRoute{}, errors.New("answer without header")
	}
	r := foundRoute{kind: body[7], bits: int(body[1])}
	var nested error
	err := nlconn.Attributes(body[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.RTA_OIF:
			if len(value) >= 4 {
				r.outIndex = int(int32(binary.NativeEndian.Uint32(value))) //nolint:gosec // The index is a signed number.
			}
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			r.gateway = true
		case unix.RTA_MULTIPATH:
			nested = r.nextHops(value)
		}
	})
	return r, errors.Join(err, nested)
}

// nextHops reads the next hops of a route that has several: struct rtnexthop,
// each with attributes behind it.
func (r *foundRoute) nextHops(b []byte) error {
	for len(b) >= unix.SizeofRtNexthop {
		length := int(binary.NativeEndian.Uint16(b))
		if length < unix.SizeofRtNexthop || length > len(b) {
			return fmt.Errorf("next hop of %d bytes in %d", length, len(b))
		}
		if r.hops++; r.hops == 1 {
			r.outIndex = int(int32(binary.NativeEndian.Uint32(b[4:]))) //nolint:gosec // The index is a signed number.
			err := nlconn.Attributes(b[unix.SizeofRtNexthop:length], func(kind uint16, _ []byte) {
				r.gateway = r.gateway || kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA
			})
			if err != nil {
				return err
			}
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return nil
}
