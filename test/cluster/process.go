// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// identity is a process, for good: the kernel gives a PID away again, but not with the same
// start time.
type identity struct {
	PID int
	// Start is the process' start in clock ticks since boot, field 22 of /proc/PID/stat.
	Start uint64
}

// identify returns the identity of a running process.
func identify(pid int) (identity, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	_, start, err := parseStat(string(content))
	if err != nil {
		return identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return identity{PID: pid, Start: start}, nil
}

// alive says whether the process still runs; a zombie does not.
func (i identity) alive() bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", i.PID))
	if err != nil {
		return false
	}
	state, start, err := parseStat(string(content))
	return err == nil && start == i.Start && state != "Z" && state != "X"
}

// parseStat returns the state and the start time in the content of a /proc/PID/stat.
func parseStat(content string) (state string, start uint64, err error) {
	// The second field is the command in parentheses, and can itself hold any character.
	end := strings.LastIndexByte(content, ')')
	if end < 0 {
		return "", 0, fmt.Errorf("malformed stat %q", content)
	}
	fields := strings.Fields(content[end+1:]) // from the third field on
	if len(fields) < 20 {
		return "", 0, fmt.Errorf("malformed stat %q", content)
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("malformed stat %q: %w", content, err)
	}
	return fields[0], start, nil
}

// Process is a process of a cluster: one of its own, one that StartProcess started, or a
// container's. Its methods may be called concurrently.
type Process struct {
	name     string
	log      string
	cgroup   string // of the cluster's; empty if another process or a runtime started it
	identity identity
	// done is closed when the process has ended; nil if it is not a child of this process.
	done chan struct{}
	// result is what Wait returns; set before done is closed.
	result error
}

// Pid returns the process' ID in the PID namespace of the caller.
func (p *Process) Pid() int { return p.identity.PID }

// Log returns the path of the file that holds the process' standard output and error; empty
// for a container's.
func (p *Process) Log() string { return p.log }

// Exited says whether the process has ended.
func (p *Process) Exited() bool {
	if p.done == nil {
		return !p.identity.alive()
	}
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal to the process. The error is os.ErrProcessDone if it has ended.
func (p *Process) Signal(signal syscall.Signal) error {
	// Between a look and the signal the process can end and its ID be given away, so the
	// signal goes to a descriptor, and the look follows once that is held.
	fd, err := unix.PidfdOpen(p.identity.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("send %v to %s: %w", signal, p.name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if p.Exited() || !p.identity.alive() {
		return os.ErrProcessDone
	}
	err = unix.PidfdSendSignal(fd, signal, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("send %v to %s: %w", signal, p.name, err)
	}
	return nil
}

// Freeze stops the process where it is until Thaw. What it has open stays open: peers see
// silence. Processes that it started go on. Cluster.Stop ends it, frozen as it is. The error
// is os.ErrProcessDone if it has ended.
func (p *Process) Freeze() error { return p.Signal(syscall.SIGSTOP) }

// Thaw lets a frozen process go on. The error is os.ErrProcessDone if it has ended.
func (p *Process) Thaw() error { return p.Signal(syscall.SIGCONT) }

// Kill ends the process as a crash would, frozen or not, and returns when it is gone. It is
// no error if it has ended already.
func (p *Process) Kill(ctx context.Context) error {
	if err := p.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if err := p.Wait(ctx); err != nil && ctx.Err() != nil {
		return err
	}
	return nil
}

// Wait returns when the process has ended: nil if its status was 0, an *exec.ExitError if
// not, or ctx's error if that ends first. For a process that another process started (see
// Load) the status is not known and the result nil.
func (p *Process) Wait(ctx context.Context) error {
	if p.done != nil {
		select {
		case <-p.done:
			return p.result
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
		}
	}
	for p.identity.alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// launch is what is needed to start a process as part of a cluster.
type launch struct {
	name string // names the log file
	argv []string
	env  []string // added to the environment of this process
	// cgroupProcs is the cgroup.procs file of the cgroup that the process joins first.
	cgroupProcs string
	// netns is the name of a network namespace; empty: the caller's.
	netns string
	// mountOf is a process whose mount namespace to use; 0: the caller's.
	mountOf int
}

// command returns the command that joins the cgroup and the namespaces and then becomes argv,
// all under one process ID.
func (l launch) command(ctx context.Context) *exec.Cmd {
	argv := []string{"-c", "echo $$ > \"$0\" && exec \"$@\"", l.cgroupProcs}
	if l.netns != "" || l.mountOf != 0 {
		// Not "ip netns exec": that mounts a new /sys over the cgroups.
		argv = append(argv, "nsenter")
		if l.netns != "" {
			argv = append(argv, "--net="+netnsPath(l.netns))
		}
		if l.mountOf != 0 {
			argv = append(argv, fmt.Sprintf("--mount=/proc/%d/ns/mnt", l.mountOf))
		}
		argv = append(argv, "--")
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", append(argv, l.argv...)...)
	cmd.Env = append(os.Environ(), l.env...)
	return cmd
}

// start starts the process in a session of its own, with its output appended to
// logDir/name.log; the standard output goes to stdout instead, unless that is nil. It outlives
// ctx and this process.
func (l launch) start(ctx context.Context, logDir string, stdout *os.File) (*Process, error) {
	p := &Process{name: l.name, log: filepath.Join(logDir, l.name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", l.name, err)
	}
	defer log.Close()
	cmd := l.command(context.WithoutCancel(ctx))
	cmd.Stdout, cmd.Stderr = log, log
	if stdout != nil {
		cmd.Stdout = stdout
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.name, err)
	}
	// It cannot be gone: until Wait below it is a zombie at least.
	if p.identity, err = identify(cmd.Process.Pid); err != nil {
		return nil, fmt.Errorf("start %s: %w", l.name, errors.Join(err, cmd.Process.Kill()))
	}
	go func() {
		defer close(p.done)
		p.result = cmd.Wait()
	}()
	return p, nil
}

// logTail returns the last lines of a log, for an error's text; the reason instead if it
// cannot be read.
func logTail(path string) string {
	const (
		maxBytes = 4096 // holds the lines below even where they carry a wrapped error
		maxLines = 12
	)
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxBytes {
		if _, err := f.Seek(-maxBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	content, err := io.ReadAll(f)
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return err.Error()
	}
	lines := slices.Collect(strings.Lines(string(content)))
	if len(lines) > maxLines {
		lines = lines[len(lines)-maxLines:]
	}
	return strings.TrimSpace(strings.Join(lines, ""))
}
