// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package nftables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// Reader reads nf_tables. The tables of the families ip, ip6 and inet are
// read; base chains of the others are opaque. It is safe for concurrent use.
type Reader struct {
	conn *nlconn.Conn
	// listsConcatenations: see safeConcatenations.
	listsConcatenations bool
	// misses are the keys that were not in an interval set since the last Read
	// or, if it said yes, Holds. A batch puts its new elements into the tree at
	// once, and until it is committed or given up they can hide those that are
	// there (nft_set_rbtree.c, also in the packets' path up to Linux 6.16):
	// what is found is right, but what is missed has to be asked once more.
	misses *misses

	mu sync.Mutex // guards the following fields
	// last is what was read last; nil before the first Read and if the
	// kernel has no nf_tables.
	last *snapshot
	// lost is set once Holds has said no, until the next Read.
	lost bool
}

// New returns a Reader that asks over c the kernel that runs.
func New(c *nlconn.Conn) *Reader {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return NewFor(c, "")
	}
	return NewFor(c, unix.ByteSliceToString(name.Release[:]))
}

// NewFor returns a Reader that asks over c a kernel of that release, such as
// "6.1.0-18-amd64". One that cannot be read counts as old.
func NewFor(c *nlconn.Conn, release string) *Reader {
	return &Reader{conn: c, listsConcatenations: !safeConcatenations(release), misses: &misses{}}
}

// safeConcatenations reports whether a concatenation of intervals may be asked
// for one key. Before Linux 6.10 nft_pipapo_get looks the key up in the copy
// that a batch is changing, and freeing parts of, at that moment: so there such
// sets are listed, which reads what is committed.
func safeConcatenations(release string) bool {
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 10)
}

// Read returns the tables that are loaded now, whole or an error, and a stamp:
// equal stamps mean equal rules. Rules and elements of sets are read over the
// connection when they are asked for, and count only if Holds says so
// afterwards. As long as nothing was committed the same tables are returned
// again, with all that was read since.
func (r *Reader) Read(ctx context.Context) ([]ruleset.Table, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = false
	r.misses.take()
	for range attempts {
		if err := ctx.Err(); err != nil {
			return nil, "", err
		}
		gen, err := settled(r.conn)
		if absent(err) {
			r.last = nil
			return nil, "none", nil
		}
		if err != nil {
			return nil, "", err
		}
		stamp := fmt.Sprintf("generation %d", gen)
		if r.last != nil && r.last.generation == gen && r.last.whole() {
			return r.last.tables, stamp, nil
		}
		r.last = nil
		s, err := r.list(gen)
		if err != nil && !errors.Is(err, nlconn.ErrInterrupted) && !errors.Is(err, ErrUnsettled) {
			// A change in the middle can be the cause of any error.
			if now, genErr := generation(r.conn); genErr == nil && now != gen {
				continue
			}
			return nil, "", err
		}
		now, genErr := generation(r.conn)
		if genErr != nil {
			return nil, "", genErr
		}
		if err == nil && now == gen {
			r.last = s
			return s.tables, stamp, nil
		}
	}
	return nil, "", ErrUnsettled
}

// absent reports whether nfnetlink does not know nf_tables and could not load
// it, so that there is nothing in it.
func absent(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
}

// Holds reports whether nothing has changed since the last Read, so that it
// and all that its chains and sets have answered since are of one moment.
//
// The number of the generation is enough for rules and for what a set has:
// nf_tables_commit bumps it (base_seq) before it makes the new rules and
// elements the current ones (gencursor), and before what it does without
// generations, which are the chains' policies and the removal of old elements
// from interval sets. Read has waited for the end of the commit that made the
// last generation; so as long as the number is the same, no commit has come
// as far as to change what can be read. What a batch does before it commits
// stays invisible, but for one thing: see misses. Once Holds has said no, it
// does so until the next Read.
func (r *Reader) Holds(context.Context) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lost {
		return false, nil
	}
	holds, err := r.holds()
	r.lost = !holds || err != nil
	return holds && err == nil, err
}

func (r *Reader) holds() (bool, error) {
	if r.last == nil {
		_, err := generation(r.conn)
		if absent(err) {
			return true, nil
		}
		return false, err
	}
	if r.last.torn() {
		return false, nil
	}
	if questions := r.misses.take(); len(questions) > 0 {
		if ok, err := r.askAgain(questions); !ok || err != nil {
			return false, err
		}
	}
	now, err := generation(r.conn)
	return err == nil && now == r.last.generation, err
}

