// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// model makes rules, paths and flows out of bytes that a fuzzer chose. It
// makes little of much, so that rules meet each other: few addresses, ports,
// marks and names.
type model struct {
	data   []byte
	chains []*ruleset.Chain
	maps   []*ruleset.NativeSet
	// verdicts are what maps lead to.
	verdicts []ruleset.Target
}

// pick returns a number below n.
func (m *model) pick(n int) int {
	if len(m.data) == 0 {
		return 0
	}
	b := m.data[0]
	m.data = m.data[1:]
	return int(b) % n
}

func (m *model) coin() bool { return m.pick(2) == 1 }

var (
	modelAddrs = []netip.Addr{asked.Src, asked.Dst, netip.MustParseAddr("10.244.1.99")}
	modelNames = []string{"eth0", "cni0", "eth", ""}
	modelPorts = []uint16{0, 80, 1023, 1024, 3306, 40000, 65535}
	modelHooks = []ruleset.Hook{ruleset.Prerouting, ruleset.Forward, ruleset.Postrouting, ruleset.Input, ruleset.Output}
)

func (m *model) tables() []ruleset.Table {
	for i := range 3 {
		m.maps = append(m.maps, &ruleset.NativeSet{Name: []string{"some", "others", "silent"}[i], Verdicts: true})
	}
	for i := range 3 + m.pick(3) {
		m.chains = append(m.chains, &ruleset.Chain{Name: fmt.Sprintf("c%d", i)})
	}
	for range 3 {
		m.verdicts = append(m.verdicts, m.target(false))
	}
	for _, c := range m.chains {
		for range m.pick(4) {
			c.Rules = append(c.Rules, m.rule(c))
		}
		switch m.pick(24) {
		case 0:
			c.Opaque = "nobody reads it"
		case 1:
			c.Read = func() ([]ruleset.Rule, error) { return nil, errors.New("gone") }
		case 2:
			rules := c.Rules
			c.Rules, c.Read = nil, func() ([]ruleset.Rule, error) { return rules, nil }
		}
	}
	var tables []ruleset.Table
	for i := range 1 + m.pick(4) {
		t := ruleset.Table{Family: ruleset.IPv4, Backend: ruleset.Backend(1 + m.pick(2)), Name: fmt.Sprintf("t%d", i)}
		for j := range 1 + m.pick(2) {
			c := &ruleset.Chain{Name: fmt.Sprintf("b%d", j), Base: &ruleset.Base{
				Hook: modelHooks[m.pick(3)], Priority: []int{-300, -200, -150, -100, 0, 0, 100, 200}[m.pick(8)], Drop: m.pick(3) == 0, NAT: m.pick(5) == 0,
			}}
			if m.pick(4) == 0 {
				c.Base.Hook = modelHooks[3+m.pick(2)]
			}
			c.Base.NAT = c.Base.NAT && c.Base.Hook != ruleset.Forward
			switch m.pick(12) {
			case 0:
				// More states than are kept apart.
				for _, bit := range []uint32{1, 2, 4, 8, 16, 32, 64, 128} {
					c.Rules = append(c.Rules, sets(bit, bit*uint32(m.pick(2)), doubt))
				}
			case 1:
				// More jumps than are walked without remembering any.
				c.Rules = doubling(8, jump(m.chains[0]))
			}
			for range m.pick(5) {
				c.Rules = append(c.Rules, m.rule(c))
			}
			t.Chains = append(t.Chains, c)
		}
		tables = append(tables, t)
	}
	return tables
}

func (m *model) rule(c *ruleset.Chain) ruleset.Rule {
	r := ruleset.Rule{Target: m.target(true)}
	for range m.pick(3) {
		r.Matches = append(r.Matches, m.match())
	}
	r.Raw = ruleset.Render(c.Name, &r)
	return r
}

