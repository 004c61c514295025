// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"errors"
	"fmt"
	"sync"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// errPolicy means that a base chain does not end as iptables ends it.
var errPolicy = errors.New("no policy at its end")

// split returns the table in terms of the model. Its chains and their policies
// are there, and the rules of a chain are decoded when they are first asked
// for. sets is asked then, and has to be safe for concurrent use.
func (t *table) split(sets names) (ruleset.Table, error) {
	s := splitter{
		table:   ruleset.Table{Family: t.family, Backend: ruleset.Legacy, Name: t.name},
		decoder: &decoder{layout: layoutOf(t.family), data: t.data, sets: sets, heads: map[int]*ruleset.Chain{}},
		info:    t.info,
	}
	if err := s.findBases(); err != nil {
		return ruleset.Table{}, err
	}
	if err := s.walk(); err != nil {
		return ruleset.Table{}, err
	}
	return s.table, nil
}

// splitter finds the chains in one walk over the entries. A base chain begins
// where the table's info says and ends with its policy; any other begins after
// a marker that holds its name and ends with a RETURN. A marker ends the table,
// too.
type splitter struct {
	table   ruleset.Table
	decoder *decoder
	info    info
	// bases are the base chains that have not begun yet, by the offset of
	// their first entry.
	bases map[int]*ruleset.Chain

	// chain is the one that the walk is in, nil between two; from is where its
	// first entry is and last its latest entry.
	chain *ruleset.Chain
	from  int
	last  entry
}

// findBases finds where base chains begin.
func (s *splitter) findBases() error {
	s.bases = map[int]*ruleset.Chain{}
	if s.info.hooks >= 1<<hooks {
		return fmt.Errorf("hooks %#x: want %d at most", s.info.hooks, hooks)
	}
	for number := range hooks {
		if s.info.hooks&(1<<number) == 0 {
			continue
		}
		base, name, ok := baseOf(s.table.Name, number)
		if !ok {
			return fmt.Errorf("hook %d of table %s is not known", number, s.table.Name)
		}
		at := int(s.info.entry[number])
		if s.bases[at] != nil {
			return fmt.Errorf("chains %s and %s begin at %d", s.bases[at].Name, name, at)
		}
		s.bases[at] = &ruleset.Chain{Name: name, Base: &base}
	}
	return nil
}

func (s *splitter) walk() error {
	data, count, ended := s.decoder.data, uint32(0), false
	for at := 0; at < len(data); count++ {
		e, err := s.decoder.layout.entryAt(data, at)
		if err != nil {
			return err
		}
		at = e.end()
		ended = e.isMarker() && at == len(data)
		if err := s.take(e, ended); err != nil {
			return err
		}
	}
	switch {
	case count != s.info.count:
		return fmt.Errorf("%d entries, want %d", count, s.info.count)
	case !ended:
		return errors.New("no end marker")
	case len(s.bases) > 0:
		return fmt.Errorf("%d base chains begin nowhere", len(s.bases))
	}
	return nil
}

// take adds one entry to the chain that it is of.
func (s *splitter) take(e entry, last bool) error {
	marker := e.isMarker()
	if s.chain != nil && marker {
		// A chain that only a jump reaches ends with the entry before the
		// next marker; a base chain has ended before.
		if s.chain.Base != nil || s.last.bytes == nil {
			return fmt.Errorf("chain %s has no end", s.chain.Name)
		}
		if err := s.finish(s.last); err != nil {
			return err
		}
	}
	if base := s.bases[e.at]; base != nil && s.chain == nil {
		delete(s.bases, e.at)
		s.begin(base, e.at)
	}
	switch {
	case marker && last:
		return nil
	case marker && s.chain == nil:
		chain := &ruleset.Chain{Name: nlconn.Text(e.bytes[e.target+extensionData:])}
		s.decoder.heads[e.end()] = chain
		s.begin(chain, e.end())
		return nil
	case marker, s.chain == nil:
		return fmt.Errorf("entry at %d is in no chain", e.at)
	}
	s.last = e
	if s.chain.Base == nil {
		return nil
	}
	end := int(s.info.underflow[hookNumber(s.chain.Base.Hook)])
	switch {
	case e.at == end:
		return s.finish(e)
	case e.at > end:
		return fmt.Errorf("chain %s has no end", s.chain.Name)
	}
	return nil
}

func (s *splitter) begin(chain *ruleset.Chain, from int) {
	s.chain, s.from, s.last = chain, from, entry{}
}

// finish ends the chain with its last entry, which iptables adds to every
// chain: its policy or the way back.
func (s *splitter) finish(e entry) error {
	c, from := s.chain, s.from
	target, err := e.targetBytes()
	if err != nil {
		return fmt.Errorf("chain %s: %w", c.Name, err)
	}
	verdict, standard, err := standardVerdict(target)
	switch {
	case err != nil:
		return fmt.Errorf("chain %s: %w", c.Name, err)
	case !standard || !s.decoder.layout.unconditional(e):
		return fmt.Errorf("chain %s: %w", c.Name, errPolicy)
	case c.Base == nil && verdict == verdictReturn:
	case c.Base != nil && (verdict == verdictAccept || verdict == verdictDrop):
		c.Base.Drop = verdict == verdictDrop
	default:
		return fmt.Errorf("chain %s: %w", c.Name, errPolicy)
	}
	if from < e.at {
		d := s.decoder
		c.Read = sync.OnceValues(func() ([]ruleset.Rule, error) { return d.rules(from, e.at) })
	}
	s.table.Chains = append(s.table.Chains, c)
	s.chain = nil
	return nil
}
