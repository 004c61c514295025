// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

const (
	// nextPause is the pause before the next endpoint of a round: a cluster's
	// leader is found within a moment, and a server that ends each connection
	// at once is not dialled without end.
	nextPause = 50 * time.Millisecond
	// firstPause is the pause before the second round; each is twice the one
	// before, to lastPause.
	firstPause = 100 * time.Millisecond
	lastPause  = 8 * time.Second
)

// pause returns how long to wait before an attempt, of which failed came to
// nothing since the client was last in sync, with so many endpoints.
func pause(failed, endpoints int) time.Duration {
	if failed == 0 {
		return 0
	}
	if failed%endpoints != 0 {
		return nextPause
	}
	// More than 7 rounds are beyond lastPause, and 64 would be beyond time.
	round := min(failed/endpoints, 8)
	return min(firstPause<<(round-1), lastPause)
}

// keep has one session after the other until ctx ends.
func (c *Client) keep(ctx context.Context) {
	defer c.ended(context.Canceled)
	log := c.options.Log.WithValues("database", c.options.Database)
	// Why there is no session, by endpoint.
	reasons := make([]string, len(c.endpoints))
	at := 0
	for failed := 0; ; failed++ {
		if !c.sleep(ctx, pause(failed, len(c.endpoints))) {
			return
		}
		e := c.endpoints[at]
		s := &session{client: c}
		c.begins(s)
		err := s.run(ctx, e)
		synced := s.synced.Load()
		if synced {
			failed = 0
			clear(reasons)
		}
		said := reasons[at]
		reasons[at] = fmt.Sprintf("%s: %v", e, err)
		c.ended(why(reasons))
		if ctx.Err() != nil {
			return
		}
		if reasons[at] != said {
			log.Info("Not in sync with the OVSDB server", "endpoint", e.String(), "wasInSync", synced, "reason", err.Error())
		}
		at = (at + 1) % len(c.endpoints)
	}
}

// why returns the reasons as one, but for the empty ones.
func why(reasons []string) error {
	return errors.New(strings.Join(slices.DeleteFunc(slices.Clone(reasons), func(r string) bool { return r == "" }), "; "))
}

// sleep waits for about that long, and returns false if ctx ends before.
func (c *Client) sleep(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return ctx.Err() == nil
	}
	// Clients that lost one server do not come back at one time.
	d += rand.N(d / 2) //nolint:gosec // Nothing is kept secret by it.
	timer := c.options.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C():
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// begins makes s the only session that may change the cache.
func (c *Client) begins(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = s
}

// ended makes View say why there is no session.
func (c *Client) ended(why error) {
	c.mu.Lock()
	was := c.synced
	c.current, c.synced, c.why = nil, nil, why
	c.mu.Unlock()
	if was != nil {
		c.changed()
	}
}

// since returns the last transaction from which a session may go on.
func (c *Client) since(tables map[string]*table) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cache.since(tables)
}

// begin takes the first contents of a session.
func (c *Client) begin(s *session, found contents) error {
	err := c.change(s, func() error {
		if found.whole {
			return c.cache.load(s.tables, found.changes, found.transaction)
		}
		return c.cache.resume(found.changes, found.transaction)
	})
	if err == nil {
		c.options.Log.Info("In sync with the OVSDB server", "database", c.options.Database, "rows", len(found.changes), "resumed", !found.whole)
	}
	return err
}

// apply takes an update.
func (c *Client) apply(s *session, n *notification) error {
	changes, err := n.parse(s.tables)
	if err != nil {
		c.distrust(s)
		return err
	}
	return c.change(s, func() error { return c.cache.apply(changes, n.transaction) })
}

// change changes the cache on behalf of s, which is in sync then. If that
// fails, the rows are not those of the server.
func (c *Client) change(s *session, apply func() error) error {
	c.mu.Lock()
	if c.current != s {
		c.mu.Unlock()
		return errEnded
	}
	err := apply()
	if err != nil {
		c.cache.distrust()
		c.synced = nil
		c.why = err
	} else {
		c.synced = s
		s.synced.Store(true)
	}
	c.mu.Unlock()
	c.changed()
	return err
}

// distrust makes the next session begin anew.
func (c *Client) distrust(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == s {
		c.cache.distrust()
	}
}

func (c *Client) changed() {
	if c.options.Changed == nil {
		return
	}
	c.telling.Lock()
	defer c.telling.Unlock()
	c.options.Changed()
}
