// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"encoding/json"
	"fmt"
)

// op is what happened to a row.
type op uint8

const (
	opInsert op = iota + 1 // a row that was not there
	opPut                  // a row, whether it was there or not
	opModify               // some columns of a row that is there
	opDelete               // a row that is there
)

// change is what an update says of one row.
type change struct {
	table *table
	uuid  UUID
	op    op
	// values are those of all columns, of opInsert and opPut.
	values []datum
	// diffs are those of opModify, by the column's position.
	diffs map[int]datum
}

// rowUpdates is table, row, what happened, column.
type rowUpdates map[string]map[string]map[string]map[string]json.RawMessage

// parseUpdates2 reads a <table-updates2>, of monitor_cond_since's result and of
// update3. Columns of a default value are left out of new rows.
func parseUpdates2(raw json.RawMessage, tables map[string]*table) ([]change, error) {
	return parseUpdates(raw, tables, func(ch *change, row map[string]map[string]json.RawMessage) error {
		if len(row) != 1 {
			return fmt.Errorf("%d things happened to it, not one", len(row))
		}
		for what, columns := range row {
			var err error
			switch what {
			case "initial", "insert":
				ch.op = opInsert
				ch.values, err = parseRow(columns, ch.table)
			case "modify":
				ch.op = opModify
				ch.diffs, err = parseColumns(columns, ch.table)
			case "delete":
				ch.op = opDelete
			default:
				return fmt.Errorf("%.40q happened to it, which is unknown", what)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// parseUpdates1 reads a <table-updates> of RFC 7047, of monitor's result and of
// update.
func parseUpdates1(raw json.RawMessage, tables map[string]*table) ([]change, error) {
	return parseUpdates(raw, tables, func(ch *change, row map[string]map[string]json.RawMessage) error {
		columns, ok := row["new"]
		if !ok {
			if _, ok := row["old"]; !ok {
				return fmt.Errorf("it has neither old nor new columns")
			}
			ch.op = opDelete
			return nil
		}
		var err error
		ch.op = opPut
		ch.values, err = parseRow(columns, ch.table)
		return err
	})
}

func parseUpdates(raw json.RawMessage, tables map[string]*table, parse func(*change, map[string]map[string]json.RawMessage) error) ([]change, error) {
	var all rowUpdates
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("malformed update: %w", err)
	}
	count := 0
	for _, rows := range all {
		count += len(rows)
	}
	changes := make([]change, 0, count)
	for name, rows := range all {
		t, ok := tables[name]
		if !ok {
			return nil, fmt.Errorf("malformed update: table %.60q was not asked for", name)
		}
		for id, row := range rows {
			if !isUUID(id) {
				return nil, fmt.Errorf("malformed update: table %s has a row %.60q, which is no UUID", name, id)
			}
			ch := change{table: t, uuid: UUID(id)}
			if err := parse(&ch, row); err != nil {
				return nil, fmt.Errorf("malformed update: table %s, row %s: %w", name, id, err)
			}
			changes = append(changes, ch)
		}
	}
	return changes, nil
}

// parseRow reads the columns of a new row. Those that are not there have their
// default; those that were not asked for are passed over.
func parseRow(columns map[string]json.RawMessage, t *table) ([]datum, error) {
	have, err := parseColumns(columns, t)
	if err != nil {
		return nil, err
	}
	values := make([]datum, len(t.columns))
	for i, c := range t.columns {
		if d, ok := have[i]; ok {
			values[i] = d
		} else {
			values[i] = c.typ.zero()
		}
	}
	return values, nil
}

func parseColumns(columns map[string]json.RawMessage, t *table) (map[int]datum, error) {
	all := make(map[int]datum, len(columns))
	for name, raw := range columns {
		i, ok := t.index[name]
		if !ok {
			continue
		}
		d, err := parseDatum(raw, t.columns[i].typ)
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", name, err)
		}
		all[i] = d
	}
	return all, nil
}
