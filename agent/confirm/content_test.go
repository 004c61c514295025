// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// between returns an expectation of a flow, of which an empty end is left out.
func between(src, dst string, a flow.Answer) *hubv1.Expectation {
	m := &hubv1.Flow{Protocol: uint32(flow.TCP), Port: 3306}
	if src != "" {
		m.Src = netip.MustParseAddr(src).AsSlice()
	}
	if dst != "" {
		m.Dst = netip.MustParseAddr(dst).AsSlice()
	}
	return &hubv1.Expectation{Flow: m, Want: hubv1.AnswerOf(a)}
}

func TestWhatIsLeftOutIsTheSubjectsAddressOfTheOthersFamily(t *testing.T) {
	d := described(t, nil,
		between("", "10.0.0.9", flow.Allowed), between("10.0.0.7", "", flow.Denied),
		between("", "fd00::9", flow.Allowed), between("fd00::7", "", flow.Denied),
		between("10.0.0.7", "10.0.0.9", flow.Denied),
	)
	c := contentOf(&hubv1.Assign{Subject: &hubv1.Subject{Ips: []string{"fd00::1", "10.0.0.1"}}}, d)
	if c.malformed != nil {
		t.Fatal(c.malformed.reason)
	}
	var got []string
	for _, q := range c.questions(nil, nil) {
		got = append(got, q.Flow.Src.String()+" "+q.Flow.Dst.String())
	}
	want := []string{"10.0.0.1 10.0.0.9", "10.0.0.7 10.0.0.1", "fd00::1 fd00::9", "fd00::7 fd00::1", "10.0.0.7 10.0.0.9"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("asked (-want +got):\n%s", diff)
	}
}

