// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package match_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/agent/northbound/match"
	"github.com/policygate/policygate/api/flow"
)

// world is a World of values.
type world struct {
	sets   map[string][]string
	groups map[string][]string
	ports  map[match.Side]string
}

func (w world) SetFault(name string, ipv6 bool) string {
	if all, ok := w.sets[name]; !ok || ipv6 != strings.Contains(strings.Join(all, ""), ":") {
		return "no such set " + name
	}
	return ""
}

func (w world) GroupFault(name string) string {
	if _, ok := w.groups[name]; !ok {
		return "no such group " + name
	}
	return ""
}

func (w world) InSet(name string, a netip.Addr) match.Truth {
	for _, s := range w.sets[name] {
		if p, ok := match.ParsePrefix(s); ok && p.Contains(a) {
			return match.True
		}
	}
	return match.Of(false)
}

func (w world) InGroup(s match.Side, name string) match.Truth {
	name, ok := name, w.ports[s] != ""
	if !ok {
		return match.Unknown
	}
	return match.Of(slices.Contains(w.groups[name], w.ports[s]))
}

func (w world) IsPort(s match.Side, name string) match.Truth {
	if w.ports[s] == "" {
		return match.Unknown
	}
	return match.Of(w.ports[s] == name)
}

// example is a world with a Pod at 10.16.0.5 into which packets go.
func example() world {
	return world{
		sets: map[string][]string{
			"np.db.ingress.allow.IPv4.0":  {"10.16.0.6", "10.17.0.0/16"},
			"np.db.ingress.except.IPv4.0": {},
			"v6":                          {"fd00::6"},
		},
		groups: map[string][]string{"np.db": {"srv.db"}, "other.db": {}},
		ports:  map[match.Side]string{match.Outport: "srv.db"},
	}
}

