// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// described returns what a description of the expectations is decoded to.
func described(t testing.TB, whys []string, expectations ...*hubv1.Expectation) *Description {
	t.Helper()
	content, err := proto.Marshal(&hubv1.Description{Expectations: expectations, Whys: whys})
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDescription(content)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestParseDescription(t *testing.T) {
	good := func() *hubv1.Expectation {
		return &hubv1.Expectation{
			Flow: &hubv1.Flow{Protocol: 6, Src: []byte{10, 0, 0, 1}, Dst: []byte{10, 0, 0, 2}, Port: 3306},
			Want: hubv1.Answer_ANSWER_ALLOWED,
		}
	}
	for name, tc := range map[string]struct {
		change func(*hubv1.Expectation)
		whys   []string
		want   string // the reason, or empty
	}{
		"a well-formed one":                     {change: func(*hubv1.Expectation) {}, whys: []string{"db/a ingress[0]"}},
		"without whys":                          {change: func(*hubv1.Expectation) {}},
		"a source that is left out":             {change: func(e *hubv1.Expectation) { e.Flow.Src = nil }},
		"a destination that is left out":        {change: func(e *hubv1.Expectation) { e.Flow.Dst = nil }},
		"both are left out":                     {change: func(e *hubv1.Expectation) { e.Flow.Src, e.Flow.Dst = nil, nil }, want: "malformed expectation 1: flow source and destination are both left out: want at most one, the subject's own"},
		"a missing flow is named":               {change: func(e *hubv1.Expectation) { e.Flow = nil }, want: "malformed expectation 1: flow is missing"},
		"a source of three bytes is named":      {change: func(e *hubv1.Expectation) { e.Flow.Src = e.GetFlow().GetSrc()[:3] }, want: "malformed expectation 1: flow source has 3 bytes: want 4 or 16"},
		"a destination of 3 beside none":        {change: func(e *hubv1.Expectation) { e.Flow.Src, e.Flow.Dst = nil, []byte{1, 2, 3} }, want: "malformed expectation 1: flow destination has 3 bytes: want 4 or 16"},
		"an address of two families beside one": {change: func(e *hubv1.Expectation) { e.Flow.Dst = append(make([]byte, 15), 1) }, want: "malformed expectation 1: flow from 10.0.0.1 to ::1: want two addresses of one family"},
		"a port of 0 is named":                  {change: func(e *hubv1.Expectation) { e.Flow.Port = 0 }, want: "malformed expectation 1: flow destination port 0: want 1 to 65535"},
		"a port of 0 beside a source left out":  {change: func(e *hubv1.Expectation) { e.Flow.Port, e.Flow.Src = 0, nil }, want: "malformed expectation 1: flow destination port 0: want 1 to 65535"},
		"a protocol of 1 is named":              {change: func(e *hubv1.Expectation) { e.Flow.Protocol = 1 }, want: "malformed expectation 1: flow protocol 1: want tcp (6), udp (17) or sctp (132)"},
		"a want that is not specified is named": {change: func(e *hubv1.Expectation) { e.Want = 0 }, want: "malformed expectation 1: expectation wants ANSWER_UNSPECIFIED: want ANSWER_ALLOWED or ANSWER_DENIED"},
		"a want of 9 is named":                  {change: func(e *hubv1.Expectation) { e.Want = 9 }, want: "malformed expectation 1: expectation wants 9: want ANSWER_ALLOWED or ANSWER_DENIED"},
		"a why out of range is named":           {change: func(e *hubv1.Expectation) { e.Why = 1 }, whys: []string{"x"}, want: "malformed expectation 1: why 1: want an index into 1 whys"},
		"a why without whys is named":           {change: func(e *hubv1.Expectation) { e.Why = 1 }, want: "malformed expectation 1: why 1: want an index into 0 whys"},
		"a witness of an Allowed":               {change: func(e *hubv1.Expectation) { e.Witness = true }},
		"a witness of a Denied is named":        {change: func(e *hubv1.Expectation) { e.Witness, e.Want = true, hubv1.Answer_ANSWER_DENIED }, want: "malformed expectation 1: witness of a Denied: want that of an Allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			second := good()
			tc.change(second)
			d := described(t, tc.whys, good(), second, good())
			got := ""
			if d.malformed != nil {
				got = d.malformed.reason
				if d.malformed.index != 1 {
					t.Errorf("index %d, want 1", d.malformed.index)
				}
			}
			if got != tc.want {
				t.Errorf("reason %q, want %q", got, tc.want)
			}
			if d.count != 3 {
				t.Errorf("%d expectations, want 3", d.count)
			}
		})
	}
}

func TestADescriptionThatCannotBeDecodedIsAnError(t *testing.T) {
	if _, err := ParseDescription([]byte{0xff}); err == nil {
		t.Error("no error for a byte that is no message")
	}
}

func TestADeniedIsRequiredWhateverItSays(t *testing.T) {
	e := want(stranger, flow.Denied)
	e.Advisory = true
	d := described(t, nil, e)
	if len(d.expectations) != 1 || d.expectations[0].advisory {
		t.Errorf("expectations %+v, want a required one", d.expectations)
	}
}

// FuzzParseDescription: whatever a hub sends neither panics nor holds
// something that cannot be asked.
func FuzzParseDescription(f *testing.F) {
	for _, m := range []*hubv1.Description{
		{Whys: []string{"a", "b"}, Expectations: []*hubv1.Expectation{
			{Flow: &hubv1.Flow{Protocol: 6, Src: []byte{1, 2, 3, 4}, Port: 1}, Want: hubv1.Answer_ANSWER_ALLOWED, Why: 1, Advisory: true},
			{Flow: &hubv1.Flow{Protocol: 17, Dst: make([]byte, 16), Port: 65535}, Want: hubv1.Answer_ANSWER_DENIED, External: true},
		}},
		{Expectations: []*hubv1.Expectation{{Flow: &hubv1.Flow{Protocol: 132, Src: []byte{1}, Port: 1}, Witness: true}}},
	} {
		seed, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		d, err := ParseDescription(content)
		if err != nil {
			return
		}
		if (d.malformed == nil) != (len(d.expectations) == d.count) {
			t.Errorf("%d of %d expectations, malformed %v", len(d.expectations), d.count, d.malformed)
		}
		for i, e := range d.expectations {
			if err := e.flow.Validate(); err != nil {
				t.Errorf("expectation %d: %v", i, err)
			}
			if e.want == flow.Inconclusive || e.want == flow.Denied && (e.advisory || e.witness) || e.why > 0 && int64(e.why) >= int64(d.whys) {
				t.Errorf("expectation %d: %+v of %d whys", i, e, d.whys)
			}
		}
	})
}
