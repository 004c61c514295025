// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// shared returns an assignment of a subject under a policy of so many flows,
// and what its Pods share.
func shared(i, flows int) *assigned {
	a := &assigned{
		Assign: &hubv1.Assign{
			Subject: &hubv1.Subject{
				Uid: fmt.Sprintf("00000000-0000-0000-0000-%012d", i), Namespace: fmt.Sprint("tenant-", i%10), Name: "j",
				Ips: []string{fmt.Sprintf("10.0.%d.%d", i/250, 1+i%250)},
			},
			Generation: 1, Basis: &hubv1.Basis{NetworkPolicies: 5, Namespaces: 5, Pod: 5}, OwnNode: true,
		},
		Whys: []string{"jobs/isolated ingress", "db/allow-jobs ingress[0]"},
	}
	for n := range flows {
		e := between("", fmt.Sprintf("10.1.%d.%d", n/250, 1+n%250), flow.Allowed)
		e.Why = 1
		if n%2 == 1 {
			e = between(fmt.Sprintf("10.2.%d.%d", n/250, 1+n%250), "", flow.Denied)
		}
		a.Expectations = append(a.Expectations, e)
	}
	return a
}

// own fills in the subject's address, as if nothing was shared.
func own(a *assigned) *assigned {
	d := contentOf(a.Assign, &Description{})
	for i, e := range a.Expectations {
		if len(e.GetFlow().GetSrc()) == 0 {
			a.Expectations[i].Flow.Src = d.own[ipv4].AsSlice()
		} else {
			a.Expectations[i].Flow.Dst = d.own[ipv4].AsSlice()
		}
	}
	return a
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkMemory measures what an assignment keeps once it was looked at, if
// all share one description and if each has its own.
func BenchmarkMemory(b *testing.B) {
	const flows = 64
	for _, sharing := range []bool{true, false} {
		for _, count := range []int{100, 1000} {
			b.Run(fmt.Sprintf("shared=%v/assignments=%d", sharing, count), func(b *testing.B) {
				var kept, held uint64
				for b.Loop() {
					c := newConfirmer(allowing{}, &outbox{})
					d, err := shared(0, flows).description()
					if err != nil {
						b.Fatal(err)
					}
					before := heap()
					for i := range count {
						a := shared(i, flows)
						of := d
						if !sharing {
							if of, err = own(a).description(); err != nil {
								b.Fatal(err)
							}
						}
						if err := c.Assign(replicaA, a.Assign, of); err != nil {
							b.Fatal(err)
						}
					}
					c.look(context.Background())
					kept += heap() - before
					held += uint64(count)
					runtime.KeepAlive(c)
				}
				b.ReportMetric(float64(kept)/float64(held), "B/assignment")
			})
		}
	}
}

// allowing is a dataplane that answers as the expectations of shared want, at
// no cost.
type allowing struct{}

func (allowing) Audit(context.Context) string         { return "" }
func (a allowing) Look(context.Context) (Look, error) { return a, nil }
func (allowing) Rewrites() uint64                     { return 0 }

func (allowing) Together(_ context.Context, questions []Question) ([]Answer, error) {
	all := make([]Answer, len(questions))
	for i, q := range questions {
		all[i] = Answer{Verdict: flow.Verdict{Answer: flow.Allowed}, Routed: true}
		if q.Flow.Src.As4()[1] == 2 {
			all[i].Verdict.Answer = flow.Denied
		}
	}
	return all, nil
}

// assignedTo assigns so many subjects that are pending, or that rest.
func assignedTo(b *testing.B, subjects int, rest bool) (*Confirmer, *Description) {
	b.Helper()
	now := clocktesting.NewFakeClock(time.Now())
	c := New(Options{Dataplane: allowing{}, Reports: &outbox{}, Clock: now, Log: logr.Discard()})
	d, err := shared(0, 20).description()
	if err != nil {
		b.Fatal(err)
	}
	for i := range subjects {
		if err := c.Assign(replicaA, shared(i, 20).Assign, d); err != nil {
			b.Fatal(err)
		}
	}
	for range 2 {
		c.look(context.Background())
		now.Step(secondLook)
	}
	if rest {
		now.Step(settled)
	}
	c.plan()
	if resting := c.resting.Len(); rest && resting != subjects || !rest && resting > 0 {
		b.Fatalf("%d of %d rest", resting, subjects)
	}
	return c, d
}

// BenchmarkWake measures what each assignment costs beside its own looks: that
// of one subject more, the plan that it wakes, and its withdrawal.
func BenchmarkWake(b *testing.B) {
	for _, rest := range []bool{false, true} {
		for _, subjects := range []int{100, 1000} {
			b.Run(fmt.Sprintf("rest=%v/subjects=%d", rest, subjects), func(b *testing.B) {
				c, d := assignedTo(b, subjects, rest)
				next := shared(subjects, 20)
				for b.Loop() {
					if err := c.Assign(replicaA, next.Assign, d); err != nil {
						b.Fatal(err)
					}
					c.plan()
					c.Withdraw(replicaA, next.GetSubject().GetUid())
				}
			})
		}
	}
}

// denying is a dataplane that denies whatever is asked.
type denying struct{ allowing }

func (d denying) Look(context.Context) (Look, error) { return d, nil }

func (denying) Together(_ context.Context, questions []Question) ([]Answer, error) {
	all := make([]Answer, len(questions))
	for i := range all {
		all[i] = Answer{Verdict: flow.Verdict{Answer: flow.Denied}, Routed: true}
	}
	return all, nil
}

// BenchmarkPolicies measures what policies cost a node beside the verdicts: per
// second, if all rest and if none ever comes true, in the first half of a minute,
// until ten are over, and from then on.
func BenchmarkPolicies(b *testing.B) {
	for _, stage := range []struct {
		name string
		d    Dataplane
		age  time.Duration
	}{
		{"rest", allowing{}, time.Minute},
		{"young", denying{}, 0},
		{"waiting", denying{}, patience},
		{"hopeless", denying{}, hopeless},
	} {
		for _, count := range []int{100, 1000} {
			b.Run(fmt.Sprintf("%s/policies=%d", stage.name, count), func(b *testing.B) {
				now := clocktesting.NewFakeClock(time.Now())
				c := New(Options{Dataplane: stage.d, Reports: &outbox{}, Clock: now, Log: logr.Discard()})
				d, err := shared(0, 8).description()
				if err != nil {
					b.Fatal(err)
				}
				for i := range count {
					a := shared(i, 8).Assign
					a.Policy, a.OwnNode, a.Subject.Ips = true, false, nil
					if err := c.Assign(replicaA, a, both(b, d)); err != nil {
						b.Fatal(err)
					}
				}
				// live lives for a time, and returns how long that took.
				live := func(d time.Duration) time.Duration {
					began := time.Now()
					for end := now.Now().Add(d); ; c.look(context.Background()) {
						due := c.plan().due
						if due.After(end) {
							now.SetTime(end)
							return time.Since(began)
						}
						now.SetTime(later(due, now.Now()))
					}
				}
				live(time.Second)
				now.Step(stage.age)
				live(policyAuditEvery)
				var took, lived time.Duration
				for b.Loop() {
					for e := range c.policies.pending {
						e.since = now.Now().Add(-stage.age)
					}
					took += live(policyAuditEvery)
					lived += policyAuditEvery
				}
				b.ReportMetric(float64(took.Microseconds())/lived.Seconds(), "us/s")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// both returns a description with the ends that d leaves out.
func both(b *testing.B, d *Description) *Description {
	b.Helper()
	whole := *d
	whole.own = [families]int{-1, -1}
	whole.expectations = slices.Clone(d.expectations)
	for i := range whole.expectations {
		e := &whole.expectations[i]
		switch e.own {
		case source:
			e.flow.Src = netip.MustParseAddr("10.0.0.1")
		case destination:
			e.flow.Dst = netip.MustParseAddr("10.0.0.1")
		case neither:
		}
		e.own = neither
	}
	return &whole
}

// BenchmarkChosen measures what it costs to choose whom a look asks about, and
// beside it such a look at a dataplane that costs nothing.
func BenchmarkChosen(b *testing.B) {
	for _, rest := range []bool{false, true} {
		for _, subjects := range []int{100, 1000} {
			c, _ := assignedTo(b, subjects, rest)
			name := fmt.Sprintf("rest=%v/subjects=%d", rest, subjects)
			b.Run("choose/"+name, func(b *testing.B) {
				for b.Loop() {
					c.chosen(rest)
				}
			})
			b.Run("look/"+name, func(b *testing.B) {
				for b.Loop() {
					c.look(context.Background())
				}
			})
		}
	}
}
