// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// elementRequest asks for one element. Without a key it is found by its flags.
func elementRequest(table tableKey, set string, key []byte, flags uint32) []byte {
	var e []byte
	if key != nil {
		e = nlconn.Attribute(e, unix.NFTA_SET_ELEM_KEY|unix.NLA_F_NESTED, nlconn.Attribute(nil, unix.NFTA_DATA_VALUE, key))
	}
	if flags != 0 {
		e = nlconn.Attribute(e, unix.NFTA_SET_ELEM_FLAGS, binary.BigEndian.AppendUint32(nil, flags))
	}
	request := nlconn.NFGenMsg(table.family, 0)
	request = nlconn.Attribute(request, unix.NFTA_SET_ELEM_LIST_TABLE, terminated(table.name))
	request = nlconn.Attribute(request, unix.NFTA_SET_ELEM_LIST_SET, terminated(set))
	return nlconn.Attribute(request, unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED,
		nlconn.Attribute(nil, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, e))
}

// element is an element of a set as nf_tables lists it.
type element struct {
	key []byte
	// end is the end of a concatenation of intervals, included; nil if that is
	// the key.
	end   []byte
	flags uint32
	// verdict is that of a map of verdicts, else nil.
	verdict *decision
	// expressions are the names of those that are evaluated when a packet
	// finds the element.
	expressions []string
	// foreign says that there was something that no kernel known here says.
	foreign bool
	// doubtful, if not empty, says why a packet may not find the element.
	doubtful string
}

// unknown returns what else decides whether the element matches, or "".
func (e element) unknown() string {
	if e.doubtful != "" {
		return e.doubtful
	}
	if e.foreign {
		return "an element with an unknown attribute"
	}
	for _, name := range e.expressions {
		// Others, such as limit, quota and connlimit, can end the rule.
		if name != "counter" && name != "last" {
			return "an element with " + name
		}
	}
	return ""
}

// readElement reads the message that has one element.
func readElement(body []byte) (element, error) {
	all, err := readElements(body)
	if err != nil {
		return element{}, err
	}
	if len(all) != 1 {
		return element{}, fmt.Errorf("%d elements: want 1", len(all))
	}
	return all[0], nil
}

// readElements reads a message of a list of elements.
func readElements(body []byte) ([]element, error) {
	if len(body) < nlconn.NFGenMsgLen {
		return nil, errors.New("answer without header")
	}
	var list []byte
	err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
		if kind == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			list = value
		}
	})
	var all []element
	var nested error
	err = errors.Join(err, nlconn.Attributes(list, func(_ uint16, value []byte) {
		e, err := parseElement(value)
		all, nested = append(all, e), errors.Join(nested, err)
	}))
	return all, errors.Join(err, nested)
}

// parseElement reads the attributes of one element.
func parseElement(data []byte) (element, error) {
	a, err := parseAttrs(data)
	if err != nil {
		return element{}, err
	}
	e := element{foreign: a.foreign}
	known := []int{
		unix.NFTA_SET_ELEM_KEY, unix.NFTA_SET_ELEM_DATA, unix.NFTA_SET_ELEM_FLAGS, unix.NFTA_SET_ELEM_TIMEOUT,
		unix.NFTA_SET_ELEM_EXPIRATION, unix.NFTA_SET_ELEM_USERDATA, unix.NFTA_SET_ELEM_EXPR, unix.NFTA_SET_ELEM_PAD,
		unix.NFTA_SET_ELEM_OBJREF, elementKeyEnd, elementExpressions,
	}
	e.foreign = e.foreign || !a.only(known...)
	if a.values[unix.NFTA_SET_ELEM_FLAGS] != nil {
		flags, ok := a.number(unix.NFTA_SET_ELEM_FLAGS)
		e.flags = flags
		e.foreign = e.foreign || !ok || flags&^(unix.NFT_SET_ELEM_INTERVAL_END|elementCatchall) != 0
	}
	if a.values[unix.NFTA_SET_ELEM_KEY] != nil {
		key, ok := a.data(unix.NFTA_SET_ELEM_KEY)
		if !ok {
			return element{}, errors.New("element with a key that is no value")
		}
		e.key = bytes.Clone(key)
	}
	if a.values[elementKeyEnd] != nil {
		end, ok := a.data(elementKeyEnd)
		if !ok || len(end) != len(e.key) {
			return element{}, errors.New("element with an end that its key has not")
		}
		e.end = bytes.Clone(end)
	}
	if e.key == nil && e.flags&elementCatchall == 0 {
		return element{}, errors.New("element without a key")
	}
	if e.verdict, err = elementVerdict(a.values[unix.NFTA_SET_ELEM_DATA]); err != nil {
		return element{}, err
	}
	return e, e.addExpressions(&a)
}

