// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package procfile_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/policygate/policygate/agent/kernel/procfile"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAFileIsReadWholeEachTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f := procfile.New(path)
	defer func() { _ = f.Close() }()
	for _, size := range []int{0, 1, 512, 513, 5000, 3, 0, 512} {
		want := strings.Repeat("x", size)
		write(t, path, want)
		if got, err := f.Read(); err != nil || got != want {
			t.Errorf("%d bytes and %v: want %d", len(got), err, size)
		}
	}
}

func TestAFileThatComesLaterIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f := procfile.New(path)
	for range 2 {
		var at *fs.PathError
		if _, err := f.Read(); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &at) || at.Path != path {
			t.Errorf("error %v: want that %s is not there", err, path)
		}
	}
	write(t, path, "there")
	if got, err := f.Read(); err != nil || got != "there" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Errorf("Close: %v", err)
	}
	write(t, path, "again")
	if got, err := f.Read(); err != nil || got != "again" {
		t.Errorf("after Close: got %q, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestAFileThatWentAwayIsOpenedAnew(t *testing.T) {
	// What is left of a process says ESRCH, as what is left of a module's
	// files says EIO.
	child, err := os.StartProcess("/proc/self/exe", []string{"child", "-test.run", "^$"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "file")
	if err := os.Symlink(filepath.Join("/proc", strconv.Itoa(child.Pid), "limits"), link); err != nil {
		t.Fatal(err)
	}
	f := procfile.New(link)
	defer func() { _ = f.Close() }()
	before, err := f.Read()
	if err != nil || before == "" {
		t.Fatalf("got %q, %v", before, err)
	}
	if _, err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Read(); err == nil {
		t.Errorf("of a process that has ended: got %q", got)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	write(t, link, "new")
	if got, err := f.Read(); err != nil || got != "new" {
		t.Errorf("got %q, %v: want what is there now", got, err)
	}
}

func BenchmarkRead(b *testing.B) {
	const path = "/proc/self/net/protocols"
	f := procfile.New(path)
	defer func() { _ = f.Close() }()
	for name, read := range map[string]func() error{
		"Read":        func() error { _, err := f.Read(); return err },
		"os.ReadFile": func() error { _, err := os.ReadFile(path); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
