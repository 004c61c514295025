// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package jsonrpc

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"
)

// peer is the other side of a connection.
type peer struct {
	t    *testing.T
	conn net.Conn
	in   *json.Decoder
}

func connect(t *testing.T, handle func(string, json.RawMessage) error) (*Conn, *peer) {
	t.Helper()
	ours, theirs := net.Pipe()
	c := New(ours, Options{MaxMessage: 1 << 10, Clock: clock.RealClock{}, Handle: handle})
	t.Cleanup(func() { c.Close(); theirs.Close() })
	return c, &peer{t: t, conn: theirs, in: json.NewDecoder(theirs)}
}

// read returns the next message.
func (p *peer) read() map[string]any {
	p.t.Helper()
	var m map[string]any
	if err := p.in.Decode(&m); err != nil {
		p.t.Fatalf("read a message: %v", err)
	}
	return m
}

func (p *peer) write(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.conn, text); err != nil {
		p.t.Fatalf("write %s: %v", text, err)
	}
}

type answer struct {
	result json.RawMessage
	err    error
}

// start calls and does not wait.
func start(c *Conn, method string, params ...any) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		result, err := c.Call(context.Background(), method, params...)
		answers <- answer{result, err}
	}()
	return answers
}

func TestCall(t *testing.T) {
	for name, test := range map[string]struct {
		response string
		want     string
		err      string
	}{
		"the result is given as it came":          {response: `{"id":1,"result":{"a":[1]},"error":null}`, want: `{"a":[1]}`},
		"a result without an error is one":        {response: `{"result":"x","id":1}`, want: `"x"`},
		"an error may be a text":                  {response: `{"id":1,"error":"br-x: unknown\n\tbridge\n"}`, err: "get: the server says: br-x: unknown  bridge"},
		"an error may have details":               {response: `{"id":1,"result":null,"error":{"error":"syntax error","details":"no"}}`, err: "syntax error (no)"},
		"an error may be anything":                {response: `{"id":1,"error":[7]}`, err: "[7]"},
		"what is not printable is not passed on":  {response: `{"id":1,"error":"a\u001b[1mb\u00e9"}`, err: "a?[1mb?"},
		"a long error is cut":                     {response: `{"id":1,"error":"` + strings.Repeat("x", 900) + `"}`, err: strings.Repeat("x", 300) + "..."},
		"an id that no request had is no answer":  {response: `{"id":2,"result":1}`, err: "id 2, which no request had"},
		"an id of another type is no answer":      {response: `{"id":"1","result":1}`, err: `id "1", which no request had`},
		"a message without id and method is none": {response: `{"result":1}`, err: "neither method nor id"},
		"text that is no JSON ends it":            {response: `{"id":1,}`, err: "malformed message"},
		"params must be an array":                 {response: `{"id":null,"method":"update","params":{}}`, err: "no array"},
	} {
		t.Run(name, func(t *testing.T) {
			c, p := connect(t, nil)
			answers := start(c, "get", "x", 1)
			want := map[string]any{"id": 1.0, "method": "get", "params": []any{"x", 1.0}}
			if diff := cmp.Diff(want, p.read()); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
			p.write(test.response)
			got := <-answers
			if string(got.result) != test.want {
				t.Errorf("result %s, want %s", got.result, test.want)
			}
			if test.err == "" && got.err != nil || test.err != "" && (got.err == nil || !strings.Contains(got.err.Error(), test.err)) {
				t.Errorf("error %v, want %q", got.err, test.err)
			}
		})
	}
}

func TestCallsAreAnsweredInAnyOrder(t *testing.T) {
	c, p := connect(t, nil)
	first := start(c, "one")
	p.read()
	second := start(c, "two")
	p.read()
	p.write(`{"id":2,"result":"second"}{"id":1,"result":"first"}`)
	if a := <-first; string(a.result) != `"first"` {
		t.Errorf("the first call got %s, %v", a.result, a.err)
	}
	if a := <-second; string(a.result) != `"second"` {
		t.Errorf("the second call got %s, %v", a.result, a.err)
	}
}

func TestLateResponseIsDropped(t *testing.T) {
	c, p := connect(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := c.Call(ctx, "slow")
		gone <- err
	}()
	p.read()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want that of the context", err)
	}
	p.write(`{"id":1,"result":"late"}`)
	answers := start(c, "next")
	p.read()
	p.write(`{"id":2,"result":"in time"}`)
	if a := <-answers; string(a.result) != `"in time"` {
		t.Errorf("the next call got %s, %v", a.result, a.err)
	}
}

