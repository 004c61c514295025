// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ruleset_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
)

// TestARuleIsRenderedAsItWasRead holds for all that the model knows.
func TestARuleIsRenderedAsItWasRead(t *testing.T) {
	for _, rule := range []string{
		"-A a",
		"-A a ! -s 10.0.0.0/8 -d 10.0.0.1/32 -j ACCEPT",
		"-A a -d 10.0.0.1/255.0.0.255 -i eth0 ! -o veth+ -j DROP",
		"-A a ! -f -j RETURN",
		"-A a -p tcp --sport 1:2 ! --dport 80 ! --tcp-flags FIN,SYN,RST,ACK SYN -j a",
		"-A a ! -p 99 -g a",
		"-A a -p udp -m multiport ! --ports 53,80:90 -j LOG",
		"-A a -p tcp -m multiport --dports 53,54",
		"-A a -p icmp",
		"-A a -m mark --mark 0x1 -m connmark ! --mark 0x1/0x3 -j MARK --set-xmark 0x1/0xff",
		"-A a -m conntrack ! --ctstate INVALID,RELATED -j CONNMARK --set-xmark 0x1/0xff",
		"-A a -m addrtype --dst-type LOCAL,PROHIBIT -j CONNMARK --save-mark --nfmask 0x1 --ctmask 0x2",
		"-A a -m iprange ! --src-range 10.0.0.1-10.0.0.3 -j CONNMARK --restore-mark --nfmask 0x1 --ctmask 0x2",
		"-A a -m physdev ! --physdev-is-bridged -m limit --limit 5/sec -j REJECT",
		"-A a -m set ! --match-set four src,dst -m comment --comment \"not \\\"this\\\"\" -j NFQUEUE",
	} {
		text := strings.NewReplacer("--sport", "-m tcp --sport", "! --tcp-flags", "-m tcp ! --tcp-flags").Replace(rule)
		tables, err := savetext.Parse(ruleset.IPv4, ruleset.Legacy, "*filter\n:a -\n"+text+"\nCOMMIT\n")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(rule, ruleset.Render("a", &tables[0].Chains[0].Rules[0])); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestARuleForIPv6IsRendered(t *testing.T) {
	r := ruleset.Rule{Matches: []ruleset.Match{
		ruleset.Addr{Dir: ruleset.Src, Addr: netip.MustParseAddr("fd00::"), Mask: netip.MustParseAddr("ffff::")},
		ruleset.Proto{Number: 58}, ruleset.Unknown{Text: "-m icmp6"},
	}, Target: ruleset.Target{Kind: ruleset.UnknownTarget}}
	if diff := cmp.Diff("-A FORWARD -s fd00::/16 -p ipv6-icmp -m icmp6", ruleset.Render("FORWARD", &r)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
