// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// notices is a Notices that passes on what the test tells.
type notices struct {
	tell chan string

	mu      sync.Mutex
	watches int
	open    bool
}

func newNotices() *notices { return &notices{tell: make(chan string)} }

func (n *notices) Watch(ctx context.Context, noticed func(string)) {
	n.mu.Lock()
	n.watches++
	n.open = true
	n.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			n.mu.Lock()
			n.open = false
			n.mu.Unlock()
			return
		case what := <-n.tell:
			noticed(what)
		}
	}
}

func (n *notices) watched() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open
}

// newNoticed returns a running Confirmer with notices.
func newNoticed(t *testing.T, d *dataplane, out *outbox) (*Confirmer, *notices, *prometheus.Registry) {
	t.Helper()
	n, registry := newNotices(), prometheus.NewRegistry()
	c := New(Options{Dataplane: d, Notices: n, Reports: out, Clock: clock.RealClock{}, Log: logr.Discard(), Registerer: registry})
	run(t, c)
	return c, n, registry
}

// value returns what a counter with one label counts, and false if it is not
// exposed.
func value(t *testing.T, registry *prometheus.Registry, name, label string) (float64, bool) {
	t.Helper()
	all, err := registry.Gather()
	must(t, err)
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue(), true
			}
		}
	}
	return 0, false
}

func TestANoticeBringsALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{}, &outbox{}
		c, n, _ := newNoticed(t, d, out)
		must(t, give(c, replicaA, assign("u", 1)))
		// By now looks are a second apart.
		pass(patience + 10*time.Second)
		out.taken()
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		before := d.taken()
		n.tell <- "commit"
		pass(debounce)
		if got := d.taken() - before; got != 1 {
			t.Fatalf("%d looks %v after a notice, want 1", got, debounce)
		}
		pass(secondLook)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}

func TestNoticesTakeNoMoreThanAFifthOfTheTime(t *testing.T) {
	for name, tc := range map[string]struct {
		cost time.Duration
		// every is the time between notices.
		every   time.Duration
		atLeast int
		atMost  int
	}{
		"cheap looks are one for each burst": {cost: 0, every: time.Millisecond, atLeast: 500, atMost: 1000},
		"a look of 10 ms is taken each 50":   {cost: 10 * time.Millisecond, every: time.Millisecond, atLeast: 180, atMost: 200},
		"a look of 1 s is taken each 5 s":    {cost: time.Second, every: time.Millisecond, atLeast: 2, atMost: 3},
		"without notices the timer looks":    {cost: 10 * time.Millisecond, every: time.Hour, atLeast: 36, atMost: 40},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &dataplane{cost: tc.cost}
				c, n, _ := newNoticed(t, d, &outbox{})
				must(t, give(c, replicaA, assign("u", 1)))
				// The first look and the first told answer are soon.
				pass(5*tc.cost + secondLook)
				before := d.taken()
				for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
					select {
					case <-time.After(min(tc.every, time.Until(end))):
						if tc.every < time.Hour {
							n.tell <- "commit"
						}
					case <-t.Context().Done():
					}
				}
				if got := d.taken() - before; got < tc.atLeast || got > tc.atMost {
					t.Errorf("%d looks in 10 s, want %d to %d", got, tc.atLeast, tc.atMost)
				}
			})
		})
	}
}

func TestWhatHasLongBeenConfirmedIsAuditedOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c, n, registry := newNoticed(t, d, out)
		if n.watched() {
			t.Error("watched although nothing is assigned")
		}
		must(t, give(c, replicaA, assign("u", 1)))
		pass(settled - time.Second)
		if !n.watched() {
			t.Error("not watched while a subject may have to be retracted")
		}
		pass(2 * auditEvery)
		if n.watched() {
			t.Error("watched although nothing is pending")
		}
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
		looks := d.taken()
		pass(10 * auditEvery)
		if got := d.taken() - looks; got != 10 {
			t.Errorf("%d looks in %v, want 10", got, 10*auditEvery)
		}

		// The rules are flushed by hand.
		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(auditEvery)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 1, UnmetRequired: 1,
			Unmet: []*hubv1.Unmet{{Expectation: 1, Reason: "allowed (rule)"}},
		}})
		if !n.watched() {
			t.Error("not watched although it has to be confirmed again")
		}
		for kind, want := range map[string]float64{driftVerdict: 1, driftUnsupported: 0} {
			if got, exposed := value(t, registry, "policygate_agent_drift_total", kind); got != want || !exposed {
				t.Errorf("drift of kind %s: counted %v times, exposed %v: want %v and that it is", kind, got, exposed, want)
			}
		}
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(2 * slow)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}

