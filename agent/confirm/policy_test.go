// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package confirm

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// policy is what a replica assigns for a policy of which a client and its
// control are asked.
func policy(uid string, generation uint64) *assigned {
	a := assign(uid, generation)
	a.Policy, a.OwnNode, a.Subject.Ips, a.Subject.Generation = true, false, nil, 1
	return a
}

// assignPolicies assigns so many of them to c, in ten namespaces, with eight
// flows each. They are answered as programmed does.
func assignPolicies(t *testing.T, c *Confirmer, count int) {
	t.Helper()
	for i := range count {
		a := policy(fmt.Sprint("policy", i), 1)
		a.Subject.Namespace = fmt.Sprint("tenant", i%10)
		for len(a.Expectations) < 8 {
			a.Expectations = append(a.Expectations, want(client, flow.Allowed))
		}
		must(t, give(c, replicaA, a))
	}
}

// grow makes all policies that are pending older.
func grow(c *Confirmer, by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := range c.policies.pending {
		e.since = e.since.Add(-by)
	}
}

func TestWhatAPolicyCannotBeAskedOf(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*assigned)
		want   string
	}{
		"both ends are named":    {change: func(*assigned) {}},
		"no flow at all":         {change: func(a *assigned) { a.Expectations = nil }},
		"an address":             {change: func(a *assigned) { a.Subject.Ips = []string{"10.0.0.1"} }, want: "a policy has addresses [10.0.0.1]: want none"},
		"an own node":            {change: func(a *assigned) { a.OwnNode = true }, want: "a policy has own_node"},
		"a need to settle":       {change: func(a *assigned) { a.Settle = true }, want: "a policy has settle"},
		"a flow without source":  {change: func(a *assigned) { a.Expectations[1].Flow.Src = nil }, want: "malformed expectation 1: it leaves out an end of a v4 flow: want both of a policy's"},
		"one without anything":   {change: func(a *assigned) { a.Expectations[0].Flow.Src, a.Expectations[0].Flow.Dst = nil, nil }, want: "malformed expectation 0"},
		"excused whys that fall": {change: func(a *assigned) { a.Excused = []uint32{1, 0} }, want: "excused"},
	} {
		t.Run(name, func(t *testing.T) {
			a := policy("p", 1)
			tc.change(a)
			d, err := a.description()
			must(t, err)
			malformed := contentOf(a.Assign, d).malformed
			switch {
			case tc.want == "" && malformed != nil:
				t.Errorf("malformed: %s", malformed.reason)
			case tc.want != "" && (malformed == nil || !strings.Contains(malformed.reason, tc.want)):
				t.Errorf("malformed %+v, want %q", malformed, tc.want)
			}
		})
	}
	pod, of := assign("u", 1), policy("u", 1)
	pod.Subject.Ips, pod.OwnNode = nil, false
	d, err := pod.description()
	must(t, err)
	if keyOf(pod.Assign, d) == keyOf(of.Assign, d) {
		t.Error("a policy and a Pod share an evaluation")
	}
}

func TestAPolicyIsConfirmedAndNeverReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(d, out)
		run(t, c)
		must(t, give(c, replicaA, policy("p", 3)))
		pass(secondLook)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "p", Generation: 3, Confirmed: true}})
		if holds, reason := c.Holds(t.Context(), "p"); holds || reason == "" {
			t.Errorf("a release of a policy is accepted (%q)", reason)
		}
		expect(t, out)
	})
}

func TestAPolicyThatIsConfirmedIsAuditedOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c, n, registry := newNoticed(t, d, out)
		must(t, give(c, replicaA, policy("p", 1)))
		pass(2 * secondLook)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "p", Generation: 1, Confirmed: true}})
		if n.watched() {
			t.Error("watched although nothing is pending")
		}
		looks := d.taken()
		pass(10 * policyAuditEvery)
		if got := d.taken() - looks; got != 10 {
			t.Errorf("%d looks in %v, want 10", got, 10*policyAuditEvery)
		}

		// The rules are flushed by hand.
		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(auditEvery)
		expect(t, out, sent{replicaA, &hubv1.Report{
			Uid: "p", Generation: 1, UnmetRequired: 1,
			Unmet: []*hubv1.Unmet{{Expectation: 1, Reason: "allowed (rule)"}},
		}})
		if got, _ := value(t, registry, "policygate_agent_drift_total", driftVerdict); got != 1 || !n.watched() {
			t.Errorf("drift was counted %v times, watched %v: want once, and that it is", got, n.watched())
		}
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		n.tell <- "commit"
		pass(debounce + secondLook)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "p", Generation: 1, Confirmed: true}})
	})
}

