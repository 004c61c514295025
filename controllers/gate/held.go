// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import "time"

// toldWithin is how late a kubelet may tell that a container has started. It
// counts in whole seconds, and takes one or two when it has much to do.
const toldWithin = 10 * time.Second

// holdStarted returns when the hold of p started by one's own clock, if what p
// says of it is new now. The kubelet dates it by its own clock, which may differ
// by any amount: a timeout counted from that would be over at once, and open
// gates partially, or never be. So the date is taken only where it cannot be
// told from the truth; else the hold starts now, as nobody is let go too early
// by that. known: it had not started when p was seen before.
func holdStarted(p *pod, known bool, now time.Time) time.Time {
	if p.held.IsZero() {
		return time.Time{}
	}
	timeout := p.settings.Timeout
	if !known && !p.holding {
		// It ended before anybody looked, with its gate shut.
		return now.Add(-timeout)
	}
	since := now.Sub(p.held)
	late := toldWithin
	if !known {
		late += timeout // it ends then, whatever happens
	}
	if since < 0 || since > late {
		return now
	}
	return now.Add(-since)
}
