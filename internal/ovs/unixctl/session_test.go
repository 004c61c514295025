// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package unixctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"
)

// fake answers commands in the place of ovs-vswitchd, one after the other on
// each connection as it does.
type fake struct {
	t      *testing.T
	dir    string
	answer func(command string, params []string) string // "" answers never

	mu    sync.Mutex // guards asked
	asked []string
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir, err := os.MkdirTemp("", "unixctl") //nolint:usetesting // The paths of sockets have 107 bytes at most.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &fake{t: t, dir: dir}
}

func (f *fake) pidfile(text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, "ovs-vswitchd.pid"), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// listen starts a daemon of that pid.
func (f *fake) listen(pid int) net.Listener {
	f.t.Helper()
	l, err := net.Listen("unix", filepath.Join(f.dir, fmt.Sprintf("ovs-vswitchd.%d.ctl", pid)))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.t.Cleanup(func() { conn.Close() })
			go f.serve(conn)
		}
	}()
	return l
}

func (f *fake) serve(conn net.Conn) {
	for in := json.NewDecoder(conn); ; {
		var r struct {
			ID     json.RawMessage `json:"id"`
			Method string          `json:"method"`
			Params []string        `json:"params"`
		}
		if in.Decode(&r) != nil {
			return
		}
		f.mu.Lock()
		f.asked = append(f.asked, strings.Join(append([]string{r.Method}, r.Params...), " "))
		f.mu.Unlock()
		answer := f.answer(r.Method, r.Params)
		if answer == "" {
			return // and leaves the connection open
		}
		if _, err := fmt.Fprintf(conn, `{"id":%s,%s}`, r.ID, answer); err != nil {
			return
		}
	}
}

func (f *fake) connect() (*Session, error) {
	s, err := Connect(f.t.Context(), Options{RunDir: f.dir, Clock: clock.RealClock{}})
	if err == nil {
		f.t.Cleanup(s.Close)
	}
	return s, err
}

func TestCommands(t *testing.T) {
	f := newFake(t)
	f.answer = func(command string, params []string) string {
		switch {
		case command == "version":
			return `"result":"ovs-vswitchd (Open vSwitch) 3.1.0\n","error":null`
		case command == "revalidator/wait":
			return `"error":"can't wait on multiple udpifs.\n"`
		case len(params) == 2 && params[0] == "br-int":
			return `"result":"Flow: ` + params[1] + `\nDatapath actions: 2\n","error":null`
		case params[0] == "br-number":
			return `"result":7,"error":null`
		case params[0] == "br-null":
			return `"result":null,"error":null`
		}
		return `"error":"br-nope: unknown bridge\n"`
	}
	f.pidfile("12\n")
	f.listen(12)
	s, err := f.connect()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := s.Version(t.Context()); got != "ovs-vswitchd (Open vSwitch) 3.1.0" || err != nil {
		t.Errorf("version %q, %v", got, err)
	}
	if got, err := s.Trace(t.Context(), "br-int", "in_port=1, ip"); got != "Flow: in_port=1, ip\nDatapath actions: 2\n" || err != nil {
		t.Errorf("trace %q, %v", got, err)
	}
	for bridge, want := range map[string]string{
		"br-nope":   "ofproto/trace: the server says: br-nope: unknown bridge",
		"br-number": "the daemon's answer is no text",
		"br-null":   "the daemon's answer is no text",
	} {
		if got, err := s.Trace(t.Context(), bridge, "ip"); got != "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("trace of %s: %q, error %v, want %q", bridge, got, err, want)
		}
	}
	if err := s.WaitRevalidators(t.Context()); !errors.Is(err, ErrSeveralDatapaths) {
		t.Errorf("wait: %v", err)
	}
	for _, arguments := range [][2]string{
		{"br-int", "-generate"}, {"br-int", "--ct-next"}, {"-generate", "ip"}, {"", "ip"}, {"br-int", ""}, {"br int", "ip"},
		{"br-int", "ip\x00"}, {"br-int", "ip\n"}, {"br-int", "\u00fc"}, {strings.Repeat("b", maxBridge+1), "ip"}, {"br-int", strings.Repeat("f", maxFlow+1)},
	} {
		if _, err := s.Trace(t.Context(), arguments[0], arguments[1]); err == nil {
			t.Errorf("trace %.60q: no error", arguments)
		}
	}
	want := []string{
		"version", "ofproto/trace br-int in_port=1, ip", "ofproto/trace br-nope ip", "ofproto/trace br-null ip", "ofproto/trace br-number ip", "revalidator/wait",
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := map[string]bool{}
	for _, command := range f.asked {
		seen[command] = true
	}
	for _, command := range want {
		if !seen[command] {
			t.Errorf("%q was not sent", command)
		}
	}
	if len(f.asked) != len(want) {
		t.Errorf("sent %q, want %q in all", f.asked, want)
	}
}

