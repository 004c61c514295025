// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestParseStat(t *testing.T) {
	const rest = " S 1 2 2 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 0 0"
	for name, tc := range map[string]struct {
		content string
		state   string
		start   uint64
		fails   bool
	}{
		"plain":                         {"7 (sleep)" + rest, "S", 12345, false},
		"command with parenthesis":      {"7 (a) R 1 (b)" + rest, "S", 12345, false},
		"command with a line break":     {"7 (a\nb)" + rest, "S", 12345, false},
		"empty":                         {"", "", 0, true},
		"cut":                           {"7 (sleep) S 1 2", "", 0, true},
		"start time that is no number":  {"7 (x)" + strings.Replace(rest, "12345", "x", 1), "", 0, true},
		"start time that is negative":   {"7 (x)" + strings.Replace(rest, "12345", "-1", 1), "", 0, true},
		"no command":                    {"7 sleep S", "", 0, true},
		"spaces in the command's place": {"7 ( )" + rest, "S", 12345, false},
	} {
		t.Run(name, func(t *testing.T) {
			state, start, err := parseStat(tc.content)
			if (err != nil) != tc.fails || state != tc.state || start != tc.start {
				t.Errorf("got %q, %d, %v", state, start, err)
			}
		})
	}
}

func TestIdentityAlive(t *testing.T) {
	self, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !self.alive() {
		t.Error("this process is not alive")
	}
	// The same PID given to another process.
	self.Start++
	if self.alive() {
		t.Error("a process with another start time is taken for this one")
	}
	cmd := exec.CommandContext(t.Context(), "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for child.alive() { // until it is a zombie
		if t.Context().Err() != nil {
			t.Fatal("a zombie is taken for alive")
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestLaunch(t *testing.T) {
	dir := t.TempDir()
	// A plain file in place of the cgroup's, to see what is written.
	procs := filepath.Join(dir, "cgroup.procs")
	l := launch{
		name: "shell", cgroupProcs: procs, env: []string{"GREETING=hello"},
		argv: []string{"/bin/sh", "-c", "echo $$ $GREETING; echo fault >&2; kill -TERM $$"},
	}
	p, err := l.start(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = p.Wait(t.Context())
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("Wait says %v, want an end by SIGTERM", err)
	}
	if !p.Exited() || !errors.Is(p.Signal(syscall.SIGTERM), os.ErrProcessDone) {
		t.Error("an ended process has not exited")
	}
	joined, err := os.ReadFile(procs)
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(joined))
	if got, want := logTail(p.Log()), pid+" hello\nfault"; got != want {
		t.Errorf("the log is %q, want %q: one process ID before and after exec, and both outputs", got, want)
	}
}

func TestLaunchFailsWithoutItsCgroup(t *testing.T) {
	dir := t.TempDir()
	l := launch{name: "x", cgroupProcs: filepath.Join(dir, "absent", "cgroup.procs"), argv: []string{"touch", filepath.Join(dir, "ran")}}
	if err := l.command(context.Background()).Run(); err == nil {
		t.Error("a process that could not join its cgroup runs")
	}
	if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
		t.Error("a process that could not join its cgroup ran")
	}
}

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("line\n", 5000)+"last\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := logTail(path)
	if lines := strings.Split(got, "\n"); len(lines) != 12 || lines[11] != "last" {
		t.Errorf("got %q", got)
	}
	if got := logTail(path + "-absent"); !strings.Contains(got, "no such file") {
		t.Errorf("for an absent log: %q", got)
	}
}

func TestNamesCgroup(t *testing.T) {
	for _, tc := range []struct {
		content string
		want    bool
	}{
		{"0::/policygate/a\n", true},
		{"0::/policygate/a/n1/pods/x\n", true},
		{"9:name=systemd:/\n8:pids:/policygate/a/cp\n", true},
		{"0::/policygate/ab\n", false}, // another cluster, whose name begins the same
		{"0::/\n", false},
		{"", false},
	} {
		if got := namesCgroup(tc.content, "policygate/a"); got != tc.want {
			t.Errorf("%q: got %v", tc.content, got)
		}
	}
}
