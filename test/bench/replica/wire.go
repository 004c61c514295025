// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"encoding/gob"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/policygate/policygate/test/bench/store"
)

// op is what a frame is about.
type op int

const (
	// From the driver.
	opSettings op = iota + 1
	opEvent
	opComplete
	opLead
	opListed
	opPatched
	opTell
	// From the replica.
	opReady
	opList
	opPatch
	opTold
)

// frame is one message between driver and replica.
type frame struct {
	Op op
	// ID pairs questions and answers.
	ID uint64

	Settings *settings
	Ready    *ready
	Told     *Told

	Kind    store.Kind
	Deleted bool
	Data    []byte
	Lead    bool

	Versions        []store.Version
	Namespace, Name string
	// Status is an API server's error as a metav1.Status, or nothing.
	Status []byte
}

// settings are what a replica is started with.
type settings struct {
	// Certificate and Key are PEM.
	Certificate, Key []byte
	ConditionType    string
	// Lies has the barrier's LISTs return nothing: a guard that is broken.
	Lies bool
	// Verbose has the replica log to its standard error.
	Verbose bool
}

// ready says where the replica listens.
type ready struct {
	Hub, Echo string
}

// Told is what a replica has timed and counted since it was asked last.
type Told struct {
	Gates []Gate
	// Sessions are those that are open, Connected when each began since.
	Sessions  int
	Connected []time.Time
	// Agents are the bytes that were written in all, those to the driver and
	// of echoes left out.
	Agents uint64
	// Assigns counts the assignments that were handed to the hub in all.
	Assigns int
}

// Gate is what a replica timed of one gate that it released.
type Gate struct {
	UID string
	// Addressed is when the event with its addresses came in, Assigned when it
	// was first handed to the hub, Confirmed when the last report came that
	// confirms it, Passed when the barrier was first seen to have passed it,
	// and Released when its release was handed to the hub.
	Addressed, Assigned, Confirmed, Passed, Released time.Time
	// Nodes is how many nodes were assigned it last.
	Nodes int
}

// wire carries frames. Its methods may be called from any goroutine.
type wire struct {
	conn    net.Conn
	decoder *gob.Decoder
	written atomic.Uint64

	mu      sync.Mutex // guards encoder
	encoder *gob.Encoder
}

func newWire(conn net.Conn) *wire {
	w := &wire{conn: conn, decoder: gob.NewDecoder(conn)}
	w.encoder = gob.NewEncoder(counting{w})
	return w
}

// counting counts what is written.
type counting struct{ wire *wire }

// Write implements io.Writer.
func (c counting) Write(b []byte) (int, error) {
	n, err := c.wire.conn.Write(b)
	c.wire.written.Add(uint64(max(n, 0)))
	return n, err
}

func (w *wire) send(f *frame) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.encoder.Encode(f); err != nil {
		return fmt.Errorf("send to the other end: %w", err)
	}
	return nil
}

func (w *wire) receive() (*frame, error) {
	f := &frame{}
	if err := w.decoder.Decode(f); err != nil {
		return nil, fmt.Errorf("receive from the other end: %w", err)
	}
	return f, nil
}
