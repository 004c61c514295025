// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"k8s.io/utils/clock"
)

const (
	// maxUnproven bounds the connections that have proved nothing yet: as many
	// as get their turn within 8 s, less than turnTimeout. One source may have as many
	// as all others leave free, so at most half of them.
	maxUnproven = 640
	// handshakesPerSecond bounds the CPU time that strangers can have spent on
	// TLS, to a tenth of a core, and the token reviews that they can have
	// made, of which each connection gets one: the manager's client sends 100
	// requests a second, these among them.
	handshakesPerSecond = 80
	// unprovenTime is how long a connection may take to prove an identity.
	unprovenTime = turnTimeout + handshakeTimeout + reviewTimeout + helloTimeout
	// unprovenBytes is what it may send until then: a handshake takes 2 KiB, a
	// token at most maxHeader, a Hello of the longest texts less than 10 KiB.
	unprovenBytes = 64 << 10
	// lingering is how long a connection stays after its session, for the
	// status to arrive.
	lingering = time.Second
	// bytesPerSecond and bytesBurst bound what one agent can make the manager
	// read, decrypt and decode. 500 reports take less than 200 KiB; the burst
	// is as many trace results as are asked for at a time, of the largest.
	bytesPerSecond = 1 << 20
	bytesBurst     = maxQuestions * maxReceive
)

// errCrowd is why a connection gets no handshake.
var errCrowd = errors.New("too many connections have proved nothing yet")

// door lets connections in: it bounds what those that have proved nothing can
// take from those that have, and from one another. It is the transport
// credentials of the server, which call it in a goroutine for each connection.
type door struct {
	credentials.TransportCredentials

	// ctx ends with the server.
	ctx       context.Context //nolint:containedctx // gRPC passes none to a handshake
	clock     clock.WithTickerAndDelayedExecution
	refusals  *refusals
	handshake *line

	mu       sync.Mutex // guards the following fields
	unproven int
	sources  map[string]int
}

// newDoor returns the door of h until ctx ends.
func (h *Hub) newDoor(ctx context.Context) *door {
	return &door{
		TransportCredentials: credentials.NewTLS(h.tls), ctx: ctx, clock: h.clock, refusals: h.refusals,
		handshake: h.handshakes, sources: map[string]int{},
	}
}

// ServerHandshake implements credentials.TransportCredentials. A connection
// waits for its source's turn before anything is read of it.
func (d *door) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	source := sourceOf(raw)
	if !d.take(source) {
		d.refusals.add(refusedCrowd, source, errCrowd.Error())
		return nil, nil, errCrowd
	}
	c := &connection{Conn: raw, door: d, source: source, limiter: rate.NewLimiter(bytesPerSecond, bytesBurst)}
	c.closeIn(unprovenTime, refusedLate)
	if err := d.handshake.enter(d.ctx, source); err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	// A place is of use again after a second: so many pass in each.
	d.clock.AfterFunc(time.Second, d.handshake.leave)
	conn, info, err := d.TransportCredentials.ServerHandshake(c)
	if err != nil {
		d.refusals.add(refusedHandshake, source, printable(err.Error()))
		return nil, nil, errors.Join(err, c.Close())
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("handshake tells of %T: want TLS", info), conn.Close())
	}
	return conn, authInfo{TLSInfo: tlsInfo, connection: c}, nil
}

// take counts a connection of the source as unproven, if there is room.
func (d *door) take(source string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	// A source has its fill when it has as many as are free. So one alone
	// leaves half of them, two leave a third, and who has none gets in as long
	// as any is free.
	if d.sources[source] >= maxUnproven-d.unproven {
		return false
	}
	d.unproven++
	d.sources[source]++
	return true
}

// give takes back what take has counted.
func (d *door) give(source string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unproven--
	if d.sources[source]--; d.sources[source] == 0 {
		delete(d.sources, source)
	}
}

// sourceOf returns the address from which a connection comes.
func sourceOf(c net.Conn) string {
	addr, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	return addr.AddrPort().Addr().Unmap().String()
}

// connection is one that the door has let in. It serves one session.
type connection struct {
	net.Conn

	door    *door
	source  string
	limiter *rate.Limiter

	mu sync.Mutex // guards the following fields
	// received counts the bytes until the connection is proven.
	received int
	begun    bool
	proven   bool
	closed   bool
	// timer closes the connection, nil if nothing does.
	timer clock.Timer
}

// Read slows down who sends more than bytesPerSecond, and fails for who sends
// more than unprovenBytes before he has proved who he is.
func (c *connection) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	proven := c.proven
	flood := false
	if !proven {
		c.received += n
		flood = c.received > unprovenBytes
	}
	c.mu.Unlock()
	if flood {
		c.door.refusals.add(refusedFlood, c.source, fmt.Sprintf("more than %d bytes before a session", unprovenBytes))
		return 0, errors.Join(fmt.Errorf("more than %d bytes before a session", unprovenBytes), c.Close())
	}
	if proven && n > 0 {
		now := c.door.clock.Now()
		if wait := c.limiter.ReserveN(now, n).DelayFrom(now); wait > 0 {
			// A few milliseconds: one read is little.
			<-c.door.clock.After(wait)
		}
	}
	return n, err
}

// Close closes the connection. It may be called again and again.
func (c *connection) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
	}
	if !c.proven {
		c.door.give(c.source)
	}
	return c.Conn.Close()
}

// begin reports whether a session may begin: the first may.
func (c *connection) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.begun
	c.begun = true
	return first
}

// prove says that the connection's session is a node's.
func (c *connection) prove() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.proven || c.closed {
		return
	}
	c.proven = true
	c.door.give(c.source)
	c.timer.Stop()
	c.timer = nil
}

// finish closes the connection once the status of its session has had time to
// arrive.
func (c *connection) finish() { c.closeIn(lingering, "") }

// closeIn closes the connection after a while, in place of what was to close
// it, and counts it then if why is not empty.
func (c *connection) closeIn(after time.Duration, why refusal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = c.door.clock.AfterFunc(after, func() {
		if why != "" {
			c.door.refusals.count(why)
		}
		// Beside the clock, which Close asks to stop the timer.
		go func() { _ = c.Close() }()
	})
}

// authInfo is what is known of a connection beside a stream.
type authInfo struct {
	credentials.TLSInfo

	connection *connection
}

// connectionOf returns the connection of a stream that came through the door.
func connectionOf(ctx context.Context) (*connection, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(authInfo)
	return info.connection, ok
}
