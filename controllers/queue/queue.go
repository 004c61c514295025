// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package queue has work wait: Inbox until its goroutine comes to it, Queue in
// the order in which tenants are served fairly, Timers until it is due. It
// starts nothing and knows no clock, and nothing in it but Inbox may be used by
// two goroutines at once.
package queue

import (
	"container/heap"
	"time"
)

// Lane is where in a Queue something waits.
type Lane int

// The lanes.
const (
	// Urgent is served first, Usual behind it.
	Urgent Lane = iota
	Usual
	// Lanes is how many there are.
	Lanes
)

// UsualEvery is how often what is usual has its turn while something urgent
// waits: whatever one tenant declares urgent, others' work goes on.
const UsualEvery = 4

// Queue serves what is urgent first, but what is usual every fourth time, and
// in each lane one namespace after the other, each first in, first out. How
// long something waits depends on how many namespaces wait, never on how much
// one of them has queued. The zero Queue is empty.
type Queue[T any] struct {
	lanes  [Lanes]turns[T]
	served int
}

// Push adds v to the end of the namespace's line in that lane.
func (q *Queue[T]) Push(l Lane, namespace string, v T) { q.lanes[l].push(namespace, v) }

// Pop takes what is next, and says from which lane; false if there is nothing.
func (q *Queue[T]) Pop() (v T, l Lane, ok bool) {
	if q.Empty() {
		return v, Usual, false
	}
	q.served++
	if q.lanes[Urgent].count == 0 || q.served%UsualEvery == 0 && q.lanes[Usual].count > 0 {
		l = Usual
	}
	return q.lanes[l].pop(), l, true
}

// Empty reports whether nothing waits.
func (q *Queue[T]) Empty() bool { return q.Len() == 0 }

// Len returns how much waits in all lanes.
func (q *Queue[T]) Len() int { return q.lanes[Urgent].count + q.lanes[Usual].count }

// turns is one lane: a line for each namespace, which take turns.
type turns[T any] struct {
	lines map[string]*fifo[T]
	// order has every namespace that has a line, the next one first.
	order fifo[string]
	count int
}

func (t *turns[T]) push(namespace string, v T) {
	line := t.lines[namespace]
	if line == nil {
		if t.lines == nil {
			t.lines = map[string]*fifo[T]{}
		}
		line = &fifo[T]{}
		t.lines[namespace] = line
		t.order.push(namespace)
	}
	line.push(v)
	t.count++
}

// pop takes the next element. There must be one.
func (t *turns[T]) pop() T {
	namespace := t.order.pop()
	line := t.lines[namespace]
	v := line.pop()
	if line.empty() {
		delete(t.lines, namespace)
	} else {
		t.order.push(namespace)
	}
	t.count--
	return v
}

// fifo is a line: elements leave in the order in which they came.
type fifo[T any] struct {
	elements []T
	// head is where the first one is.
	head int
}

func (f *fifo[T]) push(v T) { f.elements = append(f.elements, v) }

func (f *fifo[T]) empty() bool { return f.head == len(f.elements) }

// pop takes the first element. There must be one.
func (f *fifo[T]) pop() T {
	var zero T
	v := f.elements[f.head]
	f.elements[f.head] = zero
	f.head++
	if f.head*2 >= len(f.elements) {
		// Each element is moved once per halving, so a pop costs the same
		// however long the line is.
		left := copy(f.elements, f.elements[f.head:])
		clear(f.elements[left:])
		f.elements, f.head = f.elements[:left], 0
	}
	return v
}

// Timer is when something is due. It is embedded in what a Timers
// holds. The zero Timer is due never.
type Timer struct {
	due time.Time
	// place is where in the heap it is, plus one; 0: it is not there.
	place int
}

// timed is what a Timers holds: a pointer to what embeds a Timer.
type timed interface{ clockwork() *Timer }

func (t *Timer) clockwork() *Timer { return t }

// Due returns when it is due; zero if never.
func (t *Timer) Due() time.Time { return t.due }

// Timers holds things by when they are due. The zero Timers is empty.
type Timers[T timed] struct{ heap timerHeap[T] }

// Set makes v due at that time; never if it is zero.
func (t *Timers[T]) Set(v T, due time.Time) {
	at := v.clockwork()
	switch {
	case due.IsZero() && at.place > 0:
		heap.Remove(&t.heap, at.place-1)
		at.due = due
	case due.IsZero() || at.place > 0 && due.Equal(at.due):
		at.due = due
	case at.place > 0:
		at.due = due
		heap.Fix(&t.heap, at.place-1)
	default:
		at.due = due
		heap.Push(&t.heap, v)
	}
}

// Pop takes something that is due by now, which is due no more then; false if
// nothing is.
func (t *Timers[T]) Pop(now time.Time) (v T, ok bool) {
	if len(t.heap) == 0 || now.Before(t.heap[0].clockwork().due) {
		return v, false
	}
	v = t.heap[0]
	t.Set(v, time.Time{})
	return v, true
}

// Next returns when something is due next; zero if never.
func (t *Timers[T]) Next() time.Time {
	if len(t.heap) == 0 {
		return time.Time{}
	}
	return t.heap[0].clockwork().due
}

// timerHeap implements heap.Interface.
type timerHeap[T timed] []T

func (h timerHeap[T]) Len() int { return len(h) }

func (h timerHeap[T]) Less(i, j int) bool {
	return h[i].clockwork().due.Before(h[j].clockwork().due)
}

func (h timerHeap[T]) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].clockwork().place, h[j].clockwork().place = i+1, j+1
}

func (h *timerHeap[T]) Push(v any) {
	t := v.(T) //nolint:forcetypeassert // container/heap gives back what was pushed
	t.clockwork().place = len(*h) + 1
	*h = append(*h, t)
}

func (h *timerHeap[T]) Pop() any {
	var zero T
	last := len(*h) - 1
	v := (*h)[last]
	v.clockwork().place = 0
	(*h)[last] = zero
	*h = (*h)[:last]
	return v
}