func (m *model) target(decides bool) ruleset.Target {
	mark := func() uint32 { return uint32(m.pick(4)) }
	switch m.pick(21) {
	case 0, 1, 2:
		return ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}
	case 3, 4, 5:
		return ruleset.Target{Kind: ruleset.Drop, Name: "DROP"}
	case 6:
		return ruleset.Target{Kind: ruleset.Return}
	case 7, 8, 9:
		return ruleset.Target{Kind: ruleset.Jump, Chain: m.chains[m.pick(len(m.chains))]}
	case 10:
		return ruleset.Target{Kind: ruleset.Goto, Chain: m.chains[m.pick(len(m.chains))]}
	case 11, 12:
		return ruleset.Target{Kind: ruleset.SetMark, Value: mark(), Mask: mark()}
	case 13:
		return ruleset.Target{Kind: ruleset.SetConnMark, Value: mark(), Mask: mark()}
	case 14:
		return ruleset.Target{Kind: ruleset.SaveMark, Mask: mark(), CTMask: mark()}
	case 15:
		return ruleset.Target{Kind: ruleset.RestoreMark, Mask: mark(), CTMask: mark()}
	case 16:
		return ruleset.Target{Kind: []ruleset.TargetKind{ruleset.NoTrack, ruleset.NewSource, ruleset.NewDestination, ruleset.UnknownTarget}[m.pick(4)]}
	case 17:
		return ruleset.Target{Kind: ruleset.NewSource}
	case 18:
		if decides {
			return ruleset.Target{Kind: ruleset.Decide, Map: m.maps[m.pick(3)], Key: m.value(1 + m.pick(3))}
		}
	}
	return ruleset.Target{Kind: ruleset.Continue}
}

func (m *model) direction() ruleset.Direction { return ruleset.Direction(1 + m.pick(2)) }

func (m *model) match() ruleset.Match {
	addr := func() netip.Addr { return modelAddrs[m.pick(len(modelAddrs))] }
	name := func() string { return modelNames[m.pick(len(modelNames))] }
	switch m.pick(16) {
	case 0:
		return ruleset.Addr{Dir: m.direction(), Addr: addr(), Mask: []netip.Addr{v4Ones, netip.MustParseAddr("255.255.0.0")}[m.pick(2)], Not: m.coin()}
	case 1:
		return ruleset.AddrRange{Dir: m.direction(), From: addr(), To: addr(), Not: m.coin()}
	case 2:
		return ruleset.Iface{Out: m.coin(), Name: name(), Prefix: m.coin(), Not: m.coin()}
	case 3:
		return ruleset.Proto{Number: []uint8{6, 17}[m.pick(2)], Not: m.coin()}
	case 4:
		a, b := modelPorts[m.pick(7)], modelPorts[m.pick(7)]
		return ruleset.Ports{Dir: ruleset.Direction(1 + m.pick(3)), Ranges: []ruleset.PortRange{{From: min(a, b), To: max(a, b)}}, Not: m.coin()}
	case 5:
		return ruleset.Set{Name: []string{"yes", "no", "mute"}[m.pick(3)], Dims: []ruleset.Direction{m.direction()}, Not: m.coin()}
	case 6, 7:
		return ruleset.Mark{Conn: m.coin(), Value: uint32(m.pick(4)), Mask: uint32(m.pick(4)), Not: m.coin()}
	case 8:
		return ruleset.CTState{States: 1 << m.pick(7), Not: m.coin()}
	case 9:
		return ruleset.AddrType{Dir: m.direction(), Types: []ruleset.AddrTypes{ruleset.Local, ruleset.Unicast}[m.pick(2)], Not: m.coin()}
	case 10:
		return ruleset.Bridged{Not: m.coin()}
	case 11:
		return ruleset.BridgePort{Out: m.coin(), Name: name(), Prefix: m.coin(), Not: m.coin()}
	case 12:
		return ruleset.ReversePath{Loose: m.coin(), Not: m.coin()}
	case 13:
		return ruleset.Lookup{Set: m.maps[m.pick(3)], Key: m.value(1 + m.pick(3)), Not: m.coin()}
	case 14:
		v := m.value(1 + m.pick(2))
		from, to := m.bytes(len(v)), m.bytes(len(v))
		if m.coin() {
			to = from
		}
		return ruleset.Compare{Value: v, From: from, To: to, Not: m.coin()}
	}
	return ruleset.Unknown{Text: "who knows"}
}

