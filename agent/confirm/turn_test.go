// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

func TestNamespacesAreAskedInTurn(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	// waits is an evaluation, named by its namespace and a number.
	type waits struct {
		name string
		// seen and began are seconds; never seen if seen is 0.
		seen, began int
		wanting     bool
		rests       bool
	}
	for name, tc := range map[string]struct {
		all  []waits
		want []string
	}{
		"nothing": {},
		"one namespace's longest unseen comes first": {
			all:  []waits{{name: "a1", seen: 3}, {name: "a2", seen: 1}, {name: "a3", seen: 2}},
			want: []string{"a2", "a3", "a1"},
		},
		"what is new or wants a second look comes before": {
			all:  []waits{{name: "a1", seen: 1}, {name: "a2", seen: 9, wanting: true}, {name: "a3"}},
			want: []string{"a3", "a2", "a1"},
		},
		"of those seen together the younger": {
			all:  []waits{{name: "a1", seen: 1, began: 1}, {name: "a2", seen: 1, began: 3}, {name: "a3", seen: 1, began: 2}},
			want: []string{"a2", "a3", "a1"},
		},
		"each namespace has one before any has two": {
			all:  []waits{{name: "a1"}, {name: "a2"}, {name: "a3"}, {name: "b1", seen: 7}, {name: "b2", seen: 8}, {name: "c1", seen: 6}},
			want: []string{"a", "c1", "b1", "a", "b2", "a"},
		},
		"those that rest have a turn of their own, whose they are": {
			all:  []waits{{name: "a1", seen: 5}, {name: "a2", seen: 6}, {name: "b1", seen: 1, rests: true}, {name: "c1", seen: 2, rests: true}},
			want: []string{"b1", "a1", "c1", "a2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newConfirmer(&dataplane{}, &outbox{})
			var all []*evaluation
			for _, w := range tc.all {
				s := &subject{uid: w.name, namespace: w.name[:1], began: start.Add(time.Duration(w.began) * time.Second)}
				e := &evaluation{subject: s, state: state{wanting: w.wanting}}
				s.assignments = []*assignment{{evaluation: e, told: w.seen > 0}}
				if w.seen > 0 {
					e.observed, e.seenAt = true, start.Add(time.Duration(w.seen)*time.Second)
				}
				if w.rests {
					e.place = c.resting.PushBack(e)
				}
				all = append(all, e)
			}
			inTurn(all)
			var got []string
			for i, e := range all {
				// Which of those that are alike in all comes first is open.
				got = append(got, e.subject.uid[:min(len(tc.want[i]), 2)])
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
}

// slowly is a dataplane of which each flow takes its time.
type slowly struct {
	*dataplane
	flow time.Duration
}

type slowLook struct {
	Look
	flow time.Duration
}

func (d slowly) Look(ctx context.Context) (Look, error) {
	l, err := d.dataplane.Look(ctx)
	return slowLook{l, d.flow}, err
}

func (l slowLook) Together(ctx context.Context, questions []Question) ([]Answer, error) {
	<-time.After(time.Duration(len(questions)) * l.flow)
	return l.Look.Together(ctx, questions)
}

// crowd assigns so many subjects of one tenant, each with so many flows. They
// are answered as programmed does.
func crowd(t *testing.T, c *Confirmer, subjects, flows int) {
	t.Helper()
	for i := range subjects {
		a := large(fmt.Sprint("crowd", i), flows)
		a.Subject.Namespace = "crowd"
		must(t, give(c, replicaA, a))
	}
}

func TestATenantsHundredsDelayNobodyElse(t *testing.T) {
	for name, tc := range map[string]struct {
		// verdicts are those of the crowd.
		verdicts map[flow.Flow]flow.Answer
		flow     time.Duration
	}{
		"that are confirmed, and rechecked":             {verdicts: programmed(), flow: 10 * time.Microsecond},
		"that wait, and are rechecked":                  {verdicts: map[flow.Flow]flow.Answer{stranger: flow.Denied}, flow: 10 * time.Microsecond},
		"that are confirmed, while the rules change":    {verdicts: programmed(), flow: 100 * time.Microsecond},
		"that wait for another, while the rules change": {verdicts: map[flow.Flow]flow.Answer{stranger: flow.Denied}, flow: 100 * time.Microsecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				other, control := tcp("10.0.1.1", "10.0.1.9"), tcp("10.0.1.7", "10.0.1.9")
				d, out := &dataplane{verdicts: tc.verdicts}, &outbox{}
				d.verdicts[other], d.verdicts[control] = flow.Allowed, flow.Denied
				c := newConfirmer(slowly{d, tc.flow}, out)
				run(t, c)
				crowd(t, c, 300, 256)
				pass(20 * time.Second)
				for i := range 4 {
					out.taken()
					a := assign(fmt.Sprint("other", i), 1)
					a.Subject.Namespace = "other"
					a.Expectations = []*hubv1.Expectation{want(other, flow.Allowed), want(control, flow.Denied)}
					began := time.Now()
					must(t, give(c, replicaA, a))
					for confirmed := false; !confirmed; {
						pass(10 * time.Millisecond)
						for _, s := range out.taken() {
							confirmed = confirmed || s.Report.GetUid() == a.GetSubject().GetUid() && s.Report.GetConfirmed()
						}
						if time.Since(began) > time.Second {
							t.Fatalf("not confirmed within a second beside a crowd of 300 subjects")
						}
					}
					t.Logf("confirmed after %v", time.Since(began))
					pass(137 * time.Millisecond)
				}
			})
		})
	}
}

func TestEachOfACrowdIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(slowly{d, 10 * time.Microsecond}, out)
		run(t, c)
		crowd(t, c, 300, 256)
		began := time.Now()
		for confirmed := 0; confirmed < 300; {
			pass(100 * time.Millisecond)
			for _, s := range out.taken() {
				if s.Report.GetConfirmed() {
					confirmed++
				}
			}
			if time.Since(began) > 30*time.Second {
				t.Fatalf("%d of 300 confirmed after 30 s", confirmed)
			}
		}
		t.Logf("all confirmed after %v, in %d looks", time.Since(began), d.taken())
	})
}