func TestASecondReplicaIsToldAtOnceOfWhatHasLongBeenConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c, _, _ := newNoticed(t, d, out)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(settled + auditEvery)
		out.taken()
		must(t, give(c, replicaB, assign("u", 4)))
		pass(secondLook)
		expect(t, out, sent{replicaB, &hubv1.Report{Uid: "u", Generation: 4, Confirmed: true}})
	})
}

// large returns an assignment of so many flows, all of which programmed
// answers as it wants.
func large(uid string, flows int) *assigned {
	a := assign(uid, 1)
	for len(a.Expectations) < flows {
		a.Expectations = append(a.Expectations, want(client, flow.Allowed))
	}
	return a
}

func TestAnAuditAsksASampleThatRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{verdicts: programmed()}
		c, _, _ := newNoticed(t, d, &outbox{})
		const subjects = 10
		for i := range subjects {
			must(t, give(c, replicaA, large(fmt.Sprint("u", i), auditFlows/2)))
		}
		pass(settled + auditEvery)
		for range 3 {
			d.set(func(d *dataplane) { d.batches = nil })
			pass(auditEvery)
			d.set(func(d *dataplane) {
				if len(d.batches) != 2 {
					t.Errorf("an audit asked for %d subjects of half its flows, want 2", len(d.batches))
				}
			})
		}
		seen := map[time.Time]int{}
		pass(subjects / 2 * auditEvery)
		c.mu.Lock()
		defer c.mu.Unlock()
		for place := c.resting.Front(); place != nil; place = place.Next() {
			e, _ := place.Value.(*evaluation)
			seen[e.seenAt]++
			if age := time.Since(e.seenAt); age > subjects/2*auditEvery {
				t.Errorf("%s was looked at %v ago, want all in turn", e.subject.uid, age)
			}
		}
		if len(seen) != subjects/2 {
			t.Errorf("the subjects were seen at %d times, want %d", len(seen), subjects/2)
		}
	})
}

func TestLooksForOneTakeOthersAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c, n, _ := newNoticed(t, d, out)
		must(t, give(c, replicaA, assign("old", 1)))
		pass(settled + auditEvery)
		waits := assign("new", 1)
		waits.Expectations = append(waits.Expectations, want(tcp("10.0.0.3", "10.0.0.9"), flow.Denied))
		must(t, give(c, replicaA, waits))
		pass(time.Second)
		out.taken()
		d.set(func(d *dataplane) { d.verdicts[client] = flow.Denied })
		n.tell <- "commit"
		pass(debounce)
		if all := out.taken(); !slices.ContainsFunc(all, func(s sent) bool { return s.Report.GetUid() == "old" && !s.Report.GetConfirmed() }) {
			t.Errorf("reports %v, want a retraction of the one that is not pending", all)
		}
	})
}

func TestADataplaneThatCanNoLongerBeSeenIsRetracted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c, _, registry := newNoticed(t, d, out)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(settled + auditEvery)
		out.taken()
		d.set(func(d *dataplane) { d.unsupported = "an XDP program decides on interface eth0" })
		pass(auditEvery)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 1, UnmetRequired: 2,
			Unmet: []*hubv1.Unmet{{Reason: "the dataplane could not be read: an XDP program decides on interface eth0"}},
		}})
		if holds, reason := c.Holds(t.Context(), "u"); holds {
			t.Errorf("it holds (%s)", reason)
		}
		if got, _ := value(t, registry, "policygate_agent_drift_total", driftUnsupported); got != 1 {
			t.Errorf("drift was counted %v times, want once", got)
		}
		out.taken()
		d.set(func(d *dataplane) { d.unsupported = "" })
		pass(auditEvery + 2*slow)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}

