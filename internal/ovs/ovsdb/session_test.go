// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"
)

const onePort = `{"Port":{"` + row1 + `":{"initial":{"n":1}}}}`

func TestConnectionThatEnds(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(c *fakeConn)
		err  string
		from string // the transaction from which the next session goes on
	}{
		"the server closes it": {
			end:  func(c *fakeConn) { c.conn.Close() },
			err:  "the server closed the connection",
			from: txn1,
		},
		"the server closes it within an update": {
			end: func(c *fakeConn) {
				c.write(`{"id":null,"method":"update3","params":["%s","%s",{"Port":{"%s":{"modify":{"n":`, dataMonitor, txn2, row1)
				c.conn.Close()
			},
			err:  "the stream ends within a message",
			from: txn1,
		},
		"the server cancels the monitor": {
			end:  func(c *fakeConn) { c.write(`{"id":null,"method":"monitor_canceled","params":["%s"]}`, dataMonitor) },
			err:  "has cancelled the monitor",
			from: noTransaction,
		},
		"an update has another shape": {
			end:  func(c *fakeConn) { c.write(`{"id":null,"method":"update3","params":["%s",{}]}`, dataMonitor) },
			err:  "malformed update3: not 3 params",
			from: noTransaction,
		},
		"an update is of another monitor": {
			end:  func(c *fakeConn) { c.write(`{"id":null,"method":"update3","params":["x","%s",{}]}`, txn2) },
			err:  `the monitor "x", which is not of this connection`,
			from: txn1,
		},
		"the server is the leader no more": {
			end: func(c *fakeConn) {
				c.write(`{"id":null,"method":"update3","params":["%s","%s",{"Database":{"%s":{"modify":{"leader":false}}}}]}`, serverMonitor, noTransaction, row1)
			},
			err:  "not the leader of its cluster",
			from: txn1,
		},
		"the server has lost its cluster": {
			end: func(c *fakeConn) {
				c.write(`{"id":null,"method":"update3","params":["%s","%s",{"Database":{"%s":{"modify":{"connected":false}}}}]}`, serverMonitor, noTransaction, row1)
			},
			err:  "not connected to its cluster",
			from: txn1,
		},
		"the server gives up the database": {
			end: func(c *fakeConn) {
				c.write(`{"id":null,"method":"update3","params":["%s","%s",{"Database":{"%s":{"delete":null}}}]}`, serverMonitor, noTransaction, row1)
			},
			err:  "does not serve the database any more",
			from: txn1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := newFake(t)
			f := follow(t, clock.RealClock{}, server.endpoint())
			c := server.accept()
			c.open(onePort)
			f.awaitVersion(1)
			test.end(c)
			f.awaitError(test.err)

			next := server.accept()
			r := next.until("monitor_cond_since")
			if !strings.HasSuffix(string(r.Params), `"`+test.from+`"]`) {
				t.Errorf("the next session asks %s, want it to go on from %s", r.Params, test.from)
			}
			if _, err := f.View(); err == nil {
				t.Error("there is a view before the server has answered")
			}
			if test.from == txn1 {
				next.write(`{"id":%s,"result":[true,"%s",{"Port":{"%s":{"modify":{"n":7}}}}],"error":null}`, r.ID, txn2, row1)
			} else {
				next.write(`{"id":%s,"result":[false,"%s",{"Port":{"%s":{"initial":{"n":7}}}}],"error":null}`, r.ID, txn2, row1)
			}
			v := f.await("it is in sync again", func(_ *View, err error) bool { return err == nil })
			if p, ok := v.Get("Port", row1); !ok || p.Int("n") != 7 || v.Session != 2 || v.Len("Port") != 1 {
				t.Errorf("row %v, session %d", ok, v.Session)
			}
		})
	}
}

func TestSchemaThatChangedMeanwhile(t *testing.T) {
	server := newFake(t)
	f := follow(t, clock.RealClock{}, server.endpoint())
	c := server.accept()
	c.open(onePort)
	f.awaitVersion(1)
	c.conn.Close()
	c = server.accept()
	c.suits(`{"name":"Test","connected":true,"leader":true}`)
	c.answer("get_schema", strings.Replace(fakeSchema, `"name":{"type":"string"}`, `"name":{"type":"string"},"tier":{"type":"integer"}`, 1))
	r := c.expect("monitor_cond_since")
	if !strings.Contains(string(r.Params), `"tier"`) || !strings.HasSuffix(string(r.Params), `"`+noTransaction+`"]`) {
		t.Errorf("the next session asks %s, want the new column and all rows", r.Params)
	}
}

