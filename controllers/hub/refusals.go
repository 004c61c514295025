// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
)

// refusal says why a connection or a session was not let in.
type refusal string

const (
	// refusedCrowd: there are too many connections that have proved nothing,
	// of the source or of all.
	refusedCrowd refusal = "crowd"
	// refusedHandshake: no TLS 1.3.
	refusedHandshake refusal = "handshake"
	// refusedLate: it took too long to prove anything.
	refusedLate refusal = "late"
	// refusedFlood: it sent more than a proof takes.
	refusedFlood refusal = "flood"
	// refusedToken: no token, or one that cannot be an agent's.
	refusedToken refusal = "token"
	// refusedIdentity: the API server says that the token is no agent's.
	refusedIdentity refusal = "identity"
	// refusedUnreviewed: the API server did not say.
	refusedUnreviewed refusal = "unreviewed"
	// refusedHello: the first message is no valid Hello.
	refusedHello refusal = "hello"
	// refusedAgain: another session on one connection, or too many of one node.
	refusedAgain refusal = "again"
)

// allRefusals are the values of the metric's label.
func allRefusals() []refusal {
	return []refusal{
		refusedCrowd, refusedHandshake, refusedLate, refusedFlood, refusedToken,
		refusedIdentity, refusedUnreviewed, refusedHello, refusedAgain,
	}
}

// refusalsLogged is how often refusals of one kind are logged: whoever is
// refused decides how often he comes.
const refusalsLogged = 10 * time.Second

// refusals counts what is refused, and logs some of it. It is safe for
// concurrent use.
type refusals struct {
	counts *prometheus.CounterVec
	clock  clock.PassiveClock
	log    logr.Logger

	mu sync.Mutex // guards logged
	// logged has when one of a kind was logged last, and how many have not
	// been since.
	logged map[refusal]*unlogged
}

type unlogged struct {
	last  time.Time
	since int
}

func newRefusals(counts *prometheus.CounterVec, c clock.PassiveClock, log logr.Logger) *refusals {
	for _, kind := range allRefusals() {
		counts.WithLabelValues(string(kind))
	}
	return &refusals{counts: counts, clock: c, log: log, logged: map[refusal]*unlogged{}}
}

// count counts a refusal that nobody need read of.
func (r *refusals) count(kind refusal) { r.counts.WithLabelValues(string(kind)).Inc() }

// add counts a refusal and logs it, unless one of the kind was logged a short
// while ago.
func (r *refusals) add(kind refusal, source, why string) {
	r.count(kind)
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	u := r.logged[kind]
	if u == nil {
		u = &unlogged{last: now.Add(-refusalsLogged)}
		r.logged[kind] = u
	}
	if now.Sub(u.last) < refusalsLogged {
		u.since++
		return
	}
	r.log.Info("refused", "kind", string(kind), "source", source, "reason", why, "unlogged", u.since)
	u.last, u.since = now, 0
}