// With whatever else is pending, what rests is looked at now and then.
func TestACrowdDoesNotHideDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(slowly{d, 10 * time.Microsecond}, out)
		run(t, c)
		other := tcp("10.0.1.7", "10.0.1.9")
		d.set(func(d *dataplane) { d.verdicts[other] = flow.Denied })
		a := assign("long", 1)
		a.Expectations = []*hubv1.Expectation{want(other, flow.Denied)}
		must(t, give(c, replicaA, a))
		pass(settled + auditEvery)
		crowd(t, c, 300, 256)
		pass(time.Second)
		out.taken()
		d.set(func(d *dataplane) { d.verdicts[other] = flow.Allowed })
		pass(time.Second)
		for _, s := range out.taken() {
			if s.Report.GetUid() == "long" && !s.Report.GetConfirmed() {
				return
			}
		}
		t.Error("what was confirmed long ago is not retracted within a second")
	})
}

func TestWhatIsHeldIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{verdicts: programmed()}
		c, _, registry := newNoticed(t, d, &outbox{})
		waits := assign("waits", 1)
		waits.Expectations[0] = want(tcp("10.0.0.3", "10.0.0.9"), flow.Allowed)
		malformed := assign("malformed", 1)
		malformed.Excused = []uint32{1}
		for _, a := range []*assigned{assign("u", 1), assign("v", 1), waits, malformed} {
			must(t, give(c, replicaA, a))
		}
		check := func(when string, confirmed, others float64) {
			t.Helper()
			all, err := registry.Gather()
			must(t, err)
			got := map[string]float64{}
			for _, f := range all {
				if f.GetName() == "policygate_agent_assignments" {
					for _, m := range f.GetMetric() {
						got[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
					}
				}
			}
			if diff := cmp.Diff(map[string]float64{"true": confirmed, "false": others}, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		check("at first", 0, 3)
		pass(time.Second)
		check("while all are pending", 2, 1)
		pass(settled + auditEvery)
		check("when they rest", 2, 1)
		c.Withdraw(replicaA, "u")
		c.Withdraw(replicaA, "waits")
		check("after a withdrawal of each", 1, 0)
		must(t, give(c, replicaB, assign("v", 1)))
		check("pending for another replica", 1, 0)
		c.Forget("a", 9)
		c.Forget("b", 9)
		check("when all is forgotten", 0, 0)
	})
}
