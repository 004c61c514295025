// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package queue

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAQueueServesNamespacesInTurn(t *testing.T) {
	var q Queue[string]
	for i := range 100 {
		q.Push(Urgent, "crowd", fmt.Sprintf("crowd-%d", i))
	}
	q.Push(Urgent, "a", "a-0")
	q.Push(Urgent, "b", "b-0")
	q.Push(Urgent, "a", "a-1")
	var got []string
	for range 6 {
		v, _, _ := q.Pop()
		got = append(got, v)
	}
	want := []string{"crowd-0", "a-0", "b-0", "crowd-1", "a-1", "crowd-2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("served (-want +got):\n%s", diff)
	}
}

func TestWhatIsUrgentDoesNotStarveWhatIsUsual(t *testing.T) {
	var q Queue[string]
	for i := range 100 {
		q.Push(Urgent, "crowd", fmt.Sprint(i))
	}
	q.Push(Usual, "a", "a")
	for i := range UsualEvery {
		v, l, ok := q.Pop()
		if !ok {
			t.Fatal("the queue is empty")
		}
		if want := i == UsualEvery-1; (v == "a" && l == Usual) != want {
			t.Errorf("%d: served %q from lane %d", i, v, l)
		}
	}
}

func TestAQueueLosesNothingAndEnds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var q Queue[int]
	var pushed, popped []int
	for i := range 10000 {
		if r.IntN(3) > 0 {
			q.Push(Lane(r.IntN(int(Lanes))), fmt.Sprint(r.IntN(5)), i)
			pushed = append(pushed, i)
		} else if v, _, ok := q.Pop(); ok {
			popped = append(popped, v)
		}
		if q.Len() != len(pushed)-len(popped) {
			t.Fatalf("len = %d, want %d", q.Len(), len(pushed)-len(popped))
		}
	}
	for v, _, ok := q.Pop(); ok; v, _, ok = q.Pop() {
		popped = append(popped, v)
	}
	slices.Sort(popped)
	if diff := cmp.Diff(pushed, popped); diff != "" {
		t.Errorf("popped (-pushed +popped):\n%s", diff)
	}
	if len(q.lanes[Urgent].lines)+len(q.lanes[Usual].lines) > 0 {
		t.Error("an empty queue keeps lines")
	}
}

// alarm is something that is due.
type alarm struct {
	Timer
	name int
}

func TestTimersAreServedWhenTheyAreDue(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	t0 := time.Unix(0, 0)
	var clocks Timers[*alarm]
	alarms := make([]*alarm, 50)
	for i := range alarms {
		alarms[i] = &alarm{name: i}
	}
	// What is set last counts; zero is never.
	for range 1000 {
		a := alarms[r.IntN(len(alarms))]
		due := time.Time{}
		if n := r.IntN(20); n > 0 {
			due = t0.Add(time.Duration(n) * time.Second)
		}
		clocks.Set(a, due)
	}
	var want []int
	for _, a := range alarms {
		if !a.due.IsZero() && a.due.Sub(t0) <= 10*time.Second {
			want = append(want, a.name)
		}
	}
	var got []int
	before := t0
	for now := t0; !now.After(t0.Add(10 * time.Second)); now = now.Add(time.Second) {
		for next := clocks.Next(); ; next = clocks.Next() {
			a, ok := clocks.Pop(now)
			if !ok {
				break
			}
			if next.Before(before) || next.After(now) {
				t.Errorf("%d was due at %s, served at %s", a.name, next, now)
			}
			got = append(got, a.name)
		}
		before = now
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("served (-want +got):\n%s", diff)
	}
	for _, a := range alarms {
		clocks.Set(a, time.Time{})
	}
	if !clocks.Next().IsZero() {
		t.Error("a timer that was taken back is due")
	}
}
