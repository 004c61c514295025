// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// queue is what waits to be sent to one agent: per uid the latest Assign or
// Withdraw and at most one Release behind it, and behind all that the traces.
// It is not safe for use by several goroutines.
type queue struct {
	// order holds each uid with something to send once, and syncedMark.
	order []string
	items map[string]*item
	// traces are bounded by who puts them in.
	traces []*hubv1.HubMessage
	// ready receives after something was put in. It has room for one.
	ready chan struct{}
}

// item is what there is to send of one uid.
type item struct {
	state   *hubv1.HubMessage
	release *hubv1.HubMessage
}

// syncedMark stands for Synced in a queue's order; no Pod has an empty uid.
const syncedMark = ""

func newQueue() *queue {
	return &queue{items: map[string]*item{}, ready: make(chan struct{}, 1)}
}

// assign puts in an Assign, in place of an unsent Assign, Withdraw or Release
// of the uid.
func (q *queue) assign(uid string, a *hubv1.Assign) {
	q.put(uid, &item{state: &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: a}}})
}

// withdraw puts in a Withdraw, in place of whatever of the uid is unsent.
func (q *queue) withdraw(uid string) {
	q.put(uid, &item{state: &hubv1.HubMessage{Message: &hubv1.HubMessage_Withdraw{
		Withdraw: &hubv1.Withdraw{Uid: uid},
	}}})
}

// release puts in a Release behind what is unsent of the uid, in place of an
// unsent Release.
func (q *queue) release(uid string, r *hubv1.Release) {
	next := &item{release: &hubv1.HubMessage{Message: &hubv1.HubMessage_Release{Release: r}}}
	if old, ok := q.items[uid]; ok {
		next.state = old.state
	}
	q.put(uid, next)
}

// synced puts in the mark that the full sync ends here.
func (q *queue) synced() {
	q.put(syncedMark, &item{state: &hubv1.HubMessage{Message: &hubv1.HubMessage_Synced{
		Synced: &hubv1.Synced{},
	}}})
}

// trace puts in a Trace behind everything else: a person's question delays no
// gate.
func (q *queue) trace(t *hubv1.Trace) {
	q.traces = append(q.traces, &hubv1.HubMessage{Message: &hubv1.HubMessage_Trace{Trace: t}})
	q.wake()
}

// next removes and returns what is to be sent next, or nil. Uids take their
// turn in the order in which they were put in.
func (q *queue) next() *hubv1.HubMessage {
	if len(q.order) == 0 {
		if len(q.traces) == 0 {
			return nil
		}
		m := q.traces[0]
		q.traces = q.traces[1:]
		return m
	}
	uid := q.order[0]
	i := q.items[uid]
	if i.state != nil && i.release != nil {
		m := i.state
		i.state = nil
		return m
	}
	q.order = q.order[1:]
	delete(q.items, uid)
	if i.state != nil {
		return i.state
	}
	return i.release
}

func (q *queue) put(uid string, i *item) {
	if _, ok := q.items[uid]; !ok {
		q.order = append(q.order, uid)
	}
	q.items[uid] = i
	q.wake()
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}
