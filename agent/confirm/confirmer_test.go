// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

type sent struct {
	To     Source
	Report *hubv1.Report
}

// outbox is a Reports that keeps what was sent.
type outbox struct {
	mu   sync.Mutex
	sent []sent
}

func (o *outbox) Send(to Source, r *hubv1.Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sent = append(o.sent, sent{to, r})
}

// taken returns what was sent since the last call.
func (o *outbox) taken() []sent {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.sent
	o.sent = nil
	return all
}

func newConfirmer(d Dataplane, r Reports) *Confirmer {
	return New(Options{Dataplane: d, Reports: r, Clock: clock.RealClock{}, Log: logr.Discard()})
}

var (
	replicaA = Source{Replica: "a", Session: 1}
	replicaB = Source{Replica: "b", Session: 2}

	client   = tcp("10.0.0.1", "10.0.0.9")
	stranger = tcp("10.0.0.7", "10.0.0.9")
)

func tcp(src, dst string) flow.Flow {
	return flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Port: 3306}
}

func want(f flow.Flow, a flow.Answer) *hubv1.Expectation {
	return &hubv1.Expectation{Flow: hubv1.FlowOf(f), Want: hubv1.AnswerOf(a)}
}

// assigned is an assignment with what its description says.
type assigned struct {
	*hubv1.Assign
	Expectations []*hubv1.Expectation
	Whys         []string
}

func (a *assigned) description() (*Description, error) {
	content, err := proto.Marshal(&hubv1.Description{Expectations: a.Expectations, Whys: a.Whys})
	if err != nil {
		return nil, err
	}
	return ParseDescription(content)
}

// give assigns a as a session does.
func give(c *Confirmer, from Source, a *assigned) error {
	d, err := a.description()
	if err != nil {
		return err
	}
	return c.Assign(from, a.Assign, d)
}

// assign is what a replica assigns for a client and its control.
func assign(uid string, generation uint64) *assigned {
	return &assigned{
		Assign: &hubv1.Assign{
			Subject:    &hubv1.Subject{Uid: uid, Namespace: "jobs", Name: "j", Ips: []string{"10.0.0.1"}},
			Generation: generation,
			Basis:      &hubv1.Basis{NetworkPolicies: 5, Namespaces: 5, Pod: 5},
			OwnNode:    true,
		},
		Expectations: []*hubv1.Expectation{want(client, flow.Allowed), want(stranger, flow.Denied)},
	}
}

func programmed() map[flow.Flow]flow.Answer {
	return map[flow.Flow]flow.Answer{client: flow.Allowed, stranger: flow.Denied}
}

// run starts c and returns after it has taken in what is due.
func run(t *testing.T, c *Confirmer) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func expect(t *testing.T, out *outbox, want ...sent) {
	t.Helper()
	if diff := cmp.Diff(want, out.taken(), protocmp.Transform()); diff != "" {
		t.Errorf("reports (-want +got):\n%s", diff)
	}
}

func TestNothingIsLookedAtWhileNothingIsAssigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{}
		c := newConfirmer(d, &outbox{})
		run(t, c)
		pass(time.Minute)
		if d.taken() != 0 {
			t.Fatalf("%d looks before any assignment", d.taken())
		}
		must(t, give(c, replicaA, assign("u", 1)))
		pass(time.Second)
		c.Withdraw(replicaA, "u")
		pass(time.Second)
		before := d.taken()
		pass(time.Minute)
		if before == 0 || d.taken() != before {
			t.Errorf("%d looks while assigned, %d after the withdrawal: want some, and no more", before, d.taken()-before)
		}
	})
}

func TestConfirmsInTwoLooksAndRetracts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, assign("u", 3)))
		pass(49 * time.Millisecond)
		expect(t, out)
		pass(2 * time.Millisecond)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 3, Confirmed: true}})

		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(2 * shortest)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 3, UnmetRequired: 1,
			Unmet: []*hubv1.Unmet{{Expectation: 1, Reason: "allowed (rule)"}},
		}})

		d.set(func(d *dataplane) { d.err = errors.New("generation\nmoved") })
		pass(2 * time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 3, UnmetRequired: 2,
			Unmet: []*hubv1.Unmet{{Reason: "the dataplane could not be read: generation?moved"}},
		}})
		d.set(func(d *dataplane) { d.err, d.verdicts = nil, programmed() })
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 3, Confirmed: true}})
	})
}

func TestInconclusiveNeverConfirms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: map[flow.Flow]flow.Answer{client: flow.Allowed}}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(time.Minute)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 1, UnmetRequired: 1,
			Unmet: []*hubv1.Unmet{{Expectation: 1, Reason: "inconclusive (rule)"}},
		}})
	})
}

func TestAnExternalFlowIsAskedOnlyWithARoute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outside := tcp("192.0.2.1", "10.0.0.9")
		d, out := &dataplane{verdicts: programmed(), unrouted: map[flow.Flow]bool{outside: true}}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		a := assign("u", 1)
		external := want(outside, flow.Denied)
		external.External = true
		a.Expectations = append(a.Expectations, external)
		must(t, give(c, replicaA, a))
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
		d.set(func(d *dataplane) { d.unrouted = nil })
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 1, UnmetRequired: 1,
			Unmet: []*hubv1.Unmet{{Expectation: 2, Reason: "inconclusive (rule)"}},
		}})
	})
}

