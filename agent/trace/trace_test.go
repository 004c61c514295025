// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/ruleset/savetext"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// namedSets holds everything in "yes", nothing in "no" and is asked in vain
// about any other set.
type namedSets struct{}

func (namedSets) Element(*ruleset.NativeSet, []byte) (ruleset.Element, error) {
	return ruleset.Element{}, errors.New("no native sets")
}

func (namedSets) Member(name string, _ []ruleset.Direction, _ trace.Packet) (trace.Ternary, string) {
	switch name {
	case "yes":
		return trace.Yes, ""
	case "no", "union", "nothing":
		return trace.No, ""
	}
	return trace.Unknown, "no such set"
}

// Spell implements trace.Speller. "mute" and "nothing" hold no packet; "union"
// is a list of sets of which one is "no".
func (namedSets) Spell(name string, dims []ruleset.Direction, p trace.Packet) (in, element string) {
	switch name {
	case "nothing", "mute":
		return name, ""
	case "union":
		name = "no"
	}
	return name, spelled(dims, p)
}

// spelled returns the addresses of an element.
func spelled(dims []ruleset.Direction, p trace.Packet) string {
	words := make([]string, len(dims))
	for i, d := range dims {
		words[i] = p.Flow.Src.String()
		if d == ruleset.Dst {
			words[i] = p.Flow.Dst.String()
		}
	}
	return strings.Join(words, ",")
}

func parse(t testing.TB, backend ruleset.Backend, text string) []ruleset.Table {
	t.Helper()
	tables, err := savetext.Parse(ruleset.IPv4, backend, text)
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

// filter is a filter table with the given rules.
func filter(policy string, rules ...string) string {
	return "*filter\n:INPUT ACCEPT\n:FORWARD " + policy + "\n:OUTPUT ACCEPT\n:a -\n:b -\n:c -\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
}

func table(name string, rules ...string) string {
	text := "*" + name + "\n"
	for _, c := range map[string][]string{
		"raw": {"PREROUTING", "OUTPUT"}, "mangle": {"PREROUTING", "FORWARD", "POSTROUTING"}, "nat": {"PREROUTING", "POSTROUTING", "OUTPUT"},
	}[name] {
		text += ":" + c + " ACCEPT\n"
	}
	return text + ":x -\n" + strings.Join(rules, "\n") + "\nCOMMIT\n"
}

const coin = "-m statistic --mode random --probability 0.5"

var (
	asked   = flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr("10.244.2.20"), Dst: netip.MustParseAddr("10.244.1.10"), Port: 3306}
	v4Ones  = netip.MustParseAddr("255.255.255.255")
	v6Src   = netip.MustParseAddr("fd00:10:244:2::20")
	v6Dst   = netip.MustParseAddr("fd00:10:244:1::10")
	forward = trace.Path{Way: trace.Forwarded, In: "eth0", Out: "cni0", Bridged: trace.No, SrcType: ruleset.Unicast, DstType: ruleset.Unicast}
)

