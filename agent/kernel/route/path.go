// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package route answers which way a flow takes through the node: by its
// interfaces, addresses, routes and bridges. It also says what of them makes
// the node's dataplane one that netfilter's rules do not decide. It evaluates
// no rule.
package route

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// ErrNoRoute means that the node would not carry a flow at all, so that no
// rule of it judges the flow.
var ErrNoRoute = errors.New("NoRoute")

// Topology is what one look knows of interfaces, addresses and routes. Routes
// are asked for one by one, when a flow needs them.
type Topology struct {
	handle    *netlink.Handle
	links     map[int]link
	addresses addresses
	// ipvs: virtual servers may send a forwarded flow through output.
	ipvs bool
}

// Reader reads the node's topology. It is safe for concurrent use.
type Reader struct {
	conn   *nlconn.Conn
	handle *netlink.Handle
	// proc is the directory with ip_vs.
	proc string
}

// New opens the topology of the network namespace of the calling thread. Close
// frees it.
func New(proc string) (*Reader, error) {
	conn, err := nlconn.Dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open route netlink: %w", err), conn.Close())
	}
	return &Reader{conn: conn, handle: handle, proc: proc}, nil
}

// Close frees the sockets.
func (r *Reader) Close() error {
	r.handle.Close()
	return r.conn.Close()
}

// Read returns the topology as it is now, whole or an error.
func (r *Reader) Read() (*Topology, error) {
	links, err := readLinks(r.conn)
	if err != nil {
		return nil, err
	}
	addresses, err := readAddresses(r.handle)
	if err != nil {
		return nil, err
	}
	servers, err := os.ReadFile(filepath.Join(r.proc, "ip_vs"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read virtual servers: %w", err)
	}
	// Three lines of heading.
	ipvs := strings.Count(string(servers), "\n") > 3
	return &Topology{handle: r.handle, links: links, addresses: addresses, ipvs: ipvs}, nil
}

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

// Paths returns the ways that a flow may take through the node: one, or two
// if the node's virtual servers may have chosen it. The error is ErrNoRoute
// if the flow is not carried.
func (t *Topology) Paths(f flow.Flow) ([]trace.Path, error) {
	back, err := t.route(f.Src, netip.Addr{}, 0)
	if err != nil {
		return nil, fmt.Errorf("route to source %s: %w", f.Src, err)
	}
	p := trace.Path{Way: trace.Forwarded, SrcType: t.addresses.of(f.Src), DstType: t.addresses.of(f.Dst)}
	iif, src := back.link.index, f.Src
	if back.local {
		p.Way, iif = trace.Sent, 0
	}
	to, err := t.route(f.Dst, src, iif)
	if err != nil {
		return nil, fmt.Errorf("route to %s: %w", f.Dst, err)
	}
	if back.local && to.local {
		return nil, errors.New("source and destination are both the node's own addresses")
	}
	if to.local {
		p.Way = trace.Delivered
	}
	if p.Way != trace.Sent {
		p.In, p.InUnknown = back.link.name, back.several
	}
	if p.Way != trace.Delivered {
		p.Out, p.OutUnknown = to.link.name, to.several
	}
	p.OnBridge = (p.Way != trace.Sent && back.link.kind == "bridge") || (p.Way != trace.Delivered && to.link.kind == "bridge")
	// What leaves by the default route leaves the cluster, where nobody of
	// us judges it again.
	p.Onward = p.Way != trace.Delivered && back.onsite() && !to.onsite() && to.prefix.Bits() > 0
	p.Bridged = trace.No
	if p.Way == trace.Forwarded && sameSegment(back, to) {
		if p.Bridged, p.Unseen, err = bridged(back.link, f); err != nil {
			return nil, err
		}
	}
	paths := []trace.Path{p}
	if t.ipvs && p.Way == trace.Forwarded && p.Unseen == "" && back.onsite() {
		out := p
		out.Way, out.In, out.InUnknown, out.Bridged = trace.Sent, "", false, trace.No
		paths = append(paths, out)
	}
	return paths, nil
}

// sameSegment reports whether both ends are behind one bridge and in one
// subnet of it: then the frames go from port to port and are not routed.
func sameSegment(a, b hop) bool {
	return a.link.kind == "bridge" && a.link.index == b.link.index && a.direct && b.direct &&
		!a.several && !b.several && a.prefix == b.prefix
}

// bridged returns whether the IP hooks see a packet that the bridge passes on.
func bridged(l link, f flow.Flow) (is trace.Ternary, unseen string, err error) {
	family, own := ruleset.IPv4, l.callIPTables
	if f.Dst.Is6() {
		family, own = ruleset.IPv6, l.callIP6Tables
	}
	loaded, all, err := bridgeCalls(family)
	if err != nil {
		return trace.Unknown, "", err
	}
	if loaded && (all || own) {
		return trace.Yes, "", nil
	}
	return trace.Yes, "bridge " + l.name + " passes it on without asking any rule (bridge-nf-call is off)", nil
}

// route asks the kernel for the route of a packet from src, if valid, that
// came in by the interface iif, if not 0.
func (t *Topology) route(dst, src netip.Addr, iif int) (hop, error) {
	options := &netlink.RouteGetOptions{FIBMatch: true, IifIndex: iif}
	if src.IsValid() {
		options.SrcAddr = src.AsSlice()
	}
	routes, err := t.handle.RouteGetWithOptions(dst.AsSlice(), options)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) {
		return hop{}, fmt.Errorf("%w: %w", ErrNoRoute, err)
	}
	if err != nil {
		return hop{}, fmt.Errorf("ask for the route: %w", err)
	}
	if len(routes) != 1 {
		return hop{}, fmt.Errorf("ask for the route: the kernel gave %d", len(routes))
	}
	r := routes[0]
	switch r.Type {
	case unix.RTN_UNICAST:
	case unix.RTN_LOCAL:
		return hop{local: true, link: t.links[r.LinkIndex]}, nil
	default:
		return hop{}, fmt.Errorf("%w: the route is of type %d", ErrNoRoute, r.Type)
	}
	h := hop{several: len(r.MultiPath) > 1, direct: r.Gw == nil && r.Via == nil}
	index := r.LinkIndex
	if len(r.MultiPath) > 0 {
		next := r.MultiPath[0]
		index, h.direct = next.LinkIndex, next.Gw == nil && next.Via == nil
	}
	var known bool
	if h.link, known = t.links[index]; !known {
		return hop{}, fmt.Errorf("interface %d of the route appeared during the look", index)
	}
	h.prefix = netip.PrefixFrom(dst, 0)
	if r.Dst != nil {
		bits, _ := r.Dst.Mask.Size()
		h.prefix = netip.PrefixFrom(dst, bits)
	}
	h.prefix = h.prefix.Masked()
	return h, nil
}
