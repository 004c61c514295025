// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"slices"
	"sync"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// outbox holds the reports that wait to be sent in one session: the newest of
// each uid, in the order in which the uids came in. It is so bounded by the
// number of subjects, however slow the replica reads.
type outbox struct {
	// ready has an element if something may wait.
	ready chan struct{}

	mu      sync.Mutex // guards the following fields
	session uint64
	order   []string
	reports map[string]*hubv1.Report
}

// begin empties the outbox for a session. Reports for others are refused from
// now on.
func (o *outbox) begin(session uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.session, o.order, o.reports = session, nil, make(map[string]*hubv1.Report)
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

// take removes and returns the oldest report, or nil if there is none.
func (o *outbox) take(session uint64) *hubv1.Report {
	o.mu.Lock()
	defer o.mu.Unlock()
	if session != o.session || len(o.order) == 0 {
		return nil
	}
	uid := o.order[0]
	o.order = o.order[1:]
	r := o.reports[uid]
	delete(o.reports, uid)
	return r
}
