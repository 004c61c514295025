// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/protobuf/proto"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestValidateReport(t *testing.T) {
	// An assignment with two expectations and three whys, of which two are
	// excused.
	d, err := Describe(&hubv1.Description{Expectations: make([]*hubv1.Expectation, 2), Whys: []string{"x", "y", "z"}})
	if err != nil {
		t.Fatal(err)
	}
	answered := &assignment{message: &hubv1.Assign{Excused: []uint32{0, 2}}, description: d}
	ascending := make([]uint32, maxWhys+1)
	for i := range ascending {
		ascending[i] = uint32(i)
	}
	for name, tc := range map[string]struct {
		report *hubv1.Report
		want   string
		// unknown: the hub does not know the assignment any more.
		unknown bool
		// empty: the assignment asks for nothing.
		empty bool
	}{
		"nothing but a uid":               {report: &hubv1.Report{}},
		"confirmed and steady":            {report: &hubv1.Report{Confirmed: true, Steady: true}},
		"the last of everything":          {report: &hubv1.Report{Unmet: []*hubv1.Unmet{{Expectation: 1}}, Unrealized: []uint32{1, 2}, Realized: []uint32{0}}},
		"steady, and it is said why":      {report: &hubv1.Report{UnmetRequired: 1, Unrealized: []uint32{1}, Steady: true}},
		"anything of what is not known":   {report: &hubv1.Report{Unmet: []*hubv1.Unmet{{Expectation: 99}}, Unrealized: []uint32{98}, Realized: []uint32{99}}, unknown: true},
		"the whole of an empty one":       {report: &hubv1.Report{Unmet: []*hubv1.Unmet{{}}}, empty: true},
		"more than an empty one has":      {report: &hubv1.Report{Unmet: []*hubv1.Unmet{{Expectation: 1}}}, empty: true, want: "the assignment has 0"},
		"a uid that is too long":          {report: &hubv1.Report{Uid: strings.Repeat("u", 129)}, want: "uid has 129 bytes"},
		"more unmet than agreed":          {report: &hubv1.Report{Unmet: make([]*hubv1.Unmet, 4)}, want: "unmet has 4 entries"},
		"an index beyond the assignment":  {report: &hubv1.Report{Unmet: []*hubv1.Unmet{{}, {Expectation: 2}}}, want: "unmet[1].expectation is 2: the assignment has 2"},
		"confirmed and unmet":             {report: &hubv1.Report{Confirmed: true, UnmetRequired: 1}, want: "confirmed with unmet_required 1"},
		"both families left out":          {report: &hubv1.Report{Ipv4Unenforced: true, Ipv6Unenforced: true}, want: "at most one"},
		"a family left out without leave": {report: &hubv1.Report{Ipv6Unenforced: true}, want: "does not have excuse_families"},
		"a reason that is not printable":  {report: &hubv1.Report{Unmet: []*hubv1.Unmet{{Reason: "\x1b[31m"}}}, want: "unmet[0].reason"},
		"a reason that is too long":       {report: &hubv1.Report{Unmet: []*hubv1.Unmet{{Reason: strings.Repeat("x", 201)}}}, want: "unmet[0].reason"},
		"a why beyond the description":    {report: &hubv1.Report{Unrealized: []uint32{0, 3}}, want: "unrealized[1] is 3: the description has 3 whys"},
		"a why twice":                     {report: &hubv1.Report{Unrealized: []uint32{1, 1}}, want: "unrealized[1] is 1, behind 1: want them ascending"},
		"whys that fall":                  {report: &hubv1.Report{Realized: []uint32{2, 0}}, want: "realized[1] is 0, behind 2"},
		"more unrealized than agreed":     {report: &hubv1.Report{Unrealized: ascending}, want: "unrealized has 65 entries: want at most 64", unknown: true},
		"more realized than agreed":       {report: &hubv1.Report{Realized: ascending}, want: "realized has 65 entries: want at most 64", unknown: true},
		"realized without being excused":  {report: &hubv1.Report{Realized: []uint32{0, 1}}, want: "realized[1] is 1: the assignment does not excuse it"},
		"realized and not":                {report: &hubv1.Report{Unrealized: []uint32{0}, Realized: []uint32{0}}, want: "realized[0] is 0, which is in unrealized, too"},
		"steady without saying why":       {report: &hubv1.Report{UnmetRequired: 1, Steady: true}, want: "steady with unmet expectations and nothing in unrealized"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.report.GetUid() == "" {
				tc.report.Uid = "a"
			}
			of := answered
			if tc.unknown {
				of = nil
			}
			if tc.empty {
				of = &assignment{message: &hubv1.Assign{}}
			}
			err := validateReport(tc.report, of)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("error %v, want none", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if err := validateReport(&hubv1.Report{}, answered); err == nil || err.Error() != "uid is empty" {
		t.Errorf("a report without a uid: error %v", err)
	}
}

func TestValidateState(t *testing.T) {
	long := strings.Repeat("x", maxText+1)
	for name, tc := range map[string]struct {
		state *hubv1.State
		want  string
	}{
		"none":                  {},
		"an empty one":          {state: &hubv1.State{}},
		"as much as may be":     {state: &hubv1.State{Unsupported: long[1:], Dataplanes: filled(maxDataplanes), Remarks: remarked(maxRemarks)}},
		"a kind to come":        {state: &hubv1.State{Remarks: []*hubv1.Remark{{Kind: "Unheard"}}}},
		"a long reason":         {state: &hubv1.State{Unsupported: long}, want: "unsupported "},
		"an unprintable reason": {state: &hubv1.State{Unsupported: "\x1b[31m"}, want: `unsupported "?[31m"`},
		"too many dataplanes":   {state: &hubv1.State{Dataplanes: filled(maxDataplanes + 1)}, want: "dataplanes has 9 entries: want at most 8"},
		"a nameless dataplane":  {state: &hubv1.State{Dataplanes: []string{"ipset", ""}}, want: "dataplanes[1] is empty"},
		"a long dataplane":      {state: &hubv1.State{Dataplanes: []string{long}}, want: "dataplanes[0] "},
		"too many remarks":      {state: &hubv1.State{Remarks: remarked(maxRemarks + 1)}, want: "remarks has 17 entries: want at most 16"},
		"a remark of no kind":   {state: &hubv1.State{Remarks: []*hubv1.Remark{{Text: "x"}}}, want: "remarks[0].kind is empty"},
		"a long kind":           {state: &hubv1.State{Remarks: []*hubv1.Remark{{Kind: long}}}, want: "remarks[0].kind "},
		"a long text":           {state: &hubv1.State{Remarks: []*hubv1.Remark{{Kind: "x", Text: long}}}, want: "remarks[0].text "},
	} {
		t.Run(name, func(t *testing.T) {
			hello := &hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{BootId: "b", State: tc.state}}}
			for of, err := range map[string]error{"state": validateState(tc.state), "hello": validateHello(hello)} {
				switch {
				case tc.want == "" && err != nil:
					t.Errorf("%s: error %v, want none", of, err)
				case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
					t.Errorf("%s: error %v, want one with %q", of, err, tc.want)
				}
			}
		})
	}
}

