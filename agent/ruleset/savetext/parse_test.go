// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package savetext_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
)

func addr(dir ruleset.Direction, ip, mask string, not bool) ruleset.Addr {
	return ruleset.Addr{Dir: dir, Addr: netip.MustParseAddr(ip), Mask: netip.MustParseAddr(mask), Not: not}
}

var equalAddrs = cmpopts.EquateComparable(netip.Addr{})

func TestARuleIsReadInFullOrSaysWhatIsUnknown(t *testing.T) {
	type matches = []ruleset.Match
	unknown := func(text string) matches { return matches{ruleset.Unknown{Text: text}} }
	ports := func(from, to uint16) []ruleset.PortRange { return []ruleset.PortRange{{From: from, To: to}} }
	tcp := ruleset.Proto{Number: 6}
	for text, want := range map[string]struct {
		matches matches
		kind    ruleset.TargetKind
	}{
		"":                            {nil, ruleset.Continue},
		"-j ACCEPT":                   {nil, ruleset.Accept},
		"-s 10.0.0.0/8 -j DROP":       {matches{addr(ruleset.Src, "10.0.0.0", "255.0.0.0", false)}, ruleset.Drop},
		"! -d 10.0.0.1/32 -j RETURN":  {matches{addr(ruleset.Dst, "10.0.0.1", "255.255.255.255", true)}, ruleset.Return},
		"-s 10.0.0.1/255.0.0.255":     {matches{addr(ruleset.Src, "10.0.0.1", "255.0.0.255", false)}, ruleset.Continue},
		"-s fd00::/8":                 {unknown("-s fd00::/8"), ruleset.Continue},
		"-s 10.0.0.0/33 -j DROP":      {unknown("-s 10.0.0.0/33"), ruleset.Drop},
		"-i eth+ ! -o foo":            {matches{ruleset.Iface{Name: "eth", Prefix: true}, ruleset.Iface{Out: true, Name: "foo", Not: true}}, ruleset.Continue},
		"-p gre":                      {matches{ruleset.Proto{Number: 47}}, ruleset.Continue},
		"! -p 99":                     {matches{ruleset.Proto{Number: 99, Not: true}}, ruleset.Continue},
		"-p exotic":                   {unknown("-p exotic"), ruleset.Continue},
		"-f":                          {matches{ruleset.Fragment{}}, ruleset.Continue},
		"--exotic 5 -j DROP":          {unknown("--exotic 5"), ruleset.Drop},
		"-p tcp -m tcp ! --sport 5:6": {matches{tcp, ruleset.Ports{Dir: ruleset.Src, Ranges: ports(5, 6), Not: true}}, ruleset.Continue},
		"-p tcp -m tcp --dport 6:5":   {matches{tcp, ruleset.Unknown{Text: "-m tcp --dport 6:5"}}, ruleset.Continue},
		"-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN": {matches{tcp,
			ruleset.TCPFlags{Mask: ruleset.FIN | ruleset.SYN | ruleset.RST | ruleset.ACK, Set: ruleset.SYN}}, ruleset.Continue},
		"-p tcp -m tcp --tcp-option 5 ! --tcp-flags SYN,RST SYN": {matches{tcp,
			ruleset.Unknown{Text: "-m tcp --tcp-option 5 ! --tcp-flags SYN,RST SYN"}}, ruleset.Continue},
		"-p sctp -m sctp --dport 5 --chunk-types all INIT": {matches{ruleset.Proto{Number: 132},
			ruleset.Unknown{Text: "-m sctp --dport 5 --chunk-types all INIT"}}, ruleset.Continue},
		"-p udp -m multiport ! --ports 5,7:9": {matches{ruleset.Proto{Number: 17},
			ruleset.Ports{Dir: ruleset.Either, Ranges: []ruleset.PortRange{{From: 5, To: 5}, {From: 7, To: 9}}, Not: true}}, ruleset.Continue},
		"-m set ! --match-set x src,dst":            {matches{ruleset.Set{Name: "x", Dims: []ruleset.Direction{ruleset.Src, ruleset.Dst}, Not: true}}, ruleset.Continue},
		"-m set --match-set x src --return-nomatch": {unknown("-m set --match-set x src --return-nomatch"), ruleset.Continue},
		"-m set --match-set x src -s 10.0.0.1/32":   {unknown("-m set --match-set x src -s 10.0.0.1/32"), ruleset.Continue},
		"-m mark ! --mark 0x1/0xf":                  {matches{ruleset.Mark{Value: 1, Mask: 15, Not: true}}, ruleset.Continue},
		"-m connmark --mark 0x1":                    {matches{ruleset.Mark{Conn: true, Value: 1, Mask: 0xffffffff}}, ruleset.Continue},
		"-m conntrack ! --ctstate INVALID,NEW":      {matches{ruleset.CTState{States: ruleset.Invalid | ruleset.New, Not: true}}, ruleset.Continue},
		"-m state --state UNTRACKED":                {matches{ruleset.CTState{States: ruleset.Untracked}}, ruleset.Continue},
		"-m conntrack --ctstate NEW --ctorigdst 1.2.3.4": {matches{ruleset.CTState{States: ruleset.New},
			ruleset.Addr{Dir: ruleset.Dst, Addr: netip.MustParseAddr("1.2.3.4"), Mask: netip.MustParseAddr("255.255.255.255")}}, ruleset.Continue},
		"-m physdev --physdev-is-bridged":                             {matches{ruleset.Bridged{}}, ruleset.Continue},
		"-m physdev --physdev-in foo ! --physdev-is-bridged -j DROP":  {matches{ruleset.BridgePort{Name: "foo"}, ruleset.Bridged{Not: true}}, ruleset.Drop},
		"-m physdev ! --physdev-out foo":                              {unknown("-m physdev ! --physdev-out foo"), ruleset.Continue},
		"-m rpfilter --loose --invert":                                {matches{ruleset.ReversePath{Loose: true, Not: true}}, ruleset.Continue},
		"-m conntrack --ctstate UNTRACKED --ctproto 6":                {unknown("-m conntrack --ctstate UNTRACKED --ctproto 6"), ruleset.Continue},
		"-m set --match-set x src ! --update-counters":                {matches{ruleset.Set{Name: "x", Dims: []ruleset.Direction{ruleset.Src}}}, ruleset.Continue},
		"-m addrtype ! --dst-type LOCAL,BROADCAST":                    {matches{ruleset.AddrType{Dir: ruleset.Dst, Types: ruleset.Local | ruleset.Broadcast, Not: true}}, ruleset.Continue},
		"-m addrtype --dst-type LOCAL --limit-iface-in":               {unknown("-m addrtype --dst-type LOCAL --limit-iface-in"), ruleset.Continue},
		"-m iprange --src-range 10.0.0.1-10.0.0.9":                    {matches{ruleset.AddrRange{Dir: ruleset.Src, From: netip.MustParseAddr("10.0.0.1"), To: netip.MustParseAddr("10.0.0.9")}}, ruleset.Continue},
		"-m nfacct --nfacct-name  x -j DROP":                          {unknown("-m nfacct --nfacct-name x"), ruleset.Drop},
		"-m statistic --mode random --probability 0.5 -j ACCEPT":      {unknown("-m statistic --mode random --probability 0.5"), ruleset.Accept},
		`-m comment --comment "-j DROP \"x\"" -j ACCEPT`:              {nil, ruleset.Accept},
		"-m tcp [unsupported revision]":                               {unknown("-m tcp [unsupported revision]"), ruleset.Continue},
		"-j REJECT --reject-with tcp-reset":                           {nil, ruleset.Drop},
		"-j NFLOG --nflog-group 100":                                  {nil, ruleset.Continue},
		"-j NFQUEUE --queue-num 0":                                    {nil, ruleset.UnknownTarget},
		"-j TPROXY --on-port 5 --on-ip 0.0.0.0 --tproxy-mark 0x0/0x0": {nil, ruleset.UnknownTarget},
		"-j EXOTIC":                           {nil, ruleset.UnknownTarget},
		"-j CT --notrack":                     {nil, ruleset.NoTrack},
		"-j CT --zone 5":                      {nil, ruleset.UnknownTarget},
		"-j CT --exotic":                      {nil, ruleset.UnknownTarget},
		"-j DNAT --to-destination 1.2.3.4:80": {nil, ruleset.NewDestination},
		"-j MASQUERADE --random-fully":        {nil, ruleset.NewSource},
		"-j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xff": {nil, ruleset.RestoreMark},
		"-j CONNMARK --save-mark":                                      {nil, ruleset.SaveMark},
		"-j MARK --set-xmark nonsense":                                 {nil, ruleset.UnknownTarget},
		"-j":                                                           {nil, ruleset.UnknownTarget},
		"-m":                                                           {unknown("-m"), ruleset.Continue},
	} {
		t.Run(text, func(t *testing.T) {
			rule := parseRule(t, text)
			if diff := cmp.Diff(want.matches, rule.Matches, equalAddrs, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("matches (-want +got):\n%s", diff)
			}
			if rule.Target.Kind != want.kind {
				t.Errorf("target kind %d, want %d", rule.Target.Kind, want.kind)
			}
		})
	}
}