func TestResultIsAppliedBeforeWhatFollows(t *testing.T) {
	var order []string
	handled := make(chan struct{})
	c, p := connect(t, func(method string, params json.RawMessage) error {
		order = append(order, method+string(params))
		if len(order) == 3 {
			close(handled)
		}
		return nil
	})
	errs := make(chan error, 1)
	go func() {
		errs <- c.CallThen(context.Background(), func(raw json.RawMessage) error {
			order = append(order, "result "+string(raw))
			return nil
		}, "monitor")
	}()
	p.read()
	p.write(`{"id":null,"method":"a","params":[]}{"id":1,"result":1}{"method":"b","params":[2]}`)
	<-handled
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a[]", "result 1", "b[2]"}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestResultThatCannotBeAppliedEndsTheConnection(t *testing.T) {
	c, p := connect(t, nil)
	bad := errors.New("not to be applied")
	errs := make(chan error, 1)
	go func() {
		errs <- c.CallThen(context.Background(), func(json.RawMessage) error { return bad }, "monitor")
	}()
	p.read()
	p.write(`{"id":1,"result":1}`)
	if err := <-errs; !errors.Is(err, bad) {
		t.Errorf("the call's error is %v", err)
	}
	<-c.Done()
	if err := c.Err(); !errors.Is(err, bad) {
		t.Errorf("the connection ended for %v", err)
	}
}

func TestRequestsOfTheServer(t *testing.T) {
	_, p := connect(t, nil)
	p.write(`{"id":"echo","method":"echo","params":[1,"a"]}`)
	want := map[string]any{"id": "echo", "result": []any{1.0, "a"}, "error": nil}
	if diff := cmp.Diff(want, p.read()); diff != "" {
		t.Errorf("answer to an echo (-want +got):\n%s", diff)
	}
	p.write(`{"id":7,"method":"steal","params":[]}`)
	want = map[string]any{"id": 7.0, "result": nil, "error": "unknown method"}
	if diff := cmp.Diff(want, p.read()); diff != "" {
		t.Errorf("answer to another request (-want +got):\n%s", diff)
	}
}

func TestEndOfTheConnection(t *testing.T) {
	refused := errors.New("refused")
	for name, test := range map[string]struct {
		end  func(*Conn, *peer)
		want error
	}{
		"the server closes it": {
			end:  func(_ *Conn, p *peer) { p.conn.Close() },
			want: io.EOF,
		},
		"the server closes it within a message": {
			end:  func(_ *Conn, p *peer) { p.write(`{"id":1,"res`); p.conn.Close() },
			want: io.ErrUnexpectedEOF,
		},
		"it is closed": {
			end:  func(c *Conn, _ *peer) { c.Close(); c.Close() },
			want: ErrClosed,
		},
		"a notification is refused": {
			end:  func(_ *Conn, p *peer) { p.write(`{"id":null,"method":"x","params":[]}`) },
			want: refused,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, p := connect(t, func(string, json.RawMessage) error { return refused })
			if err := c.Err(); err != nil {
				t.Fatalf("the connection has ended before it did: %v", err)
			}
			waits := start(c, "get")
			p.read()
			test.end(c, p)
			if a := <-waits; !errors.Is(a.err, test.want) {
				t.Errorf("the call that waited got %v, want %v", a.err, test.want)
			}
			<-c.Done()
			if err := c.Err(); !errors.Is(err, test.want) {
				t.Errorf("the connection ended for %v, want %v", err, test.want)
			}
			if _, err := c.Call(t.Context(), "get"); !errors.Is(err, test.want) {
				t.Errorf("a later call got %v, want %v", err, test.want)
			}
		})
	}
}

func TestContextEndsACallThatIsNotRead(t *testing.T) {
	c, _ := connect(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Nobody reads the pipe, so half of the message may have been sent.
	if _, err := c.Call(ctx, "get"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

func TestParseEndpoint(t *testing.T) {
	for text, want := range map[string]struct {
		network, address string
		secure           bool
		err              string
	}{
		"unix:/run/ovn/ovnnb_db.sock": {network: "unix", address: "/run/ovn/ovnnb_db.sock"},
		"tcp:10.0.0.1:6641":           {network: "tcp", address: "10.0.0.1:6641"},
		"tcp:[10.0.0.1]:6641":         {network: "tcp", address: "10.0.0.1:6641"},
		"ssl:[fd00::1]:6641":          {network: "tcp", address: "[fd00::1]:6641", secure: true},
		"ssl:ovn-nb.kube-system:6641": {network: "tcp", address: "ovn-nb.kube-system:6641", secure: true},
		"unix:":                       {err: "no path"},
		"tcp:10.0.0.1":                {err: "no host or no port"},
		"tcp::6641":                   {err: "no host or no port"},
		"tcp:fd00::1:6641":            {err: "no host or no port"},
		"ptcp:6641":                   {err: "unknown kind"},
		"":                            {err: "unknown kind"},
	} {
		t.Run(text, func(t *testing.T) {
			e, err := ParseEndpoint(text)
			if want.err != "" {
				if err == nil || !strings.Contains(err.Error(), want.err) {
					t.Fatalf("error %v, want %q", err, want.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if e.network != want.network || e.address != want.address || e.Secure() != want.secure || e.String() != text {
				t.Errorf("got %+v, want %+v", e, want)
			}
		})
	}
}
