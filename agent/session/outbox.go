// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"slices"
	"sync"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// maxResults bounds the answers to traces that wait. The hub awaits 8 at most.
const maxResults = 16

// outbox holds what waits to be sent in one session: the newest report of each
// uid, those of Pods before those of policies and in the order in which the
// uids came in, and between both the newest state. It is so bounded by the
// number of subjects, however slow the replica reads. Behind all wait the
// answers to traces.
type outbox struct {
	// ready has an element if something may wait.
	ready chan struct{}

	mu      sync.Mutex // guards the following fields
	session uint64
	// policies are the uids that were assigned as policies in this session.
	policies map[string]bool
	// pods and others are the uids that reports wait of: others are policies.
	pods, others []string
	reports      map[string]*hubv1.Report
	state        *hubv1.State
	results      []*hubv1.TraceResult
}

// begin empties the outbox for a session.
// Reports for others are refused from now on.
func (o *outbox) begin(session uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.session, o.pods, o.others, o.results, o.state = session, nil, nil, nil, nil
	o.policies, o.reports = make(map[string]bool), make(map[string]*hubv1.Report)
}

// assigned takes in whose the uid is. What waits answers the assignment before,
// and is dropped.
func (o *outbox) assigned(uid string, policy bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop(uid)
	if policy {
		o.policies[uid] = true
	} else {
		delete(o.policies, uid)
	}
}

// withdrawn drops what is of the uid.
func (o *outbox) withdrawn(uid string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop(uid)
	delete(o.policies, uid)
}

// order returns where the uid waits.
func (o *outbox) order(uid string) *[]string {
	if o.policies[uid] {
		return &o.others
	}
	return &o.pods
}

// put adds a report, in place of the uid's earlier one.
func (o *outbox) put(session uint64, r *hubv1.Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if session != o.session {
		return
	}
	if _, waits := o.reports[r.GetUid()]; !waits {
		order := o.order(r.GetUid())
		*order = append(*order, r.GetUid())
	}
	o.reports[r.GetUid()] = r
	o.wake()
}

// tell adds a state, in place of an earlier one.
func (o *outbox) tell(s *hubv1.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.state = s
	o.wake()
}

// answer adds an answer to a trace. One too many is dropped: who asks so much
// has not kept to the contract.
func (o *outbox) answer(session uint64, r *hubv1.TraceResult) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if session != o.session || len(o.results) >= maxResults {
		return
	}
	o.results = append(o.results, r)
	o.wake()
}

func (o *outbox) wake() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}

// drop removes the uid's report. The caller holds o.mu.
func (o *outbox) drop(uid string) {
	if _, waits := o.reports[uid]; waits {
		delete(o.reports, uid)
		order := o.order(uid)
		*order = slices.DeleteFunc(*order, func(other string) bool { return other == uid })
	}
}

// take removes and returns what is to be sent next, or nil if there is
// nothing: the oldest report of a Pod, else the state, else the oldest report
// of a policy, else the oldest answer.
func (o *outbox) take(session uint64) *hubv1.AgentMessage {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case session != o.session:
		return nil
	case len(o.pods) > 0:
		return o.takeReport(&o.pods)
	case o.state != nil:
		s := o.state
		o.state = nil
		return &hubv1.AgentMessage{Message: &hubv1.AgentMessage_State{State: s}}
	case len(o.others) > 0:
		return o.takeReport(&o.others)
	case len(o.results) > 0:
		r := o.results[0]
		o.results = o.results[1:]
		return &hubv1.AgentMessage{Message: &hubv1.AgentMessage_TraceResult{TraceResult: r}}
	}
	return nil
}

// takeReport removes and returns the first of the order, which is not empty.
func (o *outbox) takeReport(order *[]string) *hubv1.AgentMessage {
	uid := (*order)[0]
	*order = (*order)[1:]
	r := o.reports[uid]
	delete(o.reports, uid)
	return &hubv1.AgentMessage{Message: &hubv1.AgentMessage_Report{Report: r}}
}
