// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// queue is what waits to be sent to one agent: per uid the latest Assign or
// Withdraw and at most one Release behind it, those of policies behind those of
// Pods, and behind all that the traces.
// It holds no more uids than the node has assignments, the agent holds and
// releases wait for. What an assignment needs besides, its description, is
// found out when it is taken, so that nothing is described that is superseded.
// It is not safe for use by several goroutines.
type queue struct {
	// items are what there is to send of each uid: never nothing.
	items map[string]*item
	// releases, states and policies are the uids that have a Release, a Pod's
	// Assign or Withdraw, or a policy's, in the order in which they are sent.
	releases, states, policies turns
	// syncing: Synced was not taken yet. unsynced counts the items that it has
	// to wait for.
	syncing  bool
	unsynced int
	// traces are bounded by who puts them in.
	traces []*hubv1.HubMessage
	// agent is what the agent holds.
	agent *holdings
	// ready receives after something was put in. It has room for one.
	ready chan struct{}
}

// item is what there is to send of one uid. A ticket is nil if there is
// nothing of the kind.
type item struct {
	namespace string
	// states is where the state waits.
	states *turns
	state  *ticket
	// assignment is nil if the state is a Withdraw.
	assignment *assignment
	// full: Synced waits for the state.
	full bool

	released *ticket
	release  *hubv1.Release
}

func newQueue() *queue {
	return &queue{items: map[string]*item{}, agent: newHoldings(), ready: make(chan struct{}, 1)}
}

// assign puts in an Assign, in place of an unsent Assign, Withdraw or Release
// of the uid.
func (q *queue) assign(uid string, a *assignment) {
	i := q.item(uid, a.message.GetSubject().GetNamespace(), a.message.GetPolicy())
	q.dropRelease(i)
	i.assignment = a
	if i.state == nil {
		i.state = i.states.add(i.namespace, uid)
	}
	q.wake()
}

// withdraw puts in a Withdraw if the agent holds the uid, in place of whatever
// of the uid is unsent. What the agent does not hold needs none; it has what
// it holds of an earlier session until Synced.
func (q *queue) withdraw(uid, namespace string, policy bool) {
	i := q.item(uid, namespace, policy)
	q.dropRelease(i)
	i.assignment = nil
	switch {
	case !q.agent.holds(uid):
		q.dropState(i)
		q.tidy(uid, i)
	case i.state == nil:
		i.state = i.states.add(namespace, uid)
	}
	// Synced may have waited for it.
	q.wake()
}

// release puts in a Release behind what is unsent of the uid, in place of an
// unsent Release.
func (q *queue) release(uid string, r *hubv1.Release) {
	i := q.item(uid, r.GetSubject().GetNamespace(), false)
	i.release = r
	if i.released == nil {
		i.released = q.releases.add(i.namespace, uid)
	}
	q.wake()
}

// synced says that what was put in so far is the full sync.
func (q *queue) synced() {
	q.syncing = true
	q.unsynced = 0
	for _, i := range q.items {
		if i.state != nil {
			i.full = true
			q.unsynced++
		}
	}
	q.wake()
}

// trace puts in a Trace behind everything else: a person's question delays no
// gate.
func (q *queue) trace(t *hubv1.Trace) {
	q.traces = append(q.traces, &hubv1.HubMessage{Message: &hubv1.HubMessage_Trace{Trace: t}})
	q.wake()
}

// next removes what is to be sent next and appends it to out, which stays as
// it is if there is nothing. What it appends belongs together and is sent in
// its order. A release comes first, but behind the state of its own uid; then
// Synced, once it is due; then the states, by turns of their namespaces, those
// of policies last. The spread is for Synced.
func (q *queue) next(out []*hubv1.HubMessage, spread func() uint32) []*hubv1.HubMessage {
	if uid, ok := q.releases.first(); ok {
		i := q.items[uid]
		if i.state != nil {
			return q.takeState(out, uid, i)
		}
		r := i.release
		q.dropRelease(i)
		q.tidy(uid, i)
		return append(out, &hubv1.HubMessage{Message: &hubv1.HubMessage_Release{Release: r}})
	}
	if q.syncing && q.unsynced == 0 {
		q.syncing = false
		return append(out, &hubv1.HubMessage{Message: &hubv1.HubMessage_Synced{
			Synced: &hubv1.Synced{SpreadMillis: spread()},
		}})
	}
	for _, states := range []*turns{&q.states, &q.policies} {
		if uid, ok := states.first(); ok {
			return q.takeState(out, uid, q.items[uid])
		}
	}
	if len(q.traces) > 0 {
		out = append(out, q.traces[0])
		q.traces[0] = nil
		q.traces = q.traces[1:]
	}
	return out
}

// takeState removes the uid's Assign or Withdraw and appends it to out, with
// what has to go before and behind it.
func (q *queue) takeState(out []*hubv1.HubMessage, uid string, i *item) []*hubv1.HubMessage {
	a := i.assignment
	q.dropState(i)
	q.tidy(uid, i)
	var forget *hubv1.HubMessage
	if a == nil {
		forget = q.agent.withdraw(uid)
		out = append(out, &hubv1.HubMessage{Message: &hubv1.HubMessage_Withdraw{Withdraw: &hubv1.Withdraw{Uid: uid}}})
	} else {
		id, describe, old := q.agent.assign(uid, a.description)
		if describe != nil {
			out = append(out, describe)
		}
		forget = old
		out = append(out, &hubv1.HubMessage{Message: &hubv1.HubMessage_Assign{Assign: a.wire(id)}})
	}
	if forget != nil {
		out = append(out, forget)
	}
	return out
}

// item returns the uid's item, which it makes if need be. Whoever calls it
// puts something in, or tidies up.
func (q *queue) item(uid, namespace string, policy bool) *item {
	i, ok := q.items[uid]
	if !ok {
		i = &item{namespace: namespace, states: &q.states}
		if policy {
			i.states = &q.policies
		}
		q.items[uid] = i
	}
	return i
}

func (q *queue) dropRelease(i *item) {
	q.releases.remove(i.released)
	i.released, i.release = nil, nil
}

func (q *queue) dropState(i *item) {
	i.states.remove(i.state)
	i.state, i.assignment = nil, nil
	if i.full {
		i.full = false
		q.unsynced--
	}
}

// tidy forgets an item that holds nothing.
func (q *queue) tidy(uid string, i *item) {
	if i.state == nil && i.released == nil {
		delete(q.items, uid)
	}
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}