// filled returns so many names.
func filled(n int) []string { return slices.Repeat([]string{"nftables"}, n) }

// remarked returns so many remarks.
func remarked(n int) []*hubv1.Remark {
	return slices.Repeat([]*hubv1.Remark{{Kind: hubv1.RemarkIPVS, Text: "x"}}, n)
}

func TestLifetime(t *testing.T) {
	for name, tc := range map[string]struct {
		good   time.Duration
		random float64
		want   time.Duration
	}{
		"a session may last as long as its token": {good: time.Hour, want: time.Hour},
		"or end three minutes before":             {good: time.Hour, random: 1, want: 57 * time.Minute},
		"one that is over ends at once":           {good: -time.Minute, random: 0.5, want: -58500 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			if got := lifetime(tc.good, tc.random); got != tc.want {
				t.Errorf("lifetime(%v, %v) = %v, want %v", tc.good, tc.random, got, tc.want)
			}
		})
	}
}

func TestSpreadMillis(t *testing.T) {
	for name, tc := range map[string]struct {
		agents int
		want   uint32
	}{
		"few may come at once":             {agents: 3, want: 60},
		"a thousand come within 20 s":      {agents: 1000, want: 20_000},
		"no cluster is spread over longer": {agents: 50_000, want: 60_000},
		"nobody is nobody":                 {agents: 0, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := spreadMillis(tc.agents); got != tc.want {
				t.Errorf("spreadMillis(%d) = %d, want %d", tc.agents, got, tc.want)
			}
		})
	}
}

