// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ipset

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
	"github.com/policygate/policygate/agent/trace"
	"github.com/policygate/policygate/api/flow"
)

var packet = trace.Packet{In: "cni0", Flow: flow.Flow{
	Protocol: flow.TCP, Src: netip.MustParseAddr("10.0.0.1"), Dst: netip.MustParseAddr("10.0.0.2"), Port: 80}}

func TestASetIsTestedOnlyForWhatItsTypeHas(t *testing.T) {
	const src, dst = ruleset.Src, ruleset.Dst
	type dims = []ruleset.Direction
	sctp := packet
	sctp.Flow.Protocol = flow.SCTP
	marked := packet
	marked.Mark, marked.MarkKnown = 0x4000, true
	for name, c := range map[string]struct {
		kind   string
		family uint8
		dims   dims
		packet trace.Packet
		want   string
		answer trace.Ternary
	}{
		"an address":                         {"hash:ip", unix.AF_INET, dims{src}, packet, "ip=10.0.0.1", trace.Unknown},
		"more dimensions than it has":        {"hash:net", unix.AF_INET, dims{dst, dst}, packet, "ip=10.0.0.2", trace.Unknown},
		"fewer dimensions than it has":       {"hash:ip,port", unix.AF_INET, dims{dst}, packet, "", trace.No},
		"another family":                     {"hash:ip", unix.AF_INET6, dims{src}, packet, "", trace.No},
		"a destination port":                 {"hash:ip,port", unix.AF_INET, dims{src, dst}, packet, "ip=10.0.0.1 port=80 proto=6", trace.Unknown},
		"a source port, which may be any":    {"hash:ip,port", unix.AF_INET, dims{dst, src}, packet, "", trace.Unknown},
		"ports of no family":                 {"bitmap:port", unix.NFPROTO_UNSPEC, dims{dst}, packet, "port=80", trace.Unknown},
		"ports of a protocol without bitmap": {"bitmap:port", unix.NFPROTO_UNSPEC, dims{dst}, sctp, "", trace.No},
		"two addresses and a port":           {"hash:ip,port,net", unix.AF_INET, dims{src, dst, dst}, packet, "ip=10.0.0.1 port=80 proto=6 ip2=10.0.0.2", trace.Unknown},
		"two networks":                       {"hash:net,net", unix.AF_INET, dims{dst, src}, packet, "ip=10.0.0.2 ip2=10.0.0.1", trace.Unknown},
		"an interface":                       {"hash:net,iface", unix.AF_INET, dims{src, src}, packet, "ip=10.0.0.1 iface=cni0", trace.Unknown},
		"an interface that is not known":     {"hash:net,iface", unix.AF_INET, dims{dst, dst}, packet, "", trace.Unknown},
		"hardware addresses":                 {"hash:mac", unix.NFPROTO_UNSPEC, dims{src}, packet, "", trace.Unknown},
		"an address and its hardware":        {"bitmap:ip,mac", unix.AF_INET, dims{src, src}, packet, "", trace.Unknown},
		"a packet's mark":                    {"hash:ip,mark", unix.AF_INET, dims{src, src}, marked, "ip=10.0.0.1 mark=16384", trace.Unknown},
		"a mark that is not known":           {"hash:ip,mark", unix.AF_INET, dims{src, src}, packet, "", trace.Unknown},
		"a type that the kernel did not say": {"", 0, dims{src}, packet, "", trace.Unknown},
		"a type to come":                     {"hash:ip,vlan", unix.AF_INET, dims{src, src}, packet, "", trace.Unknown},
		"three addresses":                    {"hash:ip,ip,ip", unix.AF_INET, dims{src, src, src}, packet, "", trace.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			d := description{kind: c.kind, family: c.family}
			if _, fields, ok := strings.Cut(c.kind, ":"); ok {
				d.fields = strings.Split(fields, ",")
			}
			element, answer, why := d.element(nil, c.dims, c.packet)
			if got := readable(t, element); got != c.want || answer != c.answer || (element == nil && answer == trace.Unknown) != (why != "") {
				t.Errorf("got %q, answer %d (%s); want %q, answer %d", got, answer, why, c.want, c.answer)
			}
			if len(element) > elementSpace {
				t.Errorf("%d bytes, want %d at most", len(element), elementSpace)
			}
		})
	}
}

