// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package xtables

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/policygate/policygate/agent/kernel/nlconn"
	"github.com/policygate/policygate/agent/ruleset"
)

// node is a kernel with one legacy table, filter, and sets.
type node struct {
	dir string
	// loaded is the table, nil if it does not exist, and sets the names of
	// the sets by index.
	loaded *table
	sets   map[uint16]string
	// during is called before a table is read.
	during func()
	// reads and resolved count what was asked.
	reads, resolved int
}

func (n *node) read(_ string, buffer []byte) (*table, error) {
	n.reads++
	if n.during != nil {
		n.during()
	}
	if n.loaded == nil {
		return nil, errGone
	}
	// What is in the buffer is overwritten, as the kernel does.
	t := *n.loaded
	if cap(buffer) < len(n.loaded.data) {
		buffer = make([]byte, len(n.loaded.data))
	}
	t.buffer = buffer[:len(n.loaded.data)]
	copy(t.buffer, n.loaded.data)
	t.data = t.buffer
	return &t, nil
}

func (n *node) close() {}

// AskEach answers GET_BYINDEX.
func (n *node) AskEach(_ uint16, requests [][]byte, each func(i int, body []byte, refusal error)) error {
	for i, request := range requests {
		n.resolved++
		name := ""
		if err := nlconn.Attributes(request[nlconn.NFGenMsgLen:], func(kind uint16, value []byte) {
			if kind == 11 { // IPSET_ATTR_INDEX
				name = n.sets[binary.BigEndian.Uint16(value)]
			}
		}); err != nil {
			return err
		}
		if name == "" {
			each(i, nil, unix.ENOENT)
			continue
		}
		each(i, nlconn.Attribute([]byte{0, 0, 0, 0}, 2, append([]byte(name), 0)), nil)
	}
	return nil
}

// list makes the list of the tables say that there is a filter table.
func (n *node) list(t *testing.T, names string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir, "ip_tables_names"), []byte(names), 0o600); err != nil {
		t.Fatal(err)
	}
}

// newNode returns a node whose FORWARD asks set 1, "blue", and a reader of it.
func newNode(t *testing.T) (*node, *Reader) {
	t.Helper()
	n := &node{dir: t.TempDir(), loaded: asking(1), sets: map[uint16]string{1: "blue", 2: "red"}}
	n.list(t, "filter\n")
	r := New(n, n.dir)
	r.dial = func(ruleset.Family) (source, error) { return n, nil }
	return n, r
}

// asking returns a table whose FORWARD has one rule, that asks a set.
func asking(set uint16) *table {
	// struct xt_set_info_match_v1 of linux/netfilter/xt_set.h: one dimension,
	// the source.
	info := append(binary.NativeEndian.AppendUint16(nil, set), 1, 2)
	match := extensionOf("set", info)
	match[extensionRevision] = 1
	t := sampleTable(ruleset.IPv4, nil, match)
	return &t
}

// forwardSet reads the tables and, if it is asked to, the name of the set in
// FORWARD's rule.
func forwardSet(t *testing.T, tables []ruleset.Table) string {
	t.Helper()
	for _, c := range tables[0].Chains {
		if c.Name != "FORWARD" {
			continue
		}
		rules, err := c.List()
		if err != nil || len(rules) != 1 || len(rules[0].Matches) != 1 {
			t.Fatalf("got rules %+v, error %v", rules, err)
		}
		if m, ok := rules[0].Matches[0].(ruleset.Set); ok {
			return m.Name
		}
		return "unknown"
	}
	t.Fatal("no FORWARD")
	return ""
}

// look reads, and fails the test on an error.
func look(t *testing.T, r *Reader) ([]ruleset.Table, string) {
	t.Helper()
	tables, stamp, err := r.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tables, stamp
}

