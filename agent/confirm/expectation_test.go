// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestParse(t *testing.T) {
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
		"a missing flow is named":               {change: func(e *hubv1.Expectation) { e.Flow = nil }, want: "malformed expectation 1: flow is missing"},
		"a source of three bytes is named":      {change: func(e *hubv1.Expectation) { e.Flow.Src = e.GetFlow().GetSrc()[:3] }, want: "malformed expectation 1: flow source has 3 bytes: want 4 or 16"},
		"a port of 0 is named":                  {change: func(e *hubv1.Expectation) { e.Flow.Port = 0 }, want: "malformed expectation 1: flow destination port 0: want 1 to 65535"},
		"a protocol of 1 is named":              {change: func(e *hubv1.Expectation) { e.Flow.Protocol = 1 }, want: "malformed expectation 1: flow protocol 1: want tcp (6), udp (17) or sctp (132)"},
		"a want that is not specified is named": {change: func(e *hubv1.Expectation) { e.Want = 0 }, want: "malformed expectation 1: expectation wants ANSWER_UNSPECIFIED: want ANSWER_ALLOWED or ANSWER_DENIED"},
		"a want of 9 is named":                  {change: func(e *hubv1.Expectation) { e.Want = 9 }, want: "malformed expectation 1: expectation wants 9: want ANSWER_ALLOWED or ANSWER_DENIED"},
		"a why out of range is named":           {change: func(e *hubv1.Expectation) { e.Why = 1 }, whys: []string{"x"}, want: "malformed expectation 1: why 1: want an index into 1 whys"},
		"a why without whys is named":           {change: func(e *hubv1.Expectation) { e.Why = 1 }, want: "malformed expectation 1: why 1: want an index into 0 whys"},
	} {
		t.Run(name, func(t *testing.T) {
			second := good()
			tc.change(second)
			_, malformed := parse(&hubv1.Assign{Expectations: []*hubv1.Expectation{good(), second}, Whys: tc.whys})
			got := ""
			if malformed != nil {
				got = malformed.reason
				if malformed.index != 1 {
					t.Errorf("index %d, want 1", malformed.index)
				}
			}
			if got != tc.want {
				t.Errorf("reason %q, want %q", got, tc.want)
			}
		})
	}
}

func TestParseKeepsADeniedRequired(t *testing.T) {
	got, malformed := parse(&hubv1.Assign{Expectations: []*hubv1.Expectation{{
		Flow:     &hubv1.Flow{Protocol: 6, Src: []byte{10, 0, 0, 1}, Dst: []byte{10, 0, 0, 2}, Port: 3306},
		Want:     hubv1.Answer_ANSWER_DENIED,
		Advisory: true,
	}}})
	if malformed != nil || len(got) != 1 || got[0].advisory {
		t.Errorf("parse = %+v, %v, want one required expectation", got, malformed)
	}
}

func TestPrintable(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"plain text stays":            {in: "denied (KUBE-NWPLCY-X)", want: "denied (KUBE-NWPLCY-X)"},
		"control characters go":       {in: "a\x1b[2Jb\n", want: "a?[2Jb?"},
		"other scripts go":            {in: "sä\xff", want: "s??"},
		"what is too long is cut off": {in: strings.Repeat("x", 300), want: strings.Repeat("x", 200)},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, printable(tc.in)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestKeyTellsContentsApart(t *testing.T) {
	base := func() *hubv1.Assign {
		return &hubv1.Assign{
			Subject:    &hubv1.Subject{Uid: "u", Ips: []string{"10.0.0.1"}},
			Generation: 1, Basis: &hubv1.Basis{Pod: 1}, Whys: []string{"a"},
			Expectations: []*hubv1.Expectation{{Want: hubv1.Answer_ANSWER_ALLOWED}},
		}
	}
	for name, tc := range map[string]struct {
		change func(*hubv1.Assign)
		same   bool
	}{
		"another generation is the same": {change: func(a *hubv1.Assign) { a.Generation = 2 }, same: true},
		"another basis is the same":      {change: func(a *hubv1.Assign) { a.Basis.Pod = 2 }, same: true},
		"another why is the same":        {change: func(a *hubv1.Assign) { a.Whys[0] = "b" }, same: true},
		"another address is not":         {change: func(a *hubv1.Assign) { a.Subject.Ips[0] = "10.0.0.2" }},
		"another want is not":            {change: func(a *hubv1.Assign) { a.Expectations[0].Want = hubv1.Answer_ANSWER_DENIED }},
		"settling is not":                {change: func(a *hubv1.Assign) { a.Settle = true }},
		"leave to excuse is not":         {change: func(a *hubv1.Assign) { a.ExcuseFamilies = true }},
		"the own node is not":            {change: func(a *hubv1.Assign) { a.OwnNode = true }},
	} {
		t.Run(name, func(t *testing.T) {
			a := base()
			tc.change(a)
			k1, err1 := keyOf(base())
			k2, err2 := keyOf(a)
			if err1 != nil || err2 != nil {
				t.Fatal(err1, err2)
			}
			if (k1 == k2) != tc.same {
				t.Errorf("same key: %v, want %v", k1 == k2, tc.same)
			}
		})
	}
}

// FuzzAssign: whatever a replica sends neither panics nor is confirmed without
// a look.
func FuzzAssign(f *testing.F) {
	seed, err := proto.Marshal(&hubv1.Assign{
		Subject: &hubv1.Subject{Uid: "u"},
		Expectations: []*hubv1.Expectation{{
			Flow: &hubv1.Flow{Protocol: 6, Src: []byte{1, 2, 3, 4}, Dst: make([]byte, 16), Port: 1},
			Want: hubv1.Answer_ANSWER_ALLOWED,
		}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		a := &hubv1.Assign{}
		if proto.Unmarshal(data, a) != nil {
			return
		}
		out := &outbox{}
		c := newConfirmer(&dataplane{}, out)
		// The error is the right answer to an assignment without subject.
		_ = c.Assign(Source{Replica: "a", Session: 1}, a)
		for _, s := range out.taken() {
			if s.Report.GetConfirmed() {
				t.Errorf("confirmed without a look: %v", s.Report)
			}
			for _, u := range s.Report.GetUnmet() {
				if len(u.GetReason()) > maxReason {
					t.Errorf("reason of %d bytes", len(u.GetReason()))
				}
			}
		}
	})
}

// answers is a Look that gives fixed verdicts; flows that it lacks are
// Inconclusive.
type answers struct {
	verdicts map[flow.Flow]flow.Answer
	unrouted map[flow.Flow]bool
	rewrites uint64
	asked    map[flow.Flow]int
	// unsettled are flows that no batch with them is answered for.
	unsettled map[flow.Flow]bool
	batches   *[][]Question
}

func (a *answers) Together(_ context.Context, questions []Question) ([]Answer, error) {
	if a.batches != nil {
		*a.batches = append(*a.batches, questions)
	}
	all := make([]Answer, 0, len(questions))
	for _, q := range questions {
		if a.unsettled[q.Flow] {
			return nil, errors.New("kept changing")
		}
		if a.asked != nil {
			a.asked[q.Flow]++
		}
		all = append(all, Answer{Verdict: flow.Verdict{Answer: a.verdicts[q.Flow], Reason: "rule"}, Routed: !a.unrouted[q.Flow]})
	}
	return all, nil
}

func (a *answers) Rewrites() uint64 { return a.rewrites }
