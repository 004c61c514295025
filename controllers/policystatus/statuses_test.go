// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
)

// at returns when the objects of a name were written, after t0, by kind.
func (f *fakeObjects) at(what string) []time.Duration {
	var out []time.Duration
	for i, w := range f.writes {
		if w == what {
			out = append(out, f.times[i].Sub(t0))
		}
	}
	return out
}

// make has the writer write what may be written in the next d.
func (b *bench) make(d time.Duration) {
	for end := b.clock.Now().Add(d); b.clock.Now().Before(end); b.clock.SetTime(b.clock.Now().Add(10 * time.Millisecond)) {
		for write, _ := b.statuses.next(b.clock.Now()); write != nil; write, _ = b.statuses.next(b.clock.Now()) {
			b.statuses.make(b.t.Context(), write)
		}
	}
}

// ask asks for a write of the object of that name.
func (b *bench) ask(namespace, name string, k kind) {
	p := Policy{Name: types.NamespacedName{Namespace: namespace, Name: name}, UID: types.UID("uid-" + name)}
	w := Write{
		Policy: p, Kind: k, Object: b.objects.objects[p.Name],
		Status: &v1alpha1.PolicyStatusStatus{ObservedGeneration: new(int64(b.objects.version))},
		Done:   func(*v1alpha1.PolicyStatus) {},
	}
	if w.Object != nil && k == creation {
		b.t.Fatalf("%s is there already", p.Name)
	}
	for _, c := range []string{v1alpha1.PolicyProgrammed, v1alpha1.PolicyDegraded} {
		w.Status.Conditions = append(w.Status.Conditions, condition(c))
	}
	b.statuses.Write(w)
}

func TestOneObjectIsWrittenOnceASecondAndItsNumbersEveryTen(t *testing.T) {
	b := newBench(t)
	b.objects.ledger = nil
	b.ask("db", "p", creation)
	b.make(10 * time.Millisecond)
	for range 300 {
		b.ask("db", "p", transition)
		b.make(10 * time.Millisecond)
	}
	if diff := cmp.Diff([]time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second}, b.objects.at("status db/p")); diff != "" {
		t.Errorf("transitions written (-want +got):\n%s", diff)
	}
	for range 2200 {
		b.ask("db", "p", numbers)
		b.make(10 * time.Millisecond)
	}
	if diff := cmp.Diff([]time.Duration{13 * time.Second, 23 * time.Second}, b.objects.at("status db/p")[4:]); diff != "" {
		t.Errorf("numbers written (-want +got):\n%s", diff)
	}
}

func TestATransitionDoesNotWaitForNumbers(t *testing.T) {
	b := newBench(t)
	b.objects.ledger = nil
	b.ask("db", "p", creation)
	b.make(2 * time.Second)
	b.ask("db", "p", numbers)
	b.make(time.Second)
	b.ask("db", "p", transition)
	b.make(time.Second)
	if got := b.objects.at("status db/p"); len(got) != 2 || got[1] != 3*time.Second {
		t.Errorf("written at %s, want the transition at 3s", got)
	}
	b.ask("db", "p", transition)
	b.ask("db", "p", numbers) // in place of it
	b.statuses.Drop(types.NamespacedName{Namespace: "db", Name: "p"})
	b.make(20 * time.Second)
	if got := b.objects.at("status db/p"); len(got) != 2 {
		t.Errorf("written at %s, but what was last was taken back", got)
	}
}

