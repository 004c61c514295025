// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/policygate/policygate/internal/ovs/jsonrpc"
)

// method is a method of RFC 7047 or of ovsdb-server(7). These are all that are
// ever sent, and transact only as increment makes it. A server has no way to
// give a client less than all its rights, so this file is where that ends.
type method string

const (
	methodListDBs          method = "list_dbs"
	methodGetSchema        method = "get_schema"
	methodMonitorCondSince method = "monitor_cond_since"
	methodMonitor          method = "monitor" // of servers before OVS 2.12
	methodEcho             method = "echo"
	methodTransact         method = "transact"
)

// call is how anything is sent to the server.
func (s *session) call(ctx context.Context, m method, params ...any) (json.RawMessage, error) {
	return s.conn.Call(ctx, string(m), params...)
}

// listDBs returns the names of the server's databases.
func (s *session) listDBs(ctx context.Context) ([]string, error) {
	raw, err := s.call(ctx, methodListDBs)
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(raw, &names); err != nil {
		return nil, fmt.Errorf("%s: %w", methodListDBs, err)
	}
	return names, nil
}

func (s *session) getSchema(ctx context.Context, database string) (*databaseSchema, error) {
	raw, err := s.call(ctx, methodGetSchema, database)
	if err != nil {
		return nil, err
	}
	return parseSchema(raw)
}

func (s *session) echo(ctx context.Context) error {
	_, err := s.call(ctx, methodEcho)
	return err
}

// contents is what a monitor begins with.
type contents struct {
	changes []change
	// whole: these are all rows, and not what has changed since the
	// transaction that was asked for.
	whole       bool
	transaction string
}

// monitor has the server tell the tables' rows and their changes. begin is
// given the rows before any change of them is handled.
func (s *session) monitor(ctx context.Context, database, id, since string, tables map[string]*table, begin func(contents) error) error {
	requests := make(map[string]any, len(tables))
	for name, t := range tables {
		columns := make([]string, len(t.columns))
		for i, c := range t.columns {
			columns[i] = c.name
		}
		requests[name] = []any{map[string]any{"columns": columns}}
	}
	err := s.conn.CallThen(ctx, func(raw json.RawMessage) error {
		found, err := parseCondSince(raw, tables)
		if err != nil {
			return err
		}
		return begin(found)
	}, string(methodMonitorCondSince), database, id, requests, since)
	var refused *jsonrpc.CallError
	if !errors.As(err, &refused) || !strings.HasPrefix(refused.Text, "unknown method") {
		return err
	}
	return s.conn.CallThen(ctx, func(raw json.RawMessage) error {
		changes, err := parseUpdates1(raw, tables)
		if err != nil {
			return err
		}
		return begin(contents{changes: changes, whole: true})
	}, string(methodMonitor), database, id, requests)
}

// parseCondSince reads the result of monitor_cond_since.
func parseCondSince(raw json.RawMessage, tables map[string]*table) (contents, error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil || len(parts) != 3 {
		return contents{}, errors.New("the result is no array of three")
	}
	var found bool
	var c contents
	if err := json.Unmarshal(parts[0], &found); err != nil {
		return contents{}, fmt.Errorf("the result's first part: %w", err)
	}
	if err := json.Unmarshal(parts[1], &c.transaction); err != nil {
		return contents{}, fmt.Errorf("the result's second part: %w", err)
	}
	c.whole = !found
	var err error
	c.changes, err = parseUpdates2(parts[2], tables)
	return c, err
}

// notification is an update of a monitor.
type notification struct {
	id          string
	changes     json.RawMessage
	second      bool // a <table-updates2>
	transaction string
}

// parseNotification reads what the server tells unasked, and returns nil for
// what concerns no monitor.
func parseNotification(method string, params json.RawMessage) (*notification, error) {
	var n notification
	var into []any
	switch method {
	case "update":
		into = []any{&n.id, &n.changes}
	case "update3":
		n.second = true
		into = []any{&n.id, &n.transaction, &n.changes}
	case "monitor_canceled", "monitor_cancelled":
		return nil, errors.New("the server has cancelled the monitor: the database was removed or its schema has changed")
	case "update2":
		return nil, errors.New("the server sent update2, which answers a method that was not called")
	default:
		return nil, nil //nolint:nilnil // Locks and the like are nobody's business here.
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(params, &parts); err != nil || len(parts) != len(into) {
		return nil, fmt.Errorf("malformed %s: not %d params", method, len(into))
	}
	for i := range into {
		if err := json.Unmarshal(parts[i], into[i]); err != nil {
			return nil, fmt.Errorf("malformed %s: param %d: %w", method, i+1, err)
		}
	}
	return &n, nil
}

func (n *notification) parse(tables map[string]*table) ([]change, error) {
	if n.second {
		return parseUpdates2(n.changes, tables)
	}
	return parseUpdates1(n.changes, tables)
}

// increment sends the one transaction that there is: add one to a counter of
// the only row of a table, and read what it is then.
func (s *session) increment(ctx context.Context, table, column string) (int64, error) {
	t, ok := s.schema.Tables[table]
	if !ok || t.MaxRows != 1 {
		return 0, errors.New("the server's schema has no such table of one row")
	}
	if c, ok := t.Columns[column]; !ok || c.Type != (columnType{key: typeInteger, min: 1, max: 1}) {
		return 0, errors.New("the server's schema has no such column of an integer")
	}
	raw, err := s.call(ctx, methodTransact, s.client.options.Database,
		map[string]any{"op": "mutate", "table": table, "where": []any{}, "mutations": []any{[]any{column, "+=", 1}}},
		map[string]any{"op": "select", "table": table, "where": []any{}, "columns": []string{column}})
	if err != nil {
		return 0, err
	}
	return parseIncrement(raw, column)
}

// parseIncrement reads the result of increment's transaction.
func parseIncrement(raw json.RawMessage, column string) (int64, error) {
	var results []*struct {
		Error   string                       `json:"error"`
		Details string                       `json:"details"`
		Count   int                          `json:"count"`
		Rows    []map[string]json.RawMessage `json:"rows"`
	}
	if err := json.Unmarshal(raw, &results); err != nil {
		return 0, fmt.Errorf("the result of %s: %w", methodTransact, err)
	}
	// An error of the commit itself comes behind the results.
	for _, r := range results {
		if r != nil && r.Error != "" {
			return 0, fmt.Errorf("the server says: %.100q (%.200q)", r.Error, r.Details)
		}
	}
	if len(results) != 2 || slices.Contains(results, nil) || results[0].Count != 1 || len(results[1].Rows) != 1 {
		return 0, fmt.Errorf("the result of %s is not that of one row", methodTransact)
	}
	d, err := parseDatum(results[1].Rows[0][column], columnType{key: typeInteger, min: 1, max: 1})
	if err != nil {
		return 0, fmt.Errorf("the result of %s: %w", methodTransact, err)
	}
	return atomInt(d.keys[0]), nil
}
