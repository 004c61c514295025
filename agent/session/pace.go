// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import "time"

const (
	// firstDelay and lastDelay bound the time before a session is opened, of
	// which a random part is waited, where no replica has said how far apart
	// the agents of its cluster are to come.
	firstDelay = 250 * time.Millisecond
	lastDelay  = 10 * time.Second
	// maxSpread is the longest spread that is believed.
	maxSpread = time.Minute
	// aloneShare divides the spread for an agent that no replica serves: its
	// Pods wait. A replica takes in a thousand agents at four times its rate,
	// only with less left for others.
	aloneShare = 4
)

// pause returns how long to wait before a session is opened: a part of the
// longest, by a random number below 1. Failed counts the attempts that have
// failed in a row, spread is what replicas have asked for, and alone says that
// no other replica serves this agent.
func pause(failed int, spread time.Duration, alone bool, random float64) time.Duration {
	longest := lastDelay
	if failed < 16 {
		longest = min(firstDelay<<failed, lastDelay)
	}
	spread = min(spread, maxSpread)
	if alone {
		spread /= aloneShare
	}
	return time.Duration(random * float64(max(longest, spread)))
}