// readable returns an element's attributes as text.
func readable(t *testing.T, element []byte) string {
	t.Helper()
	var all []string
	err := nlconn.Attributes(element, func(kind uint16, value []byte) {
		switch kind {
		case ipsetAttrIP, ipsetAttrIP2:
			name := map[uint16]string{ipsetAttrIP: "ip=", ipsetAttrIP2: "ip2="}[kind]
			if err := nlconn.Attributes(value, func(_ uint16, value []byte) {
				a, _ := netip.AddrFromSlice(value)
				all = append(all, name+a.String())
			}); err != nil {
				t.Error(err)
			}
		case ipsetAttrPort:
			all = append(all, fmt.Sprintf("port=%d", int(value[0])<<8|int(value[1])))
		case ipsetAttrProto:
			all = append(all, fmt.Sprintf("proto=%d", value[0]))
		case ipsetAttrMark:
			all = append(all, fmt.Sprintf("mark=%d", nlconn.BE32(value)))
		case ipsetAttrIface:
			all = append(all, "iface="+nlconn.Text(value))
		default:
			t.Errorf("attribute %d", kind)
		}
	})
	if err != nil {
		t.Error(err)
	}
	return strings.Join(all, " ")
}

// kernelSets are a kernel's: of each the type and family and what is in it, or
// the members of a list:set.
type kernelSets struct {
	sets  map[string]fakeSet
	asked []string
	// parts is in how many answers a LIST comes; 0 is one.
	parts int
}

type fakeSet struct {
	kind    string
	family  byte
	in      []string
	refusal error
}

func (k *kernelSets) Ask(kind, _ uint16, body []byte, each func([]byte) error) error {
	attrs := map[uint16][]byte{}
	if err := nlconn.Attributes(body[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) { attrs[kind] = value }); err != nil {
		return err
	}
	name := nlconn.Text(attrs[ipsetAttrSetName])
	command := map[uint16]string{ipsetHeader: "header", ipsetTest: "test", ipsetList: "list"}[kind&0xff]
	k.asked = append(k.asked, command+" "+name)
	set, ok := k.sets[name]
	if !ok {
		return unix.ENOENT
	}
	if set.refusal != nil {
		return set.refusal
	}
	answer := attribute([]byte{0, 0, 0, 0}, ipsetAttrTypeName, set.kind+"\x00")
	answer = attribute(answer, ipsetAttrFamily, string(rune(set.family)))
	switch command {
	case "header":
		return each(answer)
	case "test":
		for _, in := range set.in {
			if strings.Contains(string(attrs[ipsetAttrData]), string(netip.MustParseAddr(in).AsSlice())) {
				return nil
			}
		}
		return ipsetNotAdded
	}
	var members []byte
	for _, member := range set.in {
		members = nlconn.Attribute(members, ipsetAttrData, attribute(nil, ipsetAttrName, member+"\x00"))
	}
	answer = nlconn.Attribute(answer, ipsetAttrADT, members)
	var problem error
	for range max(k.parts, 1) {
		problem = errors.Join(problem, each(answer))
	}
	return problem
}