func TestServerOfBeforeMonitorCondSince(t *testing.T) {
	server := newFake(t)
	f := follow(t, clock.RealClock{}, server.endpoint())
	c := server.accept()
	c.answer("list_dbs", `["Test"]`)
	c.answer("get_schema", fakeSchema)
	refused := c.expect("monitor_cond_since")
	c.write(`{"id":%s,"error":"unknown method"}`, refused.ID)
	r := c.expect("monitor")
	// What follows in the same breath is applied after it.
	c.write(`{"id":%s,"result":{"Port":{"%s":{"new":{"n":1,"addresses":["set",[]]}}}},"error":null}`+
		`{"id":null,"method":"update","params":["%s",{"Port":{"%s":{"old":{"n":1},"new":{"n":2,"addresses":"a"}},"%s":{"new":{"n":3,"addresses":"b"}}}}]}`,
		r.ID, row1, dataMonitor, row1, row2)
	v := f.awaitVersion(2)
	if p, ok := v.Get("Port", row1); !ok || p.Int("n") != 2 || v.Len("Port") != 2 {
		t.Errorf("row %v, %d ports", ok, v.Len("Port"))
	}
	c.write(`{"id":null,"method":"update","params":["%s",{"Port":{"%s":{"old":{"n":2,"addresses":"a"}}}}]}`, dataMonitor, row1)
	if v := f.awaitVersion(3); v.Len("Port") != 1 {
		t.Errorf("%d ports after one was deleted, want 1", v.Len("Port"))
	}
	c.write(`{"id":null,"method":"update","params":["%s",{"Port":{"%s":{}}}]}`, dataMonitor, row2)
	f.awaitError("neither old nor new")
}

func TestServersOfACluster(t *testing.T) {
	follower, leader := newFake(t), newFake(t)
	f := follow(t, clock.RealClock{}, follower.endpoint(), leader.endpoint())
	follower.accept().suits(`{"name":"Test","connected":true,"leader":false}`)
	c := leader.accept()
	if _, err := f.View(); err == nil || !strings.Contains(err.Error(), follower.endpoint()+": monitor_cond_since: the server is not the leader") {
		t.Errorf("the error does not name the server that is not the leader: %v", err)
	}
	c.open(onePort)
	first := f.awaitVersion(1)
	c.conn.Close()
	c = follower.accept()
	c.open(onePort)
	v := f.awaitVersion(2)
	if v.Session != 2 || v.TableVersion("Port") != 1 {
		t.Errorf("session %d, ports of version %d", v.Session, v.TableVersion("Port"))
	}
	c.update(txn2, `{"Port":{"`+row2+`":{"insert":{}}}}`)
	f.awaitVersion(3)
	if first.Len("Port") != 1 || v.Len("Port") != 1 {
		t.Errorf("the views of before have %d and %d ports now", first.Len("Port"), v.Len("Port"))
	}
}

// TestViewsAreOfOneTransaction has rows of two tables change together, and holds
// that no view ever has one without the other.
func TestViewsAreOfOneTransaction(t *testing.T) {
	server := newFake(t)
	f := follow(t, clock.RealClock{}, server.endpoint())
	c := server.accept()
	c.open(`{"Port":{"` + row1 + `":{"initial":{"n":0}}},"Group":{"` + row2 + `":{"initial":{"tag":0}}}}`)
	f.awaitVersion(1)
	const last = 2000
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for seen := uint64(0); seen < last+1; {
				v, err := f.View()
				if err != nil {
					t.Errorf("no view: %v", err)
					return
				}
				port, _ := v.Get("Port", row1)
				group, _ := v.Get("Group", row2)
				if port.Int("n") != group.Int("tag") || v.Version != uint64(port.Int("n"))+1 || v.Version < seen {
					t.Errorf("version %d after %d: the port has %d, the group %d", v.Version, seen, port.Int("n"), group.Int("tag"))
					return
				}
				seen = v.Version
			}
		})
	}
	for n := 1; n <= last; n++ {
		c.write(`{"id":null,"method":"update3","params":["%s","%s",{"Port":{"%s":{"modify":{"n":%d}}},"Group":{"%s":{"modify":{"tag":%d}}}}]}`,
			dataMonitor, txn1, row1, n, row2, n)
	}
	readers.Wait()
}