func TestAPolicyThatNeverComesTrueIsLookedAtLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: map[flow.Flow]flow.Answer{client: flow.Allowed}}, &outbox{}
		c, n, _ := newNoticed(t, d, out)
		must(t, give(c, replicaA, policy("p", 1)))
		began := time.Now()
		for _, tc := range []struct {
			until           time.Duration
			atLeast, atMost int
			watched         bool
		}{
			{until: patience - time.Second, atLeast: 4 * 29, atMost: 10*29 + 2, watched: true},
			{until: hopeless - time.Second, atLeast: 560, atMost: 600},
			{until: time.Hour, atLeast: 590, atMost: 620},
		} {
			looks := d.taken()
			pass(tc.until - time.Since(began))
			if got := d.taken() - looks; got < tc.atLeast || got > tc.atMost {
				t.Errorf("%d looks until it was %v old, want %d to %d", got, tc.until, tc.atLeast, tc.atMost)
			}
			if n.watched() != tc.watched {
				t.Errorf("watched %v when it was %v old, want %v", n.watched(), tc.until, tc.watched)
			}
		}
		// Looks for Pods do not ask for it either.
		must(t, give(c, replicaA, assign("u", 1)))
		pass(time.Second)
		asked := 0
		d.set(func(d *dataplane) { d.batches = nil })
		pass(slowest)
		d.set(func(d *dataplane) { asked = len(d.batches) })
		out.taken()
		c.Withdraw(replicaA, "u")
		must(t, give(c, replicaA, policy("p", 2)))
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(slowest + time.Second)
		expect(t, out, sent{replicaA, &hubv1.Report{Uid: "p", Generation: 2, Confirmed: true}})
		if looks := int(slowest / shortest); asked > looks+2 {
			t.Errorf("%d batches in %d looks for a Pod: want those of the Pod, and one or two of the policy", asked, looks)
		}
	})
}

func TestAThousandPoliciesDelayNoPod(t *testing.T) {
	unmet := map[flow.Flow]flow.Answer{stranger: flow.Denied}
	for name, tc := range map[string]struct {
		// verdicts are those of the policies.
		verdicts map[flow.Flow]flow.Answer
		// age is how old they are when the Pods come.
		age time.Duration
	}{
		"that are new":               {verdicts: programmed()},
		"that rest":                  {verdicts: programmed(), age: time.Minute},
		"that wait":                  {verdicts: unmet, age: 5 * time.Second},
		"that have long waited":      {verdicts: unmet, age: time.Minute},
		"that will never come true":  {verdicts: unmet, age: 20 * time.Minute},
		"while nobody has any rules": {verdicts: map[flow.Flow]flow.Answer{}, age: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				other, control := tcp("10.0.1.1", "10.0.1.9"), tcp("10.0.1.7", "10.0.1.9")
				d, out := &dataplane{verdicts: tc.verdicts}, &outbox{}
				d.verdicts[control] = flow.Denied
				c := newConfirmer(slowly{d, 20 * time.Microsecond}, out)
				run(t, c)
				assignPolicies(t, c, 1000)
				pass(min(tc.age, patience+5*time.Second))
				grow(c, tc.age)
				worst := time.Duration(0)
				for i := range 10 {
					d.set(func(d *dataplane) { d.verdicts[other] = flow.Denied })
					a := assign(fmt.Sprint("pod", i), 1)
					a.Expectations = []*hubv1.Expectation{want(other, flow.Allowed), want(control, flow.Denied)}
					must(t, give(c, replicaA, a))
					// The engine comes to it.
					pass(500 * time.Millisecond)
					out.taken()
					d.set(func(d *dataplane) { d.verdicts[other] = flow.Allowed })
					began := time.Now()
					for confirmed := false; !confirmed; {
						pass(time.Millisecond)
						for _, s := range out.taken() {
							confirmed = confirmed || s.Report.GetUid() == a.GetSubject().GetUid() && s.Report.GetConfirmed()
						}
						if time.Since(began) > time.Second {
							t.Fatal("not confirmed within a second beside a thousand policies")
						}
					}
					worst = max(worst, time.Since(began))
					c.Withdraw(replicaA, a.GetSubject().GetUid())
					pass(137 * time.Millisecond)
				}
				// Without any policy it takes until the next look and the second.
				if most := shortest + secondLook + 3*aside; worst > most {
					t.Errorf("a Pod was confirmed %v after its rules were there, want %v at most", worst, most)
				}
			})
		})
	}
}

func TestAPodThatComesCutsOffALookAtPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		// A policy takes 1 ms.
		c := newConfirmer(slowly{d, 125 * time.Microsecond}, out)
		run(t, c)
		assignPolicies(t, c, 1000)
		pass(2 * time.Millisecond)
		must(t, give(c, replicaA, assign("u", 1)))
		pass(2*aside + secondLook)
		for _, s := range out.taken() {
			if s.Report.GetUid() == "u" && s.Report.GetConfirmed() {
				return
			}
		}
		t.Errorf("not confirmed %v after the first of a thousand policies was asked for", 2*aside+secondLook)
	})
}

func TestEachOfAThousandPoliciesIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(slowly{d, 20 * time.Microsecond}, out)
		run(t, c)
		assignPolicies(t, c, 1000)
		began := time.Now()
		for confirmed := 0; confirmed < 1000; {
			pass(100 * time.Millisecond)
			for _, s := range out.taken() {
				if s.Report.GetConfirmed() {
					confirmed++
				}
			}
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%d of 1000 confirmed after 10 s", confirmed)
			}
		}
		t.Logf("all confirmed after %v, in %d looks", time.Since(began), d.taken())
	})
}

// Whatever Pods take of the looks, some policies are asked for each second.
func TestPodsDoNotStarvePolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, out := &dataplane{verdicts: programmed()}, &outbox{}
		c := newConfirmer(slowly{d, 100 * time.Microsecond}, out)
		run(t, c)
		crowd(t, c, 200, 128)
		pass(5 * time.Second)
		assignPolicies(t, c, 100)
		told, began := 0, time.Now()
		for told < 100 {
			pass(100 * time.Millisecond)
			for _, s := range out.taken() {
				if strings.HasPrefix(s.Report.GetUid(), "policy") {
					told++
				}
			}
			c.mu.Lock()
			asked, since := c.policies.asked, time.Since(c.policies.asked)
			c.mu.Unlock()
			// A look for the Pods takes up to 63 ms, and then four times that passes.
			if most := slow + 400*time.Millisecond; since > most && time.Since(began) > most {
				t.Fatalf("none was asked for since %v, want some within %v", asked, most)
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("%d of 100 policies are told after a minute", told)
			}
		}
	})
}

// spent counts the time that asking takes, by slowly's account.
func spent(d *dataplane, flow time.Duration) time.Duration {
	asked := 0
	d.set(func(d *dataplane) {
		for _, b := range d.batches {
			asked += len(b)
		}
		d.batches = nil
	})
	return time.Duration(asked) * flow
}

