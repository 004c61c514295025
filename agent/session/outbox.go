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

// outbox holds the reports that wait to be sent in one session: the newest of
// each uid, in the order in which the uids came in. It is so bounded by the
// number of subjects, however slow the replica reads. Behind them wait the
// answers to traces.
type outbox struct {
	// ready has an element if something may wait.
	ready chan struct{}

	mu      sync.Mutex // guards the following fields
	session uint64
	order   []string
	reports map[string]*hubv1.Report
	results []*hubv1.TraceResult
}

// begin empties the outbox for a session. Reports for others are refused from
// now on.
func (o *outbox) begin(session uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.session, o.order, o.reports, o.results = session, nil, make(map[string]*hubv1.Report), nil
}

// put adds a report, in place of the uid's earlier one.
func (o *outbox) put(session uint64, r *hubv1.Report) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if session != o.session {
		return
	}
	if _, waits := o.reports[r.GetUid()]; !waits {
		o.order = append(o.order, r.GetUid())
	}
	o.reports[r.GetUid()] = r
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

// drop removes the uid's report.
func (o *outbox) drop(uid string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, waits := o.reports[uid]; waits {
		delete(o.reports, uid)
		o.order = slices.DeleteFunc(o.order, func(other string) bool { return other == uid })
	}
}

// take removes and returns what is to be sent next, or nil if there is
// nothing: the oldest report, else the oldest answer.
func (o *outbox) take(session uint64) *hubv1.AgentMessage {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case session != o.session:
		return nil
	case len(o.order) > 0:
		uid := o.order[0]
		o.order = o.order[1:]
		r := o.reports[uid]
		delete(o.reports, uid)
		return &hubv1.AgentMessage{Message: &hubv1.AgentMessage_Report{Report: r}}
	case len(o.results) > 0:
		r := o.results[0]
		o.results = o.results[1:]
		return &hubv1.AgentMessage{Message: &hubv1.AgentMessage_TraceResult{TraceResult: r}}
	}
	return nil
}