func parseRule(t *testing.T, text string) ruleset.Rule {
	t.Helper()
	tables, err := savetext.Parse(ruleset.IPv4, ruleset.NFT, "*filter\n:FORWARD ACCEPT [0:0]\n[1:2] -A FORWARD "+text+"\nCOMMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	return tables[0].Chains[0].Rules[0]
}

func TestMarkTargetsAreMaskAndXor(t *testing.T) {
	for text, want := range map[string][2]uint32{
		"--set-xmark 0x10000/0x10000": {0x10000, 0x10000},
		"--set-xmark 0x0/0x10000":     {0, 0x10000},
		"--set-mark 0x6":              {6, 0xffffffff},
		"--set-mark 0x8/0x1":          {8, 9},
		"--or-mark 0x4000":            {0x4000, 0x4000},
		"--and-mark 0xff":             {0, 0xffffff00},
		"--xor-mark 0x3":              {3, 0},
	} {
		target := parseRule(t, "-j MARK "+text).Target
		if got := [2]uint32{target.Value, target.Mask}; got != want || target.Kind != ruleset.SetMark {
			t.Errorf("%s: got %#x, want %#x", text, got, want)
		}
	}
}

func TestBuiltinChainsHaveTheKernelsPlaces(t *testing.T) {
	const text = `# Generated
*raw
:PREROUTING ACCEPT [0:0]
COMMIT
*mangle
:FORWARD DROP [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
*security
:INPUT ACCEPT [0:0]
COMMIT
`
	for backend, security := range map[ruleset.Backend]int{ruleset.Legacy: 50, ruleset.NFT: 150} {
		t.Run(backend.String(), func(t *testing.T) {
			tables, err := savetext.Parse(ruleset.IPv4, backend, text)
			if err != nil {
				t.Fatal(err)
			}
			var got []ruleset.Base
			for _, table := range tables {
				for _, c := range table.Chains {
					got = append(got, *c.Base)
				}
			}
			want := []ruleset.Base{
				{Hook: ruleset.Prerouting, Priority: -300}, {Hook: ruleset.Forward, Priority: -150, Drop: true},
				{Hook: ruleset.Prerouting, Priority: -100, NAT: true}, {Hook: ruleset.Postrouting, Priority: 100, NAT: true},
				{Hook: ruleset.Input, Priority: security},
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAMalformedFileIsAnError(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"cut before COMMIT":          {"*filter\n:FORWARD ACCEPT\n-A FORWARD -j DROP\n", "no COMMIT"},
		"cut within the next table":  {"*filter\nCOMMIT\n*nat\n", "no COMMIT"},
		"a rule for no chain":        {"*filter\n-A FOO -j DROP\nCOMMIT\n", "not declared"},
		"a jump to no chain":         {"*filter\n:FORWARD ACCEPT\n-A FORWARD -j KUBE-FOO\nCOMMIT\n", `leads to chain "KUBE-FOO"`},
		"a goto to no chain":         {"*filter\n:FORWARD ACCEPT\n-A FORWARD -g FOO\nCOMMIT\n", `leads to chain "FOO"`},
		"a jump to a base chain":     {"*filter\n:FORWARD ACCEPT\n:a -\n-A a -g FORWARD\nCOMMIT\n", "leads to"},
		"a chain twice":              {"*filter\n:a -\n:a -\nCOMMIT\n", "declared twice"},
		"a table twice":              {"*filter\nCOMMIT\n*filter\nCOMMIT\n", "appears twice"},
		"a table in a table":         {"*filter\n*nat\nCOMMIT\n", "before COMMIT"},
		"a rule outside of a table":  {"-A FORWARD -j DROP\n", "outside of a table"},
		"a policy of a chain":        {"*filter\n:a DROP\nCOMMIT\n", "no such base chain"},
		"a base chain of no table":   {"*exotic\n:FORWARD DROP\nCOMMIT\n", "no such base chain"},
		"an unknown policy":          {"*filter\n:FORWARD QUEUE\nCOMMIT\n", "want ACCEPT, DROP or -"},
		"a quote without end":        {"*filter\n:a -\n-A a -m comment --comment \"x\nCOMMIT\n", "quote"},
		"an error text of the tool":  {"*filter\nError: unknown payload offset\nCOMMIT\n", "want a chain, a rule or COMMIT"},
		"counters without end":       {"*filter\n:a -\n[0:0 -A a\nCOMMIT\n", "counters have no end"},
		"a chain without a policy":   {"*filter\n:a\nCOMMIT\n", "want a name, a policy"},
		"a table name of two words":  {"*fil ter\nCOMMIT\n", "one word"},
		"anything after COMMIT":      {"*filter\nCOMMIT\nfoo\n", "outside of a table"},
		"a rule that is not an -A":   {"*filter\n:a -\n-I a -j DROP\nCOMMIT\n", "want a chain, a rule"},
		"a rule cut within its -A":   {"*filter\n:a -\n-A\nCOMMIT\n", "want a chain, a rule"},
		"a jump that has parameters": {"*filter\n:a -\n:b -\n-A a -j b --foo\nCOMMIT\n", "leads to"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := savetext.Parse(ruleset.IPv4, ruleset.NFT, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestNothingOfTheCapturesIsUnknown: what a policy engine writes has to be
// understood, but for the limit in front of a log rule.
func TestNothingOfTheCapturesIsUnknown(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "..", "trace", "testdata", "*", "*", "ip*tables-save.txt"))
	if err != nil || len(files) != 6 {
		t.Fatalf("%d captures, %v: want 6", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		family := ruleset.IPv4
		if strings.Contains(file, "ip6tables") {
			family = ruleset.IPv6
		}
		tables, err := savetext.Parse(family, ruleset.NFT, string(text))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		rules := 0
		for _, c := range tables[0].Chains {
			for _, r := range c.Rules {
				rules++
				if r.Target.Kind == ruleset.UnknownTarget {
					t.Errorf("%s: unknown target: %s", file, r.Raw)
				}
				for _, m := range r.Matches {
					u, ok := m.(ruleset.Unknown)
					if ok && r.Target.Name != "NFLOG" && !strings.HasPrefix(u.Text, "-m icmp") {
						t.Errorf("%s: %q is unknown: %s", file, u.Text, r.Raw)
					}
				}
			}
		}
		if want := strings.Count(string(text), "\n-A "); rules != want {
			t.Errorf("%s: %d rules, want %d", file, rules, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("*filter\n:FORWARD ACCEPT [0:0]\n:a - [0:0]\n[0:0] -A FORWARD ! -s 10.0.0.0/8 -p tcp -m tcp --dport 1:2 -m comment --comment \"a \\\"b\" -j a\n-A a -g a\nCOMMIT\n")
	f.Add("*nat\n:PREROUTING ACCEPT\n-A PREROUTING -m set ! --match-set x src,dst -m multiport --ports 1,2:3 -j DNAT --to-destination 1.2.3.4\nCOMMIT\n")
	f.Add("*mangle\n:FORWARD DROP\n-A FORWARD -m connmark --mark 0x1/0xff -j CONNMARK --save-mark --nfmask 0x1 --ctmask 0x2\nCOMMIT\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, family := range []ruleset.Family{ruleset.IPv4, ruleset.IPv6} {
			tables, err := savetext.Parse(family, ruleset.NFT, text)
			if err != nil {
				continue
			}
			rules := 0
			for _, table := range tables {
				for _, c := range table.Chains {
					for _, r := range c.Rules {
						rules++
						if jump := r.Target.Kind == ruleset.Jump || r.Target.Kind == ruleset.Goto; jump != (r.Target.Chain != nil) {
							t.Errorf("%q: a jump and a chain go together", r.Raw)
						}
					}
				}
			}
			written := 0
			for line := range strings.SplitSeq(text, "\n") {
				line = strings.TrimRight(line, " \t\r")
				if line != "" && !strings.ContainsAny(line[:1], "#*:") && line != "COMMIT" {
					written++
				}
			}
			if rules != written {
				t.Errorf("%d rules of %d lines", rules, written)
			}
		}
	})
}
