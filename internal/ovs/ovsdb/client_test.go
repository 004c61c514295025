// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"
)

// patient is how long a test waits for what must come.
const patient = 30 * time.Second

// fake is a server that a test speaks for.
type fake struct {
	t        *testing.T
	listener net.Listener
	conns    chan *fakeConn
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovsdb") //nolint:usetesting // The paths of sockets have 107 bytes at most.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, listener: l, conns: make(chan *fakeConn, 100)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			f.conns <- &fakeConn{t: t, conn: conn, in: json.NewDecoder(bufio.NewReader(conn))}
		}
	}()
	return f
}

func (f *fake) endpoint() string { return "unix:" + f.listener.Addr().String() }

// accept waits for the next connection.
func (f *fake) accept() *fakeConn {
	f.t.Helper()
	select {
	case c := <-f.conns:
		return c
	case <-time.After(patient):
		f.t.Fatal("nobody connects")
		return nil
	}
}

// fakeConn is one connection of a client.
type fakeConn struct {
	t    *testing.T
	conn net.Conn
	in   *json.Decoder
}

type request struct {
	ID     json.RawMessage `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
}

// expect reads a request, which must be of that method.
func (c *fakeConn) expect(method string) request {
	c.t.Helper()
	var r request
	_ = c.conn.SetReadDeadline(time.Now().Add(patient))
	if err := c.in.Decode(&r); err != nil {
		c.t.Fatalf("waiting for %s: %v", method, err)
	}
	if r.Method != method {
		c.t.Fatalf("got %s %s, want %s", r.Method, r.Params, method)
	}
	return r
}

func (c *fakeConn) write(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.conn, format, args...); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// answer answers the next request, which must be of that method.
func (c *fakeConn) answer(method, result string) request {
	c.t.Helper()
	r := c.expect(method)
	c.write(`{"id":%s,"result":%s,"error":null}`, r.ID, result)
	return r
}

const (
	fakeSchema = `{"name":"Test","version":"1.0.0","tables":{
		"Group":{"columns":{
			"name":{"type":"string"},
			"ports":{"type":{"key":{"type":"uuid","refTable":"Port"},"min":0,"max":"unlimited"}},
			"ids":{"type":{"key":"string","value":"string","min":0,"max":"unlimited"}},
			"tag":{"type":{"key":{"type":"integer","minInteger":1},"min":0,"max":1}},
			"up":{"type":"boolean"}}},
		"Port":{"columns":{"addresses":{"type":{"key":"string","min":0,"max":"unlimited"}},"n":{"type":"integer"}}},
		"Global":{"columns":{"cfg":{"type":"integer"}},"maxRows":1}}}`

	serverSchema = `{"name":"_Server","version":"1.2.0","tables":{"Database":{"columns":{
		"name":{"type":"string"},"connected":{"type":"boolean"},"leader":{"type":"boolean"}}}}}`

	row1 = "00000000-0000-4000-8000-000000000001"
	row2 = "00000000-0000-4000-8000-000000000002"
	row3 = "00000000-0000-4000-8000-000000000003"
	txn1 = "00000000-0000-4000-8000-0000000000a1"
	txn2 = "00000000-0000-4000-8000-0000000000a2"
)

// fakeTables are what the tests monitor.
func fakeTables() []Table {
	return []Table{
		{Name: "Group", Columns: []Column{
			{Name: "name", As: String}, {Name: "ports", As: UUIDs}, {Name: "ids", As: Map}, {Name: "tag", As: Int}, {Name: "up", As: Bool},
			{Name: "tier", As: Int, Optional: true},
		}},
		{Name: "Port", Columns: []Column{{Name: "addresses", As: Strings}, {Name: "n", As: Int}}},
		{Name: "Missing", Columns: []Column{{Name: "name", As: String}}, Optional: true},
	}
}

// until answers what a client asks before it monitors the tables, and returns
// that request.
func (c *fakeConn) until(method string) request {
	c.t.Helper()
	c.suits(`{"name":"Test","connected":true,"leader":true}`)
	c.answer("get_schema", fakeSchema)
	return c.expect(method)
}

// suits answers what a client asks about the server itself.
func (c *fakeConn) suits(database string) {
	c.t.Helper()
	c.answer("list_dbs", `["Test","_Server"]`)
	c.answer("get_schema", serverSchema)
	c.answer("monitor_cond_since", `[false,"`+noTransaction+`",{"Database":{"`+row1+`":{"initial":`+database+`}}}]`)
}

// open brings a client in sync with these rows, as of txn1.
func (c *fakeConn) open(rows string) request {
	c.t.Helper()
	r := c.until("monitor_cond_since")
	c.write(`{"id":%s,"result":[false,"%s",%s],"error":null}`, r.ID, txn1, rows)
	return r
}

// update tells changes.
func (c *fakeConn) update(txn, rows string) {
	c.t.Helper()
	c.write(`{"id":null,"method":"update3","params":["%s","%s",%s]}`, dataMonitor, txn, rows)
}

// follower is a client that runs until the test ends.
type follower struct {
	*Client
	t       *testing.T
	changed chan struct{}
}

func follow(t *testing.T, c clock.WithTicker, endpoints ...string) *follower {
	t.Helper()
	f := &follower{t: t, changed: make(chan struct{}, 1)}
	var err error
	f.Client, err = New(Options{
		Endpoints: endpoints, Database: "Test", Tables: fakeTables(), Leader: true, Clock: c,
		Changed: func() {
			select {
			case f.changed <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		if _, err := f.View(); !errors.Is(err, context.Canceled) {
			t.Errorf("there is a view after the end: %v", err)
		}
	})
	return f
}

// await waits, woken by Changed alone, until the view or its error suits.
func (f *follower) await(what string, suits func(*View, error) bool) *View {
	f.t.Helper()
	timeout := time.After(patient)
	for {
		v, err := f.View()
		if suits(v, err) {
			return v
		}
		select {
		case <-f.changed:
		case <-timeout:
			f.t.Fatalf("waited in vain until %s; the last error: %v", what, err)
		}
	}
}

func (f *follower) awaitVersion(version uint64) *View {
	f.t.Helper()
	return f.await(fmt.Sprintf("version is %d", version), func(v *View, err error) bool { return err == nil && v.Version == version })
}

func (f *follower) awaitError(text string) {
	f.t.Helper()
	f.await("the error has "+text, func(_ *View, err error) bool { return err != nil && strings.Contains(err.Error(), text) })
}

func TestFirstContents(t *testing.T) {
	server := newFake(t)
	f := follow(t, clock.RealClock{}, server.endpoint())
	if _, err := f.View(); err == nil {
		t.Fatal("there is a view before the server was asked")
	}
	c := server.accept()
	r := c.open(`{"Group":{"` + row1 + `":{"initial":{"name":"a","ports":["uuid","` + row2 + `"],"ids":["map",[["k","v"],["j","w"]]],"unasked":7}}},
		"Port":{"` + row2 + `":{"initial":{"addresses":["set",["b","a"]],"n":5}},"` + row3 + `":{"initial":{}}}}`)
	var params []json.RawMessage
	if err := json.Unmarshal(r.Params, &params); err != nil {
		t.Fatal(err)
	}
	want := `["Test" "policygate" ` +
		`{"Group":[{"columns":["name","ports","ids","tag","up"]}],"Port":[{"columns":["addresses","n"]}]} "` + noTransaction + `"]`
	if got := fmt.Sprintf("%s", params); got != want {
		t.Errorf("the request's params are\n%s, want\n%s", got, want)
	}
	v := f.awaitVersion(1)
	if v.Session != 1 || v.Len("Group") != 1 || v.Len("Port") != 2 || v.Len("Missing") != 0 || v.Len("Nope") != 0 {
		t.Errorf("session %d, %d groups, %d ports, %d missing", v.Session, v.Len("Group"), v.Len("Port"), v.Len("Missing"))
	}
	group, ok := v.Get("Group", row1)
	if !ok {
		t.Fatal("the group is not there")
	}
	if diff := cmp.Diff(map[string]string{"k": "v", "j": "w"}, group.Map("ids")); diff != "" {
		t.Errorf("ids (-want +got):\n%s", diff)
	}
	if v, ok := group.Key("ids", "j"); v != "w" || !ok {
		t.Errorf("key j is %q, %v", v, ok)
	}
	if diff := cmp.Diff([]UUID{row2}, group.UUIDs("ports")); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	port, _ := v.Get("Port", row2)
	if diff := cmp.Diff([]string{"a", "b"}, port.Strings("addresses")); diff != "" || port.Int("n") != 5 {
		t.Errorf("n %d, addresses (-want +got):\n%s", port.Int("n"), diff)
	}
	// What the server left out has its default.
	empty, _ := v.Get("Port", row3)
	if empty.Int("n") != 0 || !empty.Has("n") || empty.Has("addresses") || empty.Strings("addresses") != nil {
		t.Errorf("the empty port: n %d, has n %v, addresses %q", empty.Int("n"), empty.Has("n"), empty.Strings("addresses"))
	}
	// No accessor fails.
	for _, column := range []string{"name", "ports", "ids", "tag", "up", "tier", "unasked", ""} {
		_, _, _ = group.String(column), group.Int(column), group.Bool(column)
		_, _, _ = group.Strings(column), group.UUIDs(column), group.Map(column)
		_, _ = group.Key(column, "k")
		if want := slices.Contains([]string{"name", "ports", "ids", "up"}, column); group.Has(column) != want {
			t.Errorf("has %q: %v, want %v", column, group.Has(column), want)
		}
	}
	if group.Int("name") != 0 || group.String("up") != "" || group.Map("ports") != nil {
		t.Error("a column was read as what it is not")
	}
}

func TestUpdates(t *testing.T) {
	const before = `{"Group":{"` + row1 + `":{"initial":{"name":"a","ids":["map",[["k","v"],["j","w"]]],"tag":3,"up":true}}},
		"Port":{"` + row2 + `":{"initial":{"addresses":["set",["b","a"]],"n":5}}}}`
	for name, test := range map[string]struct {
		update string
		check  func(t *testing.T, v *View)
		err    string
	}{
		"a row is inserted": {
			update: `{"Port":{"` + row3 + `":{"insert":{"n":9}}}}`,
			check: func(t *testing.T, v *View) {
				if p, ok := v.Get("Port", row3); !ok || p.Int("n") != 9 || v.Len("Port") != 2 {
					t.Errorf("row %v, %d ports", ok, v.Len("Port"))
				}
			},
		},
		"a row is deleted": {
			update: `{"Port":{"` + row2 + `":{"delete":null}}}`,
			check: func(t *testing.T, v *View) {
				if v.Len("Port") != 0 || v.TableVersion("Port") != 2 || v.TableVersion("Group") != 1 {
					t.Errorf("%d ports of version %d, groups of version %d", v.Len("Port"), v.TableVersion("Port"), v.TableVersion("Group"))
				}
			},
		},
		"of a set, what is there is removed and what is not is added": {
			update: `{"Port":{"` + row2 + `":{"modify":{"addresses":["set",["a","c"]]}}}}`,
			check: func(t *testing.T, v *View) {
				p, _ := v.Get("Port", row2)
				if diff := cmp.Diff([]string{"b", "c"}, p.Strings("addresses")); diff != "" || p.Int("n") != 5 {
					t.Errorf("n %d, addresses (-want +got):\n%s", p.Int("n"), diff)
				}
			},
		},
		"one element of a set is written without the set": {
			update: `{"Port":{"` + row2 + `":{"modify":{"addresses":"a"}}}}`,
			check: func(t *testing.T, v *View) {
				p, _ := v.Get("Port", row2)
				if diff := cmp.Diff([]string{"b"}, p.Strings("addresses")); diff != "" {
					t.Errorf("addresses (-want +got):\n%s", diff)
				}
			},
		},
		"of a map, a pair that is there is removed, another replaces or is added": {
			update: `{"Group":{"` + row1 + `":{"modify":{"ids":["map",[["k","v"],["j","x"],["l","y"]]]}}}}`,
			check: func(t *testing.T, v *View) {
				g, _ := v.Get("Group", row1)
				if diff := cmp.Diff(map[string]string{"j": "x", "l": "y"}, g.Map("ids")); diff != "" {
					t.Errorf("ids (-want +got):\n%s", diff)
				}
			},
		},
		"a scalar and an optional one are replaced": {
			update: `{"Group":{"` + row1 + `":{"modify":{"tag":["set",[]],"up":false,"name":""}}}}`,
			check: func(t *testing.T, v *View) {
				g, _ := v.Get("Group", row1)
				if g.Has("tag") || g.Bool("up") || !g.Has("up") || g.String("name") != "" {
					t.Errorf("has tag %v, up %v, name %q", g.Has("tag"), g.Bool("up"), g.String("name"))
				}
			},
		},
		"a row that is there cannot be inserted": {
			update: `{"Port":{"` + row2 + `":{"insert":{"n":9}}}}`,
			err:    "inserts row " + row2 + " of table Port, which is there",
		},
		"a row that is not there cannot be modified, nor is the rest applied": {
			update: `{"Port":{"` + row3 + `":{"modify":{"n":9}},"` + row2 + `":{"delete":null}}}`,
			err:    "changes row " + row3 + " of table Port, which is not there",
		},
		"a row that is not there cannot be deleted": {
			update: `{"Port":{"` + row3 + `":{"delete":null}}}`,
			err:    "which is not there",
		},
		"a table that was not asked for is nobody's": {
			update: `{"Global":{"` + row3 + `":{"insert":{}}}}`,
			err:    `table "Global" was not asked for`,
		},
		"a value of another type is malformed": {
			update: `{"Port":{"` + row2 + `":{"modify":{"n":"9"}}}}`,
			err:    `column n: "9" is no integer`,
		},
		"something unknown happened to a row": {
			update: `{"Port":{"` + row2 + `":{"frob":{}}}}`,
			err:    `"frob" happened to it`,
		},
		"two things happened to a row": {
			update: `{"Port":{"` + row2 + `":{"delete":null,"insert":{}}}}`,
			err:    "2 things happened",
		},
		"a row has no proper name": {
			update: `{"Port":{"x":{"delete":null}}}`,
			err:    "which is no UUID",
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newFake(t)
			f := follow(t, clock.RealClock{}, server.endpoint())
			c := server.accept()
			c.open(before)
			old := f.awaitVersion(1)
			c.update(txn2, test.update)
			if test.err == "" {
				test.check(t, f.awaitVersion(2))
			} else {
				f.awaitError(test.err)
				// The rows are not trusted any more: all are asked for.
				if r := server.accept().until("monitor_cond_since"); !strings.Contains(string(r.Params), noTransaction) {
					t.Errorf("the next session goes on from where this went wrong: %s", r.Params)
				}
			}
			if p, ok := old.Get("Port", row2); !ok || p.Int("n") != 5 || len(p.Strings("addresses")) != 2 || old.Len("Port") != 1 {
				t.Error("the view of before has changed")
			}
		})
	}
}