func TestPoliciesAreAuditedWithinAHundredthOfTheTime(t *testing.T) {
	for name, tc := range map[string]struct {
		policies int
		// never: they will never come true.
		never bool
		flow  time.Duration
		// within is the age that none exceeds; 0 for any.
		within time.Duration
	}{
		"a hundred":                      {policies: 100, flow: 20 * time.Microsecond, within: auditEvery},
		"a thousand, rechecked":          {policies: 1000, flow: 5 * time.Microsecond, within: auditEvery},
		"a thousand that cost 1 percent": {policies: 1000, flow: 18 * time.Microsecond, within: auditEvery + time.Second},
		"a hundred that are hopeless":    {policies: 100, never: true, flow: 20 * time.Microsecond, within: slowest + time.Second},
		"a thousand that are hopeless":   {policies: 1000, never: true, flow: 20 * time.Microsecond, within: 21 * time.Second},
		"more than that allows":          {policies: 1000, flow: 100 * time.Microsecond, within: 90 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, out := &dataplane{verdicts: programmed()}, &outbox{}
				c := newConfirmer(slowly{d, tc.flow}, out)
				run(t, c)
				if tc.never {
					delete(d.verdicts, client)
				}
				assignPolicies(t, c, tc.policies)
				pass(10 * time.Second)
				grow(c, hopeless)
				pass(3 * time.Minute)
				spent(d, tc.flow)
				const span = 3 * time.Minute
				var oldest time.Duration
				for range span / time.Second {
					pass(time.Second)
					c.mu.Lock()
					if rest := c.policies.resting.Len(); tc.never && rest > 0 || !tc.never && rest < tc.policies {
						t.Fatalf("%d of %d rest", rest, tc.policies)
					}
					for _, s := range c.subjects {
						oldest = max(oldest, time.Since(s.assignments[0].evaluation.seenAt))
					}
					c.mu.Unlock()
				}
				share := 100 * float64(spent(d, tc.flow)) / float64(span)
				t.Logf("looked at within %v, for %.2f %% of the time", oldest, share)
				if oldest > tc.within {
					t.Errorf("one was not looked at for %v, want %v at most", oldest, tc.within)
				}
				if share > 1.01 { // the span does not end with a pause
					t.Errorf("audits take %.2f %% of the time, want 1 at most", share)
				}
			})
		})
	}
}

// observed returns how many values a role has, and their sum.
func observed(t *testing.T, registry *prometheus.Registry, role string) (count uint64, sum float64) {
	t.Helper()
	all, err := registry.Gather()
	must(t, err)
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == "policygate_agent_programming_seconds" && m.GetLabel()[0].GetValue() == role {
				return m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
			}
		}
	}
	t.Fatalf("no histogram of role %s", role)
	return 0, 0
}

func TestTheTimeUntilTheFirstConfirmationIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &dataplane{verdicts: map[flow.Flow]flow.Answer{}}
		c, _, registry := newNoticed(t, d, &outbox{})
		check := func(when string, counts map[string]uint64) {
			t.Helper()
			for role, want := range counts {
				if got, _ := observed(t, registry, role); got != want {
					t.Errorf("%s: %d of role %s, want %d", when, got, role, want)
				}
			}
		}
		peer := assign("peer", 1)
		peer.OwnNode = false
		for _, a := range []*assigned{assign("own", 1), peer, policy("policy", 1)} {
			must(t, give(c, replicaA, a))
		}
		pass(10 * time.Second)
		// What is asked changes, and what for does not.
		must(t, give(c, replicaA, large("own", 3)))
		check("while there are no rules", map[string]uint64{roleOwn: 0, rolePeer: 0, rolePolicy: 0})
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(time.Second)
		check("when there are", map[string]uint64{roleOwn: 1, rolePeer: 1, rolePolicy: 1})
		for _, role := range []string{roleOwn, rolePeer, rolePolicy} {
			if _, sum := observed(t, registry, role); sum < 10 || sum > 11 {
				t.Errorf("role %s took %v s, want ten and until the second look", role, sum)
			}
		}
		d.set(func(d *dataplane) { d.verdicts[stranger] = flow.Allowed })
		pass(auditEvery)
		d.set(func(d *dataplane) { d.verdicts = programmed() })
		pass(auditEvery)
		must(t, give(c, replicaB, assign("own", 9)))
		pass(time.Second)
		check("when it was lost and came back", map[string]uint64{roleOwn: 1, rolePeer: 1, rolePolicy: 1})

		edited := policy("policy", 2)
		edited.Subject.Generation = 2
		must(t, give(c, replicaA, edited))
		pass(time.Second)
		check("after an edit that changes nothing here", map[string]uint64{rolePolicy: 1})
		edited = policy("policy", 3)
		edited.Subject.Generation = 3
		edited.Expectations = edited.Expectations[:1]
		must(t, give(c, replicaA, edited))
		moved := assign("own", 10)
		moved.Subject.Ips = []string{"10.0.0.2"}
		must(t, give(c, replicaA, moved))
		pass(time.Second)
		check("after an edit, and with another address", map[string]uint64{roleOwn: 2, rolePolicy: 2})
	})
}