func TestNamespacesTakeTurnsWithinTheBudget(t *testing.T) {
	b := newBench(t)
	b.objects.ledger = nil
	b.ask("quiet", "q", creation)
	b.make(time.Second)
	const crowd = 300
	for i := range crowd {
		b.ask("crowd", fmt.Sprint("p", i), creation)
	}
	b.make(100 * time.Millisecond)
	b.ask("quiet", "q", transition)
	b.make(200 * time.Millisecond)
	if got := b.objects.at("status quiet/q"); len(got) != 2 {
		t.Errorf("written at %s: it waits behind the crowd", got)
	}
	b.make(40 * time.Second)
	if got := len(b.objects.writes); got != 2*crowd+3 {
		t.Errorf("%d writes, want %d", got, 2*crowd+3)
	}
	for i := range b.objects.times {
		within := 0
		for _, at := range b.objects.times[i:] {
			if at.Sub(b.objects.times[i]) < 10*time.Second {
				within++
			}
		}
		// The budget of ten seconds, the burst, and a creation's second request.
		if most := 10*writesPerSecond + writesPerSecond + 1; within > most {
			t.Fatalf("%d requests in ten seconds, want at most %d", within, most)
		}
	}
}

func TestAConflictIsTriedAgainShouldNoEventCome(t *testing.T) {
	b := newBench(t)
	b.objects.ledger = nil
	b.ask("db", "allow-jobs", creation)
	b.make(2 * time.Second)
	b.ask("db", "allow-jobs", transition)
	before := b.objects.objects[allowJobs]
	b.objects.put(before) // somebody else writes
	b.make(time.Second)
	if got := b.objects.at("status db/allow-jobs"); len(got) != 1 {
		t.Fatalf("written at %s, in spite of another's write", got)
	}
	b.objects.objects[allowJobs] = before
	b.make(2 * time.Second)
	if got := b.objects.at("status db/allow-jobs"); len(got) != 2 {
		t.Errorf("written at %s: a conflict is given up", got)
	}
}

func TestADecisionThatIsMadeAgainWritesNothing(t *testing.T) {
	b := newBench(t)
	b.connect("n1")
	b.assign(allowJobs, 1, 1, "n1")
	b.run(500 * time.Millisecond)
	b.confirm(allowJobs, "n1")
	b.run(2 * time.Second)
	writes := len(b.objects.writes)
	for range 20 {
		b.confirm(allowJobs, "n1")
		b.run(time.Second)
	}
	b.run(2 * time.Minute)
	if got := b.objects.writes[writes:]; len(got) > 0 {
		t.Errorf("wrote %q, want nothing", got)
	}
}

func TestEventsAreFewAndInPairs(t *testing.T) {
	r := &fakeRecorder{}
	b := newBench(t)
	v := NewEvents(r, b.clock)
	fine := said(t, 1, confirmed("n1"))
	bad := *decide(state{generation: 1, understood: true, former: fine, nodes: []node{drifted("n1", v1alpha1.LagNotIsolating)}}, t0.Add(time.Hour)).status
	name := func(i int) Policy {
		return Policy{Name: types.NamespacedName{Namespace: "db", Name: fmt.Sprint("p", i)}}
	}
	for range 5 { // it flaps
		v.Decided(name(0), &fine, &bad)
		v.Decided(name(0), &bad, &bad)
		v.Decided(name(0), &bad, &fine)
		b.clock.Step(20 * time.Second)
	}
	want := []string{
		"Warning db/p0: Drifted: was in force and is no more on n1 (NotIsolating)",
		"Normal db/p0: InForce: in force on 1 node",
	}
	if diff := cmp.Diff(want, r.events); diff != "" {
		t.Errorf("events of one that flaps (-want +got):\n%s", diff)
	}
	r.events = nil
	for i := range 1000 {
		v.Decided(name(i+1), &fine, &bad)
	}
	if len(r.events) != eventsBurst {
		t.Errorf("%d events of 1,000 policies at once, want %d", len(r.events), eventsBurst)
	}
	b.clock.Step(time.Minute)
	v.Decided(name(500), &bad, &fine)
	if len(r.events) != eventsBurst {
		t.Error("the end of what was not told is told")
	}
	v.Forget(name(0).Name)
	v.Decided(name(0), &fine, &bad)
	if last := r.events[len(r.events)-1]; !strings.HasPrefix(last, "Warning db/p0") {
		t.Errorf("the last event is %q, want that of a new policy of that name", last)
	}
}