func TestMembershipOfSets(t *testing.T) {
	ip := func(in ...string) fakeSet { return fakeSet{kind: "hash:ip", family: unix.AF_INET, in: in} }
	list := func(in ...string) fakeSet { return fakeSet{kind: "list:set", in: in} }
	for name, c := range map[string]struct {
		kernel kernelSets
		want   trace.Ternary
		why    string
		notes  []string
	}{
		"in a set":         {kernelSets{sets: map[string]fakeSet{"a": ip("10.0.0.1")}}, trace.Yes, "", []string{"a element: 1 "}},
		"not in a set":     {kernelSets{sets: map[string]fakeSet{"a": ip("10.0.0.9")}}, trace.No, "", []string{"a element: 2 "}},
		"no set":           {kernelSets{}, trace.Unknown, "header of set a: no such file or directory", []string{"a: 0 header of set a: no such file or directory"}},
		"refused":          {kernelSets{sets: map[string]fakeSet{"a": {refusal: unix.EPERM}}}, trace.Unknown, "header of set a: operation not permitted", []string{"a: 0 header of set a: operation not permitted"}},
		"in an empty list": {kernelSets{sets: map[string]fakeSet{"a": list()}}, trace.No, "", []string{"a: 0 list:set, family 0: "}},
		"in a list's second set": {kernelSets{sets: map[string]fakeSet{"a": list("b", "c"), "b": ip(), "c": ip("10.0.0.1")}}, trace.Yes, "",
			[]string{"a: 0 list:set, family 0: b\x00c", "b: 0 hash:ip, family 2", "b element: 2 ", "c: 0 hash:ip, family 2", "c element: 1 "}},
		"in a list's set, whatever else it has": {kernelSets{sets: map[string]fakeSet{"a": list("b", "c"), "b": {kind: "hash:mac"}, "c": ip("10.0.0.1")}}, trace.Yes, "",
			[]string{"a: 0 list:set, family 0: b\x00c", "b: 0 hash:mac, family 0", "c: 0 hash:ip, family 2", "c element: 1 "}},
		"in none of a list's sets, but for one that is not known": {kernelSets{sets: map[string]fakeSet{"a": list("b", "c"), "b": {kind: "hash:mac"}, "c": ip()}}, trace.Unknown,
			"the packet's hardware addresses are not known",
			[]string{"a: 0 list:set, family 0: b\x00c", "b: 0 hash:mac, family 0", "c: 0 hash:ip, family 2", "c element: 2 "}},
		"a list's set of another family": {kernelSets{sets: map[string]fakeSet{"a": list("b"), "b": {kind: "hash:ip", family: unix.AF_INET6}}}, trace.No, "",
			[]string{"a: 0 list:set, family 0: b", "b: 0 hash:ip, family 10"}},
		"a list in a list": {kernelSets{sets: map[string]fakeSet{"a": list("b"), "b": list()}}, trace.Unknown, "set a has a list:set among its members",
			[]string{"a: 0 list:set, family 0: b", "b: 0 list:set, family 0: "}},
		"a list that is gone from under its name": {kernelSets{sets: map[string]fakeSet{"a": list("b")}}, trace.Unknown, "header of set b: no such file or directory",
			[]string{"a: 0 list:set, family 0: b", "b: 0 header of set b: no such file or directory"}},
		"a list that is too long": {kernelSets{sets: map[string]fakeSet{"a": list("b")}, parts: 2}, trace.Unknown, "members of set a: " + errLongList.Error(),
			[]string{"a: 0 members of set a: " + errLongList.Error()}},
	} {
		t.Run(name, func(t *testing.T) {
			sets := New(&c.kernel)
			var notes []string
			noted := sets.Noting(func(q Question, a Answer) {
				what := ""
				if q.Element != "" {
					what = " element"
				}
				notes = append(notes, fmt.Sprintf("%s%s: %d %s", q.Set, what, a.In, a.Text))
			})
			for range 2 {
				notes = nil
				got, why := noted.Member("a", []ruleset.Direction{ruleset.Src}, packet)
				if got != c.want || strings.TrimSpace(why) != c.why {
					t.Errorf("got %d (%s), want %d (%s)", got, why, c.want, c.why)
				}
				if diff := cmp.Diff(c.notes, notes); diff != "" {
					t.Errorf("notes (-want +got):\n%s", diff)
				}
			}
			asked := map[string]int{}
			for _, question := range c.kernel.asked {
				if asked[question]++; asked[question] > 1 {
					t.Errorf("%s: asked again", question)
				}
			}
			plain, why := sets.Member("a", []ruleset.Direction{ruleset.Src}, packet)
			if plain != c.want || why != c.why {
				t.Errorf("without notes: got %d (%s)", plain, why)
			}
		})
	}
}

