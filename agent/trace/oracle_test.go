// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package trace_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

// fate is what becomes of one packet.
type fate uint8

const (
	passes fate = iota
	falls
	// anything: the packet met what nobody knows.
	anything
	// endless: its rules lead on for ever.
	endless
)

// oracle sends one packet of a flow through rules the plain way: whatever is
// not known, of the packet, the node or the rules, it decides by chance. A
// conclusive verdict has to hold for all such packets.
type oracle struct {
	chance *rand.Rand
	path   trace.Path
	flow   flow.Flow
	sets   trace.Membership

	hook                      ruleset.Hook
	source                    netip.Addr
	sourcePort                uint16
	mark, connMark, status    uint32
	state                     ruleset.CTStates
	resourced, bridged        bool
	onBridge                  bool
	inName, outName           string
	inIndex, outIndex         uint32
	inPort, outPort           string
	srcType, dstType          ruleset.AddrTypes
	returns, anyway           bool
	fragmentFlags, otherFlags byte
	depth, steps              int
}

func (o *oracle) coin() bool { return o.chance.IntN(2) == 0 }

func (o *oracle) decide(t trace.Ternary) bool {
	return t == trace.Yes || (t == trace.Unknown && o.coin())
}

func send(tables []ruleset.Table, path trace.Path, f flow.Flow, sets trace.Membership, chance *rand.Rand) fate {
	o := &oracle{chance: chance, path: path, flow: f, sets: sets, source: f.Src, state: ruleset.Invalid}
	o.sourcePort = uint16(1024 + chance.IntN(64512))
	o.fragmentFlags, o.otherFlags = byte(chance.IntN(4))<<6, byte(chance.IntN(4))<<6
	o.bridged = o.decide(path.Bridged)
	o.onBridge = o.bridged || (path.OnBridge && path.Way != trace.Sent && o.coin())
	o.inPort, o.outPort = o.name(path.InPort), o.name(path.OutPort)
	o.returns = o.decide(path.Returns)
	o.anyway = o.returns || o.coin()
	o.srcType, o.dstType = o.kind(path.SrcType), o.kind(path.DstType)
	in, inIndex := o.device(path.In, path.InIndex, path.InUnknown)
	out, outIndex := o.device(path.Out, path.OutIndex, path.OutUnknown)
	o.status = uint32(chance.IntN(1<<16)) & 0xe580
	hooks := map[trace.Way][]ruleset.Hook{
		trace.Forwarded: {ruleset.Prerouting, ruleset.Forward, ruleset.Postrouting},
		trace.Delivered: {ruleset.Prerouting, ruleset.Input}, trace.Sent: {ruleset.Output, ruleset.Postrouting},
	}[path.Way]
	for _, hook := range hooks {
		o.hook, o.inName, o.inIndex, o.outName, o.outIndex = hook, in, inIndex, out, outIndex
		switch {
		case hook == ruleset.Prerouting || hook == ruleset.Input:
			o.outName, o.outIndex = "", 0
		case hook == ruleset.Output || path.Way == trace.Sent || (hook == ruleset.Postrouting && o.coin()):
			o.inName, o.inIndex = "", 0
		}
		if end := o.through(tables); end != passes {
			return end
		}
	}
	return passes
}

func (o *oracle) name(known string) string {
	if known != "" {
		return known
	}
	return []string{"eth0", "eth1", "cni0"}[o.chance.IntN(3)]
}

func (o *oracle) device(name string, index uint32, unknown bool) (string, uint32) {
	if unknown {
		return o.name(""), 1 + o.chance.Uint32N(9)
	}
	if index == 0 && name != "" {
		index = 1 + o.chance.Uint32N(9)
	}
	return name, index
}

func (o *oracle) kind(known ruleset.AddrTypes) ruleset.AddrTypes {
	if known != 0 {
		return known
	}
	return 1 << o.chance.IntN(9)
}

// call is something that the kernel calls at a hook.
type call struct {
	priority, own int
	// order is by chance where nothing else decides.
	order int
	chain *ruleset.Chain
}

func (o *oracle) through(tables []ruleset.Table) fate {
	var calls []call
	if o.hook == ruleset.Prerouting || o.hook == ruleset.Output {
		calls = append(calls, call{priority: -200, own: -200, order: o.chance.Int()})
	}
	for _, t := range tables {
		for _, c := range t.Chains {
			if c.Base == nil || c.Base.Hook != o.hook {
				continue
			}
			at := call{c.Base.Priority, 0, o.chance.Int(), c}
			if c.Base.NAT {
				at.priority, at.own = 100, c.Base.Priority
				if o.hook == ruleset.Prerouting || o.hook == ruleset.Output {
					at.priority = -100
				}
			}
			calls = append(calls, at)
		}
	}
	slices.SortFunc(calls, func(a, b call) int { return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.order, b.order)) })
	// Nat chains keep to their order among each other, in the places that
	// chance gave them.
	var places []int
	var nat []call
	for i, c := range calls {
		if c.chain != nil && c.chain.Base.NAT {
			places, nat = append(places, i), append(nat, c)
		}
	}
	slices.SortFunc(nat, func(a, b call) int { return cmp.Or(cmp.Compare(a.own, b.own), cmp.Compare(a.order, b.order)) })
	for i, c := range nat {
		calls[places[i]] = c
	}
	for _, c := range calls {
		if c.chain == nil {
			o.lookUp()
			continue
		}
		if c.priority > -200 || (o.hook != ruleset.Prerouting && o.hook != ruleset.Output) {
			o.lookUp()
		}
		if c.chain.Base.NAT && (o.state != ruleset.New || o.resourced) {
			continue
		}
		switch end := o.chain(c.chain); {
		case end == comesBack && c.chain.Base.Drop, end == refused:
			return falls
		case end == lost:
			return anything
		case end == forEver:
			return endless
		}
	}
	return passes
}