func TestMalformedContent(t *testing.T) {
	const (
		needs4 = "malformed expectation 1: it leaves out the subject's own v4 address: want a subject with one, this has "
		needs6 = "malformed expectation 2: it leaves out the subject's own v6 address: want a subject with one, this has "
	)
	bad := between("10.0.0.1", "10.0.0.2", flow.Inconclusive)
	for name, tc := range map[string]struct {
		ips     []string
		excused []uint32
		last    *hubv1.Expectation
		missing bool
		index   int
		want    string
	}{
		"what it needs":                          {ips: []string{"10.0.0.1", "fd00::1"}},
		"all whys are excused":                   {ips: []string{"10.0.0.1", "fd00::1"}, excused: []uint32{0, 1, 2}},
		"an address that is missing":             {ips: []string{"fd00::1"}, index: 1, want: needs4 + "0"},
		"one of the other family":                {ips: []string{"10.0.0.1"}, index: 2, want: needs6 + "0"},
		"the first that is missing":              {index: 1, want: needs4 + "0"},
		"two of one family":                      {ips: []string{"10.0.0.1", "10.0.0.2", "fd00::1"}, index: 1, want: needs4 + "2"},
		"an address that is none":                {ips: []string{"x", "fd00::1"}, want: `malformed assignment: subject address "x": want an IPv4 or IPv6 address without zone`},
		"an address with a zone":                 {ips: []string{"fe80::1%eth0"}, want: `malformed assignment: subject address "fe80::1%eth0": want an IPv4 or IPv6 address without zone`},
		"an address in the other's form":         {ips: []string{"::ffff:10.0.0.1"}, want: `malformed assignment: subject address "::ffff:10.0.0.1": want an IPv4 or IPv6 address without zone`},
		"a why that does not exist":              {ips: []string{"10.0.0.1", "fd00::1"}, excused: []uint32{1, 3}, want: "malformed assignment: excused[1] is 3: want ascending indexes into 3 whys"},
		"whys out of order":                      {ips: []string{"10.0.0.1", "fd00::1"}, excused: []uint32{2, 1}, want: "malformed assignment: excused[1] is 1: want ascending indexes into 3 whys"},
		"a why twice":                            {ips: []string{"10.0.0.1", "fd00::1"}, excused: []uint32{1, 1}, want: "malformed assignment: excused[1] is 1: want ascending indexes into 3 whys"},
		"a description that was not sent":        {ips: []string{"10.0.0.1"}, missing: true, want: "malformed assignment: it names description 7, which was not sent: want a Describe of it first"},
		"one that is malformed for all":          {ips: []string{"10.0.0.1", "fd00::1"}, last: bad, index: 3, want: "malformed expectation 3: expectation wants ANSWER_UNSPECIFIED: want ANSWER_ALLOWED or ANSWER_DENIED"},
		"the first of what is malformed is said": {ips: []string{"10.0.0.1"}, last: bad, index: 2, want: needs6 + "0"},
	} {
		t.Run(name, func(t *testing.T) {
			all := []*hubv1.Expectation{
				between("10.0.0.7", "10.0.0.9", flow.Denied), between("", "10.0.0.9", flow.Allowed), between("fd00::7", "", flow.Denied),
			}
			if tc.last != nil {
				all = append(all, tc.last)
			}
			d := described(t, []string{"a", "b", "c"}, all...)
			if tc.missing {
				d = nil
			}
			got := contentOf(&hubv1.Assign{Subject: &hubv1.Subject{Ips: tc.ips}, Excused: tc.excused, Description: 7}, d).malformed
			if tc.want == "" {
				if got != nil {
					t.Errorf("malformed: %s", got.reason)
				}
				return
			}
			if diff := cmp.Diff(&unmet{tc.index, tc.want}, got, cmp.AllowUnexported(unmet{})); diff != "" {
				t.Errorf("malformed (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeyTellsContentsApart(t *testing.T) {
	base := func() *assigned {
		return &assigned{
			Assign: &hubv1.Assign{
				Subject:    &hubv1.Subject{Uid: "u", Ips: []string{"10.0.0.1", "fd00::1"}},
				Generation: 1, Basis: &hubv1.Basis{Pod: 1}, Description: 1, Excused: []uint32{0},
			},
			Whys:         []string{"a"},
			Expectations: []*hubv1.Expectation{{Want: hubv1.Answer_ANSWER_ALLOWED}},
		}
	}
	for name, tc := range map[string]struct {
		change func(*assigned)
		same   bool
	}{
		"another generation is the same":          {change: func(a *assigned) { a.Generation = 2 }, same: true},
		"another basis is the same":               {change: func(a *assigned) { a.Basis.Pod = 2 }, same: true},
		"another id of the description is, too":   {change: func(a *assigned) { a.Description = 2 }, same: true},
		"another order of the addresses is, too":  {change: func(a *assigned) { a.Subject.Ips = []string{"fd00::1", "10.0.0.1"} }, same: true},
		"another uid is not":                      {change: func(a *assigned) { a.Subject.Uid = "v" }},
		"another address is not":                  {change: func(a *assigned) { a.Subject.Ips[0] = "10.0.0.2" }},
		"an address less is not":                  {change: func(a *assigned) { a.Subject.Ips = a.GetSubject().GetIps()[1:] }},
		"another want is not":                     {change: func(a *assigned) { a.Expectations[0].Want = hubv1.Answer_ANSWER_DENIED }},
		"another why is not":                      {change: func(a *assigned) { a.Whys[0] = "b" }},
		"another why that is excused is not":      {change: func(a *assigned) { a.Excused = nil }},
		"settling is not":                         {change: func(a *assigned) { a.Settle = true }},
		"leave to excuse is not":                  {change: func(a *assigned) { a.ExcuseFamilies = true }},
		"the own node is not":                     {change: func(a *assigned) { a.OwnNode = true }},
		"an address for a uid of another is not":  {change: func(a *assigned) { a.Subject.Uid, a.Subject.Ips = "u\x0810.0.0.1", []string{"fd00::1"} }},
		"settling is not leave to excuse, either": {change: func(a *assigned) { a.Settle, a.ExcuseFamilies = true, true }},
	} {
		t.Run(name, func(t *testing.T) {
			a := base()
			tc.change(a)
			d1, err1 := base().description()
			d2, err2 := a.description()
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			if same := keyOf(base().Assign, d1) == keyOf(a.Assign, d2); same != tc.same {
				t.Errorf("same key: %v, want %v", same, tc.same)
			}
			if keyOf(a.Assign, nil) == keyOf(a.Assign, d2) {
				t.Error("the key of a description that was not sent is that of one that was")
			}
		})
	}
}

// FuzzAssign: whatever a replica sends neither panics nor is confirmed without
// an answer of the dataplane.
func FuzzAssign(f *testing.F) {
	seed := func(a *hubv1.Assign, d *hubv1.Description) {
		assign, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		description, err := proto.Marshal(d)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(assign, description)
	}
	seed(&hubv1.Assign{Subject: &hubv1.Subject{Uid: "u", Ips: []string{"1.2.3.4"}}, Excused: []uint32{0}}, &hubv1.Description{
		Expectations: []*hubv1.Expectation{between("", "1.2.3.5", flow.Allowed), between("1.2.3.5", "", flow.Denied)},
		Whys:         []string{"x"},
	})
	seed(&hubv1.Assign{Subject: &hubv1.Subject{Uid: "u"}}, &hubv1.Description{
		Expectations: []*hubv1.Expectation{between("", "::1", flow.Allowed), {Witness: true}},
	})
	seed(&hubv1.Assign{Subject: &hubv1.Subject{Uid: "p", Generation: 2}, Policy: true}, &hubv1.Description{
		Expectations: []*hubv1.Expectation{between("1.2.3.4", "1.2.3.5", flow.Allowed), between("", "1.2.3.5", flow.Denied)},
	})
	f.Fuzz(func(t *testing.T, assign, description []byte) {
		a := &hubv1.Assign{}
		if proto.Unmarshal(assign, a) != nil {
			return
		}
		// Without a description, it was not sent.
		d, _ := ParseDescription(description)
		out := &outbox{}
		c := newConfirmer(&dataplane{}, out)
		// The error is the right answer to an assignment without subject.
		_ = c.Assign(Source{Replica: "a", Session: 1}, a, d)
		c.look(t.Context())
		for _, s := range out.taken() {
			if s.Report.GetConfirmed() {
				t.Errorf("confirmed without a second look: %v", s.Report)
			}
			if len(s.Report.GetUnrealized())+len(s.Report.GetRealized()) > 0 || s.Report.GetSteady() {
				t.Errorf("something is learned from no answer: %v", s.Report)
			}
			for _, u := range s.Report.GetUnmet() {
				if len(u.GetReason()) > maxReason {
					t.Errorf("reason of %d bytes", len(u.GetReason()))
				}
				if d != nil && int(u.GetExpectation()) >= d.count {
					t.Errorf("expectation %d of %d is named", u.GetExpectation(), d.count)
				}
			}
		}
	})
}
