// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/controllers/barrier"
	"github.com/policygate/policygate/controllers/gate"
	"github.com/policygate/policygate/controllers/hub"
)

// announceEvery is how often a replica looks whether it listens.
const announceEvery = 10 * time.Millisecond

// times notes when things pass the edges of the gate ledger.
type times struct {
	mu        sync.Mutex // guards what follows
	gates     map[string]*Gate
	done      []Gate
	sessions  int
	connected []time.Time
	assigns   int
}

func newTimes() *times { return &times{gates: map[string]*Gate{}} }

// gate returns what is noted of a gate. The caller holds the lock.
func (t *times) gate(uid string) *Gate {
	g := t.gates[uid]
	if g == nil {
		g = &Gate{UID: uid}
		t.gates[uid] = g
	}
	return g
}

// seen notes the first event that shows a gated Pod's addresses.
func (t *times) seen(p *corev1.Pod) {
	if len(p.Status.PodIPs) == 0 || len(p.Spec.ReadinessGates) == 0 {
		return
	}
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := t.gate(string(p.UID)); g.Addressed.IsZero() {
		g.Addressed = now
	}
}

func (t *times) forget(uid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.gates, uid)
}

// tell returns what was noted since the last call.
func (p *process) tell() *Told {
	p.times.mu.Lock()
	defer p.times.mu.Unlock()
	t := p.times
	told := &Told{
		Gates: t.done, Sessions: t.sessions, Connected: t.connected, Assigns: t.assigns,
		Agents: writtenInAll() - p.wire.written.Load() - p.echo.written.Load(),
	}
	t.done, t.connected = nil, nil
	return told
}

// writtenInAll returns how many bytes this process has written to files and
// sockets.
func writtenInAll() uint64 {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "wchar: "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

// timedBarrier notes when a Pod is first seen to have passed.
type timedBarrier struct {
	*barrier.Barrier
	times *times
}

// Passed implements gate.Barrier.
func (b timedBarrier) Passed(uid types.UID) bool {
	passed := b.Barrier.Passed(uid)
	if passed {
		b.times.mu.Lock()
		if g := b.times.gate(string(uid)); g.Passed.IsZero() {
			g.Passed = time.Now()
		}
		b.times.mu.Unlock()
	}
	return passed
}

// timedSink notes when reports come in that confirm.
type timedSink struct {
	*gate.Ledger
	times *times
}

// Connected implements hub.Sink.
func (s timedSink) Connected(node string, hello hub.Hello) {
	s.times.mu.Lock()
	s.times.sessions++
	s.times.connected = append(s.times.connected, time.Now())
	s.times.mu.Unlock()
	s.Ledger.Connected(node, hello)
}

// Disconnected implements hub.Sink.
func (s timedSink) Disconnected(node string) {
	s.times.mu.Lock()
	s.times.sessions--
	s.times.mu.Unlock()
	s.Ledger.Disconnected(node)
}

// Reported implements hub.Sink.
func (s timedSink) Reported(node string, r *hubv1.Report) {
	if r.GetConfirmed() {
		s.times.mu.Lock()
		if g := s.times.gate(r.GetUid()); g.Released.IsZero() {
			g.Confirmed = time.Now()
		}
		s.times.mu.Unlock()
	}
	s.Ledger.Reported(node, r)
}

// timedHub notes when assignments and releases are handed over.
type timedHub struct {
	*hub.Hub
	times *times
}

// Assign implements gate.Hub.
func (h timedHub) Assign(node string, a *hubv1.Assign, d hub.Description) {
	h.times.mu.Lock()
	g := h.times.gate(a.GetSubject().GetUid())
	h.times.assigns++
	if g.Assigned.IsZero() {
		g.Assigned = time.Now()
	}
	if g.Released.IsZero() {
		g.Nodes++
	}
	h.times.mu.Unlock()
	h.Hub.Assign(node, a, d)
}

// Release implements gate.Hub.
func (h timedHub) Release(node string, r *hubv1.Release) bool {
	h.times.mu.Lock()
	if g := h.times.gate(r.GetSubject().GetUid()); r.GetAgain() == 0 && g.Released.IsZero() {
		g.Released = time.Now()
		h.times.done = append(h.times.done, *g)
	}
	h.times.mu.Unlock()
	return h.Hub.Release(node, r)
}
