// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovn

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Shapes of both datapaths, as `format_odp_actions` of Open vSwitch prints them.
func TestDatapathActions(t *testing.T) {
	for name, tc := range map[string]struct {
		actions string
		want    effect
		err     string
	}{
		"drop":                                 {actions: "drop", want: effect{drop: true}},
		"a port":                               {actions: "3", want: effect{outputs: 1}},
		"connection tracking":                  {actions: "ct(zone=8),recirc(0x1)", want: effect{recirculations: []string{"0x1"}}},
		"a commit with all":                    {actions: "ct(commit,zone=8,mark=0/0x1,label=0/0x1,timeout=x,nat(src)),ct_clear,2", want: effect{outputs: 1}},
		"an existing mapping":                  {actions: "ct(zone=11,nat),recirc(0x2)", want: effect{recirculations: []string{"0x2"}}},
		"the kernel's tunnel":                  {actions: "set(tunnel(tun_id=0x2,dst=172.30.0.2,ttl=64,tp_dst=6081,geneve({class=0x102,type=0x80,len=4,0x20003}),flags(df|csum|key))),3", want: effect{outputs: 1}},
		"the userspace tunnel":                 {actions: "tnl_push(tnl_port(3),header(size=58,type=5,eth(dst=16:2a:cf:ad:b2:47)),out_port(2)),4", want: effect{outputs: 1}},
		"a tunnel in a clone":                  {actions: "clone(tnl_push(tnl_port(3),header(size=58),out_port(2)),4)", want: effect{outputs: 1}},
		"a clone that returns":                 {actions: "clone(ct(commit,zone=1),recirc(0x7)),5", want: effect{outputs: 1, recirculations: []string{"0x7"}}},
		"routed":                               {actions: "set(eth(src=00:00:00:00:10:03,dst=0a:00:00:00:01:09)),set(ipv4(ttl=63)),8", want: effect{outputs: 1}},
		"routed, IPv6":                         {actions: "set(eth(src=00:00:00:00:10:03)),set(ipv6(hlimit=63)),8", want: effect{outputs: 1}},
		"a VLAN":                               {actions: "push_vlan(vid=10,pcp=0),2,pop_vlan", want: effect{outputs: 1}},
		"a copy for the log":                   {actions: "userspace(pid=0,controller(reason=1,dont_send=1,max_len=65535)),6", want: effect{outputs: 1, controllers: 1}},
		"a metered copy":                       {actions: "sample(sample=100.0%,actions(meter(0),userspace(pid=0,controller(reason=1)))),6", want: effect{outputs: 1, controllers: 1}},
		"a sample that outputs":                {actions: "sample(sample=100.0%,actions(3)),6", err: "sample"},
		"a sample that outputs beside a meter": {actions: "sample(sample=100.0%,actions(meter(0),3)),6", err: "sample"},
		"a sample of samples":                  {actions: "sample(sample=1.0%,actions(meter(0),sample(sample=1.0%,actions(meter(0),userspace(pid=0,controller(reason=1)))))),6", err: "sample"},
		"a select group":                       {actions: "hash(l4(0)),recirc(0x1a)", want: effect{recirculations: []string{"0x1a"}}},
		"another sample":                       {actions: "userspace(pid=7,sFlow(vid=0,pcp=0,output=4)),6", err: "sFlow"},
		"a userspace of three":                 {actions: "userspace(pid=7,controller(reason=1),actions),6", err: "userspace"},
		"by the packet's size":                 {actions: "check_pkt_len(size=1400,gt(drop),le(3))", err: "check_pkt_len"},
		"a meter":                              {actions: "meter(1),3", err: "meter"},
		"out of a tunnel":                      {actions: "tnl_pop(4)", err: "tnl_pop"},
		"drop after something":                 {actions: "ct_clear,drop", err: "drop"},
		"a header for nothing":                 {actions: "tnl_push(tnl_port(3))", err: "no port"},
		"nested too deep":                      {actions: "clone(clone(clone(clone(clone(3)))))", err: "nested"},
		"an empty list":                        {actions: "", err: "empty"},
		"an empty action":                      {actions: "3,,4", err: "empty"},
		"open":                                 {actions: "clone(3", err: "unbalanced"},
		"closed too often":                     {actions: "3)", err: "unbalanced"},
		"a helper":                             {actions: "ct(commit,helper=ftp)", err: "helper"},
		"an unknown header":                    {actions: "set(mpls(label=1)),3", err: "mpls"},
		"a set of nothing":                     {actions: "set(eth),3", err: "set(eth)"},
		"a name for a port":                    {actions: "eth0", err: "eth0"},
		"a negative port":                      {actions: "-1", err: "-1"},
		"a port like no number":                {actions: "99999999999", err: "99999999999"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := effectOf(tc.actions)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one with %q", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(effect{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzDatapathActions(f *testing.F) {
	for _, seed := range []string{
		"drop", "3", "ct(commit,zone=8,nat(src)),ct(zone=9),recirc(0x2)", "clone(tnl_push(tnl_port(3)),4),6", "set(ipv4(ttl=63)),8",
		"userspace(pid=0,controller(reason=1)),6", "3,,(", "a(b)c(d)",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, actions string) {
		e, err := effectOf(actions)
		if err == nil && e.drop && e.outputs > 0 && !strings.Contains(actions, "clone") {
			t.Fatalf("%q both drops and outputs", actions)
		}
	})
}