func TestWaitKeepsNoTraceWaiting(t *testing.T) {
	f := newFake(t)
	f.pidfile("12")
	waits := make(chan struct{})
	f.answer = func(command string, _ []string) string {
		if command == "revalidator/wait" {
			close(waits)
			return ""
		}
		return `"result":"drop"`
	}
	f.listen(12)
	s, err := f.connect()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.WaitRevalidators(context.Background()) }()
	<-waits
	if got, err := s.Trace(t.Context(), "br-int", "ip"); got != "drop" || err != nil {
		t.Errorf("trace %q, %v", got, err)
	}
	s.Close()
	if err := <-ended; err == nil {
		t.Error("the wait of a closed session: no error")
	}
}

func TestDaemonThatDoesNotAnswer(t *testing.T) {
	f := newFake(t)
	f.pidfile("12")
	asked := make(chan struct{})
	f.answer = func(string, []string) string {
		close(asked)
		return ""
	}
	f.listen(12)
	s, err := f.connect()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := s.Trace(ctx, "br-int", "ip"); !errors.Is(err, context.Canceled) {
		t.Errorf("trace: %v", err)
	}
}

func TestConnect(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(f *fake)
		err     string // "" if a session is to be had
	}{
		"there is no pidfile":           {func(*fake) {}, "ovs-vswitchd does not run"},
		"the pidfile is empty":          {func(f *fake) { f.pidfile("") }, `"" is no pid`},
		"the pidfile holds no pid":      {func(f *fake) { f.pidfile("-3\n") }, `"-3\n" is no pid`},
		"the pidfile holds a path":      {func(f *fake) { f.pidfile("../x") }, "is no pid"},
		"there is no socket":            {func(f *fake) { f.pidfile("12") }, "control socket"},
		"the socket is of another":      {func(f *fake) { f.pidfile("12"); f.listen(13) }, "control socket"},
		"the socket is a file":          {func(f *fake) { f.pidfile("12"); f.touch("ovs-vswitchd.12.ctl") }, "is none"},
		"nobody listens on the socket":  {func(f *fake) { f.pidfile("12"); f.abandon(12) }, "refused"},
		"the daemon runs":               {func(f *fake) { f.pidfile("12\n"); f.listen(12) }, ""},
		"the daemon has a large number": {func(f *fake) { f.pidfile("4194304"); f.listen(4194304) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			test.prepare(f)
			s, err := f.connect()
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("session %v, error %v, want %q", s, err, test.err)
			}
		})
	}
}

func (f *fake) touch(name string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), nil, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) modified(name string) time.Time {
	f.t.Helper()
	info, err := os.Lstat(filepath.Join(f.dir, name))
	if err != nil {
		f.t.Fatal(err)
	}
	return info.ModTime()
}

// abandon leaves the socket of a daemon that was killed.
func (f *fake) abandon(pid int) {
	f.t.Helper()
	l := f.listen(pid)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
}

func TestIDTellsProcessesApart(t *testing.T) {
	f := newFake(t)
	f.pidfile("1")
	first := f.listen(1)
	id := func() string {
		s, err := f.connect()
		if err != nil {
			t.Fatal(err)
		}
		return s.ID()
	}
	before := id()
	if same := id(); same != before {
		t.Errorf("one daemon has the IDs %s and %s", before, same)
	}
	if err := os.Chmod(filepath.Join(f.dir, "ovs-vswitchd.1.ctl"), 0o700); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, id()); diff != "" {
		t.Errorf("another mode made another ID (-before +after):\n%s", diff)
	}
	// In a container the next one may have the same pid, and its socket the
	// same inode. File systems tell times by the kernel's tick.
	bound := f.modified("ovs-vswitchd.1.ctl")
	for f.touch("tick"); !f.modified("tick").After(bound); f.touch("tick") {
		time.Sleep(time.Millisecond)
	}
	first.Close()
	f.listen(1)
	if after := id(); after == before {
		t.Errorf("two daemons have the ID %s", after)
	}
}

func FuzzReply(f *testing.F) {
	f.Add([]byte(`"Flow: ip\nDatapath actions: drop\n"`))
	f.Add([]byte(`null`))
	f.Add([]byte(`"\ud800"`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := parseReply(raw)
		if err != nil && text != "" {
			t.Errorf("%q with the error %v", text, err)
		}
	})
}

func FuzzPidfile(f *testing.F) {
	f.Add([]byte("123\n"))
	f.Add([]byte("../../x"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if pid, err := parsePid(text); err == nil && pid <= 0 {
			t.Errorf("%q is taken for the pid %d", text, pid)
		}
	})
}

// FuzzArgument holds that nothing is sent that could be an option or several
// arguments.
func FuzzArgument(f *testing.F) {
	f.Add("in_port=1,ip")
	f.Add("-generate")
	f.Fuzz(func(t *testing.T, text string) {
		if checkArgument("flow", text, maxFlow) != nil {
			return
		}
		if text == "" || len(text) > maxFlow || text[0] == '-' || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q is sent", text)
		}
	})
}
