// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// elements is the kernel's answer to a question for elements.
func elements(of ...[]byte) []byte {
	var list []byte
	for _, e := range of {
		list = append(list, attr(unix.NFTA_LIST_ELEM, e)...)
	}
	return slices.Concat(nlconn.NFGenMsg(unix.NFPROTO_INET, 0), attr(unix.NFTA_SET_ELEM_LIST_TABLE, "t"), attr(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list))
}

func key(data ...byte) []byte { return value(unix.NFTA_SET_ELEM_KEY, data...) }

// leads is an element's data: a verdict.
func leads(code int, chain string) []byte {
	v := attr(unix.NFTA_VERDICT_CODE, code)
	if chain != "" {
		v = append(v, attr(unix.NFTA_VERDICT_CHAIN, chain)...)
	}
	return attr(unix.NFTA_SET_ELEM_DATA, attr(unix.NFTA_DATA_VERDICT, v))
}

func named(kind uint16, name string) []byte { return attr(kind, attr(unix.NFTA_EXPR_NAME, name)) }

func TestAnElementIsWhatTheKernelSaysOrUnknown(t *testing.T) {
	for name, c := range map[string]struct {
		body []byte
		maps bool
		// want is the element; nil stands for an error.
		want *ruleset.Element
	}{
		"a key":                    {elements(key(1)), false, &ruleset.Element{In: true}},
		"an interval":              {elements(slices.Concat(key(1), value(elementKeyEnd, 9))), false, &ruleset.Element{In: true}},
		"a timeout and a comment":  {elements(slices.Concat(key(1), attr(unix.NFTA_SET_ELEM_TIMEOUT, make([]byte, 8)), attr(unix.NFTA_SET_ELEM_EXPIRATION, make([]byte, 8)), attr(unix.NFTA_SET_ELEM_USERDATA, "x"))), false, &ruleset.Element{In: true}},
		"a value of a map":         {elements(slices.Concat(key(1), value(unix.NFTA_SET_ELEM_DATA, 5))), false, &ruleset.Element{In: true}},
		"an object of a map":       {elements(slices.Concat(key(1), attr(unix.NFTA_SET_ELEM_OBJREF, "x"))), false, &ruleset.Element{In: true}},
		"a counter":                {elements(slices.Concat(key(1), named(unix.NFTA_SET_ELEM_EXPR, "counter"))), false, &ruleset.Element{In: true}},
		"counters":                 {elements(slices.Concat(key(1), attr(elementExpressions, slices.Concat(named(1, "last"), named(1, "counter"))))), false, &ruleset.Element{In: true}},
		"a limit":                  {elements(slices.Concat(key(1), named(unix.NFTA_SET_ELEM_EXPR, "limit"))), false, &ruleset.Element{In: true, Unknown: "an element with limit"}},
		"a quota behind a counter": {elements(slices.Concat(key(1), attr(elementExpressions, slices.Concat(named(1, "counter"), named(1, "quota"))))), false, &ruleset.Element{In: true, Unknown: "an element with quota"}},
		"an expression of no name": {elements(slices.Concat(key(1), attr(unix.NFTA_SET_ELEM_EXPR, []byte{}))), false, &ruleset.Element{In: true, Unknown: "an element with "}},
		"something of tomorrow":    {elements(slices.Concat(key(1), attr(13, 1))), false, &ruleset.Element{In: true, Unknown: "an element with an unknown attribute"}},
		"much later":               {elements(slices.Concat(key(1), attr(77, 1))), false, &ruleset.Element{In: true, Unknown: "an element with an unknown attribute"}},
		"a flag of tomorrow":       {elements(slices.Concat(key(1), attr(unix.NFTA_SET_ELEM_FLAGS, 4))), false, &ruleset.Element{In: true, Unknown: "an element with an unknown attribute"}},
		"the catch-all":            {elements(attr(unix.NFTA_SET_ELEM_FLAGS, elementCatchall)), false, &ruleset.Element{In: true}},
		"a verdict":                {elements(slices.Concat(key(1), leads(nfAccept, ""))), true, &ruleset.Element{In: true, Verdict: ruleset.Target{Kind: ruleset.Accept, Name: "ACCEPT"}}},
		"a verdict that goes on":   {elements(slices.Concat(key(1), leads(unix.NFT_CONTINUE, ""))), true, &ruleset.Element{In: true, Verdict: ruleset.Target{Kind: ruleset.Continue}}},
		"a queue":                  {elements(slices.Concat(key(1), leads(3, ""))), true, &ruleset.Element{In: true, Verdict: ruleset.Target{Name: "verdict 3"}}},
		"a verdict with a limit":   {elements(slices.Concat(key(1), leads(nfDrop, ""), named(unix.NFTA_SET_ELEM_EXPR, "limit"))), true, &ruleset.Element{In: true, Verdict: ruleset.Target{Kind: ruleset.Drop, Name: "DROP"}, Unknown: "an element with limit"}},
		"a jump nowhere":           {elements(slices.Concat(key(1), leads(unix.NFT_JUMP, "nowhere"))), true, nil},
		"no verdict":               {elements(key(1)), true, nil},
		"a malformed verdict":      {elements(slices.Concat(key(1), attr(unix.NFTA_SET_ELEM_DATA, attr(unix.NFTA_DATA_VERDICT, []byte{})))), true, nil},
		"a verdict and a value":    {elements(slices.Concat(key(1), attr(unix.NFTA_SET_ELEM_DATA, slices.Concat(attr(unix.NFTA_DATA_VERDICT, attr(unix.NFTA_VERDICT_CODE, 1)), attr(unix.NFTA_DATA_VALUE, []byte{1}))))), true, nil},
		"no key":                   {elements(attr(unix.NFTA_SET_ELEM_FLAGS, 0)), false, nil},
		"no element":               {elements(), false, nil},
		"two elements":             {elements(key(1), key(2)), false, nil},
		"nothing":                  {nil, false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := setHeader{keyLength: 1}
			if c.maps {
				h.flags, h.dataType = unix.NFT_SET_MAP, unix.NFT_DATA_VERDICT
			}
			s := newSet(newView(&snapshot{}, tableKey{}, ruleset.IPv4), "s", h)
			e, err := readElement(c.body)
			var got ruleset.Element
			if err == nil {
				got, err = s.model(e)
			}
			if (err == nil) != (c.want != nil) {
				t.Fatalf("got %+v, %v; want %+v", got, err, c.want)
			}
			if err == nil {
				if diff := cmp.Diff(*c.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
		})
	}
}

func TestASetIsWhatTheKernelSays(t *testing.T) {
	whole := listed(unix.NFPROTO_INET, attr(unix.NFTA_SET_TABLE, "t"), attr(unix.NFTA_SET_NAME, "s"), attr(unix.NFTA_SET_KEY_LEN, 8),
		attr(unix.NFTA_SET_FLAGS, unix.NFT_SET_MAP|unix.NFT_SET_TIMEOUT), attr(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT), attr(unix.NFTA_SET_DATA_LEN, 16))
	name, got, err := readSet(whole)
	want := setHeader{flags: unix.NFT_SET_MAP | unix.NFT_SET_TIMEOUT, keyLength: 8, dataType: unix.NFT_DATA_VERDICT, dataLength: 16}
	if err != nil || name != "s" || got != want {
		t.Errorf("got %q, %+v, %v; want %+v", name, got, err, want)
	}
	s := newSet(newView(&snapshot{}, tableKey{unix.NFPROTO_INET, "t"}, ruleset.IPv4), "s", got)
	if s.plain.Table != "t" || s.plain.Name != "s" || s.plain.KeyLength != 8 || !s.plain.Verdicts || !s.plain.Volatile {
		t.Errorf("got %+v", s.plain)
	}
	for _, length := range []int{-1, 0, longestKey + 1} {
		_, h, err := readSet(listed(unix.NFPROTO_INET, attr(unix.NFTA_SET_NAME, "s"), attr(unix.NFTA_SET_KEY_LEN, length)))
		if err == nil {
			t.Errorf("a key of %d bytes: got %+v, want an error", length, h)
		}
	}
}

// FuzzReadElement demands that only an element that has a well-formed verdict
// to accept leads to one.
func FuzzReadElement(f *testing.F) {
	f.Add(elements(slices.Concat(key(1, 2), leads(nfAccept, ""))))
	f.Add(elements(slices.Concat(key(1, 2), leads(unix.NFT_GOTO, "x"), named(unix.NFTA_SET_ELEM_EXPR, "limit"))))
	f.Add(elements(slices.Concat(attr(unix.NFTA_SET_ELEM_FLAGS, 2), attr(elementExpressions, named(1, "counter")))))
	accepts := attr(unix.NFTA_VERDICT_CODE, nfAccept)
	f.Fuzz(func(t *testing.T, body []byte) {
		_, _, _ = readSet(body)
		names := map[string]bool{}
		_ = addLookups(body, names)
		e, err := readElement(body)
		if err != nil {
			return
		}
		if len(e.key) == 0 && e.flags&elementCatchall == 0 {
			t.Errorf("%x: an element without a key", body)
		}
		if e.verdict == nil {
			return
		}
		target, err := e.verdict.target(world{})
		if err == nil && target.Kind == ruleset.Accept && !contains(body, accepts) {
			t.Errorf("%x accepts", body)
		}
	})
}
