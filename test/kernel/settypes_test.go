// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/nlconn"
)

// setTypes has sets in commands of ipset and the dimensions to ask the set s$
// for, where $ stands for a number: of every type whose elements a flow has, but
// for those that kernels mostly come without (hash:ip,mark, hash:net,net,
// hash:net,port,net).
var setTypes = []struct{ commands, dims string }{
	{"create s$ hash:ip\nadd s$ 10.244.1.10", "src"},
	{"create s$ hash:ip netmask 24\nadd s$ 10.244.1.0", "dst"},
	{"create s$ hash:ip timeout 500\nadd s$ 10.244.1.10 timeout 0\nadd s$ 10.244.2.10", "src"},
	{"create s$ hash:net\nadd s$ 10.244.1.0/24\nadd s$ 10.244.1.10/31 nomatch", "src"},
	{"create s$ hash:net\nadd s$ 0.0.0.0/1\nadd s$ 10.244.1.10/31 nomatch", "dst,dst"},
	{"create s$ hash:ip,port\nadd s$ 10.244.1.10,tcp:80\nadd s$ 10.244.2.10,udp:80", "src,dst"},
	{"create s$ hash:net,port\nadd s$ 10.244.1.0/24,tcp:80-81\nadd s$ 10.244.1.10/32,tcp:80 nomatch", "dst,dst"},
	{"create s$ hash:ip,port,ip\nadd s$ 10.244.1.10,tcp:80,10.244.2.10", "src,dst,dst"},
	{"create s$ hash:ip,port,net\nadd s$ 10.244.1.10,tcp:80,10.244.0.0/16", "src,dst,dst"},
	{"create s$ hash:net,iface\nadd s$ 10.244.1.0/24,kube-bridge", "src,src"},
	{"create s$ hash:net,iface\nadd s$ 10.244.0.0/16,physdev:veth0\nadd s$ 10.244.2.0/24,eth0", "dst,dst"},
	{"create s$ bitmap:ip range 10.244.1.0-10.244.1.255\nadd s$ 10.244.1.10", "src"},
	{"create s$ bitmap:port range 0-1000\nadd s$ 80", "dst"},
	{"create a$ hash:ip\nadd a$ 10.244.1.10\ncreate b$ hash:net,port\nadd b$ 10.244.2.0/24,udp:80\ncreate c$ hash:ip family inet6\ncreate s$ list:set\nadd s$ a$\nadd s$ b$\nadd s$ c$", "src,dst"},
	{"create a$ hash:ip\nadd a$ 10.244.1.10\ncreate b$ hash:ip,port\nadd b$ 10.244.2.10,udp:80\ncreate s$ list:set timeout 500\nadd s$ a$ timeout 0\nadd s$ b$", "src"},
}

func TestEveryTypeOfSetDoesWhatTheVerdictsSay(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	flows := randomFlows(r)
	r.settle(t, flows)
	for _, backend := range []string{"legacy", "nft"} {
		for i, set := range setTypes {
			// nf_tables lets go of a set some time after the rule is gone.
			number := backend + strconv.Itoa(i)
			r.node.run(t, strings.ReplaceAll(set.commands, "$", number)+"\n", "ipset", "restore")
			for _, not := range []string{"", "! "} {
				r.node.run(t, "*filter\n:FORWARD ACCEPT\n-A FORWARD -d 10.0.0.0/8 -m set "+not+"--match-set s"+number+" "+set.dims+" -j DROP\nCOMMIT\n", "iptables-"+backend+"-restore", "-w")
				if allowed, denied := r.agree(t, flows, true); allowed == 0 || denied == 0 {
					t.Errorf("%d flows allowed and %d denied: want some of both", allowed, denied)
				}
			}
			r.clear(t, backend)
			if t.Failed() {
				t.Fatalf("%s: %s %s", backend, set.commands, set.dims)
			}
		}
	}
}

