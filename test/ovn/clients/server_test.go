// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

const (
	northboundSchema = "/usr/share/ovn/ovn-nb.ovsschema"
	vswitchSchema    = "/usr/share/openvswitch/vswitch.ovsschema"
	northbound       = "OVN_Northbound"

	// patient is how long a test waits for what must come.
	patient = 60 * time.Second
)

// directory returns a directory whose sockets' paths are short enough.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ovs") //nolint:usetesting // The paths of sockets have 107 bytes at most.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// run runs a program to its end and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, failed bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &failed
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, failed.String())
	}
	return out.String()
}

// process is a daemon that runs in the foreground.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	ended  chan struct{}
	output bytes.Buffer
}

// start starts a daemon, which ends with the test.
func start(t *testing.T, configure func(*exec.Cmd), name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(name, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	// Should the test itself be killed, nothing of it stays.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if configure != nil {
		configure(p.cmd)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill ends the daemon without a chance to tidy up.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

func (p *process) signal(s syscall.Signal) {
	select {
	case <-p.ended:
	default:
		_ = p.cmd.Process.Signal(s)
	}
}

// await waits until the condition holds, and fails the test with what the
// processes said if it does not.
func await(t *testing.T, what string, holds func() bool, processes ...*process) {
	t.Helper()
	for deadline := time.Now().Add(patient); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, p := range processes {
				p.kill()
				t.Logf("%s:\n%s", p.cmd.Path, p.output.String())
			}
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// answers returns whether somebody listens on the unix socket.
func answers(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// server is an ovsdb-server with one database.
type server struct {
	*process
	t        *testing.T
	dir      string
	database string
	args     []string
}

// serve starts an ovsdb-server with a new, standalone database.
func serve(t *testing.T, schema string, args ...string) *server {
	t.Helper()
	s := &server{t: t, dir: directory(t), args: args}
	s.database = strings.TrimSpace(run(t, "ovsdb-tool", "schema-name", schema))
	run(t, "ovsdb-tool", "create", s.file(), schema)
	s.start()
	return s
}

func (s *server) file() string     { return filepath.Join(s.dir, "db") }
func (s *server) socket() string   { return filepath.Join(s.dir, "db.sock") }
func (s *server) endpoint() string { return "unix:" + s.socket() }

// start starts it, or starts it again.
func (s *server) start() {
	s.t.Helper()
	args := append([]string{
		s.file(), "--remote=punix:" + s.socket(), "--unixctl=" + filepath.Join(s.dir, "ctl"), "--no-chdir",
	}, s.args...)
	s.process = start(s.t, nil, "ovsdb-server", args...)
	await(s.t, "ovsdb-server listens", func() bool { return answers(s.socket()) }, s.process)
}

// transact commits operations, as any other client would, and returns their
// results.
func (s *server) transact(operations ...any) []any {
	s.t.Helper()
	text, err := json.Marshal(append([]any{s.database}, operations...))
	if err != nil {
		s.t.Fatal(err)
	}
	out := run(s.t, "ovsdb-client", "transact", s.endpoint(), string(text))
	var results []any
	if err := json.Unmarshal([]byte(out), &results); err != nil {
		s.t.Fatalf("transact: %v in %s", err, out)
	}
	for _, r := range results {
		if m, ok := r.(map[string]any); ok && m["error"] != nil {
			s.t.Fatalf("transact: %v", m)
		}
	}
	return results
}

type object = map[string]any

func set(elements ...any) []any { return []any{"set", append([]any{}, elements...)} }

func dict(pairs ...any) []any {
	all := []any{}
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, []any{pairs[i], pairs[i+1]})
	}
	return []any{"map", all}
}

// client is a client that runs until the test ends.
type client struct {
	*ovsdb.Client
	t *testing.T
	// changed has a value if something has changed since it was last read.
	changed chan struct{}
	logged  *journal
	end     func()
}

// journal is what was logged.
type journal struct{ lines chan string }

func (j *journal) drain() []string {
	var all []string
	for {
		select {
		case line := <-j.lines:
			all = append(all, line)
		default:
			return all
		}
	}
}

// follow starts a client; what o lacks gets the northbound's defaults.
func follow(t *testing.T, o ovsdb.Options) *client {
	t.Helper()
	c := &client{t: t, changed: make(chan struct{}, 1), logged: &journal{lines: make(chan string, 1000)}}
	if o.Database == "" {
		o.Database = northbound
	}
	if o.Tables == nil {
		o.Tables = northboundTables()
	}
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	o.Log = funcr.New(func(_, args string) {
		select {
		case c.logged.lines <- args:
		default:
		}
	}, funcr.Options{})
	o.Changed = func() {
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
	var err error
	if c.Client, err = ovsdb.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	c.end = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		ended <- nil
	}
	t.Cleanup(c.end)
	return c
}

// awaitView waits for a view that suits, woken by Changed alone.
func (c *client) awaitView(what string, suits func(*ovsdb.View) bool) *ovsdb.View {
	c.t.Helper()
	timeout := time.After(patient)
	for {
		v, err := c.View()
		if err == nil && suits(v) {
			return v
		}
		select {
		case <-c.changed:
		case <-timeout:
			c.t.Fatalf("no view in which %s; the last error: %v; the log:\n%s", what, err, strings.Join(c.logged.drain(), "\n"))
		}
	}
}

// awaitError waits until there is no view for a reason with that text.
func (c *client) awaitError(text string) {
	c.t.Helper()
	await(c.t, fmt.Sprintf("there is no view because of %q; the log:\n%s", text, strings.Join(c.logged.drain(), "\n")), func() bool {
		_, err := c.View()
		return err != nil && strings.Contains(err.Error(), text)
	})
}

func whatever(*ovsdb.View) bool { return true }

// northboundTables are those that a NetworkPolicy becomes.
func northboundTables() []ovsdb.Table {
	return []ovsdb.Table{
		{Name: "NB_Global", Columns: []ovsdb.Column{{Name: "nb_cfg", As: ovsdb.Int}, {Name: "options", As: ovsdb.Map}}},
		{Name: "Port_Group", Columns: []ovsdb.Column{
			{Name: "name", As: ovsdb.String}, {Name: "ports", As: ovsdb.UUIDs}, {Name: "acls", As: ovsdb.UUIDs}, {Name: "external_ids", As: ovsdb.Map},
		}},
		{Name: "Address_Set", Columns: []ovsdb.Column{
			{Name: "name", As: ovsdb.String}, {Name: "addresses", As: ovsdb.Strings}, {Name: "external_ids", As: ovsdb.Map},
		}},
		{Name: "ACL", Columns: []ovsdb.Column{
			{Name: "name", As: ovsdb.String}, {Name: "priority", As: ovsdb.Int}, {Name: "direction", As: ovsdb.String}, {Name: "match", As: ovsdb.String},
			{Name: "action", As: ovsdb.String}, {Name: "log", As: ovsdb.Bool}, {Name: "external_ids", As: ovsdb.Map}, {Name: "tier", As: ovsdb.Int, Optional: true},
		}},
		{Name: "Logical_Switch", Columns: []ovsdb.Column{{Name: "name", As: ovsdb.String}, {Name: "ports", As: ovsdb.UUIDs}}},
		{Name: "Logical_Switch_Port", Columns: []ovsdb.Column{
			{Name: "name", As: ovsdb.String}, {Name: "addresses", As: ovsdb.Strings}, {Name: "tag", As: ovsdb.Int}, {Name: "up", As: ovsdb.Bool},
			{Name: "external_ids", As: ovsdb.Map},
		}},
		{Name: "Sampling_App", Columns: []ovsdb.Column{{Name: "id", As: ovsdb.Int}}, Optional: true},
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
