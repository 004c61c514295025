// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"context"
	"errors"
)

// serverDatabase is what a server says of itself, from OVS 2.9 on.
const serverDatabase = "_Server"

// serverTable is the table of the server's databases: see ovsdb-server(5).
const serverTable = "Database"

// serverTables are what is used of it.
func serverTables() []Table {
	return []Table{{Name: serverTable, Columns: []Column{
		{Name: "name", As: String},
		{Name: "connected", As: Bool},
		{Name: "leader", As: Bool},
	}}}
}

// watchServer finds out whether the server suits, and goes on to watch that.
func (s *session) watchServer(ctx context.Context) error {
	schema, err := s.getSchema(ctx, serverDatabase)
	if err != nil {
		return err
	}
	s.serverTables, err = schema.resolve(serverTables())
	if err != nil {
		return err
	}
	return s.monitor(ctx, serverDatabase, serverMonitor, noTransaction, s.serverTables, func(c contents) error {
		if !c.whole {
			return errors.New("the server gave changes where all rows were asked for")
		}
		if err := s.server.load(s.serverTables, c.changes, c.transaction); err != nil {
			return err
		}
		return s.suits()
	})
}

// serverChanged takes an update of what the server says of itself. The error
// ends the connection.
func (s *session) serverChanged(n *notification) error {
	changes, err := n.parse(s.serverTables)
	if err != nil {
		return err
	}
	if err := s.server.apply(changes, n.transaction); err != nil {
		return err
	}
	return s.suits()
}

// suits returns why the server is not the one to be connected to, or nil. A
// standalone server is connected and the leader.
func (s *session) suits() error {
	for row := range s.server.view().Rows(serverTable) {
		switch {
		case row.String("name") != s.client.options.Database:
			continue
		case !row.Bool("connected"):
			return errors.New("the server is not connected to its cluster")
		case s.client.options.Leader && !row.Bool("leader"):
			return errors.New("the server is not the leader of its cluster")
		}
		return nil
	}
	return errors.New("the server does not serve the database any more")
}