func (o *oracle) lookUp() {
	if o.state == ruleset.Invalid {
		o.state = ruleset.New
	}
}

// end is how a chain ends.
type end uint8

const (
	comesBack end = iota
	accepted
	refused
	lost
	forEver
)

func (o *oracle) chain(c *ruleset.Chain) end {
	if o.depth++; o.depth > 60 {
		return forEver
	}
	defer func() { o.depth-- }()
	rules, err := c.List()
	if c.Opaque != "" || err != nil {
		return lost
	}
	for i := range rules {
		if o.steps++; o.steps > 3_000 {
			return forEver
		}
		if !o.matches(&rules[i]) {
			continue
		}
		stop, how := o.act(&rules[i].Target)
		if stop {
			return how
		}
	}
	return comesBack
}

func (o *oracle) act(t *ruleset.Target) (stop bool, how end) {
	switch t.Kind {
	case ruleset.Accept:
		return true, accepted
	case ruleset.Drop:
		return true, refused
	case ruleset.Return:
		return true, comesBack
	case ruleset.Jump:
		how = o.chain(t.Chain)
		return how != comesBack, how
	case ruleset.Goto:
		return true, o.chain(t.Chain)
	case ruleset.SetMark:
		o.mark = o.mark&^t.Mask ^ t.Value
	case ruleset.SetConnMark:
		if o.state == ruleset.New {
			o.connMark = o.connMark&^t.Mask ^ t.Value
		}
	case ruleset.SaveMark:
		if o.state == ruleset.New {
			o.connMark = o.connMark&^t.CTMask ^ o.mark&t.Mask
		}
	case ruleset.RestoreMark:
		if o.state == ruleset.New {
			o.mark = o.mark&^t.Mask ^ o.connMark&t.CTMask
		}
	case ruleset.NoTrack:
		if o.state == ruleset.Invalid {
			o.state = ruleset.Untracked
		}
	case ruleset.NewSource:
		if o.path.Onward {
			return true, lost
		}
		o.resourced = true
		if o.coin() {
			o.source, o.sourcePort, o.status = modelAddrs[o.chance.IntN(3)], uint16(1+o.chance.IntN(65535)), o.status|0x10
			o.srcType = o.kind(0)
		}
		return true, accepted
	case ruleset.Decide:
		key, ok := o.value(t.Key)
		if !ok {
			return false, 0
		}
		found, err := o.sets.Element(t.Map, key)
		switch {
		case err != nil:
			return true, lost
		case found.In && (found.Unknown == "" || o.coin()):
			return o.act(&found.Verdict)
		}
	case ruleset.UnknownTarget, ruleset.NewDestination:
		return true, lost
	case ruleset.Continue:
	}
	return false, 0
}

func (o *oracle) matches(r *ruleset.Rule) bool {
	for _, m := range r.Matches {
		if !o.match(m) {
			return false
		}
	}
	return true
}

func (o *oracle) address(d ruleset.Direction) netip.Addr {
	if d == ruleset.Src {
		return o.source
	}
	return o.flow.Dst
}

