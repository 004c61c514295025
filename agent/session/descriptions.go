// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"fmt"

	"github.com/policygate/policygate/agent/confirm"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// maxDescriptions and maxDescribed bound what a replica may have an agent
	// keep, in number and in bytes of content. A node is in the span of some
	// hundred Pods at a time and of a thousand policies, of a few KiB each where
	// they share nothing; an agent may use 256 MiB and has a session with each
	// replica.
	maxDescriptions = 8192
	maxDescribed    = 16 << 20
)

// descriptions are what a replica has described in one session. They are not
// safe for concurrent use.
type descriptions struct {
	known map[uint64]known
	bytes int
}

type known struct {
	// description is nil if the content is malformed or was not kept.
	description *confirm.Description
	bytes       int
}

func newDescriptions() *descriptions { return &descriptions{known: map[uint64]known{}} }

// describe keeps what m describes. The error says why it cannot: assignments
// that name it go without.
func (d *descriptions) describe(m *hubv1.Describe) error {
	id, size := m.GetId(), len(m.GetContent())
	old, twice := d.known[id]
	switch {
	case id == 0:
		return fmt.Errorf("description of %d bytes has id 0: want another", size)
	case twice:
		// Which of both an assignment means cannot be known.
		d.bytes -= old.bytes
		d.known[id] = known{}
		return fmt.Errorf("description %d is described twice: want it forgotten before", id)
	case len(d.known) >= maxDescriptions:
		return fmt.Errorf("description %d is one too many: want at most %d kept", id, maxDescriptions)
	case d.bytes+size > maxDescribed:
		return fmt.Errorf("description %d of %d bytes is too large beside %d: want at most %d kept", id, size, d.bytes, maxDescribed)
	}
	description, err := confirm.ParseDescription(m.GetContent())
	if err != nil {
		d.known[id] = known{}
		return fmt.Errorf("description %d: %w", id, err)
	}
	d.known[id] = known{description: description, bytes: size}
	d.bytes += size
	return nil
}

// forget ends the descriptions that m names. What assignments hold of them
// stays with these.
func (d *descriptions) forget(m *hubv1.Forget) {
	for _, id := range m.GetIds() {
		d.bytes -= d.known[id].bytes
		delete(d.known, id)
	}
}

// of returns the description that a names. The error says that it is not
// there.
func (d *descriptions) of(a *hubv1.Assign) (*confirm.Description, error) {
	k := d.known[a.GetDescription()]
	if k.description == nil {
		return nil, fmt.Errorf("assignment of %s names description %d, which was not described, or not so that it could be kept",
			a.GetSubject().GetUid(), a.GetDescription())
	}
	return k.description, nil
}