func tcp(src, dst string) flow.Flow {
	return flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Port: 80}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	v4, v6 := tcp("10.16.0.6", "10.16.0.5"), tcp("fd00::6", "fd00::5")
	allow := `outport == @np.db && ip && ip4.src == $np.db.ingress.allow.IPv4.0 && ip4.src != $np.db.ingress.except.IPv4.0`
	tests := map[string]struct {
		text string
		flow flow.Flow
		want match.Truth
	}{
		"the drop of a policy is for its ports":               {"outport == @np.db && ip", v4, match.True},
		"the drop of another policy is not":                   {"outport == @other.db && ip", v4, match.False},
		"lax enforcement judges three protocols":              {"outport == @np.db && (tcp || udp || sctp)", v4, match.True},
		"a peer in the set is let in":                         {allow + " && tcp.dst == 80", v4, match.True},
		"a peer in a range of the set is let in":              {allow, tcp("10.17.3.4", "10.16.0.5"), match.True},
		"another port is not":                                 {allow + " && tcp.dst == 81", v4, match.False},
		"another protocol is not":                             {allow + " && udp.dst == 80", v4, match.False},
		"who is not in the set is not":                        {allow, tcp("10.16.0.7", "10.16.0.5"), match.False},
		"a range of ports takes its ends":                     {allow + " && 80 <= tcp.dst <= 90", v4, match.True},
		"a range of ports that begins later does not":         {allow + " && 81 <= tcp.dst <= 90", v4, match.False},
		"a range may go downwards":                            {"90 >= tcp.dst > 79", v4, match.True},
		"a comparison may begin with the constant":            {"80 == tcp.dst", v4, match.True},
		"an inline range of addresses with exceptions":        {"(ip4.src == 10.16.0.0/16 && ip4.src != {10.16.0.6, 10.16.1.0/24})", v4, match.False},
		"an inline range of addresses without":                {"(ip4.src == 10.16.0.0/16 && ip4.src != {10.16.1.0/24})", v4, match.True},
		"a mask may be an address":                            {"ip4.src == 10.16.0.0/255.255.0.0", v4, match.True},
		"everything of a family":                              {"ip4.src == 0.0.0.0/0", v4, match.True},
		"what is of IPv4 is false for IPv6":                   {"ip4.src != 10.0.0.1", v6, match.False},
		"its negation as well":                                {"!(ip4.src == 10.0.0.1)", v6, match.False},
		"an address of IPv6 is in a set":                      {"ip6.src == $v6 && ip6.dst == fd00::/8", v6, match.True},
		"a family cannot be negated":                          {"!ip4", v6, match.Unknown},
		"a port of another protocol is false when negated":    {"!(udp.dst == 1)", v4, match.False},
		"a protocol by number":                                {"ip.proto == 6", v4, match.True},
		"one of several":                                      {"ip.proto == {17, 132}", v4, match.False},
		"no flow is of ICMP":                                  {"icmp6", v6, match.False},
		"1 is everything":                                     {"1", v4, match.True},
		"0 is nothing":                                        {"0", v4, match.False},
		"negation goes into parentheses":                      {"!(ip4 && tcp.dst == 80)", v4, match.False},
		"a named port":                                        {`outport == "srv.db"`, v4, match.True},
		"one of several ports":                                {`outport == {"x", @np.db}`, v4, match.True},
		"a port that is not known":                            {`inport == "cli.db"`, v4, match.Unknown},
		"an unknown that cannot change the answer":            {"eth.src == 00:00:00:00:00:01 && udp", v4, match.False},
		"an unknown that can":                                 {"eth.src == 00:00:00:00:00:01 && tcp", v4, match.Unknown},
		"an unknown beside what is true":                      {"eth.src == 00:00:00:00:00:01 || tcp", v4, match.True},
		"a symbol that OVN may not have is never true":        {"tea.kind == 3 || tcp", v4, match.Unknown},
		"but may be false":                                    {"tea.kind == 3 && udp", v4, match.False},
		"a set that does not exist makes nothing true":        {"tcp || ip4.src == $gone", v4, match.Unknown},
		"a set that does not exist leaves false what is":      {"udp && ip4.src == $gone", v4, match.False},
		"a group that does not exist makes nothing true":      {"tcp || outport == @gone", v4, match.Unknown},
		"source ports are any":                                {"tcp.src == 1234", v4, match.Unknown},
		"but of one protocol":                                 {"udp.src == 1234", v4, match.False},
		"the state of a connection is not known":              {"ct.new && tcp", v4, match.Unknown},
		"but twice":                                           {"!(!ip4 || !(tcp))", v4, match.True},
		"a protocol is tested for equality alone":             {"ip.proto != 17", v4, match.Unknown},
		"and a port for not being unequal":                    {`!(outport != "srv.db")`, v4, match.True},
		"a part of a field is not known":                      {"ip4.src[0..7] == 6", v4, match.Unknown},
		"a function is not known":                             {`is_chassis_resident("x") && tcp`, v4, match.Unknown},
		"an address with bits beyond its mask is never true":  {"ip4.src == 10.16.0.6/16", v4, match.Unknown},
		"a mask with holes is not known":                      {"ip4.src == 10.16.0.0/255.0.255.0", v4, match.Unknown},
		"an address of another family is not known":           {"ip4.src == fd00::1", v4, match.Unknown},
		"ports are compared for equality alone":               {`outport != "srv.db"`, v4, match.Unknown},
		"negated, too":                                        {`!(outport == "x") || tcp`, v4, match.Unknown},
		"a mixture of && and || cannot be read":               {"ip4 && tcp || udp", v4, match.Unknown},
		"a comparison that is negated without parentheses":    {"!tcp.dst == 80", v4, match.Unknown},
		"text after the end":                                  {"ip )", v4, match.Unknown},
		"nothing":                                             {"", v4, match.Unknown},
		"an open string":                                      {`outport == "srv`, v4, match.Unknown},
		"no constants":                                        {"ip4.src == {}", v4, match.Unknown},
		"a number with a leading zero":                        {"tcp.dst == 080", v4, match.Unknown},
		"a hexadecimal number":                                {"tcp.dst == 0x50", v4, match.True},
		"a number that is too large for a port":               {"tcp.dst == 65616", v4, match.Unknown},
		"a predicate as a number":                             {"tcp == 1", v4, match.Unknown},
		"a range that turns around":                           {"1 <= tcp.dst >= 90", v4, match.Unknown},
		"a range of addresses by order":                       {"ip4.src < 10.0.0.1", v4, match.Unknown},
		"parentheses that are nested too deep cannot be read": {strings.Repeat("(", 200) + "ip" + strings.Repeat(")", 200), v4, match.Unknown},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, why := match.Parse(test.text).Match(test.flow, example())
			if got != test.want {
				t.Errorf("%s: %s (%s), want %s", test.text, got, why, test.want)
			}
			if (got == match.Unknown) != (why != "") {
				t.Errorf("%s: %s because %q", test.text, got, why)
			}
		})
	}
}

func TestOnlyFor(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		text string
		want bool
	}{
		"a policy's":                {"outport == @np.db && ip", true},
		"in parentheses":            {"ip && (outport == @np.db && tcp)", true},
		"another group's":           {"outport == @other.db && ip", false},
		"one of several":            {"outport == {@np.db, @other.db} && ip", false},
		"the other end's":           {"inport == @np.db && ip", false},
		"an alternative":            {"outport == @np.db || ip", false},
		"everybody's":               {"ip4.src == 10.0.0.1 && ip4.dst == $node", false},
		"what cannot be read":       {"outport == @np.db && (", false},
		"a negated group's, or not": {"!(outport == @np.db)", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := match.Parse(test.text).OnlyFor(match.Outport, "np.db"); got != test.want {
				t.Errorf("%s: %v, want %v", test.text, got, test.want)
			}
		})
	}
}

