// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"slices"
	"strings"
	"time"

	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// statePause is the least time between two States of a session that are passed
// on. An agent looks for changes each 15 s.
const statePause = time.Second

// State is what an agent sees of its node's dataplane as a whole. Its texts are
// the node's: for administrators, never for tenants.
type State struct {
	// Unsupported is empty, or says why the node's dataplane cannot be seen.
	Unsupported string
	// Dataplanes are hub.proto's.
	Dataplanes []string
	// Remarks are what a person should know of the node.
	Remarks []Remark
}

// Remark is one of them. Kind is one of those that package hubv1 names, or one
// of an agent that is newer than this manager.
type Remark struct {
	Kind, Text string
}

// stateOf returns what m says, which must be valid. nil says nothing.
func stateOf(m *hubv1.State) State {
	s := State{Unsupported: m.GetUnsupported(), Dataplanes: slices.Clone(m.GetDataplanes())}
	for _, r := range m.GetRemarks() {
		s.Remarks = append(s.Remarks, Remark{Kind: r.GetKind(), Text: r.GetText()})
	}
	return s
}

// equal reports whether both say the same.
func (s State) equal(other State) bool {
	return s.Unsupported == other.Unsupported && slices.Equal(s.Dataplanes, other.Dataplanes) &&
		slices.Equal(s.Remarks, other.Remarks)
}

// Session is what is known of one node's agent.
type Session struct {
	Node string
	// Since is when it connected; zero if it is not connected now.
	Since time.Time
	// Version and State are what it said last, empty if it never was connected.
	// They are shared and must not be changed.
	Version string
	State   State
}

// Sessions returns the nodes that the hub has heard of, by name: those that
// have or had a session, and those that something is or was assigned to.
func (h *Hub) Sessions() []Session {
	h.mu.Lock()
	nodes := make([]*node, 0, len(h.nodes))
	for _, n := range h.nodes {
		nodes = append(nodes, n)
	}
	h.mu.Unlock()
	slices.SortFunc(nodes, func(a, b *node) int { return strings.Compare(a.name, b.name) })
	all := make([]Session, len(nodes))
	for i, n := range nodes {
		all[i] = n.told()
	}
	return all
}

// told returns what is known of the node's agent.
func (n *node) told() Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := Session{Node: n.name, Version: n.version, State: n.state}
	if n.session != nil {
		s.Since = n.since
	}
	return s
}

// change makes state the node's, unless another session has replaced s, and
// tells the sink if it differs.
func (h *Hub) change(s *session, state State) {
	n := s.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.session != s || n.state.equal(state) {
		return
	}
	n.state = state
	h.sink.Changed(n.name, state)
}

// states passes on what a session tells of its node, at most one in statePause
// and of several the newest. It is of the goroutine that serves the session.
type states struct {
	clock   clock.WithTicker
	passed  time.Time // when the last was; zero if none was
	waiting *State
	timer   clock.Timer
}

// put takes in a state. It returns one that is due at once, or nil.
func (t *states) put(s State) *State {
	now := t.clock.Now()
	wait := statePause - now.Sub(t.passed)
	switch {
	case t.waiting != nil:
		t.waiting = &s
	case t.passed.IsZero(), wait <= 0:
		t.passed = now
		return &s
	default:
		t.waiting, t.timer = &s, t.clock.NewTimer(wait)
	}
	return nil
}

// due receives when take has something to return; nil if nothing waits.
func (t *states) due() <-chan time.Time {
	if t.waiting == nil {
		return nil
	}
	return t.timer.C()
}

// take returns what has waited.
func (t *states) take() State {
	s := *t.waiting
	t.waiting, t.passed = nil, t.clock.Now()
	return s
}

// stop ends the wait, if there is one.
func (t *states) stop() {
	if t.waiting != nil {
		t.timer.Stop()
	}
}
