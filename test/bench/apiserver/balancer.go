// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// dialTimeout is for a port of the loopback, which answers at once if anybody
// listens.
const dialTimeout = time.Second

// balancer stands in for the Service network: it passes connections on to the
// first of its backends that accepts one.
type balancer struct {
	listener net.Listener
	working  sync.WaitGroup

	mu       sync.Mutex // guards the following fields
	backends []string
	open     map[net.Conn]bool
	closed   bool
}

// newBalancer listens at a port of the loopback that nobody has.
func newBalancer(ctx context.Context) (*balancer, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the webhook: %w", err)
	}
	b := &balancer{listener: listener, open: make(map[net.Conn]bool)}
	b.working.Go(b.accept)
	return b, nil
}

func (b *balancer) port() int { return b.listener.Addr().(*net.TCPAddr).Port }

// set replaces the backends. Connections that are open stay.
func (b *balancer) set(backends []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.backends = backends
}

func (b *balancer) accept() {
	for {
		conn, err := b.listener.Accept()
		if err != nil {
			return // closed
		}
		b.working.Go(func() { b.serve(conn) })
	}
}

// serve passes on what comes and what is answered until either end closes.
func (b *balancer) serve(client net.Conn) {
	defer client.Close()
	backend := b.dial()
	if backend == nil {
		return
	}
	defer backend.Close()
	if !b.track(client, backend) {
		return
	}
	defer b.forget(client, backend)
	ended := make(chan struct{}, 2)
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // either way the connection is over
		ended <- struct{}{}
	}
	go pass(backend, client)
	go pass(client, backend)
	<-ended
	client.Close()
	backend.Close()
	<-ended
}

// dial returns a connection to the first backend that accepts one, or nil.
func (b *balancer) dial() net.Conn {
	b.mu.Lock()
	backends := b.backends
	b.mu.Unlock()
	for _, address := range backends {
		if conn, err := net.DialTimeout("tcp", address, dialTimeout); err == nil {
			return conn
		}
	}
	return nil
}

func (b *balancer) track(conns ...net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		b.open[c] = true
	}
	return !b.closed
}

func (b *balancer) forget(conns ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		delete(b.open, c)
	}
}

func (b *balancer) close() {
	b.mu.Lock()
	b.closed = true
	for c := range b.open {
		c.Close()
	}
	b.mu.Unlock()
	b.listener.Close()
	b.working.Wait()
}
