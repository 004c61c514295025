// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/policygate/policygate/api/flow"
)

func TestIsolation(t *testing.T) {
	for name, tc := range map[string]struct {
		specs           []spec
		ingress, egress bool
	}{
		"a pod without policies is isolated in no direction": {},
		"a policy without types and rules isolates for ingress": {
			specs: []spec{{PolicyTypes: policyTypes()}}, ingress: true,
		},
		"a policy without types and with egress rules isolates for both": {
			specs: []spec{{PolicyTypes: policyTypes(), Egress: []out{{}}}}, ingress: true, egress: true,
		},
		"a policy of type Egress does not isolate for ingress": {
			specs: []spec{{PolicyTypes: policyTypes("Egress")}}, egress: true,
		},
		"rules of a direction that is no type do not isolate": {
			specs: []spec{{PolicyTypes: policyTypes("Egress"), Ingress: []in{{}}}}, egress: true,
		},
		"two policies add up": {
			specs:   []spec{{PolicyTypes: policyTypes("Egress")}, {PolicyTypes: policyTypes("Ingress")}},
			ingress: true, egress: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			for i, s := range tc.specs {
				q := w.policy("db/"+string(rune('a'+i)), "mysql", s)
				q.Spec.PolicyTypes = s.PolicyTypes
			}
			w.policy("other/unrelated", "", spec{})
			c := w.cluster()
			policies := Selecting(append(c.PoliciesIn("db"), c.PoliciesIn("other")...), c.Pod("db/mysql"))
			if len(policies) != len(tc.specs) {
				t.Fatalf("%d policies select the pod, want %d", len(policies), len(tc.specs))
			}
			if in, out := Isolated(policies, Ingress), Isolated(policies, Egress); in != tc.ingress || out != tc.egress {
				t.Errorf("isolated for ingress %v, egress %v: want %v, %v", in, out, tc.ingress, tc.egress)
			}
		})
	}
}

func TestAdmission(t *testing.T) {
	type packet struct {
		src      string
		protocol flow.Protocol
		port     uint16
	}
	const (
		backupIP = "10.0.1.20"
		idleIP   = "10.0.1.10"
		outside  = "198.51.100.1"
	)
	for name, tc := range map[string]struct {
		rules []in
		p     packet
		want  Admission
	}{
		"no rule admits nobody":                           {nil, packet{backupIP, flow.TCP, 1}, Refused},
		"an empty rule admits everyone":                   {[]in{{}}, packet{outside, flow.UDP, 1}, Admitted},
		"a pod selector means the policy's own namespace": {[]in{{From: from(pods("idle1"))}}, packet{idleIP, flow.TCP, 1}, Refused},
		"a pod selector admits its pod":                   {[]in{{From: from(pods("backup"))}}, packet{backupIP, flow.TCP, 1}, Admitted},
		"both selectors of a peer must match":             {[]in{{From: from(podsIn("other", "backup"))}}, packet{backupIP, flow.TCP, 1}, Refused},
		"an empty namespace selector means every pod":     {[]in{{From: from(everywhere())}}, packet{idleIP, flow.TCP, 1}, Admitted},
		"an empty namespace selector means pods only":     {[]in{{From: from(everywhere())}}, packet{outside, flow.TCP, 1}, Refused},
		"peers are alternatives":                          {[]in{{From: from(pods("x"), block("198.51.100.0/24"))}}, packet{outside, flow.TCP, 1}, Admitted},
		"a block means pods' addresses too":               {[]in{{From: from(block("10.0.0.0/8"))}}, packet{idleIP, flow.TCP, 1}, Admitted},
		"an except is left out":                           {[]in{{From: from(block("10.0.0.0/8", "10.0.1.0/24"))}}, packet{idleIP, flow.TCP, 1}, Refused},
		"a selector admits what an except leaves out":     {[]in{{From: from(block("10.0.0.0/8", "10.0.1.0/24"), pods("backup"))}}, packet{backupIP, flow.TCP, 1}, Admitted},
		"another block's except makes engines deviate":    {[]in{{From: from(block("198.51.0.0/16", "198.51.100.0/24"), block("198.51.100.0/25"))}}, packet{outside, flow.TCP, 1}, Deviating},
		"an except of another rule does not":              {[]in{{From: from(block("198.51.0.0/16", "198.51.100.0/24"))}, {From: from(block("198.51.100.0/25"))}}, packet{outside, flow.TCP, 1}, Admitted},
		"a port admits its number":                        {[]in{{Ports: tcp(80)}}, packet{outside, flow.TCP, 80}, Admitted},
		"a port refuses another number":                   {[]in{{Ports: tcp(80)}}, packet{outside, flow.TCP, 81}, Refused},
		"a port without protocol means TCP":               {[]in{{Ports: tcp(80)}}, packet{outside, flow.UDP, 80}, Refused},
		"a protocol without port means all its ports":     {[]in{{Ports: proto(corev1.ProtocolUDP)}}, packet{outside, flow.UDP, 9}, Admitted},
		"a range admits its last":                         {[]in{{Ports: tcp([2]int32{80, 90})}}, packet{outside, flow.TCP, 90}, Admitted},
		"a range refuses what follows":                    {[]in{{Ports: tcp([2]int32{80, 90})}}, packet{outside, flow.TCP, 91}, Refused},
		"a named port is resolved on the destination":     {[]in{{Ports: tcp("mysql")}}, packet{outside, flow.TCP, 3306}, Admitted},
		"a named port refuses another number":             {[]in{{Ports: tcp("mysql")}}, packet{outside, flow.TCP, 3305}, Refused},
		"a number that others give the name is doubtful":  {[]in{{Ports: tcp("mysql")}}, packet{outside, flow.TCP, 3399}, Doubtful},
		"an unresolved name is doubtful for its peers":    {[]in{{From: from(pods("backup")), Ports: tcp("nosuch")}}, packet{backupIP, flow.TCP, 1}, Doubtful},
		"an unresolved name refuses whom it does not mean": {
			[]in{{From: from(pods("backup")), Ports: tcp("nosuch")}}, packet{idleIP, flow.TCP, 1}, Refused,
		},
		"an unresolved name for everyone refuses": {[]in{{Ports: tcp("nosuch")}}, packet{idleIP, flow.TCP, 1}, Refused},
		"a rule that admits outweighs one that deviates": {
			[]in{{From: from(block("198.51.0.0/16", "198.51.100.0/24"), block("198.51.100.0/25"))}, {Ports: tcp(1)}},
			packet{outside, flow.TCP, 1}, Admitted,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			w.pod("other/mysql2", "n2", "10.0.2.90", port("mysql", 3399))
			backup(w)
			w.policy("db/p", "mysql", spec{Ingress: tc.rules})
			c := w.cluster()
			dst := c.Pod("db/mysql")
			x := Conn{
				Src: End{Addr: netip.MustParseAddr(tc.p.src)}, Dst: End{Addr: dst.IPs[0], Pod: dst},
				Protocol: tc.p.protocol, Port: tc.p.port,
			}
			for _, p := range c.Holding(x.Src.Addr) {
				x.Src.Pod = p
			}
			if got := c.Admission(Selecting(c.PoliciesIn("db"), dst), Ingress, x); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
			want, _ := tc.want.Answer()
			if got, _ := c.Demand("n2", x.Flow()); got != want {
				t.Errorf("its node must say %s, want %s", got, want)
			}
			if got, _ := c.Demand("n1", x.Flow()); tc.want != Admitted && got != flow.Allowed {
				t.Errorf("a node that judges only the other side must say %s, want allowed", got)
			}
		})
	}
}

