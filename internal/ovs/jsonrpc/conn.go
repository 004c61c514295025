// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package jsonrpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/utils/clock"
)

// maxUnwritten is how many messages wait for a server that does not read.
// Who has another waits for room.
const maxUnwritten = 16

// Options are what a connection needs.
type Options struct {
	// MaxMessage is the size in bytes beyond which a message of the other side
	// ends the connection. It must be positive.
	MaxMessage int
	// Clock is the real one, but in tests.
	Clock clock.PassiveClock
	// Handle is given each notification, in the order in which they arrive and
	// never two at a time; an error ends the connection. params is an array. It
	// must not call the Conn. nil ignores them.
	Handle func(method string, params json.RawMessage) error
}

// Conn is a connection. All methods are safe for concurrent use.
type Conn struct {
	conn    net.Conn
	options Options
	done    chan struct{}
	// out is what is to be written, whole messages.
	out   chan []byte
	heard atomic.Pointer[time.Time]

	mu      sync.Mutex // guards the fields below
	last    uint64     // the last id that was used
	pending map[uint64]*call
	err     error // why the connection ended
}

// call is a request without a response.
type call struct {
	method string
	apply  func(json.RawMessage) error
	done   chan struct{} // closed after err was set
	err    error
}

// ErrClosed is why a connection ended that was closed by Close.
var ErrClosed = errors.New("the connection was closed")

// New speaks on a connection, which it will close.
func New(conn net.Conn, o Options) *Conn {
	c := &Conn{
		conn:    conn,
		options: o,
		done:    make(chan struct{}),
		out:     make(chan []byte, maxUnwritten),
		pending: map[uint64]*call{},
	}
	now := o.Clock.Now()
	c.heard.Store(&now)
	go func() { c.end(c.receive()) }()
	go func() { c.end(c.write()) }()
	return c
}

// Done is closed when the connection has ended; Err then says why.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection has ended, or nil while it has not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection. Calls that wait return an error.
func (c *Conn) Close() { c.end(ErrClosed) }

// Heard returns when the other side last sent something, be it part of a
// message, or when the Conn was made.
func (c *Conn) Heard() time.Time { return *c.heard.Load() }

// Call sends a request and returns the result. The error is a *CallError if
// the server answered with an error; after ctx has ended a late response is
// dropped.
func (c *Conn) Call(ctx context.Context, method string, params ...any) (json.RawMessage, error) {
	var result json.RawMessage
	err := c.CallThen(ctx, func(raw json.RawMessage) error {
		result = raw
		return nil
	}, method, params...)
	if err != nil {
		return nil, err
	}
	return result, nil
}

// CallThen is Call, but gives the result to apply before anything is handled
// that the server sent after it. An error of apply is returned and ends the
// connection. apply must not call the Conn, and is not running any more when
// CallThen returns.
func (c *Conn) CallThen(ctx context.Context, apply func(json.RawMessage) error, method string, params ...any) error {
	if params == nil {
		params = []any{}
	}
	waits := &call{method: method, apply: apply, done: make(chan struct{})}
	id, err := c.register(waits)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	err = c.send(ctx.Done(), map[string]any{"id": id, "method": method, "params": params})
	if err == nil {
		select {
		case <-waits.done:
			return waits.err
		case <-ctx.Done():
		}
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if c.take(id) == nil {
		// The response is here already.
		<-waits.done
		return waits.err
	}
	return fmt.Errorf("%s: %w", method, err)
}

func (c *Conn) register(waits *call) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.last++
	c.pending[c.last] = waits
	return c.last, nil
}

// take returns the call of that id, which nobody else gets then, or nil.
func (c *Conn) take(id uint64) *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	waits := c.pending[id]
	delete(c.pending, id)
	return waits
}

// send has a message written. It waits for no more than room in the queue, and
// returns nil without having sent it if enough is closed before there is.
func (c *Conn) send(enough <-chan struct{}, m any) error {
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	select {
	case c.out <- raw:
		return nil
	case <-enough:
		return nil
	case <-c.done:
		return c.Err()
	}
}

// write writes what is sent until the connection has ended. It alone writes,
// so that no caller's end cuts a message short.
func (c *Conn) write() error {
	for {
		select {
		case raw := <-c.out:
			if _, err := c.conn.Write(raw); err != nil {
				return fmt.Errorf("sending a message: %w", err)
			}
		case <-c.done:
			return nil
		}
	}
}

// end closes the connection for the first reason that is given.
func (c *Conn) end(why error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = why
	pending := c.pending
	c.pending = map[uint64]*call{}
	c.mu.Unlock()
	close(c.done)
	for _, waits := range pending {
		waits.finish(fmt.Errorf("%s: %w", waits.method, why))
	}
	// With TLS this takes up to 5 s if the other side does not read.
	_ = c.conn.Close()
}

func (w *call) finish(err error) {
	w.err = err
	close(w.done)
}

// noting reads from the connection and notes when there was something.
type noting struct{ *Conn }

func (n noting) Read(p []byte) (int, error) {
	count, err := n.conn.Read(p)
	if count > 0 {
		now := n.options.Clock.Now()
		n.heard.Store(&now)
	}
	return count, err
}

// receive handles messages until one is malformed or the stream ends.
func (c *Conn) receive() error {
	in := newFrames(noting{c}, c.options.MaxMessage)
	for {
		raw, err := in.next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("the server closed the connection: %w", io.EOF)
		}
		if err != nil {
			return err
		}
		m, err := parseMessage(raw)
		if err != nil {
			return err
		}
		if err := c.handle(m); err != nil {
			return err
		}
	}
}

func (c *Conn) handle(m *message) error {
	if m.Method == nil {
		return c.respond(m)
	}
	if !m.hasID() {
		if c.options.Handle == nil {
			return nil
		}
		return c.options.Handle(*m.Method, m.Params)
	}
	// The reader may write: who sends so much that it is not read either is
	// found by its silence.
	if *m.Method == "echo" {
		return c.send(nil, map[string]any{"id": m.ID, "result": m.Params, "error": nil})
	}
	return c.send(nil, map[string]any{"id": m.ID, "result": nil, "error": "unknown method"})
}

// respond finishes the call that a response is for.
func (c *Conn) respond(m *message) error {
	var id uint64
	if err := json.Unmarshal(m.ID, &id); err != nil {
		return fmt.Errorf("a response with the id %s, which no request had", excerpt(m.ID))
	}
	waits := c.take(id)
	if waits == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if id == 0 || id > c.last {
			return fmt.Errorf("a response with the id %d, which no request had", id)
		}
		return nil // too late: its caller has gone
	}
	if isSet(m.Error) {
		waits.finish(callError(waits.method, m.Error))
		return nil
	}
	err := waits.apply(m.Result)
	if err != nil {
		err = fmt.Errorf("%s: %w", waits.method, err)
	}
	waits.finish(err)
	return err
}