// addExpressions notes the names of an element's expressions: one alone, or a
// list.
func (e *element) addExpressions(a *attrs) error {
	var nested error
	add := func(_ uint16, value []byte) {
		expression, err := parseAttrs(value)
		if err != nil {
			nested = errors.Join(nested, err)
			return
		}
		e.expressions = append(e.expressions, nlconn.Text(expression.values[unix.NFTA_EXPR_NAME]))
	}
	if one := a.values[unix.NFTA_SET_ELEM_EXPR]; one != nil {
		add(0, one)
	}
	err := nlconn.Attributes(a.values[elementExpressions], add)
	return errors.Join(err, nested)
}

// elementVerdict returns the verdict in an element's data; nil if there is none.
func elementVerdict(data []byte) (*decision, error) {
	outer, err := parseAttrs(data)
	if err != nil {
		return nil, err
	}
	if outer.values[unix.NFTA_DATA_VERDICT] == nil {
		return nil, nil
	}
	v, ok := readVerdict(data)
	if !ok {
		return nil, errors.New("element with a malformed verdict")
	}
	return &v, nil
}

// Verdicts that x/sys has no number for, linux/netfilter.h.
const (
	nfDrop   = 0
	nfAccept = 1
)

// decision is what an expression or an element says to do with the packet.
type decision struct {
	code  int32
	chain string
}

// readVerdict reads what contains an NFTA_DATA_VERDICT and nothing else.
func readVerdict(data []byte) (decision, bool) {
	// NFTA_VERDICT_CHAIN_ID is for requests only.
	outer, err := parseAttrs(data)
	inner, err2 := parseAttrs(outer.values[unix.NFTA_DATA_VERDICT])
	code, ok := inner.number(unix.NFTA_VERDICT_CODE)
	if err != nil || err2 != nil || !ok || !outer.only(unix.NFTA_DATA_VERDICT) || !inner.only(unix.NFTA_VERDICT_CODE, unix.NFTA_VERDICT_CHAIN) {
		return decision{}, false
	}
	return decision{int32(code), nlconn.Text(inner.values[unix.NFTA_VERDICT_CHAIN])}, true //nolint:gosec // A signed number by definition.
}

// target returns what the verdict does. It returns an error if it leads to a
// chain that is not there.
func (v decision) target(s surroundings) (ruleset.Target, error) {
	switch v.code {
	case nfAccept:
		return ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}, nil
	case nfDrop:
		return ruleset.Target{Kind: ruleset.Drop, Name: "DROP"}, nil
	case unix.NFT_CONTINUE:
		return ruleset.Target{Kind: ruleset.Continue}, nil
	case unix.NFT_RETURN:
		return ruleset.Target{Kind: ruleset.Return, Name: "RETURN"}, nil
	case unix.NFT_JUMP, unix.NFT_GOTO:
		t := ruleset.Target{Kind: ruleset.Jump, Name: v.chain, Chain: s.chain(v.chain)}
		if v.code == unix.NFT_GOTO {
			t.Kind = ruleset.Goto
		}
		if t.Chain == nil {
			return ruleset.Target{}, fmt.Errorf("a jump leads to chain %q, which the table does not have", v.chain)
		}
		return t, nil
	}
	// A queue, or a break, which nobody writes.
	return ruleset.Target{Kind: ruleset.UnknownTarget, Name: fmt.Sprintf("verdict %d", v.code)}, nil
}
