// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"testing"

	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/api/flow"
)

// The pods of the captures' objects: .1. is node1, which was captured.
var (
	mysql0  = pod("1", "10")
	mysql1  = pod("2", "10")
	jobA    = pod("1", "20")
	jobB    = pod("2", "20")
	jobDone = pod("1", "21")
	fe0     = pod("1", "30")
	fe1     = pod("2", "30")
	v4only  = [2]string{"10.244.1.31", ""}
	prom    = pod("2", "40")
	nopol   = pod("1", "41")
	dns     = pod("2", "53")
	unused  = pod("2", "99")
	ghost   = pod("1", "99")
	node    = [2]string{"192.168.100.10", "fd00:192:168:100::10"}
	outside = [2]string{"198.51.100.7", "2001:db8::7"}
	listed  = [2]string{"203.0.113.5", ""}
	carved  = [2]string{"203.0.113.200", ""}
)

func pod(node, host string) [2]string {
	return [2]string{"10.244." + node + "." + host, "fd00:10:244:" + node + "::" + host}
}

// TestTheCapturesAnswerAsAPersonReadsThePolicies is a second opinion: what is
// expected was written down by hand.
func TestTheCapturesAnswerAsAPersonReadsThePolicies(t *testing.T) {
	const no, yes = flow.Denied, flow.Allowed
	type expectation struct {
		src, dst [2]string
		proto    flow.Protocol
		port     uint16
		want     flow.Answer
	}
	expectations := map[string]expectation{
		"a job on the other node reaches the database":        {jobB, mysql0, flow.TCP, 3306, yes},
		"a job on the same node reaches the database":         {jobA, mysql0, flow.TCP, 3306, yes},
		"a job reaches the database on the other node":        {jobA, mysql1, flow.TCP, 3306, yes},
		"a job has no other port of the database":             {jobB, mysql0, flow.TCP, 3307, no},
		"a finished job is no peer":                           {jobDone, mysql0, flow.TCP, 3306, no},
		"a pod without policies is refused by the database":   {nopol, mysql0, flow.TCP, 3306, no},
		"monitoring on the other node reaches the metrics":    {prom, mysql0, flow.TCP, 9104, yes},
		"monitoring on the same node reaches the metrics":     {nopol, mysql0, flow.TCP, 9104, yes},
		"monitoring does not reach the database":              {prom, mysql0, flow.TCP, 3306, no},
		"a job does not reach the metrics":                    {jobB, mysql0, flow.TCP, 9104, no},
		"databases reach each other by udp":                   {mysql1, mysql0, flow.UDP, 4567, yes},
		"databases do not reach each other by tcp":            {mysql1, mysql0, flow.TCP, 3306, no},
		"anyone reaches port 33060":                           {unused, mysql0, flow.TCP, 33060, yes},
		"a named port that nobody has opens all ports":        {fe1, mysql0, flow.TCP, 12345, yes},
		"sctp is refused":                                     {jobB, mysql0, flow.SCTP, 3306, no},
		"the node itself is admitted":                         {node, mysql0, flow.TCP, 3306, yes},
		"a database may go anywhere":                          {mysql0, outside, flow.TCP, 443, yes},
		"a job asks the name server by udp":                   {jobA, dns, flow.UDP, 53, yes},
		"a job asks the name server by tcp":                   {jobA, dns, flow.TCP, 53, yes},
		"a job goes nowhere else":                             {jobA, outside, flow.TCP, 443, no},
		"a job admits everyone":                               {prom, jobA, flow.TCP, 8080, yes},
		"a front end is closed to the cluster":                {prom, fe0, flow.TCP, 8080, no},
		"a front end asks names of anyone":                    {fe0, outside, flow.UDP, 53, yes},
		"a front end goes nowhere else":                       {fe0, outside, flow.TCP, 443, no},
		"a pod without policies admits everyone":              {unused, nopol, flow.TCP, 80, yes},
		"a pod without policies goes anywhere":                {nopol, outside, flow.TCP, 80, yes},
		"a pod without policies is refused elsewhere":         {nopol, fe0, flow.TCP, 8080, no},
		"an outsider reaches the named port of the front end": {outside, fe0, flow.TCP, 8080, yes},
		"an outsider reaches the port range":                  {outside, fe0, flow.TCP, 8100, yes},
		"an outsider does not reach past the range":           {outside, fe0, flow.TCP, 8101, no},
		"an outsider does not reach another pod's name":       {outside, fe0, flow.TCP, 9090, no},
		"a front end reaches the listed block":                {fe0, listed, flow.TCP, 443, yes},
		"a front end does not reach the block's exception":    {fe0, carved, flow.TCP, 443, no},
		"a front end reaches no other port of the block":      {fe0, listed, flow.TCP, 80, no},
		"a default-deny pod is closed":                        {outside, v4only, flow.TCP, 80, no},
		"a default-deny pod goes nowhere":                     {v4only, outside, flow.TCP, 80, no},
		"a default-deny pod is held back by its own egress":   {v4only, fe0, flow.TCP, 80, no},
	}
	for _, c := range captures {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, nil)
			c.load(t, r)
			r.look(t, func(look *kernel.Look) error {
				for name, e := range expectations {
					for family := range 2 {
						if e.src[family] == "" || e.dst[family] == "" {
							continue
						}
						f := flow.Flow{Protocol: e.proto, Src: addr(e.src[family]), Dst: addr(e.dst[family]), Port: e.port}
						if got := look.Verdict(f); got.Answer != e.want {
							t.Errorf("%s: %s: got %s, want %s", name, f, got, e.want)
						}
					}
				}
				f := flow.Flow{Protocol: flow.TCP, Src: addr(unused[0]), Dst: addr(ghost[0]), Port: 80}
				want := flow.Allowed
				if c.denies {
					want = flow.Denied
				}
				if got := look.Verdict(f); got.Answer != want {
					t.Errorf("a pod that the engine does not know yet: got %s, want %s", got, want)
				}
				return nil
			})
		})
	}
}