func TestVerdicts(t *testing.T) {
	const yes, no, open = flow.Allowed, flow.Denied, flow.Inconclusive
	for name, c := range map[string]struct {
		rules string
		want  flow.Answer
		// reason is a part of the reason.
		reason string
	}{
		"no rules":                                     {"", yes, "no rule"},
		"a drop policy":                                {filter("DROP"), no, "nft ip filter/FORWARD policy DROP"},
		"accept before a drop policy":                  {filter("DROP", "-A FORWARD -j ACCEPT"), yes, "-j ACCEPT"},
		"return in a base chain is the policy":         {filter("DROP", "-A FORWARD -j RETURN", "-A FORWARD -j ACCEPT"), no, "policy"},
		"return in a chain goes on after the jump":     {filter("DROP", "-A FORWARD -j a", "-A FORWARD -j ACCEPT", "-A a -j RETURN", "-A a -j DROP"), yes, ""},
		"a chain's end goes on after the jump":         {filter("DROP", "-A FORWARD -j a", "-A FORWARD -j ACCEPT"), yes, ""},
		"goto does not come back":                      {filter("DROP", "-A FORWARD -g a", "-A FORWARD -j ACCEPT"), no, "policy"},
		"goto in a chain comes back to the jump":       {filter("DROP", "-A FORWARD -j a", "-A FORWARD -j ACCEPT", "-A a -g b", "-A a -j DROP", "-A b -j RETURN"), yes, ""},
		"accept ends only its base chain":              {table("mangle", "-A FORWARD -j ACCEPT") + filter("ACCEPT", "-A FORWARD -j DROP"), no, "filter/FORWARD"},
		"a drop in mangle is final":                    {table("mangle", "-A PREROUTING -j DROP") + filter("ACCEPT", "-A FORWARD -j ACCEPT"), no, "mangle/PREROUTING"},
		"a drop after forwarding":                      {table("mangle", "-A POSTROUTING -j DROP"), no, "mangle/POSTROUTING"},
		"reject is denied":                             {filter("ACCEPT", "-A FORWARD -m comment --comment why -j REJECT --reject-with tcp-reset"), no, "REJECT (why)"},
		"the input chain is not on the way":            {filter("ACCEPT", "-A INPUT -j DROP", "-A OUTPUT -j DROP"), yes, ""},
		"a mark goes from table to table":              {table("mangle", "-A PREROUTING -j MARK --set-xmark 0x8/0x8") + filter("ACCEPT", "-A FORWARD -m mark --mark 0x8/0x8 -j DROP"), no, ""},
		"a packet begins unmarked":                     {filter("ACCEPT", "-A FORWARD -m mark ! --mark 0x0 -j DROP"), yes, ""},
		"a connection's mark comes back":               {table("mangle", "-A PREROUTING -j MARK --set-mark 0x5", "-A PREROUTING -j CONNMARK --save-mark --nfmask 0x1 --ctmask 0x1") + filter("ACCEPT", "-A FORWARD -m connmark --mark 0x1 -j DROP"), no, ""},
		"raw sees no connection yet":                   {table("raw", "-A PREROUTING -m conntrack --ctstate NEW -j DROP"), yes, ""},
		"raw sees an invalid one":                      {table("raw", "-A PREROUTING -m conntrack --ctstate INVALID -j DROP"), no, ""},
		"a new connection is new":                      {filter("DROP", "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT"), yes, ""},
		"a new connection is not established":          {filter("DROP", "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"), no, ""},
		"untracked is not new":                         {table("raw", "-A PREROUTING -j CT --notrack") + filter("ACCEPT", "-A FORWARD -m conntrack --ctstate NEW -j DROP"), yes, ""},
		"untracked is untracked":                       {table("raw", "-A PREROUTING -j NOTRACK") + filter("ACCEPT", "-A FORWARD -m conntrack --ctstate UNTRACKED -j DROP"), no, ""},
		"untracked skips nat":                          {table("raw", "-A PREROUTING -j NOTRACK") + table("nat", "-A PREROUTING -j DNAT --to-destination 1.2.3.4"), yes, ""},
		"connmark never matches untracked":             {table("raw", "-A PREROUTING -j NOTRACK") + filter("ACCEPT", "-A FORWARD -m connmark ! --mark 0x5 -j DROP"), yes, ""},
		"a new connection is a SYN":                    {filter("ACCEPT", "-A FORWARD -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP"), yes, ""},
		"it is no fragment":                            {filter("ACCEPT", "-A FORWARD -f -j DROP"), yes, ""},
		"another protocol's rule":                      {filter("ACCEPT", "-A FORWARD -p icmp -m icmp --icmp-type 8 -j DROP"), yes, ""},
		"a source port below the ephemeral ones":       {filter("ACCEPT", "-A FORWARD -p tcp -m tcp --sport 1:1023 -j DROP"), yes, ""},
		"all ephemeral source ports":                   {filter("ACCEPT", "-A FORWARD -p tcp -m tcp --sport 1024:65535 -j DROP"), no, ""},
		"some ephemeral source ports":                  {filter("ACCEPT", "-A FORWARD -p tcp -m tcp --sport 2000:3000 -j DROP"), open, "--sport 2000:3000"},
		"an unknown match before a drop":               {filter("ACCEPT", "-A FORWARD "+coin+" -j DROP"), open, coin},
		"an unknown match that changes nothing":        {filter("DROP", "-A FORWARD "+coin+" -j DROP"), no, ""},
		"an unknown match before a log":                {filter("DROP", "-A FORWARD "+coin+" -j NFLOG", "-A FORWARD -j ACCEPT"), yes, ""},
		"an unknown match beside one that says no":     {filter("ACCEPT", "-A FORWARD -p udp "+coin+" -j DROP"), yes, ""},
		"an unknown mark that nobody asks for":         {filter("DROP", "-A FORWARD "+coin+" -j MARK --set-mark 0x1", "-A FORWARD -j ACCEPT"), yes, ""},
		"an unknown mark that somebody asks for":       {filter("DROP", "-A FORWARD "+coin+" -j MARK --set-mark 0x1", "-A FORWARD -m mark --mark 0x1 -j ACCEPT"), open, coin},
		"an unknown mark that is overwritten":          {filter("DROP", "-A FORWARD "+coin+" -j MARK --set-mark 0x1", "-A FORWARD -j MARK --set-mark 0x2", "-A FORWARD -m mark --mark 0x2 -j ACCEPT"), yes, ""},
		"an unknown match before a return":             {filter("ACCEPT", "-A FORWARD -j a", "-A a "+coin+" -j RETURN", "-A a -j DROP"), open, coin},
		"an unknown match before a jump and a drop":    {filter("DROP", "-A FORWARD "+coin+" -j a", "-A a -j ACCEPT"), open, coin},
		"an unknown target":                            {filter("ACCEPT", "-A FORWARD -j NFQUEUE --queue-num 0"), open, "NFQUEUE"},
		"an unknown target that is not reached":        {filter("ACCEPT", "-A FORWARD -s 1.2.3.4/32 -j NFQUEUE --queue-num 0"), yes, ""},
		"an unknown target after a drop":               {filter("DROP", "-A FORWARD -j DROP", "-A FORWARD -j NFQUEUE"), no, ""},
		"a set that holds it":                          {filter("ACCEPT", "-A FORWARD -m set --match-set yes src -j DROP"), no, ""},
		"a set that does not hold it":                  {filter("ACCEPT", "-A FORWARD -m set --match-set no src -j DROP"), yes, ""},
		"a set that does not, negated":                 {filter("ACCEPT", "-A FORWARD -m set ! --match-set no src -j DROP"), no, ""},
		"a set that does not answer":                   {filter("ACCEPT", "-A FORWARD -m set --match-set foo src -j DROP"), open, "--match-set foo src"},
		"a set that does not answer, negated":          {filter("ACCEPT", "-A FORWARD -m set ! --match-set foo src -j DROP"), open, "foo"},
		"a destination that is rewritten":              {table("nat", "-A PREROUTING -p tcp -m tcp --dport 3306 -j DNAT --to-destination 1.2.3.4"), open, "DestinationRewritten: -A PREROUTING"},
		"a destination that may be rewritten":          {table("nat", "-A PREROUTING "+coin+" -j REDIRECT --to-ports 80"), open, "DestinationRewritten"},
		"another destination that is rewritten":        {table("nat", "-A PREROUTING -d 10.96.0.1/32 -j DNAT --to-destination 1.2.3.4"), yes, ""},
		"a denied flow whose source were rewritten":    {table("nat", "-A POSTROUTING -j MASQUERADE") + filter("DROP"), no, ""},
		"a source that is rewritten for nobody":        {table("nat", "-A POSTROUTING -j MASQUERADE"), yes, ""},
		"kube-proxy's masquerading of marked packets":  {table("nat", "-A POSTROUTING -j x", "-A x -m mark ! --mark 0x4000/0x4000 -j RETURN", "-A x -j MARK --set-xmark 0x4000/0x0", "-A x -j MASQUERADE --random-fully"), yes, ""},
		"kube-proxy's rule against martians":           {filter("ACCEPT", "-A FORWARD ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"), yes, ""},
		"kube-proxy's count of invalid packets":        {filter("ACCEPT", "-A FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name x -j DROP"), yes, ""},
		"an input interface":                           {filter("ACCEPT", "-A FORWARD -i eth+ -j DROP"), no, ""},
		"another input interface":                      {filter("ACCEPT", "-A FORWARD ! -i eth0 -j DROP"), yes, ""},
		"an output interface":                          {filter("ACCEPT", "-A FORWARD -o cni0 -j DROP"), no, ""},
		"prerouting knows no output interface":         {table("mangle", "-A PREROUTING -j x", "-A x -o cni0 -j DROP"), yes, ""},
		"postrouting may or may not know the input":    {table("mangle", "-A POSTROUTING -j x", "-A x -i eth0 -j DROP"), open, "-i eth0"},
		"a type of address":                            {filter("ACCEPT", "-A FORWARD -m addrtype --dst-type LOCAL -j DROP"), yes, ""},
		"jumps without end":                            {filter("ACCEPT", "-A FORWARD -j a", "-A a -j a"), open, "nested jumps"},
		"jumps that multiply":                          {filter("ACCEPT", "-A FORWARD -j a", "-A a -j b", "-A a -j b", "-A b -j a", "-A b -j a", "-A b -j a"), open, ""},
		"a chain that is full of states and ends them": {filter("ACCEPT", "-A FORWARD "+coin+" -j MARK --or-mark 0x1", "-A FORWARD "+coin+" -j MARK --or-mark 0x2", "-A FORWARD -j DROP"), no, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := trace.Trace(parse(t, ruleset.NFT, c.rules), forward, asked, namedSets{})
			if got.Answer != c.want || !strings.Contains(got.Reason, c.reason) {
				t.Errorf("got %s, want %s (... %s ...)", got, c.want, c.reason)
			}
		})
	}
}

