// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"container/list"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/go-logr/logr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
)

// check holds what c keeps beside its assignments against these.
func (c *Confirmer) check(t *testing.T, after string) {
	t.Helper()
	p := c.plan()
	c.mu.Lock()
	defer c.mu.Unlock()
	held := map[*evaluation]bool{}
	for _, s := range c.subjects {
		if len(s.assignments) == 0 {
			t.Fatalf("after %s: %s is held without an assignment", after, s.uid)
		}
		for _, e := range s.evaluations() {
			if e.content.malformed == nil {
				held[e] = true
			}
		}
	}
	kept := 0
	for policy, of := range map[bool]struct {
		pending map[*evaluation]struct{}
		resting *list.List
	}{false: {c.pending, c.resting}, true: {c.policies.pending, c.policies.resting}} {
		resting := map[*evaluation]bool{}
		var last time.Time
		for place := of.resting.Front(); place != nil; place = place.Next() {
			e, _ := place.Value.(*evaluation)
			if _, both := of.pending[e]; both || !held[e] || e.place != place || resting[e] || e.content.policy != policy {
				t.Fatalf("after %s: %s rests: pending as well %v, held %v", after, e.subject.uid, both, held[e])
			}
			if !e.answer.confirmed || !e.toldAll() || e.seenAt.Before(last) {
				t.Fatalf("after %s: %s rests, or is out of its order", after, e.subject.uid)
			}
			resting[e], last = true, e.seenAt
		}
		for e := range of.pending {
			if !held[e] || e.content.policy != policy {
				t.Fatalf("after %s: %s is pending and not held", after, e.subject.uid)
			}
		}
		kept += len(resting) + len(of.pending)
	}
	if len(held) != kept {
		t.Fatalf("after %s: %d are held, %d rest or are pending", after, len(held), kept)
	}
	// What is overdue is due now.
	all := c.planAll()
	if !all.due.IsZero() && (p.due.IsZero() || later(all.due, c.clock.Now()).Before(p.due)) || all.pending && !p.pending {
		t.Fatalf("after %s: the next look is planned for %v, pending %v; want %v, %v at the latest", after, p.due, p.pending, all.due, all.pending)
	}
}

// Whatever happens in whatever order, each evaluation is either pending or
// rests, and the next look is never planned later than all that is pending
// needs it.
func TestRandomEventsLeaveNothingBehind(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 1))
		now := clocktesting.NewFakeClock(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
		d := &dataplane{verdicts: programmed()}
		c := New(Options{Dataplane: d, Reports: &outbox{}, Clock: now, Log: logr.Discard()})
		for step := range 400 {
			uid := fmt.Sprint("u", random.IntN(6))
			from := Source{Replica: fmt.Sprint("r", random.IntN(2)), Session: uint64(random.IntN(3))}
			var event string
			switch random.IntN(10) {
			case 0, 1, 2:
				a := assign(uid, uint64(step))
				a.Settle = random.IntN(4) == 0
				if random.IntN(8) == 0 {
					a.Excused = []uint32{5}
				}
				if random.IntN(2) == 0 {
					a = policy(uid, uint64(step))
				}
				event = fmt.Sprintf("an assignment of %s by %s", uid, from.Replica)
				must(t, give(c, from, a))
			case 3:
				event = fmt.Sprintf("a withdrawal of %s by %s", uid, from.Replica)
				c.Withdraw(from, uid)
			case 4:
				if random.IntN(10) > 0 {
					continue
				}
				event = "a session of " + from.Replica
				c.Forget(from.Replica, from.Session)
			case 5:
				event = "a refused release, or one that goes through"
				c.Holds(t.Context(), uid)
			case 6:
				event = "a change of the rules"
				d.set(func(d *dataplane) {
					d.rewrites++
					d.verdicts[stranger] = []flow.Answer{flow.Denied, flow.Denied, flow.Denied, flow.Allowed}[random.IntN(4)]
				})
			case 7:
				event = "some time"
				now.Step([]time.Duration{time.Millisecond, secondLook, time.Second, settled}[random.IntN(4)])
			default:
				event = "a look"
				looks := d.taken()
				c.look(t.Context())
				// What a look is planned for it has to come to, or it is planned
				// again at once and for ever.
				if next := c.plan(); d.taken() == looks && !next.due.IsZero() && !next.due.After(now.Now()) {
					t.Fatalf("step %d of seed %d: a look does nothing, and the next is due at once", step, seed)
				}
				now.Step(secondLook)
			}
			c.check(t, fmt.Sprintf("step %d of seed %d, %s", step, seed, event))
		}
	}
}
