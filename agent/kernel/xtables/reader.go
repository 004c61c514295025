// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package xtables reads the rules of the legacy tables, iptables and
// ip6tables, by getsockopt.
//
// It takes no lock of iptables and reads no table that does not exist, for
// that would create it. A table is copied whole, as the kernel has no other
// way, and of the copy only those chains are decoded that somebody asks for.
// The package decides nothing: agent/trace evaluates the rules.
//
// # What is of one moment
//
// The kernel hands out each table in one piece. Two tables are not of one
// moment, as nothing locks them together: who confirms by looks takes two of
// them. A rule holds the index of a set, not its name, so the name that is
// looked up for it when it is decoded is right only if the table was still
// loaded then; Reader.Holds tells.
package xtables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"github.com/policygate/policygate/agent/kernel/ipset"
	"github.com/policygate/policygate/agent/kernel/procfile"
	"github.com/policygate/policygate/agent/ruleset"
)

// attempts bounds how often a read is begun again because the rules changed
// under it. An engine commits in bursts, but each read takes milliseconds and
// the next look comes soon.
const attempts = 5

// ErrUnsettled means that the rules changed during every attempt.
var ErrUnsettled = errors.New("the legacy tables kept changing while they were read")

// Reader reads the legacy tables, and only those that exist: to read another
// would create it. It is safe for concurrent use.
type Reader struct {
	conn  ipset.BulkConn
	lists [2]list
	dial  func(ruleset.Family) (source, error)

	mu sync.Mutex // guards the following fields
	// loaded are the tables as they were read last, in the order of tables.
	loaded []*loaded
	// changes counts the reads that found another state than the one before.
	changes uint64
	tables  []ruleset.Table
}

// source has the tables of one family.
type source interface {
	// read returns a table in one piece, in buffer if that is large enough, or
	// errGone.
	read(name string, buffer []byte) (*table, error)
	close()
}

// tableID names a table.
type tableID struct {
	family ruleset.Family
	name   string
}

// loaded is a table that was read, and what was made of it since.
type loaded struct {
	*table
	id    tableID
	model ruleset.Table
	// names are those of the sets that its decoded rules refer to, and checked
	// is how many of them are known to be right.
	names   *ipset.Names
	checked int
	// spare is a buffer for the next read.
	spare []byte
}

// list is the file with the names of a family's tables.
type list struct {
	family ruleset.Family
	names  *procfile.File
}

// New returns a Reader that takes the names of the tables from ip_tables_names
// and ip6_tables_names in the directory proc, and those of the sets from the
// kernel over c. Close frees it.
func New(c ipset.BulkConn, proc string) *Reader {
	return &Reader{conn: c, dial: dial, lists: [...]list{
		{ruleset.IPv4, procfile.New(filepath.Join(proc, "ip_tables_names"))},
		{ruleset.IPv6, procfile.New(filepath.Join(proc, "ip6_tables_names"))},
	}}
}

// Close closes the files with the tables' names.
func (r *Reader) Close() error {
	return errors.Join(r.lists[0].names.Close(), r.lists[1].names.Close())
}

// Read returns the tables that are loaded now, whole or an error, and a stamp:
// two equal stamps of one Reader mean equal rules and sets of equal names.
// Chains are decoded when they are first asked for their rules.
func (r *Reader) Read(ctx context.Context) ([]ruleset.Table, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for range attempts {
		err := r.read(ctx)
		if errors.Is(err, errGone) {
			// It will not be listed again.
			continue
		}
		if err != nil {
			return nil, "", err
		}
		return r.tables, fmt.Sprintf("legacy %d", r.changes), nil
	}
	return nil, "", ErrUnsettled
}

// read brings loaded up to date.
func (r *Reader) read(ctx context.Context) error {
	ids, err := r.list()
	if err != nil {
		return err
	}
	changed := len(ids) != len(r.loaded)
	next := make([]*loaded, len(ids))
	err = r.each(ids, func(i int, s source) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		last := r.last(ids[i])
		if next[i], err = r.load(s, ids[i], last); err != nil {
			return err
		}
		changed = changed || next[i] != last || r.loaded[i] != last
		return nil
	})
	if err != nil || !changed {
		return err
	}
	r.loaded, r.tables = next, make([]ruleset.Table, len(next))
	for i, l := range next {
		r.tables[i] = l.model
	}
	r.changes++
	return nil
}

// last returns the table as it was read last, or nil.
func (r *Reader) last(id tableID) *loaded {
	for _, l := range r.loaded {
		if l.id == id {
			return l
		}
	}
	return nil
}

// load reads a table. It returns last if that has the same rules, and if the
// sets that its decoded rules refer to have their names still: a table can be
// put back as it was with other sets under the same indices.
func (r *Reader) load(s source, id tableID, last *loaded) (*loaded, error) {
	if last == nil {
		last = &loaded{table: &table{}}
	}
	now, err := s.read(id.name, last.spare)
	if err != nil {
		return nil, err
	}
	l := &loaded{table: now, id: id, names: ipset.NewNames(r.conn)}
	last.spare = nil
	if last.same(now) {
		if last.names.Same() {
			last.spare = now.buffer
			return last, nil
		}
		l.table, l.spare = last.table, now.buffer
	}
	l.model, err = l.split(l.names)
	return l, err
}

// Holds reports whether each table whose rules were asked for since the last
// Read was still loaded after the names of its sets were looked up, so that
// all that was read of it is of one moment. It costs a read of every table for
// which a name was looked up since, and nothing if none was. It says nothing
// about two tables, nor about one that a later Read has replaced. A table that
// was replaced and put back in between, with other sets under its indices, is
// found by the next Read.
func (r *Reader) Holds(ctx context.Context) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []tableID
	for _, l := range r.loaded {
		if l.names.Asked() > l.checked {
			ids = append(ids, l.id)
		}
	}
	holds := true
	err := r.each(ids, func(i int, s source) error {
		if err := ctx.Err(); err != nil || !holds {
			return err
		}
		var err error
		holds, err = r.last(ids[i]).check(s)
		return err
	})
	return holds && err == nil, err
}

// check reports whether the table is still loaded.
func (l *loaded) check(s source) (bool, error) {
	asked := l.names.Asked()
	now, err := s.read(l.name, l.spare)
	switch {
	case errors.Is(err, errGone):
		return false, nil
	case err != nil:
		return false, err
	}
	l.spare = now.buffer
	if !l.same(now) {
		return false, nil
	}
	l.checked = asked
	return true, nil
}

// each calls f with every index of ids and a socket for its family.
func (r *Reader) each(ids []tableID, f func(i int, s source) error) error {
	sockets := map[ruleset.Family]source{}
	defer func() {
		for _, s := range sockets {
			s.close()
		}
	}()
	for i, id := range ids {
		s, ok := sockets[id.family]
		if !ok {
			var err error
			if s, err = r.dial(id.family); err != nil {
				return err
			}
			sockets[id.family] = s
		}
		if err := f(i, s); err != nil {
			return fmt.Errorf("legacy %s table %s: %w", id.family, id.name, err)
		}
	}
	return nil
}

// list returns the tables that exist. A kernel without legacy tables has no
// list of them.
func (r *Reader) list() ([]tableID, error) {
	var ids []tableID
	for _, of := range r.lists {
		names, err := of.names.Read()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list legacy tables: %w", err)
		}
		for name := range strings.FieldsSeq(names) {
			ids = append(ids, tableID{of.family, name})
		}
	}
	return ids, nil
}
