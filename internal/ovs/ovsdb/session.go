// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/policygate/policygate/internal/ovs/jsonrpc"
)

const (
	// maxMessage bounds the first contents, which come in one message. A
	// northbound database of some ten thousand Pods is a few tens of MiB.
	maxMessage = 256 << 20

	// dialTimeout bounds the dialling of one endpoint.
	dialTimeout = 5 * time.Second

	// probeAfter is the silence after which a server is asked whether it is
	// there, and patience the one after which it is given up: what OVSDB's own
	// clients do. A server that prepares the first contents answers nobody
	// meanwhile, a large database takes seconds.
	probeAfter    = 5 * time.Second
	patience      = 10 * time.Second
	firstPatience = time.Minute
)

// The ids of the monitors of a session.
const (
	serverMonitor = "policygate-server"
	dataMonitor   = "policygate"
)

// session is one connection.
type session struct {
	client *Client
	conn   *jsonrpc.Conn
	schema *databaseSchema
	tables map[string]*table

	// server is the rows of _Server; only the connection's reader uses it once
	// the monitor has begun.
	server       cache
	serverTables map[string]*table

	synced  atomic.Bool
	probing atomic.Bool
}

// run connects, gets in sync and stays so until ctx or the connection ends; it
// returns why. s is of no more use then.
func (s *session) run(ctx context.Context, e jsonrpc.Endpoint) error {
	if err := s.dial(ctx, e); err != nil {
		return err
	}
	defer s.conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := s.watch(ctx); err != nil {
			cancel(err)
		}
	}()
	if err := s.open(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	select {
	case <-s.conn.Done():
		return s.conn.Err()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *session) dial(ctx context.Context, e jsonrpc.Endpoint) error {
	config, err := s.client.options.TLS.config(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s.conn, err = jsonrpc.Dial(ctx, e, config, jsonrpc.Options{
		MaxMessage: maxMessage,
		Clock:      s.client.options.Clock,
		Handle:     s.handle,
	})
	return err
}

// open gets in sync.
func (s *session) open(ctx context.Context) error {
	names, err := s.listDBs(ctx)
	if err != nil {
		return err
	}
	database := s.client.options.Database
	if !slices.Contains(names, database) {
		return fmt.Errorf("the server has no database %s", database)
	}
	if slices.Contains(names, serverDatabase) {
		if err := s.watchServer(ctx); err != nil {
			return err
		}
	}
	if s.schema, err = s.getSchema(ctx, database); err != nil {
		return err
	}
	if s.tables, err = s.schema.resolve(s.client.options.Tables); err != nil {
		return err
	}
	return s.monitor(ctx, database, dataMonitor, s.client.since(s.tables), s.tables, func(c contents) error {
		return s.client.begin(s, c)
	})
}

// watch returns an error when the server has been silent for too long, and nil
// when ctx has ended.
func (s *session) watch(ctx context.Context) error {
	clock := s.client.options.Clock
	for {
		limit := firstPatience
		if s.synced.Load() {
			limit = patience
		}
		silent := clock.Since(s.conn.Heard())
		wait := probeAfter - silent
		if silent >= probeAfter {
			// An echo is answered at once, but the limit may fall meanwhile.
			wait = min(limit-silent, time.Second)
			s.probe(ctx)
		}
		if silent >= limit {
			return fmt.Errorf("the server has been silent for %v", silent.Round(time.Second))
		}
		timer := clock.NewTimer(wait)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// probe asks the server for a sign of life, one at a time.
func (s *session) probe(ctx context.Context) {
	if s.probing.Swap(true) {
		return
	}
	go func() {
		defer s.probing.Store(false)
		// What comes of it is seen by Heard, or by the connection's end.
		_ = s.echo(ctx)
	}()
}

// handle takes what the server tells unasked.
func (s *session) handle(method string, params json.RawMessage) error {
	n, err := parseNotification(method, params)
	if err != nil {
		s.client.distrust(s)
		return err
	}
	if n == nil {
		return nil
	}
	switch n.id {
	case serverMonitor:
		return s.serverChanged(n)
	case dataMonitor:
		return s.client.apply(s, n)
	}
	return fmt.Errorf("the server sent an update of the monitor %.40q, which is not of this connection", n.id)
}

var errEnded = errors.New("the session has ended")
