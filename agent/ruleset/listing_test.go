// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/policygate/policygate/agent/ruleset"
)

func TestOnlyRulesThatTheHeaderKeepsFromMatchingArePassedOver(t *testing.T) {
	const src, dst = ruleset.Src, ruleset.Dst
	addr := func(d ruleset.Direction, ip, mask string, not bool) ruleset.Match {
		return ruleset.Addr{Dir: d, Addr: netip.MustParseAddr(ip), Mask: netip.MustParseAddr(mask), Not: not}
	}
	const all, all6 = "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
	v4 := ruleset.NewHeader(netip.MustParseAddr("10.0.1.1"), netip.MustParseAddr("10.0.2.2"), 6, 80)
	v6 := ruleset.NewHeader(netip.MustParseAddr("fd00:1::1"), netip.MustParseAddr("fd00:2::2"), 6, 80)
	for name, c := range map[string]struct {
		header ruleset.Header
		match  ruleset.Match
		passed bool
	}{
		"its source":                       {v4, addr(src, "10.0.1.1", all, false), false},
		"its source's network":             {v4, addr(src, "10.0.0.0", "255.255.0.0", false), false},
		"its destination":                  {v4, addr(dst, "10.0.2.2", all, false), false},
		"another source":                   {v4, addr(src, "10.0.1.2", all, false), true},
		"another source, negated":          {v4, addr(src, "10.0.1.2", all, true), false},
		"its own source, negated":          {v4, addr(src, "10.0.1.1", all, true), false},
		"another destination":              {v4, addr(dst, "10.0.1.1", all, false), true},
		"another source of any":            {v4.AnySource(), addr(src, "10.0.1.2", all, false), false},
		"another destination of any":       {v4.AnySource(), addr(dst, "10.0.1.2", all, false), true},
		"an IPv6 source":                   {v6, addr(src, "fd00:1::1", all6, false), false},
		"another IPv6 source":              {v6, addr(src, "fd00:1::2", all6, false), true},
		"an IPv6 network":                  {v6, addr(dst, "fd00:2::", "ffff:ffff::", false), false},
		"another, which costs a look":      {v6, addr(dst, "fd00:3::", "ffff:ffff::", false), false},
		"the protocol":                     {v4, ruleset.Proto{Number: 6}, false},
		"another protocol":                 {v4, ruleset.Proto{Number: 17}, true},
		"another protocol, negated":        {v4, ruleset.Proto{Number: 17, Not: true}, false},
		"the port":                         {v4, ruleset.Ports{Dir: dst, Ranges: []ruleset.PortRange{{From: 80, To: 80}}}, false},
		"a range around the port":          {v4, ruleset.Ports{Dir: dst, Ranges: []ruleset.PortRange{{From: 1, To: 65535}}}, false},
		"another port":                     {v4, ruleset.Ports{Dir: dst, Ranges: []ruleset.PortRange{{From: 81, To: 90}}}, true},
		"another port, negated":            {v4, ruleset.Ports{Dir: dst, Ranges: []ruleset.PortRange{{From: 81, To: 90}}, Not: true}, false},
		"another source port":              {v4, ruleset.Ports{Dir: src, Ranges: []ruleset.PortRange{{From: 81, To: 90}}}, false},
		"either port":                      {v4, ruleset.Ports{Dir: ruleset.Either, Ranges: []ruleset.PortRange{{From: 81, To: 90}}}, false},
		"several ports, which cost a look": {v4, ruleset.Ports{Dir: dst, Ranges: []ruleset.PortRange{{From: 1, To: 2}, {From: 81, To: 90}}}, false},
		"what is no header's":              {v4, ruleset.Unknown{Text: "x"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			chain := ruleset.Chain{Rules: []ruleset.Rule{
				{Matches: []ruleset.Match{ruleset.Proto{Number: 1}}},
				{Matches: []ruleset.Match{ruleset.Unknown{Text: "first"}, c.match}},
				{},
			}}
			listing, err := chain.Listing()
			if err != nil {
				t.Fatal(err)
			}
			want := 1
			if c.passed {
				want = 2
			}
			if got := listing.Next(&c.header, 0); got != want {
				t.Errorf("the next rule is %d, want %d", got, want)
			}
			if got := listing.Next(&c.header, 2); got != 2 {
				t.Errorf("from 2 on the next rule is %d, want 2", got)
			}
			if got := listing.Next(&c.header, 3); got != 3 {
				t.Errorf("after the last rule comes %d, want 3", got)
			}
		})
	}
}

func TestAnErrorIsNotRemembered(t *testing.T) {
	tries := 0
	chain := ruleset.Chain{Read: func() ([]ruleset.Rule, error) {
		if tries++; tries == 1 {
			return nil, errors.New("not now")
		}
		return []ruleset.Rule{{}}, nil
	}}
	if _, err := chain.Listing(); err == nil {
		t.Error("the first reading has no error")
	}
	for range 2 {
		if listing, err := chain.Listing(); err != nil || len(listing.Rules) != 1 {
			t.Errorf("got %v, %v; want one rule", listing, err)
		}
	}
	if tries != 2 {
		t.Errorf("read %d times, want 2", tries)
	}
}
