// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

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
)

const (
	// stopTimeout is how long a process that was asked to end may take; the
	// manager's Deployment gives it as long.
	stopTimeout = 10 * time.Second
	// clockTick is the unit of times in /proc/PID/stat, USER_HZ, which is 100
	// on every architecture that Go runs on.
	clockTick = 10 * time.Millisecond
)

// process is a child of this process, which ends with it.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	// done is closed when the process has ended, with err set.
	done chan struct{}
	err  error
}

// start runs argv with its output in dir/name.log. The process is killed when
// this one ends.
func start(dir, name string, argv, env []string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The signal comes when the thread that started the process ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		if err := p.cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// exited reports whether the process has ended.
func (p *process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// kill ends the process without a warning and waits until it has.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // the error says that it has ended
	<-p.done
}

// stop asks the process to end and waits until it has. An error says that it
// had to be killed, or had ended before.
func (p *process) stop() error {
	if p.exited() {
		return fmt.Errorf("%s has ended before it was asked to: %w\n%s", p.name, errors.Join(p.err), p.tail())
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // the error says that it has ended
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		p.kill()
		return fmt.Errorf("%s did not end within %s and was killed", p.name, stopTimeout)
	}
}

// tail returns the last lines of the log, for an error's text.
func (p *process) tail() string {
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

// usage reads it from /proc.
func (p *process) usage() (Usage, error) {
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