func TestThePathDecidesWhatIsMet(t *testing.T) {
	rules := filter("ACCEPT", "-A FORWARD -m physdev --physdev-is-bridged -j DROP", "-A INPUT -m addrtype --dst-type LOCAL -j DROP", "-A OUTPUT -o eth0 -j DROP") +
		table("nat", "-A POSTROUTING -j MASQUERADE")
	for name, c := range map[string]struct {
		path trace.Path
		want flow.Answer
	}{
		"routed":                            {forward, flow.Allowed},
		"bridged":                           {trace.Path{Way: trace.Forwarded, Bridged: trace.Yes}, flow.Denied},
		"perhaps bridged":                   {trace.Path{Way: trace.Forwarded}, flow.Inconclusive},
		"bridged past the rules":            {trace.Path{Way: trace.Forwarded, Bridged: trace.Yes, Unseen: "bridge-nf is off"}, flow.Allowed},
		"delivered":                         {trace.Path{Way: trace.Delivered, DstType: ruleset.Local}, flow.Denied},
		"delivered to nobody knows":         {trace.Path{Way: trace.Delivered}, flow.Inconclusive},
		"sent":                              {trace.Path{Way: trace.Sent, Out: "eth0"}, flow.Denied},
		"sent elsewhere":                    {trace.Path{Way: trace.Sent, Out: "cni0"}, flow.Allowed},
		"sent by nobody knows which":        {trace.Path{Way: trace.Sent, OutUnknown: true}, flow.Inconclusive},
		"onward with another source":        {trace.Path{Way: trace.Forwarded, Bridged: trace.No, Onward: true}, flow.Inconclusive},
		"no way at all, which is a mistake": {trace.Path{}, flow.Inconclusive},
	} {
		t.Run(name, func(t *testing.T) {
			if got := trace.Trace(parse(t, ruleset.NFT, rules), c.path, asked, namedSets{}); got.Answer != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestBothBackendsSeeThePacket(t *testing.T) {
	for name, c := range map[string]struct {
		nft, legacy string
		want        flow.Answer
	}{
		"a legacy drop":                       {filter("ACCEPT", "-A FORWARD -j ACCEPT"), filter("DROP"), flow.Denied},
		"an nft drop":                         {filter("DROP"), filter("ACCEPT", "-A FORWARD -j ACCEPT"), flow.Denied},
		"marks cross":                         {table("mangle", "-A FORWARD -j MARK --set-mark 0x1"), filter("DROP", "-A FORWARD -m mark --mark 0x1 -j ACCEPT"), flow.Allowed},
		"an order that matters":               {filter("ACCEPT", "-A FORWARD -j MARK --set-mark 0x1"), filter("DROP", "-A FORWARD -m mark --mark 0x1 -j ACCEPT"), flow.Inconclusive},
		"an order that does not matter":       {filter("ACCEPT", "-A FORWARD -j MARK --set-mark 0x1"), filter("ACCEPT", "-A FORWARD -s 1.2.3.4/32 -j DROP"), flow.Allowed},
		"an order whose marks nobody asks of": {filter("ACCEPT", "-A FORWARD -j MARK --set-mark 0x1"), filter("ACCEPT", "-A FORWARD -j MARK --set-mark 0x2"), flow.Allowed},
	} {
		t.Run(name, func(t *testing.T) {
			tables := append(parse(t, ruleset.NFT, c.nft), parse(t, ruleset.Legacy, c.legacy)...)
			got := trace.Trace(tables, forward, asked, namedSets{})
			if got.Answer != c.want || got.Reason == "" {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestAnOpaqueChainDecidesNothingUnlessItIsNotReached(t *testing.T) {
	opaque := func(family ruleset.Family, hook ruleset.Hook, priority int) ruleset.Table {
		return ruleset.Table{Family: family, Backend: ruleset.NFT, Name: "mine", Chains: []*ruleset.Chain{{
			Name: "c", Opaque: "its rules are native", Base: &ruleset.Base{Hook: hook, Priority: priority}}}}
	}
	onBridge := forward
	onBridge.OnBridge = true
	for name, c := range map[string]struct {
		table ruleset.Table
		path  trace.Path
		want  flow.Answer
	}{
		"on the way":              {opaque(ruleset.IPv4, ruleset.Forward, 10), forward, flow.Inconclusive},
		"on another way":          {opaque(ruleset.IPv4, ruleset.Input, 10), forward, flow.Allowed},
		"of the other family":     {opaque(ruleset.IPv6, ruleset.Forward, 10), forward, flow.Allowed},
		"of a bridge on the way":  {opaque(ruleset.Bridge, ruleset.Forward, 0), onBridge, flow.Inconclusive},
		"of a bridge elsewhere":   {opaque(ruleset.Bridge, ruleset.Forward, 0), forward, flow.Allowed},
		"of a network device":     {opaque(ruleset.Netdev, ruleset.Ingress, 0), forward, flow.Inconclusive},
		"before the packet falls": {opaque(ruleset.IPv4, ruleset.Forward, -10), forward, flow.Inconclusive},
	} {
		t.Run(name, func(t *testing.T) {
			got := trace.Trace([]ruleset.Table{c.table}, c.path, asked, namedSets{})
			if got.Answer != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if c.want == flow.Inconclusive && !strings.Contains(got.Reason, "mine/c") {
				t.Errorf("reason %q does not name the chain", got.Reason)
			}
		})
	}
	denied := append(parse(t, ruleset.NFT, filter("DROP")), opaque(ruleset.IPv4, ruleset.Forward, 10))
	if got := trace.Trace(denied, forward, asked, namedSets{}); got.Answer != flow.Denied {
		t.Errorf("after a drop: got %s, want denied", got)
	}
}

func TestAReasonIsShortPrintableText(t *testing.T) {
	rules := filter("ACCEPT", fmt.Sprintf("-A FORWARD -m comment --comment \"\x1b[31m\u00e9%s\" -j DROP", strings.Repeat("x", 500)))
	got := trace.Trace(parse(t, ruleset.NFT, rules), forward, asked, namedSets{}).Reason
	if len(got) != 200 || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

func FuzzTrace(f *testing.F) {
	f.Add(filter("DROP", "-A FORWARD -j a", "-A a -g b", "-A b -m mark --mark 0x1/0x1 -j ACCEPT"))
	f.Add(table("nat", "-A PREROUTING "+coin+" -j DNAT --to-destination 1.2.3.4"))
	f.Add(table("raw", "-A PREROUTING -j CT --notrack", "-A PREROUTING -m connmark --mark 1 -j x"))
	f.Fuzz(func(t *testing.T, text string) {
		tables, err := savetext.Parse(ruleset.IPv4, ruleset.Legacy, text)
		if err != nil {
			return
		}
		for _, path := range []trace.Path{forward, {Way: trace.Delivered}, {Way: trace.Sent, Onward: true}} {
			v := trace.Trace(tables, path, asked, namedSets{})
			if v.Reason == "" || len(v.Reason) > 200 {
				t.Errorf("reason %q", v.Reason)
			}
			// A drop policy and not one rule that could accept or lead away.
			if path.Way == trace.Forwarded && strings.Contains(text, "\n:FORWARD DROP") && !strings.Contains(text, "-A") && v.Answer != flow.Denied {
				t.Errorf("got %s", v)
			}
		}
	})
}