func holds(t *testing.T, r *Reader) bool {
	t.Helper()
	ok, err := r.Holds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestWhatIsUnchangedIsNotDecodedAgain(t *testing.T) {
	n, r := newNode(t)
	first, stamp := look(t, r)
	if n.resolved != 0 {
		t.Error("a set was looked up that no one asked for")
	}
	if name := forwardSet(t, first); name != "blue" || n.resolved != 1 {
		t.Errorf("got set %s by %d questions, want blue by 1", name, n.resolved)
	}
	// Counters move.
	l := layoutOf(ruleset.IPv4)
	n.loaded.data[l.size-1]++
	second, again := look(t, r)
	if again != stamp || forwardSet(t, second) != "blue" || second[0].Chains[1] != first[0].Chains[1] {
		t.Errorf("got stamp %s after %s, and chain %p after %p", again, stamp, second[0].Chains[1], first[0].Chains[1])
	}
	if n.resolved != 2 {
		t.Errorf("the set's name was asked for %d times, want 2: once per look", n.resolved)
	}
}

func TestAChangeIsAnotherStamp(t *testing.T) {
	for name, change := range map[string]func(n *node){
		"another rule":                            func(n *node) { n.loaded = asking(2) },
		"another set under the same index":        func(n *node) { n.sets[1] = "green" },
		"a set that is gone":                      func(n *node) { delete(n.sets, 1) },
		"a set whose name cannot be had, at last": func(n *node) { n.loaded = asking(3) },
	} {
		t.Run(name, func(t *testing.T) {
			n, r := newNode(t)
			tables, before := look(t, r)
			forwardSet(t, tables)
			change(n)
			tables, after := look(t, r)
			if after == before {
				t.Error("the stamp is the same")
			}
			want := map[string]string{"another rule": "red", "another set under the same index": "green"}[name]
			if got := forwardSet(t, tables); want != "" && got != want || want == "" && got != "unknown" {
				t.Errorf("got set %s, want %s", got, want)
			}
			if tables, again := look(t, r); again != after || forwardSet(t, tables) == "" {
				t.Errorf("the stamp is %s after %s without a change", again, after)
			}
		})
	}
}

func TestTablesThatComeAndGo(t *testing.T) {
	n, r := newNode(t)
	_, before := look(t, r)
	n.list(t, "")
	tables, without := look(t, r)
	if len(tables) != 0 || without == before {
		t.Errorf("got %d tables with stamp %s after %s", len(tables), without, before)
	}
	n.list(t, "filter\n")
	if tables, again := look(t, r); len(tables) != 1 || again == without {
		t.Errorf("got %d tables with stamp %s", len(tables), again)
	}
}

func TestATableThatGoesWhileItIsReadIsNotMissed(t *testing.T) {
	n, r := newNode(t)
	n.loaded = nil
	n.during = func() { n.list(t, "") }
	if tables, _ := look(t, r); len(tables) != 0 {
		t.Errorf("got %d tables, want none", len(tables))
	}
}

func TestATableThatIsListedForEverAndNotThere(t *testing.T) {
	n, r := newNode(t)
	n.loaded = nil
	if _, _, err := r.Read(t.Context()); !errors.Is(err, ErrUnsettled) {
		t.Errorf("got error %v, want %v", err, ErrUnsettled)
	}
}

func TestNoTablesAreNoError(t *testing.T) {
	r := New(&node{}, filepath.Join(t.TempDir(), "absent"))
	tables, stamp := look(t, r)
	if len(tables) != 0 || stamp == "" || !holds(t, r) {
		t.Errorf("got %d tables, stamp %q", len(tables), stamp)
	}
}

func TestATableOfAnotherModuleIsAnError(t *testing.T) {
	n, r := newNode(t)
	n.loaded.data[len(n.loaded.data)-62] = 'X'
	_, _, err := r.Read(t.Context())
	if err == nil || !strings.Contains(err.Error(), "legacy ip table filter: ") {
		t.Errorf("got error %v", err)
	}
}

func TestAReadEndsWithItsContext(t *testing.T) {
	_, r := newNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Read(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
}

func TestWhatWasReadHolds(t *testing.T) {
	for name, c := range map[string]struct {
		// asked is whether a rule with a set is decoded before the change.
		asked  bool
		change func(n *node)
		want   bool
		reads  int
	}{
		"if no set was asked for, whatever happens": {false, func(n *node) { n.loaded = asking(2) }, true, 0},
		"if nothing changed":                        {true, func(*node) {}, true, 1},
		"if only counters did":                      {true, func(n *node) { n.loaded.data[layoutOf(ruleset.IPv4).size-1]++ }, true, 1},
		"unless the rules changed":                  {true, func(n *node) { n.loaded = asking(2) }, false, 1},
		"unless the table is gone":                  {true, func(n *node) { n.loaded = nil }, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			n, r := newNode(t)
			tables, _ := look(t, r)
			if c.asked {
				forwardSet(t, tables)
			}
			before := n.reads
			c.change(n)
			if got := holds(t, r); got != c.want || n.reads-before != c.reads {
				t.Errorf("got %t by %d reads, want %t by %d", got, n.reads-before, c.want, c.reads)
			}
			if again := holds(t, r); again != c.want {
				t.Errorf("got %t when asked again", again)
			}
		})
	}
}

func TestWhatHeldOnceIsNotReadAgain(t *testing.T) {
	n, r := newNode(t)
	tables, _ := look(t, r)
	forwardSet(t, tables)
	if !holds(t, r) {
		t.Fatal("does not hold")
	}
	look(t, r)
	before := n.reads
	if !holds(t, r) || n.reads != before {
		t.Errorf("%d reads for names that were checked", n.reads-before)
	}
}

func TestALaterReadSparesWhatAnEarlierOneDecodes(t *testing.T) {
	n, r := newNode(t)
	first, _ := look(t, r)
	n.loaded = asking(2)
	for range 3 {
		look(t, r)
	}
	if name := forwardSet(t, first); name != "blue" {
		t.Errorf("got set %s from a table that was replaced, want blue", name)
	}
}

func TestAProgramIsOfTheKernelsArchitecture(t *testing.T) {
	if err := checkArchitecture(64, "aarch64"); err != nil {
		t.Errorf("got %v for 64 bits", err)
	}
	err := checkArchitecture(32, "x86_64")
	if err == nil || !strings.Contains(err.Error(), "x86_64") || !strings.Contains(err.Error(), "32-bit") {
		t.Errorf("got %v for 32 bits", err)
	}
	if err := CheckArchitecture(); err != nil {
		t.Errorf("got %v for this program", err)
	}
}