// stepUntil lets the time pass, a second after the other, until the condition
// holds.
func stepUntil(t *testing.T, c *clocktesting.FakeClock, what string, holds func() bool) time.Duration {
	t.Helper()
	began := c.Now()
	for deadline := time.Now().Add(patient); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
		if c.HasWaiters() {
			c.Step(100 * time.Millisecond)
		}
	}
	return c.Since(began)
}

func TestServerThatFallsSilent(t *testing.T) {
	server := newFake(t)
	fakeClock := clocktesting.NewFakeClock(time.Now())
	f := follow(t, fakeClock, server.endpoint())
	c := server.accept()
	c.open(onePort)
	f.awaitVersion(1)

	// As long as it answers it is not given up.
	for range 3 {
		asked := make(chan request, 1)
		go func() { asked <- c.expect("echo") }()
		var r request
		stepUntil(t, fakeClock, "the server is asked", func() bool {
			select {
			case r = <-asked:
				return true
			default:
				return false
			}
		})
		c.write(`{"id":%s,"result":[],"error":null}`, r.ID)
	}
	if _, err := f.View(); err != nil {
		t.Errorf("there is no view of a server that answers: %v", err)
	}
	var why error
	took := stepUntil(t, fakeClock, "the server is given up", func() bool {
		_, why = f.View()
		return why != nil
	})
	if !strings.Contains(why.Error(), "the server has been silent for") || took < patience-probeAfter {
		t.Errorf("given up after %v: %v", took, why)
	}
	next := make(chan *fakeConn, 1)
	go func() { next <- server.accept() }()
	stepUntil(t, fakeClock, "the client comes back", func() bool { return len(next) > 0 })
	(<-next).open(onePort)
	f.awaitVersion(2)
}

func TestIncrement(t *testing.T) {
	server := newFake(t)
	f := follow(t, clock.RealClock{}, server.endpoint())
	if _, err := f.Increment(t.Context(), "Global", "cfg"); err == nil {
		t.Error("an increment without a connection: no error")
	}
	c := server.accept()
	c.open(onePort)
	f.awaitVersion(1)

	got := make(chan int64, 1)
	go func() {
		n, err := f.Increment(context.Background(), "Global", "cfg")
		if err != nil {
			t.Errorf("increment: %v", err)
		}
		got <- n
	}()
	r := c.answer("transact", `[{"count":1},{"rows":[{"cfg":8}]}]`)
	want := `["Test",{"mutations":[["cfg","+=",1]],"op":"mutate","table":"Global","where":[]},{"columns":["cfg"],"op":"select","table":"Global","where":[]}]`
	if string(r.Params) != want {
		t.Errorf("the transaction is %s, want %s", r.Params, want)
	}
	if n := <-got; n != 8 {
		t.Errorf("increment gave %d, want 8", n)
	}
	for _, wrong := range [][2]string{{"Port", "n"}, {"Global", "name"}, {"Nope", "cfg"}} {
		if _, err := f.Increment(t.Context(), wrong[0], wrong[1]); err == nil {
			t.Errorf("increment %s of %s: no error", wrong[1], wrong[0])
		}
	}
	lost := make(chan error, 1)
	go func() {
		_, err := f.Increment(context.Background(), "Global", "cfg")
		lost <- err
	}()
	c.expect("transact")
	c.conn.Close()
	if err := <-lost; err == nil {
		t.Error("an increment whose answer was lost: no error")
	}
}

func TestRunIsCalledOnce(t *testing.T) {
	server := newFake(t)
	f := follow(t, clock.RealClock{}, server.endpoint())
	server.accept()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Run(ctx); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("the second Run returned %v", err)
	}
}
