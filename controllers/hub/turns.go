// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import "container/list"

// turns is a queue of uids in which namespaces take turns: a uid waits for
// the earlier ones of its own namespace, and for one of each other namespace
// per place. The zero turns is empty.
type turns struct {
	namespaces map[string]*lane
	// order holds the lanes, each with a uid at least.
	order list.List
}

// lane is what waits of one namespace, first come, first served.
type lane struct {
	namespace string
	uids      list.List
	place     *list.Element
}

// ticket is a uid's place in turns, good for one removal. A nil ticket is of
// no place.
type ticket struct {
	lane  *lane
	place *list.Element
}

// add puts the uid behind all others of the namespace.
func (t *turns) add(namespace, uid string) *ticket {
	l, ok := t.namespaces[namespace]
	if !ok {
		if t.namespaces == nil {
			t.namespaces = map[string]*lane{}
		}
		l = &lane{namespace: namespace}
		l.place = t.order.PushBack(l)
		t.namespaces[namespace] = l
	}
	return &ticket{lane: l, place: l.uids.PushBack(uid)}
}

// first returns the uid whose turn it is, or false if there is none.
func (t *turns) first() (uid string, ok bool) {
	front := t.order.Front()
	if front == nil {
		return "", false
	}
	return front.Value.(*lane).uids.Front().Value.(string), true
}

// remove takes a uid out; if it was its turn, the next namespace's has come.
func (t *turns) remove(k *ticket) {
	if k == nil {
		return
	}
	turn := k.lane.uids.Front() == k.place
	k.lane.uids.Remove(k.place)
	switch {
	case k.lane.uids.Len() == 0:
		t.order.Remove(k.lane.place)
		delete(t.namespaces, k.lane.namespace)
	case turn && t.order.Front() == k.lane.place:
		t.order.MoveToBack(k.lane.place)
	}
}
