// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtblob

import (
	"github.com/policygate/policygate/agent/ruleset"
)

// What a condition of linux/netfilter/xt_physdev.h asks for.
const (
	physdevIn      = 0x01
	physdevOut     = 0x02
	physdevBridged = 0x04
	physdevIsIn    = 0x08
	physdevIsOut   = 0x10

	physdevKnown = 0x1f
)

// physdevMatch reads xt_physdev_info of linux/netfilter/xt_physdev.h.
func physdevMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 0, data, 66)
	if err != nil {
		return nil, err
	}
	inverted, asked := b[64], b[65]
	if asked == 0 || asked&^physdevKnown != 0 || inverted&^asked != 0 {
		return nil, errFlags
	}
	if inverted&physdevOut != 0 && (asked&physdevBridged == 0 || inverted&physdevBridged != 0) {
		// What this means for a packet that entered by a bridge and leaves it
		// by a route differs between kernels.
		return nil, errFlags
	}
	var all []ruleset.Match
	for _, side := range []struct {
		out          bool
		is, port, at int
	}{{false, physdevIsIn, physdevIn, 0}, {true, physdevIsOut, physdevOut, 32}} {
		if int(asked)&side.is != 0 {
			// There is a port: its name is not the empty one.
			all = append(all, ruleset.BridgePort{Out: side.out, Not: int(inverted)&side.is == 0})
		}
		if int(asked)&side.port == 0 {
			continue
		}
		name, prefix, ok := InterfaceName(b[side.at:side.at+16], b[side.at+16:side.at+32])
		not := int(inverted)&side.port != 0
		switch {
		case !ok:
			return nil, errRange
		case prefix && name == "":
			// Any port, but a port.
			all = append(all, ruleset.BridgePort{Out: side.out, Not: !not})
		default:
			all = append(all, ruleset.BridgePort{Out: side.out, Name: name, Prefix: prefix, Not: not})
		}
	}
	if asked&physdevBridged != 0 {
		all = append(all, ruleset.Bridged{Not: inverted&physdevBridged != 0})
	}
	return all, nil
}

// Flags of linux/netfilter/xt_rpfilter.h. Two more let the packet's mark take
// part in the routing, and let a source be local.
const (
	rpfilterLoose  = 1 << 0
	rpfilterInvert = 1 << 3
)

// rpfilterMatch reads xt_rpfilter_info of linux/netfilter/xt_rpfilter.h.
func rpfilterMatch(revision uint8, data []byte) ([]ruleset.Match, error) {
	b, err := one(revision, 0, data, 1)
	if err != nil {
		return nil, err
	}
	if b[0]&^(rpfilterLoose|rpfilterInvert) != 0 {
		return nil, errFlags
	}
	return []ruleset.Match{ruleset.ReversePath{Loose: b[0]&rpfilterLoose != 0, Not: b[0]&rpfilterInvert != 0}}, nil
}

// headerMatch reads a match on an extension header of IPv6
// (linux/netfilter_ipv6/ip6t_rt.h, _frag.h, _opts.h), which matches no
// packet that does not have the header, however its conditions are inverted.
// The condition on the protocol stands for that: the headers that a packet has
// before the last are none that a flow begins with. The rest is unknown.
func headerMatch(family ruleset.Family, name string, revision uint8, data []byte) ([]ruleset.Match, error) {
	if family != ruleset.IPv6 {
		return nil, errUnknown
	}
	header := map[string]struct {
		number uint8
		size   int
	}{"hbh": {0, 40}, "rt": {43, 280}, "frag": {44, 16}, "dst": {60, 40}}[name]
	if _, err := one(revision, 0, data, header.size); err != nil {
		return nil, err
	}
	return []ruleset.Match{ruleset.Proto{Number: header.number}, ruleset.Unknown{Text: "-m " + name}}, nil
}
