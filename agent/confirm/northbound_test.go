// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// acknowledging is a dataplane with OVN.
type acknowledging struct {
	*dataplane

	mu  sync.Mutex
	at  uint64
	err error
}

func (a *acknowledging) Acknowledged(context.Context) (uint64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at, a.err
}

func (a *acknowledging) acknowledge(at uint64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at, a.err = at, err
}

func withConfig(a *assigned, config uint64) *assigned {
	a.NorthboundConfig = config
	return a
}

func withheld(generation uint64, why string) sent {
	return sent{replicaA, &hubv1.Report{
		Uid: "p", Generation: generation, UnmetRequired: 2,
		Unmet: []*hubv1.Unmet{{Reason: hubv1.ReasonUnacknowledged + ": " + why}},
	}}
}

func confirmed(generation uint64) sent {
	return sent{replicaA, &hubv1.Report{Uid: "p", Generation: generation, Confirmed: true}}
}

func TestANodeWithOVNConfirmsAPolicyBehindItsAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &acknowledging{dataplane: &dataplane{verdicts: programmed()}, at: 41}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, policy("p", 1)))
		pass(2 * secondLook)
		expect(t, out, confirmed(1)) // nothing is demanded

		must(t, give(c, replicaA, withConfig(policy("p", 2), 42)))
		pass(time.Minute)
		expect(t, out, withheld(2, "nb_cfg is 41, want 42"))
		d.acknowledge(42, nil)
		pass(2 * time.Second)
		expect(t, out, confirmed(2))

		// The connection to Open vSwitch's database breaks.
		d.acknowledge(0, errors.New("not in sync"))
		pass(2 * policyAuditEvery)
		expect(t, out, withheld(2, "not in sync"))
		d.acknowledge(50, nil)
		pass(time.Minute)
		expect(t, out, confirmed(2))

		// What is not so in the flows is not, whatever was acknowledged.
		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(2 * policyAuditEvery)
		if got := out.taken(); len(got) != 1 || got[0].Report.GetConfirmed() {
			t.Errorf("reports %v, want one that retracts", got)
		}
	})
}

func TestWithoutOVNNoAcknowledgementIsAwaited(t *testing.T) {
	for name, d := range map[string]Dataplane{
		"a dataplane that knows none": &dataplane{verdicts: programmed()},
		"a node that has none":        &acknowledging{dataplane: &dataplane{verdicts: programmed()}, err: ErrNoOVN},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := &outbox{}
				c := newConfirmer(d, out)
				run(t, c)
				must(t, give(c, replicaA, withConfig(policy("p", 1), 42)))
				pass(2 * secondLook)
				expect(t, out, confirmed(1))
			})
		})
	}
}

func TestAPodDemandsNoAcknowledgement(t *testing.T) {
	a := withConfig(assign("u", 1), 42)
	d, err := a.description()
	must(t, err)
	if got := contentOf(a.Assign, d).malformed; got == nil || !strings.Contains(got.reason, "a Pod has northbound_config 42") {
		t.Errorf("malformed %+v, want that a Pod has northbound_config", got)
	}
}

func TestReplicasThatDemandOtherAcknowledgementsShareNoEvaluation(t *testing.T) {
	a, b := withConfig(policy("p", 1), 41), withConfig(policy("p", 1), 42)
	d, err := a.description()
	must(t, err)
	if keyOf(a.Assign, d) == keyOf(b.Assign, d) {
		t.Error("they share one")
	}
}

// counter is a Coverer that answers when the test says.
type counter struct {
	asked   chan struct{}
	answers chan int64
}

func newCounter() *counter {
	return &counter{asked: make(chan struct{}, 100), answers: make(chan int64)}
}

func (c *counter) Cover(ctx context.Context) (int64, error) {
	c.asked <- struct{}{}
	select {
	case <-ctx.Done():
		return 0, ctx.Err()
	case n := <-c.answers:
		if n < 0 {
			return 0, errors.New("not the leader")
		}
		return n, nil
	}
}

func covered(uid string, generation, config uint64) sent {
	return sent{replicaA, &hubv1.Report{Uid: uid, Generation: generation, Confirmed: true, NorthboundConfig: config}}
}

func newCovering(d Dataplane, out *outbox) (*Confirmer, *counter) {
	n := newCounter()
	return New(Options{Dataplane: d, Reports: out, Coverer: n, Clock: clock.RealClock{}, Log: logr.Discard()}), n
}

func TestTheDatabaseConfirmsAPolicyWithWhatNodesAcknowledge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c, n := newCovering(d, out)
		run(t, c)
		must(t, give(c, replicaA, policy("p", 1)))
		must(t, give(c, replicaA, assign("u", 1)))
		pass(5 * time.Second)
		// A Pod does not wait for it.
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "u", Generation: 1, Confirmed: true}})
		if len(n.asked) != 1 {
			t.Fatalf("counted up %d times, want once", len(n.asked))
		}
		n.answers <- 42
		synctest.Wait()
		expect(t, out, covered("p", 1, 42))

		// The same is asked once more: it is covered.
		must(t, give(c, replicaA, policy("p", 2)))
		pass(time.Second)
		expect(t, out, covered("p", 2, 42))

		// It is taken back, which is told at once, and comes true again.
		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(2 * policyAuditEvery)
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		if got := out.taken(); len(got) != 2 || got[0].Report.GetConfirmed() || got[0].Report.GetNorthboundConfig() != 0 {
			t.Errorf("reports %v, want that both are taken back", got)
		}
		pass(5 * time.Second)
		out.taken()
		n.answers <- 57
		synctest.Wait()
		expect(t, out, covered("p", 2, 57))
	})
}

func TestWhatComesWhileTheDatabaseIsCountedUpWaitsForTheNextTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c, n := newCovering(d, out)
		run(t, c)
		must(t, give(c, replicaA, policy("p", 1)))
		pass(time.Second)
		must(t, give(c, replicaA, policy("q", 1)))
		pass(time.Second)
		// The first is taken back and comes true again meanwhile.
		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(2 * time.Second)
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(2 * time.Second)
		out.taken()
		n.answers <- 42
		synctest.Wait()
		expect(t, out) // neither is covered by that
		n.answers <- -1
		pass(recoverAfter / 2)
		expect(t, out)
		pass(recoverAfter)
		n.answers <- 43
		synctest.Wait()
		got := out.taken()
		if len(got) != 2 || got[0].Report.GetNorthboundConfig() != 43 || got[1].Report.GetNorthboundConfig() != 43 {
			t.Errorf("reports %v, want both with 43", got)
		}
	})
}
