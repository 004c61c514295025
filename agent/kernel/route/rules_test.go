// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package route

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
)

// rule returns a routing rule as the kernel lists it.
func rule(tos byte, attributes ...[]byte) []byte {
	header := make([]byte, ruleHeader)
	header[ruleTOS] = tos
	return slices.Concat(append([][]byte{header}, attributes...)...)
}

func attribute(kind uint16, value ...byte) []byte { return nlconn.Attribute(nil, kind, value) }

func number(kind uint16, value uint32) []byte {
	return attribute(kind, binary.NativeEndian.AppendUint32(nil, value)...)
}

func TestRulesSayWhatARouteDependsOn(t *testing.T) {
	for name, c := range map[string]struct {
		rules [][]byte
		want  ruleSet
	}{
		"by address and input interface alone: nothing else": {
			[][]byte{rule(0, number(fraPriority, 5), attribute(fraSrc, 10, 0, 0, 0), attribute(fraIIFName, 'x', 0), number(fraTable, 100))},
			ruleSet{marks: []uint32{0}},
		},
		"by a mark: one that matches and one that does not": {
			[][]byte{rule(0, number(fraFWMark, 0x80), number(fraFWMask, 0x80))},
			ruleSet{marks: []uint32{0, 0x80}},
		},
		"by two marks: all combinations": {
			[][]byte{rule(0, number(fraFWMark, 0x1), number(fraFWMask, 0x1)), rule(0, number(fraFWMark, 0x2), number(fraFWMask, 0x2))},
			ruleSet{marks: []uint32{0, 1, 2, 3}},
		},
		"by the mark 0: one that is not": {
			[][]byte{rule(0, number(fraFWMask, 0xff))},
			ruleSet{marks: []uint32{0, 0xff}},
		},
		"by two values of one mask": {
			[][]byte{rule(0, number(fraFWMark, 0x1), number(fraFWMask, 0x3)), rule(0, number(fraFWMark, 0x2), number(fraFWMask, 0x3))},
			ruleSet{marks: []uint32{0, 1, 2}},
		},
		"by protocol": {
			[][]byte{rule(0, attribute(fraIPProto, 6))},
			ruleSet{marks: []uint32{0}, ports: true},
		},
		"by source ports": {
			[][]byte{rule(0, attribute(23, 1, 0, 2, 0))},
			ruleSet{marks: []uint32{0}, obscure: "selector 23"},
		},
		"by type of service": {
			[][]byte{rule(4)},
			ruleSet{marks: []uint32{0}, obscure: "type of service"},
		},
		"by a mark that is cut short": {
			[][]byte{rule(0, attribute(fraFWMask, 1))},
			ruleSet{marks: []uint32{0}, obscure: "a malformed mark"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := ruleSet{marks: []uint32{0}}
			for _, r := range c.rules {
				if err := got.add(r); err != nil {
					t.Fatal(err)
				}
			}
			sorted := cmpopts.SortSlices(func(a, b uint32) bool { return a < b })
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(ruleSet{}), sorted); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestManyMarksAreObscure(t *testing.T) {
	var got ruleSet
	got.marks = []uint32{0}
	for i := range 16 {
		if err := got.add(rule(0, number(fraFWMark, 1<<i), number(fraFWMask, 1<<i))); err != nil {
			t.Fatal(err)
		}
	}
	if got.obscure == "" || len(got.marks) > mostMarks {
		t.Errorf("%d marks, obscure %q: want at most %d, and said so", len(got.marks), got.obscure, mostMarks)
	}
}

func TestReadRoute(t *testing.T) {
	message := func(bits, kind byte, attributes ...[]byte) []byte {
		return slices.Concat(append([][]byte{{unix.AF_INET, bits, 0, 0, 0, 0, 0, kind, 0, 0, 0, 0}}, attributes...)...)
	}
	hop := func(index uint32, attributes ...byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtNexthop+len(attributes)))
		b = binary.NativeEndian.AppendUint32(append(b, 0, 0), index)
		return append(b, attributes...)
	}
	for name, c := range map[string]struct {
		body []byte
		want foundRoute
	}{
		"on the link": {
			message(24, unix.RTN_UNICAST, number(unix.RTA_OIF, 3)),
			foundRoute{kind: unix.RTN_UNICAST, bits: 24, outIndex: 3},
		},
		"by a gateway": {
			message(0, unix.RTN_UNICAST, number(unix.RTA_OIF, 3), attribute(unix.RTA_GATEWAY, 10, 0, 0, 1)),
			foundRoute{kind: unix.RTN_UNICAST, outIndex: 3, gateway: true},
		},
		"by two": {
			message(0, unix.RTN_UNICAST, attribute(unix.RTA_MULTIPATH, append(hop(4, attribute(unix.RTA_GATEWAY, 10, 0, 0, 1)...), hop(5)...)...)),
			foundRoute{kind: unix.RTN_UNICAST, outIndex: 4, gateway: true, hops: 2},
		},
		"the node's own": {
			message(32, unix.RTN_LOCAL, number(unix.RTA_OIF, 1)),
			foundRoute{kind: unix.RTN_LOCAL, bits: 32, outIndex: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readRoute(c.body)
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(foundRoute{})); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
	for name, body := range map[string][]byte{
		"a header cut short":       {unix.AF_INET, 24},
		"a next hop of no length":  message(0, unix.RTN_UNICAST, attribute(unix.RTA_MULTIPATH, 0, 0, 0, 0, 0, 0, 0, 0)),
		"a next hop that overruns": message(0, unix.RTN_UNICAST, attribute(unix.RTA_MULTIPATH, 99, 0, 0, 0, 0, 0, 0, 0)),
	} {
		if got, err := readRoute(body); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func FuzzRouteMessages(f *testing.F) {
	f.Add(rule(0, number(fraFWMark, 1), number(fraFWMask, 1)))
	f.Add([]byte{unix.AF_INET, 24, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		set := ruleSet{marks: []uint32{0}}
		if err := set.add(b); err == nil && len(set.marks) > mostMarks {
			t.Errorf("%d marks", len(set.marks))
		}
		_, _ = readRoute(b)
	})
}
