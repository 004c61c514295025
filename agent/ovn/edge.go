// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/internal/ovs/ovsdb"
	"github.com/policygate/policygate/internal/ovs/unixctl"
)

// Connector returns how to connect to the ovs-vswitchd whose run directory that
// is, for Options.Connect.
func Connector(runDir string, c clock.PassiveClock) func(context.Context) (Session, error) {
	return func(ctx context.Context) (Session, error) {
		s, err := unixctl.Connect(ctx, unixctl.Options{RunDir: runDir, Clock: c})
		if err != nil {
			return nil, err
		}
		return vswitchd{s}, nil
	}
}

// vswitchd is a session as a Dataplane consumes it.
type vswitchd struct{ *unixctl.Session }

// WaitRevalidators implements Session.
func (v vswitchd) WaitRevalidators(ctx context.Context) error {
	err := v.Session.WaitRevalidators(ctx)
	if errors.Is(err, unixctl.ErrSeveralDatapaths) {
		return ErrSeveralDatapaths
	}
	return err
}

// DatabaseName is that of the local Open vSwitch database.
const DatabaseName = "Open_vSwitch"

// Tables are those that View reads.
func Tables() []ovsdb.Table {
	return []ovsdb.Table{
		{Name: "Bridge", Columns: []ovsdb.Column{
			{Name: "name", As: ovsdb.String}, {Name: "ports", As: ovsdb.UUIDs}, {Name: "external_ids", As: ovsdb.Map},
		}},
		{Name: "Port", Columns: []ovsdb.Column{{Name: "interfaces", As: ovsdb.UUIDs}}},
		{Name: "Interface", Columns: []ovsdb.Column{
			{Name: "name", As: ovsdb.String}, {Name: "type", As: ovsdb.String}, {Name: "ofport", As: ovsdb.Int},
			{Name: "mac_in_use", As: ovsdb.String}, {Name: "external_ids", As: ovsdb.Map},
		}},
	}
}

// View is the database as a client for Tables sees it. It is safe for
// concurrent use.
type View struct {
	client *ovsdb.Client
	last   atomic.Pointer[State]
}

// NewView returns the client's view.
func NewView(client *ovsdb.Client) *View { return &View{client: client} }

// State implements Database.
func (v *View) State() (State, error) {
	view, err := v.client.View()
	if err != nil {
		return State{}, err
	}
	last := v.last.Load()
	if last == nil || last.Version != view.Version {
		made := stateOf(view)
		last = &made
		v.last.Store(last)
	}
	return *last, nil
}

func stateOf(view *ovsdb.View) State {
	s := State{Session: view.Session, Version: view.Version}
	for row := range view.Rows("Bridge") {
		if row.String("name") != bridge {
			continue
		}
		s.Bridge = true
		s.Acknowledged, _ = row.Key("external_ids", "ovn-nb-cfg")
		for _, id := range row.UUIDs("ports") {
			port, ok := view.Get("Port", id)
			if !ok {
				continue
			}
			for _, id := range port.UUIDs("interfaces") {
				if i, ok := view.Get("Interface", id); ok {
					s.Interfaces = append(s.Interfaces, interfaceOf(i))
				}
			}
		}
	}
	return s
}

func interfaceOf(row *ovsdb.Row) Interface {
	return Interface{
		UUID: string(row.UUID()), Name: row.String("name"), Type: row.String("type"),
		MAC: row.String("mac_in_use"), OFPort: row.Int("ofport"), ExternalIDs: row.Map("external_ids"),
	}
}

// KernelRoutes are those of the network namespace of the calling thread.
type KernelRoutes struct{}

// NextHop implements Routes.
func (KernelRoutes) NextHop(device string, to netip.Addr) (hop, own netip.Addr, err error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return hop, own, fmt.Errorf("find %s: %w", device, err)
	}
	family := netlink.FAMILY_V4
	if to.Is6() {
		family = netlink.FAMILY_V6
	}
	routes, err := netlink.RouteList(link, family)
	if err != nil {
		return hop, own, fmt.Errorf("list the routes of %s: %w", device, err)
	}
	// The most specific first, the default last.
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return length(b) - length(a) })
	for _, r := range routes {
		gateway, ok := netip.AddrFromSlice(r.Gw)
		if ok && (r.Dst == nil || r.Dst.Contains(net.IP(to.AsSlice()))) {
			hop = gateway.Unmap()
			break
		}
	}
	if !hop.IsValid() {
		return hop, own, fmt.Errorf("no route to %s by %s has a next hop", to, device)
	}
	addresses, err := netlink.AddrList(link, family)
	if err != nil {
		return hop, own, fmt.Errorf("list the addresses of %s: %w", device, err)
	}
	for _, a := range addresses {
		if a.Contains(net.IP(hop.AsSlice())) {
			if own, ok := netip.AddrFromSlice(a.IP); ok {
				return hop, own.Unmap(), nil
			}
		}
	}
	return hop, own, fmt.Errorf("%s has no address in the subnet of %s", device, hop)
}

func length(r netlink.Route) int {
	if r.Dst == nil {
		return -1
	}
	ones, _ := r.Dst.Mask.Size()
	return ones
}
