// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/policygate/policygate/agent/ruleset"
)

// nftObject is one of those that nft -j list ruleset prints.
type nftObject struct {
	Set   *nftSet   `json:"set"`
	Chain *nftChain `json:"chain"`
	Rule  *nftRule  `json:"rule"`
}

type nftSet struct {
	Family, Table, Name string
	Elem                []json.RawMessage `json:"elem"`
}

type nftChain struct {
	Family, Table, Name, Type, Hook, Policy string
	Prio                                    int
}

type nftRule struct {
	Family, Table, Chain, Comment string
	Expr                          []map[string]json.RawMessage `json:"expr"`
}

// readNFT reads the rules and sets of family ip that kube-router writes. It
// returns an error for what it does not know.
func readNFT(printed []byte) ([]ruleset.Table, textSets, error) {
	var all struct {
		Objects []nftObject `json:"nftables"`
	}
	if err := json.Unmarshal(printed, &all); err != nil {
		return nil, nil, fmt.Errorf("nft's JSON: %w", err)
	}
	sets := textSets{}
	var tables []ruleset.Table
	chains := map[[2]string]*ruleset.Chain{}
	for _, o := range all.Objects {
		switch {
		case o.Set != nil && o.Set.Family == "ip":
			set, err := o.Set.read()
			if err != nil {
				return nil, nil, fmt.Errorf("set %s: %w", o.Set.Name, err)
			}
			sets[o.Set.Name] = set
		case o.Chain != nil && o.Chain.Family == "ip":
			c, err := o.Chain.read()
			if err != nil {
				return nil, nil, fmt.Errorf("chain %s: %w", o.Chain.Name, err)
			}
			if len(tables) == 0 || tables[len(tables)-1].Name != o.Chain.Table {
				tables = append(tables, ruleset.Table{Family: ruleset.IPv4, Backend: ruleset.NFT, Name: o.Chain.Table})
			}
			t := &tables[len(tables)-1]
			t.Chains = append(t.Chains, c)
			chains[[2]string{o.Chain.Table, o.Chain.Name}] = c
		}
	}
	for _, o := range all.Objects {
		if o.Rule == nil || o.Rule.Family != "ip" {
			continue
		}
		rules, err := o.Rule.read(chains)
		if err != nil {
			return nil, nil, fmt.Errorf("rule of chain %s: %w", o.Rule.Chain, err)
		}
		c := chains[[2]string{o.Rule.Table, o.Rule.Chain}]
		c.Rules = append(c.Rules, rules...)
	}
	return tables, sets, nil
}

func (s *nftSet) read() (*textSet, error) {
	set := newTextSet()
	for _, raw := range s.Elem {
		if raw[0] == '"' {
			a, err := netip.ParseAddr(string(raw[1 : len(raw)-1]))
			if err != nil {
				return nil, err
			}
			set.addresses[a] = true
			continue
		}
		var e struct {
			Prefix struct {
				Addr string
				Len  int
			}
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			return nil, err
		}
		if err := set.addPrefix(fmt.Sprintf("%s/%d", e.Prefix.Addr, e.Prefix.Len), true); err != nil {
			return nil, fmt.Errorf("element %s: %w", raw, err)
		}
	}
	return set, nil
}

func (c *nftChain) read() (*ruleset.Chain, error) {
	chain := &ruleset.Chain{Name: c.Name}
	if c.Hook == "" {
		return chain, nil
	}
	hook, known := map[string]ruleset.Hook{
		"input": ruleset.Input, "forward": ruleset.Forward, "output": ruleset.Output,
	}[c.Hook]
	if !known {
		return nil, fmt.Errorf("hook %q is not known", c.Hook)
	}
	chain.Base = &ruleset.Base{Hook: hook, Priority: c.Prio, Drop: c.Policy == "drop", NAT: c.Type == "nat"}
	return chain, nil
}

