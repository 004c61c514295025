// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package northbound

import (
	"strings"
	"testing"

	"github.com/policygate/policygate/api/flow"
)

func TestVerdict(t *testing.T) {
	t.Parallel()
	fromClient, fromOther := tcp(client, server, 80), tcp(other, server, 80)
	tests := map[string]struct {
		change func(*database)
		flow   flow.Flow
		want   flow.Answer
		reason string
	}{
		"a peer is let in": {flow: fromClient, want: flow.Allowed, reason: "allowed by ACL np/np.db/ingress/IPv4/0 of port group np.db"},
		"a stranger is not": {
			flow: fromOther, want: flow.Denied,
			reason: "dropped by ACL db/np of port group np.db; no ACL allows it: address set " + allowSet + " lacks " + other,
		},
		"a peer is refused on another port": {
			flow: tcp(client, server, 81), want: flow.Denied, reason: "none of 1 ACLs that allow something does tcp port 81",
		},
		"a Pod that no policy selects is open": {
			flow: tcp(client, other, 80), want: flow.Allowed,
			reason: "logical port oth.x is in no port group that denies",
		},
		"a Pod without a port is judged at the other end": {
			change: func(d *database) { d.drop(tablePort, "cli.db") }, flow: fromClient, want: flow.Allowed,
			reason: "no logical port has the address 10.16.0.6 (yet); to-lport: allowed by ACL",
		},
		"so is one that the policy is for, and is open": {
			change: func(d *database) { d.drop(tablePort, "srv.db") }, flow: fromOther, want: flow.Allowed,
			reason: "no logical port has the address 10.16.0.5 (yet)",
		},
		"two Pods without ports are judged by nobody": {
			flow: tcp("10.16.1.1", "10.16.1.2", 80), want: flow.Inconclusive, reason: flow.NoRoute + ": no logical port has",
		},
		"a port that its policy's group lacks is open": {
			change: func(d *database) { d.group("np", "db", nil, []string{"drop", "allow"}) }, flow: fromOther, want: flow.Allowed,
			reason: "logical port srv.db is in no port group that denies; that of a policy of its namespace lacks it: np.db",
		},
		"a group without ACLs lets everybody in": {
			change: func(d *database) { d.group("np", "db", []string{"srv.db"}, nil) }, flow: fromOther, want: flow.Allowed,
			reason: "the ACLs are missing: port group np.db has none",
		},
		"a group without an ACL that allows lets nobody in": {
			change: func(d *database) { d.group("np", "db", []string{"srv.db"}, []string{"drop"}) }, flow: fromClient, want: flow.Denied,
			reason: "no ACL of its port groups allows anything in this direction",
		},
		"an address that is excepted is named": {
			change: func(d *database) { d.set(exceptSet, "db/np/ingress", client) }, flow: fromClient, want: flow.Denied,
			reason: "address set " + exceptSet + " excepts " + client,
		},
		"a range in a set holds its addresses": {
			change: func(d *database) { d.set(allowSet, "db/np/ingress", "10.16.0.6/31") }, flow: fromOther, want: flow.Allowed,
		},
		"an address set that does not exist": {
			change: func(d *database) { d.drop(tableAddress, allowSet) }, flow: fromClient, want: flow.Inconclusive,
			reason: "may match:",
		},
		"but what it cannot change is known": {
			change: func(d *database) { d.drop(tableAddress, allowSet) }, flow: tcp(client, server, 81), want: flow.Denied,
		},
		"two ports with one address": {
			change: func(d *database) { d.port("twin", "db", server) }, flow: fromClient, want: flow.Inconclusive,
			reason: "2 logical ports have the address 10.16.0.5",
		},
		"a port that is disabled": {
			change: func(d *database) { d.with(tablePort, "srv.db", map[string]any{"enabled": false}) }, flow: fromClient,
			want: flow.Inconclusive, reason: "srv.db with the address 10.16.0.5 is disabled",
		},
		"a port that is enabled in so many words": {
			change: func(d *database) { d.with(tablePort, "srv.db", map[string]any{"enabled": true}) }, flow: fromClient, want: flow.Allowed,
		},
		"a port of another type": {
			change: func(d *database) { d.with(tablePort, "srv.db", map[string]any{"type": "virtual"}) }, flow: fromClient,
			want: flow.Inconclusive, reason: `of type "virtual"`,
		},
		"a port of no switch": {
			change: func(d *database) { d.logicalSwitch("ovn-default", "cli.db", "oth.x") }, flow: fromClient,
			want: flow.Inconclusive, reason: "of no logical switch",
		},
		"a dynamic address": {
			change: func(d *database) {
				d.with(tablePort, "cli.db", map[string]any{"addresses": []string{"dynamic"}, "dynamic_addresses": "0a:00:00:00:00:06 10.16.0.9"})
				d.set(allowSet, "db/np/ingress", "10.16.0.9")
			}, flow: tcp("10.16.0.9", server, 80), want: flow.Allowed, reason: "from-lport: logical port cli.db",
		},
		"ACLs of one priority that contradict each other": {
			change: func(d *database) { d.with(tableACL, "allow", map[string]any{"priority": 2000}) }, flow: fromClient,
			want: flow.Inconclusive, reason: "ACLs of priority 2000 that match do different things",
		},
		"a drop of an earlier tier comes before a higher priority": {
			change: func(d *database) { d.with(tableACL, "allow", map[string]any{"tier": 2}) }, flow: fromClient, want: flow.Denied,
		},
		"an earlier tier that passes leaves it to the next": {
			change: func(d *database) {
				for _, a := range []string{"drop", "allow"} {
					d.with(tableACL, a, map[string]any{"tier": 2})
				}
				d.acl("pass", "", "to-lport", 1, "outport == @np.db && ip4", "pass")
				d.group("np", "db", []string{"srv.db"}, []string{"drop", "allow", "pass"})
			}, flow: fromOther, want: flow.Denied,
		},
		"a pass skips the rest of its tier": {
			change: func(d *database) {
				d.acl("pass", "", "to-lport", 3000, "outport == @np.db && ip4", "pass")
				d.group("np", "db", []string{"srv.db"}, []string{"drop", "allow", "pass"})
			}, flow: fromOther, want: flow.Allowed,
		},
		"an action that is not known": {
			change: func(d *database) { d.with(tableACL, "allow", map[string]any{"action": "mirror"}) }, flow: fromClient,
			want: flow.Inconclusive, reason: `what ACL np/np.db/ingress/IPv4/0 of port group np.db does is not known: "to-lport" "mirror"`,
		},
		"a reject denies": {
			change: func(d *database) { d.with(tableACL, "drop", map[string]any{"action": "reject"}) }, flow: fromOther, want: flow.Denied,
		},
		"a drop whose match is not understood": {
			change: func(d *database) { d.with(tableACL, "drop", map[string]any{"match": "outport == @np.db && ct.new"}) }, flow: fromOther,
			want: flow.Inconclusive, reason: "ACL db/np of port group np.db may match: ct.new",
		},
		"beside an allow that is": {
			change: func(d *database) { d.with(tableACL, "drop", map[string]any{"match": "outport == @np.db && ct.new"}) }, flow: fromClient,
			want: flow.Allowed,
		},
		"a drop whose match cannot be read": {
			change: func(d *database) { d.with(tableACL, "drop", map[string]any{"match": "outport == @np.db &&"}) }, flow: fromOther,
			want: flow.Inconclusive, reason: "cannot be read",
		},
		"a stateless ACL may precede a drop": {
			change: func(d *database) {
				d.acl("stateless", "", "to-lport", 1, "outport == @np.db && tcp", "allow-stateless")
				d.group("np", "db", []string{"srv.db"}, []string{"drop", "allow", "stateless"})
			}, flow: fromOther, want: flow.Inconclusive, reason: "stateless",
		},
		"that for neighbour discovery has no part in it": {
			change: func(d *database) {
				d.acl("icmp6", "", "to-lport", 2001, "icmp6", "allow-stateless")
				d.group("np", "db", []string{"srv.db"}, []string{"drop", "allow", "icmp6"})
			}, flow: fromOther, want: flow.Denied,
		},
		"what no ACL decides while there is a default": {
			change: func(d *database) {
				d.put(tableGlobal, "global", map[string]any{"options": map[string]string{"default_acl_drop": "true"}})
			}, flow: tcp(client, other, 80), want: flow.Inconclusive, reason: "default_acl_drop",
		},
		"a drop of egress": {
			change: func(d *database) {
				d.acl("egress", "db/eg", "from-lport", 2000, "inport == @eg.db && ip", "drop")
				d.group("eg", "db", []string{"cli.db"}, []string{"egress"})
			}, flow: fromClient, want: flow.Denied, reason: "from-lport: dropped by ACL db/eg of port group eg.db",
		},
		"the first stage of egress is not the second's": {
			change: func(d *database) {
				d.acl("before", "db/eg", "from-lport", 1, "inport == @eg.db && ip", "drop")
				d.with(tableACL, "before", map[string]any{"options": map[string]string(nil)})
				d.acl("behind", "db/eg", "from-lport", 2000, "inport == @eg.db && ip", "allow")
				d.group("eg", "db", []string{"cli.db"}, []string{"before", "behind"})
			}, flow: fromClient, want: flow.Denied,
		},
		"an ACL of the switch judges all its ports": {
			change: func(d *database) {
				d.acl("private", "", "to-lport", 3000, "ip4.src == 10.16.0.0/16", "drop")
				d.with(tableSwitch, "ovn-default", map[string]any{"acls": []string{"private"}})
			}, flow: fromClient, want: flow.Denied, reason: "3000 ip4.src == 10.16.0.0/16",
		},
		"an ACL of a group judges all ports of its switches": {
			change: func(d *database) {
				d.acl("node", "", "to-lport", 3000, "ip4.src == 10.16.0.7 && ip4.dst == $node.n1_ip4", "allow-related")
				d.put(tableGroup, "node.n1", map[string]any{"name": "node.n1", "ports": []string{"srv.db"}, "acls": []string{"node"}})
			}, flow: fromOther, want: flow.Allowed, reason: "allowed by ACL 3000",
		},
		"but none of other switches": {
			change: func(d *database) {
				d.acl("node", "", "to-lport", 3000, "ip4.src == 10.16.0.7", "allow-related")
				d.port("far", "x", "10.17.0.1")
				d.logicalSwitch("far", "far.x")
				d.put(tableGroup, "node.n1", map[string]any{"name": "node.n1", "ports": []string{"far.x"}, "acls": []string{"node"}})
			}, flow: fromOther, want: flow.Denied,
		},
		"what a switch drops on the way to a router": {
			change: func(d *database) {
				d.port("far", "x", "10.17.0.1")
				d.logicalSwitch("far", "far.x")
				d.acl("private", "", "to-lport", 1000, "ip", "drop")
				d.with(tableSwitch, "ovn-default", map[string]any{"acls": []string{"private"}})
			}, flow: tcp(client, "10.17.0.1", 80), want: flow.Denied,
		},
		"what a switch drops as it comes from a router": {
			change: func(d *database) {
				d.acl("private", "", "from-lport", 1000, "ip4.src == 192.0.2.0/24", "drop")
				d.with(tableSwitch, "ovn-default", map[string]any{"acls": []string{"private"}})
			}, flow: tcp("192.0.2.1", other, 80), want: flow.Denied,
		},
		"a flow that is none":  {flow: tcp(client, server, 0), want: flow.Inconclusive, reason: "port 0"},
		"words of other kinds": {change: func(d *database) { d.with(tableACL, "drop", map[string]any{"name": "d\x1b[31m\xff"}) }, flow: fromOther, want: flow.Denied, reason: "ACL d?[31m?"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := example()
			if test.change != nil {
				test.change(d)
			}
			f := newFollower()
			f.follow(d.view)
			got := f.model.verdict(test.flow)
			if got.Answer != test.want || !strings.Contains(got.Reason, test.reason) || got.Reason == "" {
				t.Errorf("%s: %s\nwant %s with %q", test.flow, got, test.want, test.reason)
			}
		})
	}
}