// TestConditionsOfXtablesDoWhatTheVerdictsSay has those of which a new flow's
// first packet says more than that they are not understood.
func TestConditionsOfXtablesDoWhatTheVerdictsSay(t *testing.T) {
	r := newRig(t, capturePods[:3], captureRemote[:4])
	flows := randomFlows(r)
	r.settle(t, flows)
	r.node.run(t, "create four hash:ip counters\nadd four 10.244.1.10\n", "ipset", "restore")
	// Of a packet that is routed from a bridge or to it, the ports are not
	// always known.
	const some, all, nothing, unsure = 0, 1, 2, 3
	for _, c := range []struct {
		rule   string
		denied int
	}{
		{"-m conntrack --ctdir ORIGINAL", all}, {"-m conntrack --ctdir REPLY", nothing}, {"-m conntrack --ctstate NEW --ctdir ORIGINAL -s 10.244.1.10", some},
		{"-m conntrack --ctorigsrc 10.244.1.10", some}, {"-m conntrack ! --ctorigsrc 10.244.1.10 --ctstate NEW", some}, {"-m conntrack --ctorigdst 10.244.2.0/24 ! --ctproto udp", some},
		{"-m conntrack --ctproto tcp --ctorigdstport 81:90", some}, {"-m conntrack ! --ctorigdstport 80", some}, {"-m conntrack ! --ctstate INVALID,UNTRACKED --ctproto udp", some},
		{"-m conntrack --ctstatus SEEN_REPLY", nothing}, {"-m conntrack ! --ctstatus ASSURED,CONFIRMED", all}, {"-m conntrack --ctstatus NONE", nothing},
		{"-m physdev --physdev-is-in", unsure}, {"-m physdev --physdev-is-bridged", some}, {"-m physdev --physdev-in veth0 --physdev-is-bridged", some}, {"-m physdev --physdev-in veth+ --physdev-out veth1 --physdev-is-bridged", some},
		{"-m physdev ! --physdev-out veth1 --physdev-is-bridged", some}, {"-m physdev ! --physdev-is-in", unsure}, {"-m physdev ! --physdev-is-bridged", some},
		{"-m set --match-set four src ! --update-counters", some}, {"-m set --match-set four dst ! --update-counters ! --update-subcounters", some},
	} {
		for _, backend := range []string{"legacy", "nft"} {
			r.node.run(t, "*filter\n:FORWARD ACCEPT\n-A FORWARD "+c.rule+" -j DROP\nCOMMIT\n", "iptables-"+backend+"-restore", "-w")
			allowed, denied := r.agree(t, flows, c.denied != unsure)
			if c.denied != unsure && ((denied > 0) != (c.denied != nothing) || c.denied == some && allowed == 0) {
				t.Errorf("%d flows are allowed and %d denied", allowed, denied)
			}
			r.clear(t, backend)
			if t.Failed() {
				t.Fatalf("%s: %s", backend, c.rule)
			}
		}
	}
	for _, match := range []string{"-m rt --rt-type 0", "-m rt ! --rt-type 0", "-m frag --fragfirst", "-m hbh --hbh-len 5", "-m dst ! --dst-len 5"} {
		r.node.run(t, "*filter\n:FORWARD ACCEPT\n-A FORWARD "+match+" -j DROP\nCOMMIT\n", "ip6tables-legacy-restore", "-w")
		if _, denied := r.agree(t, flows, true); denied > 0 {
			t.Fatalf("%s: %d flows are denied", match, denied)
		}
	}
}

// TestAListOfSetsIsListedInNobodysWay swaps, renames and destroys the members
// of a list:set, and swaps the list, while it is asked all the time.
func TestAListOfSetsIsListedInNobodysWay(t *testing.T) {
	r := newRig(t, capturePods[:1], captureRemote[:2])
	var b strings.Builder
	b.WriteString("create s list:set size 64\ncreate t list:set size 64\ncreate other hash:ip\n")
	for i := range 50 {
		fmt.Fprintf(&b, "create a%d hash:ip\nadd s a%d\n", i, i)
	}
	r.node.run(t, b.String(), "ipset", "restore")
	var stop atomic.Bool
	asked := make(chan int)
	go func() {
		n := 0
		defer func() { asked <- n }()
		r.node.do(t, func() error {
			c, err := nlconn.Dial(unix.NETLINK_NETFILTER)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			for !stop.Load() {
				if answer := ipset.New(c).Ask(ipset.Question{Set: "s"}); !strings.HasPrefix(answer.Text, "list:set, ") {
					return errors.New(answer.Text)
				}
				n++
			}
			return nil
		})
	}()
	failures := 0
	const rounds = 300
	r.node.do(t, func() error {
		for i := range rounds {
			cmd := exec.CommandContext(t.Context(), "ipset", "restore")
			cmd.Stdin = strings.NewReader(fmt.Sprintf("swap a%d other\nswap s t\nswap t s\ncreate temporary hash:ip\nadd s temporary\ndel s temporary\nrename temporary last\ndestroy last\n", i%50))
			if out, err := cmd.CombinedOutput(); err != nil {
				if failures++; failures < 5 {
					t.Errorf("%v: %s", err, out)
				}
				r.repair(t)
			}
		}
		return nil
	})
	stop.Store(true)
	if n := <-asked; n < rounds {
		t.Errorf("the list was asked %d times in %d rounds", n, rounds)
	} else {
		t.Logf("the list was asked %d times in %d rounds, %d of which failed", n, rounds, failures)
	}
}

// repair removes what a failed round left behind.
func (r *rig) repair(t testing.TB) {
	t.Helper()
	for _, name := range []string{"temporary", "last"} {
		// It may be there or not.
		_ = exec.CommandContext(t.Context(), "ipset", "-quiet", "destroy", name).Run()
	}
}