func TestADataplaneThatCannotBeSeenIsNeverConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed(), unsupported: "Cilium"}, &outbox{}
		c, _, _ := newNoticed(t, d, out)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(time.Minute)
		for _, s := range out.taken() {
			if s.Report.GetConfirmed() {
				t.Errorf("confirmed: %v", s.Report)
			}
		}
	})
}

func TestWhatOneEvaluationAsksIsOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		third := tcp("10.0.0.3", "10.0.0.9")
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		d.verdicts[third] = flow.Denied
		c, _, _ := newNoticed(t, d, out)
		other := assign("v", 1)
		other.Expectations = append(other.Expectations, want(third, flow.Denied))
		other.Expectations[2].External = true
		must(t, give(c, replicaA, assign("u", 1)))
		must(t, give(c, replicaA, other))
		pass(time.Second)
		out.taken()
		d.set(func(d *dataplane) {
			for _, b := range d.batches {
				if len(b) != 2 && len(b) != 3 {
					t.Errorf("a batch of %d questions, want each subject's", len(b))
				}
				for _, q := range b {
					if q.External != (q.Flow == third) {
						t.Errorf("%s was asked as external %v", q.Flow, q.External)
					}
				}
			}
			// Of v's, there is no moment that lasts.
			d.unsettled = map[flow.Flow]bool{third: true}
		})
		pass(2 * time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "v", Generation: 1, UnmetRequired: 3,
			Unmet: []*hubv1.Unmet{{Reason: "the dataplane could not be read: kept changing"}},
		}})
		if holds, reason := c.Holds(t.Context(), "u"); !holds {
			t.Errorf("u does not hold: %s", reason)
		}
		if holds, _ := c.Holds(t.Context(), "v"); holds {
			t.Error("v holds without an answer")
		}
	})
}

func TestWhatIsLackingIsAskedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: map[flow.Flow]flow.Answer{client: flow.Allowed, stranger: flow.Allowed}}, &outbox{}
		c, _, _ := newNoticed(t, d, out)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(time.Second)
		out.taken()
		d.set(func(d *dataplane) { d.batches = nil })
		pass(10 * time.Second)
		all, first := 0, 0
		d.set(func(d *dataplane) {
			for _, b := range d.batches {
				switch {
				case len(b) == 2:
					all++
				case len(b) == 1 && b[0].Flow == stranger:
					first++
				default:
					t.Errorf("asked %v", b)
				}
			}
			// Now the other one is lacking.
			d.verdicts = map[flow.Flow]flow.Answer{client: flow.Denied, stranger: flow.Denied}
		})
		if all < 8 || all > 11 || first < 80 {
			t.Errorf("in 10 s all were asked %d times and what is lacking %d times, want about 10 and 90", all, first)
		}
		pass(2 * shortest)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 1, UnmetRequired: 1,
			Unmet: []*hubv1.Unmet{{Expectation: 0, Reason: "denied (rule)"}},
		}})
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(shortest + secondLook)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}

func TestChangesInABurstAreOneRewrite(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type observation struct {
		at      int // milliseconds
		changes uint64
		want    uint64
	}
	for name, observations := range map[string][]observation{
		"none":                             {{0, 0, 0}, {1000, 0, 0}},
		"one":                              {{0, 0, 0}, {10, 1, 1}, {1000, 1, 1}},
		"two far apart":                    {{0, 1, 1}, {250, 2, 2}},
		"two in a burst are counted later": {{0, 1, 1}, {100, 2, 1}, {249, 2, 1}, {250, 2, 2}, {600, 2, 2}},
		"a storm is four in a second":      {{0, 1, 1}, {125, 40, 1}, {250, 80, 2}, {375, 120, 2}, {500, 160, 3}, {750, 200, 4}},
		"several at once":                  {{0, 5, 1}, {300, 5, 1}},
		"an older look":                    {{0, 5, 1}, {300, 4, 1}, {600, 6, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			var r rewrites
			for _, o := range observations {
				if got := r.observe(o.changes, start.Add(time.Duration(o.at)*time.Millisecond)); got != o.want {
					t.Errorf("%d changes at %d ms: %d rewrites, want %d", o.changes, o.at, got, o.want)
				}
			}
		})
	}
}
