// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package installation

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stopTimeout is how long a process that was asked to end may take; the
	// manager's Deployment gives it as long.
	stopTimeout = 10 * time.Second
	// clockTick is the unit of times in /proc/PID/stat, USER_HZ, which is 100
	// on every architecture that Go runs on.
	clockTick = 10 * time.Millisecond
)

// Command is what a Process runs.
type Command struct {
	// Name names the process and its log.
	Name string
	Argv []string
	// Env is added to this process's environment.
	Env []string
	// Credential is as whom it runs; nil is as this process. Of another user
	// than root it has no capability.
	Credential *syscall.Credential
	// Network is the network namespace that it runs in; nil is this process's.
	// It may be closed after the start.
	Network *os.File
}

// Process is a child of this process, which ends with it. Its methods may be
// called concurrently.
type Process struct {
	name string
	cmd  *exec.Cmd
	log  string
	// done is closed when the process has ended, with err set.
	done chan struct{}
	err  error
}

// Start runs a command with its output added to dir/<name>.log. The process is
// killed when this one ends.
func Start(dir string, c Command) (*Process, error) {
	p := &Process{name: c.Name, log: filepath.Join(dir, c.Name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	p.cmd = exec.Command(c.Argv[0], c.Argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), c.Env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: c.Credential}
	started := make(chan error, 1)
	go func() {
		// The signal comes when the thread that started the process ends. One
		// that was in another namespace is of no use to others.
		runtime.LockOSThread()
		defer log.Close()
		if c.Network == nil {
			defer runtime.UnlockOSThread()
		} else if err := unix.Setns(int(c.Network.Fd()), unix.CLONE_NEWNET); err != nil {
			started <- os.NewSyscallError("setns", err)
			return
		}
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	return p, nil
}

// PID returns its id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited reports whether the process has ended.
func (p *Process) Exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Err returns how the process has ended, with the end of its log, or nil while
// it runs.
func (p *Process) Err() error {
	if !p.Exited() {
		return nil
	}
	return fmt.Errorf("%s has ended: %w\n%s", p.name, errors.Join(p.err), p.Tail())
}

// Kill ends the process without a warning and waits until it has.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // the error says that it has ended
	<-p.done
}

// Stop asks the process to end and waits until it has. An error says that it
// had to be killed, or had ended before.
func (p *Process) Stop() error {
	if p.Exited() {
		return fmt.Errorf("%s has ended before it was asked to: %w\n%s", p.name, errors.Join(p.err), p.Tail())
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // the error says that it has ended
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		p.Kill()
		return fmt.Errorf("%s did not end within %s and was killed", p.name, stopTimeout)
	}
}

// Log returns the path of the process's output.
func (p *Process) Log() string { return p.log }

// Tail returns the last lines of the log, for an error's text.
func (p *Process) Tail() string {
	const most = 4096
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(text[max(0, len(text)-most):]))
}

// Usage is what a process has used.
type Usage struct {
	// CPU is the time on a processor since the process began, in user and
	// system mode.
	CPU time.Duration
	// RSS and PeakRSS are the memory that it has, and has had, in bytes.
	RSS, PeakRSS uint64
}

// Usage reads it from /proc.
func (p *Process) Usage() (Usage, error) {
	dir := "/proc/" + strconv.Itoa(p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", p.name, err)
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", p.name, err)
	}
	u, err := parseUsage(string(stat), string(status))
	if err != nil {
		return Usage{}, fmt.Errorf("usage of %s: %w", p.name, err)
	}
	return u, nil
}

// parseUsage reads the contents of /proc/PID/stat and /proc/PID/status.
func parseUsage(stat, status string) (Usage, error) {
	// The second field is the command in parentheses, and can hold any character.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // from the third field on
	if len(fields) < 13 {
		return Usage{}, fmt.Errorf("stat %q: want 15 fields or more", stat)
	}
	var u Usage
	for _, text := range fields[11:13] { // utime, stime
		ticks, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("stat %q: %w", stat, err)
		}
		u.CPU += time.Duration(ticks) * clockTick
	}
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		var to *uint64
		switch name {
		case "VmRSS":
			to = &u.RSS
		case "VmHWM":
			to = &u.PeakRSS
		default:
			continue
		}
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("status line %q: %w", line, err)
		}
		*to = kib << 10
	}
	return u, nil
}
