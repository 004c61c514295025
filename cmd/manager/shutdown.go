// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/http"
	"time"

	"k8s.io/utils/clock"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
)

// drainTimeout is for what the webhook is still asked once it takes no new
// connections: requests of 2 s at most, and the second that a server of HTTP/2
// gives its clients to read that it goes.
const drainTimeout = 4 * time.Second

// shutdown ends a replica in an order that costs no Pod its gate. Once the
// replica is asked to end
//   - it is not ready any more, and goes on with everything for the delay: API
//     servers and agents hear of its end as late as whatever balances Services,
//   - each answer of the webhook has the API server's connection closed by
//     GOAWAY, behind which the next request takes another one; the connections
//     of API servers live for as long as they are used, and would otherwise be
//     used until the end.
//
// Then the webhook stops, the connections that were idle are closed the same
// way, and only then all else does: until its last answer it knows every
// namespace.
type shutdown struct {
	delay time.Duration
	clock clock.Clock
	// asked ends when the replica is asked to end, late after the delay.
	asked, late context.Context
	lapse       context.CancelFunc
	// drained is closed when the webhook has ended.
	drained chan struct{}
}

// newShutdown returns the end of a replica that is asked to end by asked.
func newShutdown(asked context.Context, delay time.Duration, clk clock.Clock) *shutdown {
	late, lapse := context.WithCancel(context.WithoutCancel(asked))
	return &shutdown{delay: delay, clock: clk, asked: asked, late: late, lapse: lapse, drained: make(chan struct{})}
}

// context returns the one that the manager runs by, and what frees it. It ends
// last.
func (s *shutdown) context() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.asked))
	go func() {
		defer cancel()
		if !s.wait(ctx, s.asked.Done(), nil) || !s.wait(ctx, nil, s.clock.After(s.delay)) {
			return
		}
		s.lapse()
		s.wait(ctx, s.drained, s.clock.After(drainTimeout))
	}()
	return ctx, cancel
}

// wait returns true once either channel has something to say, and false once
// ctx ends.
func (s *shutdown) wait(ctx context.Context, done <-chan struct{}, timer <-chan time.Time) bool {
	select {
	case <-done:
	case <-timer:
	case <-ctx.Done():
		return false
	}
	return true
}

// ready is a readiness check.
func (s *shutdown) ready() error {
	if s.asked.Err() != nil {
		return errors.New("this replica has been asked to end")
	}
	return nil
}

// drains returns the server in the order of s. It must be started once.
func (s *shutdown) drains(server ctrlwebhook.Server) ctrlwebhook.Server {
	return &drainingServer{Server: server, shutdown: s}
}

type drainingServer struct {
	ctrlwebhook.Server
	shutdown *shutdown
}

// Register implements ctrlwebhook.Server.
func (d *drainingServer) Register(path string, hook http.Handler) {
	d.Server.Register(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.shutdown.asked.Err() != nil {
			w.Header().Set("Connection", "close") // HTTP/2 has no such header: a GOAWAY
		}
		// The server's own context ends when it stops, which is no reason not to
		// answer: an answer takes little more than a second at most.
		hook.ServeHTTP(w, r.WithContext(context.WithoutCancel(r.Context())))
	}))
}

// Start implements ctrlwebhook.Server.
func (d *drainingServer) Start(ctx context.Context) error {
	defer close(d.shutdown.drained)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(d.shutdown.late, cancel) //nolint:contextcheck // whichever ends first
	defer stop()
	return d.Server.Start(ctx)
}
