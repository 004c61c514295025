// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package unixctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"k8s.io/utils/clock"

	"github.com/policygate/policygate/internal/ovs/jsonrpc"
)

// maxMessage bounds an answer. Traces of OVN's flows are about 20 KB.
const maxMessage = 4 << 20

// maxPidfile is more than any pid and its newline take.
const maxPidfile = 32

// Options say where the daemon is.
type Options struct {
	// RunDir is Open vSwitch's run directory, with ovs-vswitchd.pid and
	// ovs-vswitchd.<pid>.ctl in it, like /run/openvswitch.
	RunDir string
	// Clock is the real one, but in tests.
	Clock clock.PassiveClock
}

// Session is a connection to one process of ovs-vswitchd. When that ends, so
// do the calls, with an error; a new Session then has another ID. All methods
// are safe for concurrent use.
type Session struct {
	id          string
	conn, waits *jsonrpc.Conn
}

// Connect connects to the daemon that runs now. ctx bounds that alone.
func Connect(ctx context.Context, o Options) (*Session, error) {
	before, err := find(o.RunDir)
	if err != nil {
		return nil, err
	}
	e, err := jsonrpc.ParseEndpoint("unix:" + before.socket)
	if err != nil {
		return nil, err
	}
	s := &Session{id: before.id()}
	limits := jsonrpc.Options{MaxMessage: maxMessage, Clock: o.Clock}
	if s.conn, err = jsonrpc.Dial(ctx, e, nil, limits); err != nil {
		return nil, fmt.Errorf("ovs-vswitchd: %w", err)
	}
	if s.waits, err = jsonrpc.Dial(ctx, e, nil, limits); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("ovs-vswitchd: %w", err)
	}
	// Nobody else may have taken its place between.
	after, err := find(o.RunDir)
	if err == nil && after != before {
		err = errors.New("ovs-vswitchd was restarted meanwhile")
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// ID names the process: two sessions with one ID are of the same. It is its
// pid and when it started, as its socket tells: the process itself may be in a
// pid namespace that is not seen from here.
func (s *Session) ID() string { return s.id }

// Close ends the session. Calls that wait return an error.
func (s *Session) Close() {
	s.conn.Close()
	s.waits.Close()
}

// daemon is a process of ovs-vswitchd.
type daemon struct {
	pid    int
	socket string
	// bound is when it bound the socket, in nanoseconds, and inode the
	// socket's. Neither changes with the socket's owner or mode.
	bound int64
	inode uint64
}

func (d daemon) id() string { return fmt.Sprintf("%d@%d/%d", d.pid, d.bound, d.inode) }

// find returns the daemon that the pidfile names.
func find(dir string) (daemon, error) {
	path := filepath.Join(dir, "ovs-vswitchd.pid")
	file, err := os.Open(path) //nolint:gosec // The directory is the operator's choice.
	if err != nil {
		return daemon{}, fmt.Errorf("ovs-vswitchd does not run: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxPidfile))
	if err != nil {
		return daemon{}, fmt.Errorf("ovs-vswitchd's pidfile: %w", err)
	}
	pid, err := parsePid(text)
	if err != nil {
		return daemon{}, fmt.Errorf("ovs-vswitchd's pidfile %s: %w", path, err)
	}
	d := daemon{pid: pid, socket: filepath.Join(dir, fmt.Sprintf("ovs-vswitchd.%d.ctl", pid))}
	info, err := os.Lstat(d.socket)
	if err != nil {
		return daemon{}, fmt.Errorf("ovs-vswitchd's control socket: %w", err)
	}
	if info.Mode().Type() != os.ModeSocket {
		return daemon{}, fmt.Errorf("ovs-vswitchd's control socket %s is none", d.socket)
	}
	d.bound = info.ModTime().UnixNano()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		d.inode = stat.Ino
	}
	return d, nil
}

func parsePid(text []byte) (int, error) {
	pid, err := strconv.Atoi(string(bytes.TrimSpace(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%.40q is no pid", text)
	}
	return pid, nil
}