func TestUnmetAdvisoryOnesAreNamedAfterTheRequired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		a := assign("u", 1)
		a.Expectations = nil
		for i := range 4 {
			e := want(tcp(fmt.Sprintf("10.0.1.%d", i), "10.0.0.9"), flow.Allowed)
			e.Advisory = i != 3
			a.Expectations = append(a.Expectations, e)
		}
		must(t, give(c, replicaA, a))
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 1, UnmetRequired: 1, UnmetAdvisory: 3,
			Unmet: []*hubv1.Unmet{
				{Expectation: 3, Reason: "inconclusive (rule)"},
				{Expectation: 0, Reason: "inconclusive (rule)"},
				{Expectation: 1, Reason: "inconclusive (rule)"},
			},
		}})
		d.set(func(d *dataplane) { d.verdicts = map[flow.Flow]flow.Answer{tcp("10.0.1.3", "10.0.0.9"): flow.Allowed} })
		pass(11 * time.Second)
		got := out.taken()
		if len(got) != 2 || got[0].Report.GetConfirmed() || !got[1].Report.GetConfirmed() || got[1].Report.GetUnmetAdvisory() != 3 {
			t.Errorf("reports %v, want one that waits and one that confirms with 3 unmet", got)
		}
	})
}

func TestReplicasShareAnEvaluation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, assign("u", 3)))
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 3, Confirmed: true}})
		b := assign("u", 8)
		b.Description = 9 // ids are each session's own
		must(t, give(c, replicaB, b))
		// One look is enough for a second replica.
		pass(secondLook)
		expect(t, out, sent{replicaB, &hubv1.Report{Uid: "u", Generation: 8, Confirmed: true}})
		d.set(func(d *dataplane) {
			if d.asked[client] != 1 || d.asked[stranger] != 1 {
				t.Errorf("asked on one look: %v, want each flow once", d.asked)
			}
		})
		// A new generation is answered although nothing changed.
		must(t, give(c, replicaA, assign("u", 4)))
		pass(secondLook)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 4, Confirmed: true}})
	})
}

func TestForgetKeepsWhatTheSessionAssigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, assign("old", 1)))
		must(t, give(c, replicaA, assign("again", 1)))
		must(t, give(c, replicaB, assign("other", 1)))
		pass(time.Second)
		out.taken()
		later := Source{Replica: "a", Session: 7}
		must(t, give(c, later, assign("again", 1)))
		c.Forget("a", later.Session)
		pass(time.Second)
		expect(t, out, sent{later, &hubv1.Report{Uid: "again", Generation: 1, Confirmed: true}})
		for uid, want := range map[string]bool{"old": false, "again": true, "other": true} {
			if holds, reason := c.Holds(t.Context(), uid); holds != want {
				t.Errorf("%s held: %v (%s), want %v", uid, holds, reason, want)
			}
		}
	})
}

func TestAMalformedAssignmentIsReportedWithoutALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		a := assign("u", 2)
		a.Expectations[1].Want = hubv1.Answer_ANSWER_UNSPECIFIED
		must(t, give(c, replicaA, a))
		pass(time.Minute)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "u", Generation: 2, UnmetRequired: 2,
			Unmet: []*hubv1.Unmet{{
				Expectation: 1,
				Reason:      "malformed expectation 1: expectation wants ANSWER_UNSPECIFIED: want ANSWER_ALLOWED or ANSWER_DENIED",
			}},
		}})
		if d.taken() != 0 {
			t.Errorf("%d looks, want 0", d.taken())
		}
		if holds, _ := c.Holds(t.Context(), "u"); holds {
			t.Error("a malformed assignment holds")
		}
		unsent := assign("unsent", 3)
		unsent.Description = 7
		must(t, c.Assign(replicaA, unsent.Assign, nil))
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "unsent", Generation: 3, UnmetRequired: 1,
			Unmet: []*hubv1.Unmet{{Reason: "malformed assignment: it names description 7, which was not sent: want a Describe of it first"}},
		}})
		if err := c.Assign(replicaA, &hubv1.Assign{}, nil); err == nil {
			t.Error("no error for an assignment without subject")
		}
	})
}

func TestLooksBackOffAfterThirtySeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{}
		c := newConfirmer(d, &outbox{})
		run(t, c)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(10 * time.Second)
		if n := d.taken(); n < 90 || n > 102 {
			t.Errorf("%d looks in 10 s, want about 100", n)
		}
		pass(30 * time.Second)
		before := d.taken()
		pass(10 * time.Second)
		if n := d.taken() - before; n < 9 || n > 11 {
			t.Errorf("%d looks in 10 s after 40 s, want about 10", n)
		}
		// A young subject brings the pace back.
		before = d.taken()
		must(t, give(c, replicaA, assign("v", 1)))
		pass(time.Second)
		if n := d.taken() - before; n < 9 {
			t.Errorf("%d looks in the second after a new assignment, want about 10", n)
		}
	})
}

func TestABurstOfAssignmentsSharesLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		for i := range 100 {
			must(t, give(c, replicaA, assign(fmt.Sprint("u", i), 1)))
			pass(time.Millisecond)
		}
		pass(100 * time.Millisecond)
		if n := d.taken(); n > 8 {
			t.Errorf("%d looks in 200 ms, want one each 50 ms at most", n)
		}
		if n := len(out.taken()); n != 100 {
			t.Errorf("%d reports, want 100", n)
		}
	})
}

func TestReasonsThatChangeAreReportedOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, assign("u", 1)))
		for i := range 100 {
			d.set(func(d *dataplane) { d.err = fmt.Errorf("attempt %d", i) })
			pass(100 * time.Millisecond)
		}
		if n := len(out.taken()); n < 8 || n > 11 {
			t.Errorf("%d reports in 10 s, want about 10", n)
		}
	})
}

// The hub ends the session of an agent that names an expectation that its
// assignment does not have.
func TestAFailedLookNamesNoExpectationWhereThereIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{err: errors.New("busy")}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		a := assign("u", 1)
		a.Expectations = nil
		must(t, give(c, replicaA, a))
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1}})
		d.set(func(d *dataplane) { d.err = nil })
		pass(time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
	})
}