// askAgain reports whether all that was missed is still missed, after whoever
// may have been in the way is done.
func (r *Reader) askAgain(questions []question) (bool, error) {
	if now, err := settled(r.conn); err != nil || now != r.last.generation {
		if errors.Is(err, ErrUnsettled) {
			return false, nil
		}
		return false, err
	}
	for _, q := range questions {
		_, found, err := q.of.ask(r.conn, q.key, 0)
		if found || err != nil {
			return false, err
		}
	}
	return true, nil
}

// snapshot is nf_tables at one generation: tables and chains, and whatever of
// the rest was asked for since.
type snapshot struct {
	conn       *nlconn.Conn
	generation uint32
	tables     []ruleset.Table
	names      *ipsetNames
	// listsConcatenations: see safeConcatenations.
	listsConcatenations bool
	misses              *misses

	mu     sync.Mutex // guards failed
	failed bool
}

// torn reports whether something could not be read.
func (s *snapshot) torn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// fail notes that something could not be read.
func (s *snapshot) fail() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = true
}

// whole reports whether the snapshot can be used again. A name that could not
// be had this time may be had the next: the generation says nothing of sets.
func (s *snapshot) whole() bool { return !s.torn() && !s.names.failed() }

// question is a key that a set was asked for.
type question struct {
	of  *set
	key []byte
}

// misses are questions, each once.
type misses struct {
	mu  sync.Mutex // guards all
	all map[*set]map[string]bool
}

func (m *misses) add(of *set, key []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all == nil {
		m.all = map[*set]map[string]bool{}
	}
	if m.all[of] == nil {
		m.all[of] = map[string]bool{}
	}
	m.all[of][string(key)] = true
}

// take returns all of them and forgets them.
func (m *misses) take() []question {
	m.mu.Lock()
	defer m.mu.Unlock()
	var questions []question
	for of, keys := range m.all {
		for key := range keys {
			questions = append(questions, question{of, []byte(key)})
		}
	}
	m.all = nil
	return questions
}

// list reads tables and chains. A batch changes the dormant flag of a table
// before it is committed and takes it back if it is given up: so the flags are
// read on both sides of a barrier, which waits for the end of a batch.
func (r *Reader) list(gen uint32) (*snapshot, error) {
	c := r.conn
	before, err := nftDormant(c)
	if err != nil {
		return nil, err
	}
	now, err := settled(c)
	if err != nil {
		return nil, err
	}
	dormant, err := nftDormant(c)
	if err != nil {
		return nil, err
	}
	if now != gen || !maps.Equal(before, dormant) {
		return nil, ErrUnsettled
	}
	chains, err := nftChains(c)
	if err != nil {
		return nil, err
	}
	s := &snapshot{conn: c, generation: gen, listsConcatenations: r.listsConcatenations, names: newIPSetNames(c), misses: r.misses}
	return s, s.build(dormant, chains, func(chain nftChain) (bool, error) {
		rules, err := nftRules(c, chain.key(), chain.chain)
		return len(rules) == 0, err
	})
}

// build makes the model of what was listed. empty is asked whether a chain
// whose rules will not be read has none.
func (s *snapshot) build(dormant map[tableKey]bool, chains []nftChain, empty func(nftChain) (bool, error)) error {
	var opaque []ruleset.Table
	views := map[tableKey][]*view{}
	var order []*view
	for _, c := range chains {
		key := c.key()
		if why := c.unreadable(dormant[key]); why != "" {
			add, err := unread(c, why, empty)
			if err != nil {
				return err
			}
			opaque = append(opaque, add...)
			continue
		}
		if views[key] == nil {
			for _, family := range c.families() {
				views[key] = append(views[key], newView(s, key, family))
			}
			order = append(order, views[key]...)
		}
		for _, v := range views[key] {
			if err := v.add(c); err != nil {
				return err
			}
		}
	}
	s.tables = make([]ruleset.Table, 0, len(order)+len(opaque))
	for _, v := range order {
		s.tables = append(s.tables, v.table)
	}
	s.tables = append(s.tables, opaque...)
	return nil
}

// unread returns a chain whose rules are not read as opaque tables; none if
// the chain is not tied to a hook or lets every packet pass untouched, as the
// chains of a distribution's empty /etc/nftables.conf do.
func unread(c nftChain, why string, empty func(nftChain) (bool, error)) ([]ruleset.Table, error) {
	if !c.hooked || len(c.families()) == 0 {
		return nil, nil
	}
	if !c.drop {
		idle, err := empty(c)
		if idle || err != nil {
			return nil, err
		}
	}
	return c.opaque(why), nil
}