// bytes are such that fields often have them.
func (m *model) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = []byte{0, 1, 2, 8, 10, 'e', 'c', 0x0c, 0xff}[m.pick(9)]
	}
	return b
}

func (m *model) value(n int) ruleset.Value {
	v := make(ruleset.Value, n)
	f := ruleset.Field(m.pick(int(ruleset.ReverseIndex) + 1))
	for i := range v {
		v[i] = ruleset.Byte{Known: true, Field: f, Index: uint8(i), Mask: []byte{0xff, 0xff, 0xff, 0x0f}[m.pick(4)], Xor: []byte{0, 0, 0, 1}[m.pick(4)]}
		switch m.pick(8) {
		case 0:
			v[i] = ruleset.Byte{}
		case 1:
			v[i] = ruleset.Byte{Known: true, Xor: byte(m.pick(3))}
		}
	}
	return v
}

func (m *model) path() trace.Path {
	p := trace.Path{
		Way: trace.Way(1 + m.pick(3)), In: "eth0", Out: "cni0", InUnknown: m.pick(6) == 0, OutUnknown: m.pick(6) == 0,
		InIndex: uint32(m.pick(3)), OutIndex: uint32(m.pick(3)),
		Returns: trace.Ternary(m.pick(3)), OnBridge: m.coin(), Onward: m.pick(4) == 0,
		SrcType: []ruleset.AddrTypes{0, ruleset.Unicast, ruleset.Local}[m.pick(3)], DstType: []ruleset.AddrTypes{0, ruleset.Unicast, ruleset.Local}[m.pick(3)],
	}
	switch p.Way {
	case trace.Forwarded:
		p.Bridged = trace.Ternary(m.pick(3))
		if p.Bridged == trace.Yes {
			p.OnBridge, p.InPort, p.OutPort = true, []string{"", "eth1"}[m.pick(2)], []string{"", "eth2"}[m.pick(2)]
		}
	case trace.Delivered:
		p.Out, p.OutUnknown, p.OutIndex, p.Bridged = "", false, 0, trace.No
	case trace.Sent:
		p.In, p.InUnknown, p.InIndex, p.Bridged = "", false, 0, trace.No
	}
	return p
}

func (m *model) flow() flow.Flow {
	f := asked
	if m.coin() {
		f.Protocol = flow.UDP
	}
	return f
}

// Member implements trace.Membership.
func (m *model) Member(set string, dims []ruleset.Direction, p trace.Packet) (trace.Ternary, string) {
	return namedSets{}.Member(set, dims, p)
}

// Spell implements trace.Speller.
func (m *model) Spell(set string, dims []ruleset.Direction, p trace.Packet) (in, element string) {
	return namedSets{}.Spell(set, dims, p)
}

// Element implements trace.Membership: half of the keys are in a set, and half
// of those have a condition.
func (m *model) Element(set *ruleset.NativeSet, key []byte) (ruleset.Element, error) {
	if set.Name == "silent" {
		return ruleset.Element{}, errors.New("no answer")
	}
	hash := fnv.New32a()
	hash.Write([]byte(set.Name))
	hash.Write(key)
	n := hash.Sum32()
	e := ruleset.Element{In: n&1 != 0}
	if e.In {
		e.Verdict = m.verdicts[n>>2%3]
		if n&2 != 0 {
			e.Unknown = "its limit"
		}
	}
	return e, nil
}