func TestANotedQuestionCanBeAskedAgainWithoutTheRules(t *testing.T) {
	kernel := kernelSets{sets: map[string]fakeSet{
		"a": {kind: "list:set", in: []string{"b"}}, "b": {kind: "hash:ip", family: unix.AF_INET, in: []string{"10.0.0.1"}}}}
	before := map[Question]Answer{}
	New(&kernel).Noting(func(q Question, a Answer) { before[q] = a }).Member("a", []ruleset.Direction{ruleset.Src}, packet)
	again := func() map[Question]Answer {
		sets, answers := New(&kernel), map[Question]Answer{}
		for q := range before {
			answers[q] = sets.Ask(q)
		}
		return answers
	}
	if diff := cmp.Diff(before, again()); len(before) != 3 || diff != "" {
		t.Errorf("(-before +again):\n%s", diff)
	}
	for name, change := range map[string]func(){
		"an element that is gone": func() { kernel.sets["b"] = fakeSet{kind: "hash:ip", family: unix.AF_INET} },
		"a set of another type":   func() { kernel.sets["b"] = fakeSet{kind: "hash:net", family: unix.AF_INET, in: []string{"10.0.0.1"}} },
		"another list":            func() { kernel.sets["a"] = fakeSet{kind: "list:set", in: []string{"b", "c"}} },
		"no list":                 func() { delete(kernel.sets, "a") },
	} {
		a, b := kernel.sets["a"], kernel.sets["b"]
		change()
		if cmp.Equal(before, again()) {
			t.Errorf("%s: not noticed", name)
		}
		kernel.sets["a"], kernel.sets["b"] = a, b
	}
}

func FuzzAnswers(f *testing.F) {
	answer := attribute([]byte{0, 0, 0, 0}, ipsetAttrTypeName, "list:set\x00")
	answer = attribute(answer, ipsetAttrFamily, "\x02")
	answer = attribute(answer, ipsetAttrSetName, "a\x00")
	answer = nlconn.Attribute(answer, ipsetAttrADT, nlconn.Attribute(nil, ipsetAttrData, attribute(nil, ipsetAttrName, "b\x00")))
	f.Add(answer)
	// The second of these elements has no name.
	f.Add([]byte("0000\r\x00\x03\x00list:set\x0000010\x00\x08\x00\f\x000000000000"))
	f.Fuzz(func(t *testing.T, body []byte) {
		members, err := listed(body)
		for _, name := range members {
			if err == nil && name == "" {
				t.Errorf("a member without a name of %x", body)
			}
		}
		if d, err := described(body); err == nil && d.kind != "" {
			element, answer, why := d.element(nil, []ruleset.Direction{ruleset.Src, ruleset.Dst}, packet)
			if element == nil && answer == trace.Unknown && why == "" {
				t.Errorf("a set of type %q: unknown without a reason", d.kind)
			}
		}
		if name, _ := named(body); strings.Contains(name, "\x00") {
			t.Errorf("name %q", name)
		}
	})
}

func TestNamesOfSets(t *testing.T) {
	kernel := &namedSets{1: "one", 2: "two"}
	names := NewNames(kernel)
	for index, want := range map[uint16]string{1: "one", 2: "two", 3: ""} {
		for range 2 {
			if name, err := names.SetName(index); name != want || (err == nil) != (want != "") {
				t.Errorf("set %d: got %q, error %v", index, name, err)
			}
		}
	}
	if names.Asked() != 3 || !names.Failed() || !names.Same() {
		t.Errorf("asked %d, failed %t, same %t", names.Asked(), names.Failed(), names.Same())
	}
	for name, change := range map[string]func(k namedSets){
		"another name":             func(k namedSets) { k[1] = "another" },
		"a set that is gone":       func(k namedSets) { delete(k, 2) },
		"a set that was not there": func(k namedSets) { k[3] = "three" },
	} {
		changed := namedSets{1: "one", 2: "two"}
		names.conn = &changed
		if !names.Same() {
			t.Errorf("%s: another before", name)
		}
		if change(changed); names.Same() {
			t.Errorf("%s: the same", name)
		}
	}
}

// namedSets answers GET_BYINDEX.
type namedSets map[uint16]string

func (k namedSets) AskEach(_ uint16, requests [][]byte, each func(i int, body []byte, refusal error)) error {
	for i, request := range requests {
		name := ""
		if err := nlconn.Attributes(request[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
			if kind == ipsetAttrIndex {
				name = k[binary.BigEndian.Uint16(value)]
			}
		}); err != nil {
			return err
		}
		if name == "" {
			each(i, nil, unix.ENOENT)
			continue
		}
		each(i, attribute([]byte{0, 0, 0, 0}, ipsetAttrSetName, name+"\x00"), nil)
	}
	return nil
}
