// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// surroundings is a Surveyor that the test changes, and keeps what is told.
type surroundings struct {
	mu    sync.Mutex
	state *hubv1.State
	err   error
	told  []string
}

func (s *surroundings) Survey(context.Context) (*hubv1.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.err
}

func (s *surroundings) set(state *hubv1.State, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state, s.err = state, err
}

func (s *surroundings) Tell(state *hubv1.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = append(s.told, words(state))
}

// taken returns what was told since the last call.
func (s *surroundings) taken() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	told := s.told
	s.told = nil
	return told
}

// words returns a state in a few words.
func words(s *hubv1.State) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %v", s.GetUnsupported(), s.GetDataplanes())
	for _, r := range s.GetRemarks() {
		fmt.Fprintf(&b, " %s(%s)", r.GetKind(), r.GetText())
	}
	return b.String()
}

// newSurveyed returns a running Confirmer that tells of its node.
func newSurveyed(t *testing.T, d *dataplane) (*Confirmer, *surroundings) {
	t.Helper()
	s := &surroundings{state: &hubv1.State{}}
	c := New(Options{
		Dataplane: d, Reports: &outbox{}, Surveyor: s, States: s, Clock: clock.RealClock{}, Log: logr.Discard(),
	})
	run(t, c)
	return c, s
}

// expect compares what was told since the last call.
func (s *surroundings) expect(t *testing.T, when string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, s.taken()); diff != "" {
		t.Errorf("told %s (-want +got):\n%s", when, diff)
	}
}

func TestWhatChangesOfTheNodeIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{verdicts: programmed()}
		c, s := newSurveyed(t, d)
		pass(time.Second)
		s.expect(t, "at first", `"" []`)
		s.set(&hubv1.State{Dataplanes: []string{"nftables"}}, nil)
		pass(idleAuditEvery)
		s.expect(t, "while nothing is assigned", `"" [nftables]`)
		if d.taken() != 0 {
			t.Errorf("%d looks although nothing is assigned", d.taken())
		}

		must(t, give(c, replicaA, policy("p", 1)))
		s.set(&hubv1.State{Dataplanes: []string{"nftables"}, Remarks: []*hubv1.Remark{{Kind: "b"}, {Kind: "a", Text: "y"}, {Kind: "a", Text: "x"}}}, nil)
		pass(auditEvery)
		s.expect(t, "in order", `"" [nftables] a(x) a(y) b()`)
		pass(10 * auditEvery)
		s.expect(t, "without news")
		s.set(nil, errors.New("kept changing"))
		pass(auditEvery)
		s.expect(t, "when it is not known")

		d.set(func(d *dataplane) { d.unsupported = "an XDP program\n" })
		pass(auditEvery)
		s.expect(t, "when the dataplane is hidden", `"an XDP program?" [nftables] a(x) a(y) b()`)
		d.set(func(d *dataplane) { d.unsupported = "" })
		s.set(&hubv1.State{}, nil)
		if got := words(c.State(t.Context())); got != `"" []` {
			t.Errorf("the state is %s now", got)
		}
		s.expect(t, "when somebody asked", `"" []`)
	})
}

func TestTheStateOfANodeThatIsNotSurveyed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{unsupported: "Cilium"}
		c := newConfirmer(d, &outbox{})
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		c.auditing <- struct{}{}
		if got := words(c.State(ended)); got != `"" []` {
			t.Errorf("the state is %s to one who does not wait, want nothing", got)
		}
		<-c.auditing
		if got := words(c.State(t.Context())); got != `"Cilium" []` {
			t.Errorf("the state is %s, want what hides the dataplane", got)
		}
		run(t, c)
		pass(2 * idleAuditEvery)
		d.set(func(d *dataplane) {
			if d.audits != 1 {
				t.Errorf("%d audits, want the one that was asked for: nobody is told", d.audits)
			}
		})
	})
}

func TestAFamilyThatIsNotEnforcedIsRemarked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client6, stranger6 := tcp("fd00::1", "fd00::9"), tcp("fd00::7", "fd00::9")
		d := &dataplane{verdicts: programmed()}
		d.verdicts[client6], d.verdicts[stranger6] = flow.Allowed, flow.Allowed
		c, s := newSurveyed(t, d)
		a := policy("p", 1)
		a.ExcuseFamilies = true
		a.Expectations = append(a.Expectations, want(client6, flow.Allowed), want(stranger6, flow.Denied))
		must(t, give(c, replicaA, a))
		pass(openLong + 2*auditEvery)
		text := "the policy engine was not seen to enforce v6 here, while it does the other family"
		s.expect(t, "of the family", `"" []`, `"" [] UnenforcedFamily(`+text+`)`)
		d.set(func(d *dataplane) { d.verdicts[stranger6] = flow.Denied })
		pass(2 * auditEvery)
		s.expect(t, "when it is enforced", `"" []`)
	})
}

// rewriting is a dataplane that gives a reason of its own.
type rewriting struct {
	*dataplane
	mu     sync.Mutex
	reason string
}

func (d *rewriting) set(reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reason = reason
}

type rewritingLook struct {
	Look
	reason string
}

func (d *rewriting) Look(ctx context.Context) (Look, error) {
	l, err := d.dataplane.Look(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	return rewritingLook{l, d.reason}, err
}

func (l rewritingLook) Together(ctx context.Context, questions []Question) ([]Answer, error) {
	answers, err := l.Look.Together(ctx, questions)
	for i := range answers {
		if answers[i].Verdict.Answer == flow.Inconclusive {
			answers[i].Verdict.Reason = l.reason
		}
	}
	return answers, err
}

func TestThatSourcesAreRewrittenIsRemarkedAsLongAsAnswersSaySo(t *testing.T) {
	for name, tc := range map[string]struct {
		reason   string
		external bool
		want     string
	}{
		"by a rule":             {reason: "SourceRewritten: MASQUERADE", want: ` SourceRewritten(packets between Pods may leave this node with another source: MASQUERADE)`},
		"but not to outside":    {reason: "SourceRewritten: MASQUERADE", external: true},
		"and not another doubt": {reason: "DestinationRewritten: DNAT"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, s := &rewriting{dataplane: &dataplane{verdicts: map[flow.Flow]flow.Answer{stranger: flow.Denied}}, reason: tc.reason}, &surroundings{}
				c := New(Options{Dataplane: d, Reports: &outbox{}, Surveyor: s, States: s, Clock: clock.RealClock{}, Log: logr.Discard()})
				run(t, c)
				a := policy("p", 1)
				a.Expectations[0].External = tc.external
				must(t, give(c, replicaA, a))
				pass(2 * auditEvery)
				first := []string{`"" []`}
				if tc.want != "" {
					first = append(first, `"" []`+tc.want)
				}
				s.expect(t, "at first", first...)
				d.set("something else")
				pass(lately - auditEvery)
				s.expect(t, "while it may come back")
				pass(2 * auditEvery)
				if tc.want == "" {
					s.expect(t, "after all")
				} else {
					s.expect(t, "when it has not for long", `"" []`)
				}
			})
		})
	}
}