// contract is a sink that demands of what it is passed what hub.proto says.
type contract struct {
	t       *testing.T
	excused []uint32
}

func (contract) Connected(string, Hello) {}
func (contract) Disconnected(string)     {}

func (c contract) Changed(_ string, s State) {
	c.t.Helper()
	if len(s.Dataplanes) > maxDataplanes || len(s.Remarks) > maxRemarks || s.Unsupported != printable(s.Unsupported) {
		c.t.Errorf("passed on %v", s)
	}
	for _, r := range s.Remarks {
		if r.Kind == "" || r.Kind != printable(r.Kind) || r.Text != printable(r.Text) {
			c.t.Errorf("passed on %v", r)
		}
	}
}

func (c contract) Reported(_ string, r *hubv1.Report) {
	c.t.Helper()
	if r.GetUid() != "a" || r.GetGeneration() != 5 {
		c.t.Errorf("passed on as %q %d, want the caller's own", r.GetUid(), r.GetGeneration())
	}
	for _, u := range r.GetUnmet() {
		if u.GetExpectation() >= 2 || u.GetReason() != printable(u.GetReason()) {
			c.t.Errorf("passed on %v", u)
		}
	}
	if len(r.GetUnmet()) > maxUnmet || len(r.GetUnrealized()) > maxWhys {
		c.t.Errorf("passed on %d unmet, %d unrealized", len(r.GetUnmet()), len(r.GetUnrealized()))
	}
	for _, why := range r.GetUnrealized() {
		if why >= 3 {
			c.t.Errorf("unrealized %d of 3 whys", why)
		}
	}
	for _, why := range r.GetRealized() {
		if !slices.Contains(c.excused, why) {
			c.t.Errorf("realized %d, excused are %v", why, c.excused)
		}
	}
}

func FuzzWhatAnAgentSends(f *testing.F) {
	for _, m := range []*hubv1.AgentMessage{
		{Message: &hubv1.AgentMessage_Report{Report: &hubv1.Report{
			Uid: "a", Generation: 1, Confirmed: true, Unmet: []*hubv1.Unmet{{Expectation: 1, Reason: "x"}},
			Unrealized: []uint32{1}, Realized: []uint32{0, 2}, Steady: true,
		}}},
		{Message: &hubv1.AgentMessage_TraceResult{TraceResult: &hubv1.TraceResult{Id: 1, Error: "x"}}},
		{Message: &hubv1.AgentMessage_State{State: &hubv1.State{
			Unsupported: "x", Dataplanes: []string{"ipset"}, Remarks: []*hubv1.Remark{{Kind: hubv1.RemarkIPVS, Text: "y"}},
		}}},
		{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{Version: "v", BootId: "b"}}},
		{},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	d, err := Describe(&hubv1.Description{Expectations: make([]*hubv1.Expectation, 2), Whys: []string{"x", "y", "z"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m hubv1.AgentMessage
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		excused := []uint32{0, 2}
		h := New(Options{Sink: contract{t, excused}, Clock: clock.RealClock{}, Log: logr.Discard()})
		h.generations.Store(0) // so that a report can meet it
		h.Assign("n1", &hubv1.Assign{Subject: &hubv1.Subject{Uid: "a"}, Generation: 5, Excused: excused}, d)
		s := h.session("n1")
		s.node.session = s
		_ = h.handle(s, &m)
		_ = validateHello(&m)
	})
}