// The two Pods are of one app on two nodes: db/mysql of n2 is the destination.
func TestAPolicyOfBothDirectionsIsDoubtfulWhereItsOtherDirectionAdmits(t *testing.T) {
	toEachOther, nowhere, elsewhere := []in{{Ports: tcp(3306)}}, []out{}, []out{{Ports: tcp(53)}}
	for name, tc := range map[string]struct {
		selected string
		spec     spec
		d        Direction
		port     uint16
		want     Admission
	}{
		"the ingress rule of both ends' policy lets the egress through":   {"", spec{Ingress: toEachOther, Egress: elsewhere}, Egress, 3306, Doubtful},
		"so it does without an egress rule":                               {"", spec{Ingress: toEachOther, Egress: nowhere, PolicyTypes: policyTypes("Ingress", "Egress")}, Egress, 3306, Doubtful},
		"a port that neither direction names is refused":                  {"", spec{Ingress: toEachOther, Egress: elsewhere}, Egress, 3307, Refused},
		"the egress rule lets the ingress through":                        {"", spec{Ingress: toEachOther, Egress: elsewhere}, Ingress, 53, Doubtful},
		"a rule of the right direction admits":                            {"", spec{Ingress: toEachOther, Egress: elsewhere}, Ingress, 3306, Admitted},
		"a policy that does not select the other end refuses":             {"backup", spec{Ingress: toEachOther, Egress: elsewhere}, Egress, 3306, Refused},
		"a policy of one direction has no rule in use in the other":       {"", spec{Ingress: toEachOther, Egress: elsewhere, PolicyTypes: policyTypes("Egress")}, Egress, 3306, Refused},
		"its other direction does not let a stranger of the rule through": {"", spec{Ingress: []in{{From: from(pods("idle1"))}}, Egress: elsewhere}, Egress, 3306, Refused},
	} {
		t.Run(name, func(t *testing.T) {
			w := shop(t)
			backup(w)
			w.policy("db/p", tc.selected, tc.spec)
			c := w.cluster()
			src, dst := c.Pod("db/backup"), c.Pod("db/mysql")
			x := Conn{Src: End{src.IPs[0], src}, Dst: End{dst.IPs[0], dst}, Protocol: flow.TCP, Port: tc.port}
			isolated, _ := x.sides(tc.d)
			if got := c.Admission(Selecting(c.PoliciesIn("db"), isolated.Pod), tc.d, x); got != tc.want {
				t.Errorf("got %d, want %d", got, tc.want)
			}
		})
	}
}
