// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/internal/ovs/jsonrpc"
)

// Options say what a Client keeps a copy of.
type Options struct {
	// Endpoints are where servers of the database are: "unix:/path",
	// "tcp:host:port" or "ssl:host:port". At least one; those of a cluster are
	// tried in turn.
	Endpoints []string
	// TLS is needed for "ssl:" endpoints, else it may be nil.
	TLS *TLS
	// Database is the name of the database, like OVN_Northbound.
	Database string
	// Tables are what is monitored. At least one.
	Tables []Table
	// Leader: of a raft cluster only the leader will do. Without it a member
	// that is connected to its cluster does.
	Leader bool
	// Clock is the real one, but in tests.
	Clock clock.WithTicker
	// Log is told of connections that come and go. The zero value discards.
	Log logr.Logger
	// Changed, if not nil, is called after View has come to give something
	// else: rows have changed, or the client came in or out of sync. It must
	// not block; calls do not overlap.
	Changed func()
}

// Table is a table that is monitored.
type Table struct {
	Name    string
	Columns []Column
	// Optional: a server whose schema lacks the table will do; it has no rows
	// then.
	Optional bool
}

// Column is a column that is monitored.
type Column struct {
	Name string
	// As is how it is read. A server whose column has another type will not do.
	As Kind
	// Optional: a server whose schema lacks the column will do; it is empty
	// then.
	Optional bool
}

// Client keeps a copy of the tables. All methods are safe for concurrent use.
type Client struct {
	options   Options
	endpoints []jsonrpc.Endpoint

	telling sync.Mutex // held while Changed is called

	mu      sync.Mutex // guards the fields below
	running bool
	cache   cache
	current *session // the one that may change the cache
	synced  *session // the same once it has all rows, else nil
	why     error    // why there is none in sync
}

// New returns a client that does nothing until Run is called, or an error that
// names the option that is wrong.
func New(o Options) (*Client, error) {
	c := &Client{options: o, why: errors.New("not connected yet")}
	if len(o.Endpoints) == 0 {
		return nil, errors.New("endpoints: none given; want unix:/path, tcp:host:port or ssl:host:port")
	}
	for _, text := range o.Endpoints {
		e, err := jsonrpc.ParseEndpoint(text)
		if err != nil {
			return nil, err
		}
		if e.Secure() && o.TLS == nil {
			return nil, fmt.Errorf("endpoint %s needs a certificate, a private key and a CA certificate", e)
		}
		c.endpoints = append(c.endpoints, e)
	}
	if o.Database == "" {
		return nil, errors.New("database: no name given")
	}
	if o.Clock == nil {
		return nil, errors.New("clock: none given")
	}
	return c, checkTables(o.Tables)
}

func checkTables(tables []Table) error {
	if len(tables) == 0 {
		return errors.New("tables: none given")
	}
	seen := map[string]bool{}
	for _, t := range tables {
		if t.Name == "" || seen[t.Name] {
			return fmt.Errorf("tables: the name %q is empty or given twice", t.Name)
		}
		seen[t.Name] = true
		columns := map[string]bool{}
		for _, column := range t.Columns {
			if column.Name == "" || columns[column.Name] {
				return fmt.Errorf("table %s: the column's name %q is empty or given twice", t.Name, column.Name)
			}
			columns[column.Name] = true
			if column.As < String || column.As > Map {
				return fmt.Errorf("table %s: column %s is to be read as %s, which is none of the kinds", t.Name, column.Name, column.As)
			}
		}
	}
	return nil
}

// Run keeps the client connected until ctx ends, and returns nil then. It must
// be called once.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	again := c.running
	c.running = true
	c.mu.Unlock()
	if again {
		return errors.New("the client runs already")
	}
	c.keep(ctx)
	return nil
}

// View returns the rows as of the last transaction that the server told of, or
// why there are none to be had: the client is not connected, or has not yet
// got all rows, or the server does not suit. It is cheap if nothing changed
// since it was last called.
func (c *Client) View() (*View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.unsynced(); err != nil {
		return nil, fmt.Errorf("no view of database %s: %w", c.options.Database, err)
	}
	return c.cache.view(), nil
}

// Increment adds one to an integer column of a table that has one row at most,
// like NB_Global's nb_cfg, and returns what it is then. The server has
// committed it if there is no error; if there is one, it may have. It needs
// the client to be in sync, and does not wait for that.
func (c *Client) Increment(ctx context.Context, table, column string) (int64, error) {
	c.mu.Lock()
	s, err := c.synced, c.unsynced()
	c.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("increment %s of %s: %w", column, table, err)
	}
	n, err := s.increment(ctx, table, column)
	if err != nil {
		return 0, fmt.Errorf("increment %s of %s: %w", column, table, err)
	}
	return n, nil
}

// unsynced returns why there is no session in sync, or nil. c.mu is held.
func (c *Client) unsynced() error {
	if c.synced == nil {
		return c.why
	}
	return c.synced.conn.Err()
}
