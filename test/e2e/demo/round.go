// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"slices"
	"time"
)

// The names of the rounds, as they appear in the report.
const (
	Ungated = "ungated"
	Sleep10 = "sleep10"
	Gated   = "gated"
)

// Job is what one Job of a round went through. Times are zero while unknown.
type Job struct {
	Name string
	// Scheduled is when its Pod was first seen with a node.
	Scheduled time.Time
	// Connected is when its client dialled first, by its own clock.
	Connected time.Time
	// Ended is when its Pod was first seen to have ended.
	Ended time.Time
	// Failed says that the first dial failed, Output with which words.
	Failed bool
	Output string
	// Unconfirmed says that a Job of the gated round was started with its gate
	// shut, by its timeout, or without a gate.
	Unconfirmed bool
}

// FirstConnect is the time from the Pod's scheduling to the first dial.
func (j Job) FirstConnect() time.Duration {
	if j.Connected.IsZero() || j.Scheduled.IsZero() {
		return 0
	}
	return j.Connected.Sub(j.Scheduled)
}

// Round is one round's Jobs.
type Round struct {
	Name string
	Jobs []Job
}

// Failed is the number of Jobs whose first connection failed.
func (r Round) Failed() int {
	n := 0
	for _, job := range r.Jobs {
		if job.Failed {
			n++
		}
	}
	return n
}

// Percentile returns the p-th percentile (0 to 100, nearest rank) of the time
// to the first dial, or 0 if no Job dialled.
func (r Round) Percentile(p int) time.Duration {
	var took []time.Duration
	for _, job := range r.Jobs {
		if d := job.FirstConnect(); d > 0 {
			took = append(took, d)
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	rank := (p*len(took) + 99) / 100
	return took[max(rank, 1)-1]
}