func TestLacks(t *testing.T) {
	t.Parallel()
	f := tcp("10.16.0.9", "10.16.0.5")
	set, except := "np.db.ingress.allow.IPv4.0", "all"
	w := example()
	w.sets[except] = []string{"0.0.0.0/0"}
	tests := map[string]struct {
		text  string
		want  match.Lack
		lacks bool
	}{
		"the set alone is why": {
			"outport == @np.db && ip4.src == $" + set + " && tcp.dst == 80", match.Lack{Set: set, Address: f.Src}, true,
		},
		"the port is why, too":  {"outport == @np.db && ip4.src == $" + set + " && tcp.dst == 81", match.Lack{}, false},
		"it matches":            {"outport == @np.db", match.Lack{}, false},
		"the set holds it":      {"ip && ip4.src != $" + except, match.Lack{Set: except, Address: f.Src, Holds: true}, true},
		"two sets are why":      {"ip4.src == $" + set + " && ip4.src != $" + except, match.Lack{}, false},
		"it is of IPv6":         {"ip6.src == $v6", match.Lack{}, false},
		"an inline list is why": {"ip4.src == 10.0.0.1", match.Lack{}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, ok := match.Parse(test.text).Lacks(f, w)
			if diff := cmp.Diff(test.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); ok != test.lacks || diff != "" {
				t.Errorf("%s: %v %s", test.text, ok, diff)
			}
		})
	}
}

// formula is an expression whose value is computed in another way than by the
// package: as it stands, negations included.
type formula struct {
	text  string
	value bool
	// atomic: it needs no parentheses behind a !.
	atomic bool
}

// random makes up a formula over what is known of f. negative: behind an odd
// number of negations, where OVN has no protocols.
func random(r *rand.Rand, f flow.Flow, depth int, negative bool) formula {
	if depth == 0 || r.IntN(4) == 0 {
		kind := r.IntN(6)
		if negative {
			kind = 2 + r.IntN(4)
		}
		switch kind {
		case 0:
			return formula{"ip4", f.Dst.Is4(), true}
		case 1:
			p := []flow.Protocol{flow.TCP, flow.UDP, flow.SCTP}[r.IntN(3)]
			return formula{p.String(), p == f.Protocol, true}
		case 2:
			lo, hi := r.IntN(100), r.IntN(100)
			return formula{fmt.Sprintf("%d <= tcp.dst <= %d", lo, hi), lo <= int(f.Port) && int(f.Port) <= hi, false}
		case 3:
			n := r.IntN(3) + 79
			return formula{fmt.Sprintf("tcp.dst != %d", n), int(f.Port) != n, false}
		case 4:
			bits := r.IntN(33)
			p := netip.PrefixFrom(netip.MustParseAddr("10.16.0.7"), bits).Masked()
			return formula{"ip4.src == {" + p.String() + " 192.0.2.1,}", p.Contains(f.Src), false}
		default:
			return formula{"1", true, true}
		}
	}
	switch r.IntN(3) {
	case 0:
		of := random(r, f, depth-1, !negative)
		if !of.atomic {
			of.text = "(" + of.text + ")"
		}
		return formula{"!" + of.text, !of.value, false}
	case 1:
		return joined(r, f, depth, negative, " && ")
	default:
		return joined(r, f, depth, negative, " || ")
	}
}

func joined(r *rand.Rand, f flow.Flow, depth int, negative bool, by string) formula {
	parts, value := []string{}, by == " && "
	for range r.IntN(3) + 2 {
		of := random(r, f, depth-1, negative)
		parts = append(parts, "("+of.text+")")
		if by == " && " {
			value = value && of.value
		} else {
			value = value || of.value
		}
	}
	return formula{strings.Join(parts, by), value, false}
}

func TestMatchOfRandomExpressions(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5000) {
		r := rand.New(rand.NewPCG(seed, 1))
		// All fields are there, so that a negation is what it seems to be.
		f := tcp("10.16.0.6", "10.16.0.5")
		of := random(r, f, 4, false)
		if got, why := match.Parse(of.text).Match(f, example()); got != match.Of(of.value) {
			t.Fatalf("seed %d: %s: %s (%s), want %v", seed, of.text, got, why, of.value)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"outport == @np.db && ip && ip4.src == $a && ip4.src != $b && 1 <= tcp.dst <= 2",
		`!(inport == "x" || ip6.dst == fd00::/8) && (tcp || udp)`, `ip.proto == {6, 0x11} && eth.src[0..3] == 1`,
	} {
		f.Add(s)
	}
	of := tcp("10.16.0.6", "10.16.0.5")
	f.Fuzz(func(t *testing.T, text string) {
		e := match.Parse(text)
		if got, _ := e.Match(of, example()); got == match.True && e.Refused(example()) != "" {
			t.Errorf("%q: true, though %s", text, e.Refused(example()))
		}
		e.OnlyFor(match.Outport, "np.db")
		e.Lacks(of, example())
		// Blanks around it, and parentheses, change nothing.
		if strings.Count(text, "(") < 50 {
			a, _ := e.Match(of, example())
			if b, _ := match.Parse(" ("+text+") ").Match(of, example()); a != b && !strings.ContainsAny(text, "()") {
				t.Errorf("%q: %s, and in parentheses %s", text, a, b)
			}
		}
	})
}