func (o *oracle) match(m ruleset.Match) bool {
	switch m := m.(type) {
	case ruleset.Addr:
		return m.Contains(o.address(m.Dir)) != m.Not
	case ruleset.AddrRange:
		a := o.address(m.Dir)
		return (m.From.Compare(a) <= 0 && a.Compare(m.To) <= 0) != m.Not
	case ruleset.Iface:
		name := o.inName
		if m.Out {
			name = o.outName
		}
		return named(name, m.Name, m.Prefix) != m.Not
	case ruleset.Proto:
		return (m.Number == uint8(o.flow.Protocol)) != m.Not
	case ruleset.Ports:
		in := func(p uint16) bool { return m.Ranges[0].From <= p && p <= m.Ranges[0].To }
		return (m.Dir != ruleset.Src && in(o.flow.Port) || m.Dir != ruleset.Dst && in(o.sourcePort)) != m.Not
	case ruleset.Set:
		answer, _ := o.sets.Member(m.Name, m.Dims, trace.Packet{Flow: o.flow})
		if o.resourced && m.Dims[0] == ruleset.Src {
			answer = trace.Unknown
		}
		return o.decide(answer) != m.Not
	case ruleset.Mark:
		mark := o.mark
		if m.Conn {
			if mark = o.connMark; o.state != ruleset.New {
				return false
			}
		}
		return (mark&m.Mask == m.Value) != m.Not
	case ruleset.CTState:
		states := o.state
		if o.status&0x10 != 0 && o.state == ruleset.New {
			states |= ruleset.SNATed
		}
		return (states&m.States != 0) != m.Not
	case ruleset.AddrType:
		have := o.dstType
		if m.Dir == ruleset.Src {
			have = o.srcType
		}
		return (have&m.Types != 0) != m.Not
	case ruleset.Bridged:
		return (o.bridged && (o.hook == ruleset.Forward || o.hook == ruleset.Postrouting)) != m.Not
	case ruleset.BridgePort:
		return o.bridgePort(m) != m.Not
	case ruleset.ReversePath:
		if o.hook != ruleset.Prerouting && o.hook != ruleset.Input && o.hook != ruleset.Forward {
			return o.coin()
		}
		return (o.returns || m.Loose && o.anyway) != m.Not
	case ruleset.Lookup:
		key, ok := o.value(m.Key)
		if !ok {
			return false
		}
		found, err := o.sets.Element(m.Set, key)
		if err != nil || (found.In && found.Unknown != "") {
			return o.coin()
		}
		return found.In != m.Not
	case ruleset.Compare:
		v, ok := o.value(m.Value)
		return ok && (bytes.Compare(m.From, v) <= 0 && bytes.Compare(v, m.To) <= 0) != m.Not
	}
	return o.coin()
}

func named(have, want string, prefix bool) bool {
	return have == want || prefix && strings.HasPrefix(have, want)
}

func (o *oracle) bridgePort(m ruleset.BridgePort) bool {
	port := o.inPort
	if m.Out {
		if port = ""; o.bridged && (o.hook == ruleset.Forward || o.hook == ruleset.Postrouting) {
			port = o.outPort
		}
	}
	// Without anything of a bridge no name is compared.
	return o.onBridge && named(port, m.Name, m.Prefix) || !o.onBridge && m.Name == "" && !m.Prefix
}

// value returns the bytes of a register; false if there is nothing to load.
func (o *oracle) value(v ruleset.Value) ([]byte, bool) {
	var all []byte
	for _, b := range v {
		if !b.Known {
			all = append(all, byte(o.chance.Uint32()))
			continue
		}
		field, ok := o.field(b.Field)
		if !ok {
			return nil, false
		}
		value := byte(o.chance.Uint32())
		if int(b.Index) < len(field) {
			value = field[b.Index]
		}
		all = append(all, value&b.Mask^b.Xor)
	}
	return all, true
}

func (o *oracle) field(f ruleset.Field) ([]byte, bool) {
	tracked := o.state == ruleset.New
	port := func(p uint16) []byte { return binary.BigEndian.AppendUint16(nil, p) }
	number := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	kind := func(t ruleset.AddrTypes) []byte { return number(uint32(bits.TrailingZeros16(uint16(t)))) }
	switch f {
	case ruleset.Constant:
		return []byte{0, 0, 0, 0}, true
	case ruleset.SrcAddr:
		return o.source.AsSlice(), true
	case ruleset.DstAddr:
		return o.flow.Dst.AsSlice(), true
	case ruleset.L4Proto:
		return []byte{byte(o.flow.Protocol)}, true
	case ruleset.FragOff:
		return []byte{o.fragmentFlags, 0}, true
	case ruleset.SrcPort:
		return port(o.sourcePort), true
	case ruleset.DstPort:
		return port(o.flow.Port), true
	case ruleset.TCPFlagBits:
		if o.flow.Protocol != flow.TCP {
			return nil, o.coin()
		}
		return []byte{ruleset.SYN | o.otherFlags}, true
	case ruleset.InName:
		return []byte(name(o.inName)), true
	case ruleset.OutName:
		return []byte(name(o.outName)), true
	case ruleset.InIndex:
		return number(o.inIndex), true
	case ruleset.OutIndex:
		return number(o.outIndex), true
	case ruleset.PacketMark:
		return number(o.mark), true
	case ruleset.ConnMark:
		return number(o.connMark), tracked
	case ruleset.ConnState:
		return number(map[ruleset.CTStates]uint32{ruleset.Invalid: 1, ruleset.New: 8, ruleset.Untracked: 64}[o.state]), true
	case ruleset.ConnStatus:
		return number(o.status), tracked
	case ruleset.SrcType:
		return kind(o.srcType), true
	case ruleset.DstType:
		return kind(o.dstType), true
	case ruleset.ReverseIndex:
		if o.hook != ruleset.Prerouting && o.hook != ruleset.Input && o.hook != ruleset.Forward {
			return nil, true
		}
		if o.returns {
			return number(o.inIndex), true
		}
		return number(0), true
	}
	return nil, true
}
