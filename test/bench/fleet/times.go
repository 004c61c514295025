// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"sync"
	"time"

	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/agent/reporter"
	"github.com/policygate/policygate/agent/session"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// Waited is one Pod's wait for its release, as agents saw it.
type Waited struct {
	UID string
	// Reported is when the last node said that it confirms, Released when the
	// first release came.
	Reported, Released time.Time
}

// Waited returns the Pods that were released since the last call.
func (f *Fleet) Waited() []Waited {
	f.times.mu.Lock()
	defer f.times.mu.Unlock()
	out := f.times.waited
	f.times.waited = nil
	return out
}

// Forget forgets a Pod that is gone.
func (f *Fleet) Forget(uid string) {
	f.times.mu.Lock()
	defer f.times.mu.Unlock()
	delete(f.times.confirmed, uid)
	delete(f.times.released, uid)
}

// times notes when reports leave and releases come.
type times struct {
	clock clock.PassiveClock

	mu        sync.Mutex // guards what follows
	confirmed map[string]time.Time
	released  map[string]bool
	waited    []Waited
}

func newTimes(c clock.PassiveClock) *times {
	return &times{clock: c, confirmed: map[string]time.Time{}, released: map[string]bool{}}
}

// reports passes on reports and notes when they left.
type reports struct {
	to    *session.Client
	times *times
}

// Send implements confirm.Reports.
func (r *reports) Send(to confirm.Source, report *hubv1.Report) {
	if report.GetConfirmed() {
		now := r.times.clock.Now()
		r.times.mu.Lock()
		if !r.times.released[report.GetUid()] {
			r.times.confirmed[report.GetUid()] = now
		}
		r.times.mu.Unlock()
	}
	r.to.Send(to, report)
}

// releases passes on releases and notes when they came.
type releases struct {
	to    *reporter.Reporter
	times *times
}

// Release implements session.Releases.
func (r *releases) Release(release *hubv1.Release) {
	now := r.times.clock.Now()
	uid := release.GetSubject().GetUid()
	r.times.mu.Lock()
	if at, known := r.times.confirmed[uid]; known && !r.times.released[uid] {
		r.times.released[uid] = true
		r.times.waited = append(r.times.waited, Waited{UID: uid, Reported: at, Released: now})
	}
	r.times.mu.Unlock()
	r.to.Release(release)
}