// read returns the rule, as two if it sets the mark and then decides.
func (r *nftRule) read(chains map[[2]string]*ruleset.Chain) ([]ruleset.Rule, error) {
	var rules []ruleset.Rule
	rule := ruleset.Rule{Comment: r.Comment, Target: ruleset.Target{Kind: ruleset.Continue}}
	for _, e := range r.Expr {
		for name, body := range e {
			var err error
			switch name {
			case "match":
				var matches []ruleset.Match
				matches, err = nftMatches(body)
				rule.Matches = append(rule.Matches, matches...)
			case "limit":
				rule.Matches = append(rule.Matches, ruleset.Unknown{Text: "limit"})
			case "counter", "log":
			case "mangle":
				rule.Target, err = nftMangle(body)
				rules = append(rules, rule)
				rule.Target = ruleset.Target{Kind: ruleset.Continue}
			case "accept":
				rule.Target.Kind = ruleset.Accept
			case "drop", "reject":
				rule.Target.Kind = ruleset.Drop
			case "return":
				rule.Target.Kind = ruleset.Return
			case "jump":
				var to struct{ Target string }
				err = json.Unmarshal(body, &to)
				rule.Target = ruleset.Target{Kind: ruleset.Jump, Chain: chains[[2]string{r.Table, to.Target}], Name: to.Target}
			default:
				err = fmt.Errorf("statement %s is not known", name)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if len(rules) == 0 || rule.Target.Kind != ruleset.Continue {
		rules = append(rules, rule)
	}
	return rules, nil
}

// nftExpression is the left side of a match, or what a mark is set to.
type nftExpression struct {
	Payload struct{ Protocol, Field string }
	Fib     struct{ Flags []string }
	CT      struct{ Key string }
	And     [2]json.RawMessage `json:"&"`
	Or      [2]json.RawMessage `json:"|"`
}

func nftMatches(body json.RawMessage) ([]ruleset.Match, error) {
	var m struct {
		Op    string
		Left  nftExpression
		Right json.RawMessage
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	right := string(m.Right)
	protocols := map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}
	switch l := m.Left; {
	case m.Op != "==" && m.Op != "in":
	case l.Payload.Field == "saddr":
		return nftAddress(ruleset.Src, m.Right)
	case l.Payload.Field == "daddr":
		return nftAddress(ruleset.Dst, m.Right)
	case l.Payload.Field == "dport":
		ports, err := nftPorts(m.Right)
		return []ruleset.Match{ruleset.Proto{Number: protocols[l.Payload.Protocol]}, ports}, err
	case l.Payload.Protocol == "icmp" && l.Payload.Field == "type":
		return []ruleset.Match{ruleset.Proto{Number: protocols["icmp"]}, ruleset.Unknown{Text: right}}, nil
	case len(l.Fib.Flags) == 1 && right == `"local"`:
		dir := ruleset.Src
		if l.Fib.Flags[0] == "daddr" {
			dir = ruleset.Dst
		}
		return []ruleset.Match{ruleset.AddrType{Dir: dir, Types: ruleset.Local}}, nil
	case l.CT.Key == "state" && right == `"invalid"`:
		return []ruleset.Match{ruleset.CTState{States: ruleset.Invalid}}, nil
	case l.CT.Key == "state" && strings.Contains(right, "established") && !strings.Contains(right, "new"):
		return []ruleset.Match{ruleset.CTState{States: ruleset.Established | ruleset.Related}}, nil
	case l.And[1] != nil:
		var mask, value uint32
		if err := json.Unmarshal(l.And[1], &mask); err != nil {
			return nil, err
		}
		err := json.Unmarshal(m.Right, &value)
		return []ruleset.Match{ruleset.Mark{Value: value, Mask: mask}}, err
	}
	return nil, fmt.Errorf("match %s is not known", body)
}

func nftAddress(dir ruleset.Direction, right json.RawMessage) ([]ruleset.Match, error) {
	if right[0] == '"' {
		text := string(right[1 : len(right)-1])
		if name, isSet := strings.CutPrefix(text, "@"); isSet {
			return []ruleset.Match{ruleset.Set{Name: name, Dims: []ruleset.Direction{dir}}}, nil
		}
		a, err := netip.ParseAddr(text)
		return []ruleset.Match{ruleset.Addr{Dir: dir, Addr: a, Mask: netip.AddrFrom4([4]byte{255, 255, 255, 255})}}, err
	}
	var r struct {
		Prefix struct {
			Addr netip.Addr
			Len  int
		}
	}
	if err := json.Unmarshal(right, &r); err != nil {
		return nil, err
	}
	ones, err := netip.AddrFrom4([4]byte{255, 255, 255, 255}).Prefix(r.Prefix.Len)
	return []ruleset.Match{ruleset.Addr{Dir: dir, Addr: r.Prefix.Addr, Mask: ones.Addr()}}, err
}

func nftPorts(right json.RawMessage) (ruleset.Match, error) {
	var ports struct{ Range [2]uint16 }
	if right[0] != '{' {
		err := json.Unmarshal(right, &ports.Range[0])
		ports.Range[1] = ports.Range[0]
		return ruleset.Ports{Dir: ruleset.Dst, Ranges: []ruleset.PortRange{{From: ports.Range[0], To: ports.Range[1]}}}, err
	}
	err := json.Unmarshal(right, &ports)
	return ruleset.Ports{Dir: ruleset.Dst, Ranges: []ruleset.PortRange{{From: ports.Range[0], To: ports.Range[1]}}}, err
}

// nftMangle reads a mark that gets bits set, or all but some cleared.
func nftMangle(body json.RawMessage) (ruleset.Target, error) {
	var m struct{ Value nftExpression }
	if err := json.Unmarshal(body, &m); err != nil {
		return ruleset.Target{}, err
	}
	var bits uint32
	switch {
	case m.Value.Or[1] != nil:
		err := json.Unmarshal(m.Value.Or[1], &bits)
		return ruleset.Target{Kind: ruleset.SetMark, Value: bits, Mask: bits}, err
	case m.Value.And[1] != nil:
		err := json.Unmarshal(m.Value.And[1], &bits)
		return ruleset.Target{Kind: ruleset.SetMark, Mask: ^bits}, err
	}
	return ruleset.Target{}, fmt.Errorf("mangle %s is not known", body)
}
