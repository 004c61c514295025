// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"container/list"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// maxIdle and maxIdleBytes bound the descriptions that an agent keeps
	// although no assignment names them: the next Pod of a Job, or of a
	// rollout, often needs the same. They are kept in this replica, too: with
	// 1,000 agents that all have other descriptions at most 128 MiB.
	maxIdle      = 32
	maxIdleBytes = 128 << 10
)

// holdings are what the agent holds once it has received all that was taken
// from the queue. A new session's are empty: what the agent still has of an
// earlier one ends with Synced.
type holdings struct {
	// last is the newest id of a description.
	last uint64
	// named are the descriptions that the agent's assignments name, by uid.
	named     map[string]*described
	described map[Description]*described
	// idle are the descriptions that no assignment names, the least recently
	// used first.
	idle      list.List
	idleBytes int
}

// described is a description that the agent knows.
type described struct {
	id          uint64
	description Description
	// uses counts the assignments that name it; idle is its place if there is
	// none.
	uses int
	idle *list.Element
}

func newHoldings() *holdings {
	return &holdings{named: map[string]*described{}, described: map[Description]*described{}}
}

// holds reports whether the agent has an assignment of the uid.
func (h *holdings) holds(uid string) bool {
	_, ok := h.named[uid]
	return ok
}

// assign says that the uid's next assignment names d. It returns the id to
// name it by, the message that must be sent before the assignment, or nil, and
// the one to send behind it, or nil.
func (h *holdings) assign(uid string, d Description) (id uint64, describe, forget *hubv1.HubMessage) {
	before := h.named[uid]
	next, ok := h.described[d]
	if !ok {
		h.last++
		next = &described{id: h.last, description: d}
		h.described[d] = next
		describe = &hubv1.HubMessage{Message: &hubv1.HubMessage_Describe{Describe: &hubv1.Describe{
			Id: next.id, Content: []byte(d.value().content),
		}}}
	}
	if next.idle != nil {
		h.idle.Remove(next.idle)
		next.idle = nil
		h.idleBytes -= d.size()
	}
	next.uses++
	h.named[uid] = next
	return next.id, describe, h.leave(before)
}

// withdraw says that the agent has no assignment of the uid any more. It
// returns what to send behind the withdrawal, or nil.
func (h *holdings) withdraw(uid string) (forget *hubv1.HubMessage) {
	before := h.named[uid]
	delete(h.named, uid)
	return h.leave(before)
}

// leave ends one use of d, or none if it is nil. It returns the message that
// forgets what is idle beyond the bounds, or nil.
func (h *holdings) leave(d *described) *hubv1.HubMessage {
	if d == nil {
		return nil
	}
	d.uses--
	if d.uses > 0 {
		return nil
	}
	d.idle = h.idle.PushBack(d)
	h.idleBytes += d.description.size()
	var ids []uint64
	for h.idle.Len() > maxIdle || h.idleBytes > maxIdleBytes {
		oldest := h.idle.Remove(h.idle.Front()).(*described)
		h.idleBytes -= oldest.description.size()
		delete(h.described, oldest.description)
		ids = append(ids, oldest.id)
	}
	if ids == nil {
		return nil
	}
	return &hubv1.HubMessage{Message: &hubv1.HubMessage_Forget{Forget: &hubv1.Forget{Ids: ids}}}
}
