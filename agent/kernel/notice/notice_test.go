// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package notice

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"k8s.io/utils/clock"
)

// fake is a source that tells what is sent, and fails with what is sent.
type fake struct {
	told   chan string
	fails  chan error
	closed chan struct{}
	once   sync.Once
}

func newFake() *fake {
	return &fake{told: make(chan string), fails: make(chan error), closed: make(chan struct{})}
}

func (f *fake) Wait() (string, error) {
	select {
	case what := <-f.told:
		return what, nil
	case err := <-f.fails:
		return "", err
	case <-f.closed:
		return "", os.ErrClosed
	}
}

func (f *fake) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// record collects notices.
type record struct {
	mu  sync.Mutex
	all []string
}

func (r *record) add(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, what)
}

func (r *record) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

func TestASourceThatFailsIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		log := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
		r := New(Options{Clock: clock.RealClock{}, Log: log})
		var mu sync.Mutex // guards opened
		var opened []*fake
		at := func(i int) *fake {
			mu.Lock()
			defer mu.Unlock()
			return opened[i]
		}
		refused := 2
		r.commits = func() (source, error) {
			mu.Lock()
			defer mu.Unlock()
			if refused > 0 {
				refused--
				return nil, errors.New("not yet")
			}
			f := newFake()
			opened = append(opened, f)
			return f, nil
		}
		got := &record{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Watch(ctx, got.add); close(ended) }()
		expect := func(after time.Duration, want ...string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if diff := cmp.Diff(want, got.taken()); diff != "" {
				t.Errorf("notices (-want +got):\n%s", diff)
			}
		}
		expect(2*again-time.Millisecond, []string(nil)...)
		expect(time.Millisecond, Begun)
		at(0).told <- Commits
		expect(0, Commits)
		at(0).fails <- errors.New("broken")
		expect(0, []string(nil)...)
		<-at(0).closed
		expect(again, Begun)
		at(1).told <- Lost
		expect(0, Lost)
		cancel()
		<-ended
		<-at(1).closed
		if len(lines) != 4 {
			t.Errorf("log %q, want a line for each failure and for each end of one", lines)
		}
	})
}

func TestABurstIsNotToldOneByOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{Clock: clock.RealClock{}, Log: logr.Discard()})
		f := newFake()
		r.commits = func() (source, error) { return f, nil }
		got := &record{}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Watch(ctx, got.add); close(ended) }()
		began := time.Now()
		for range 10 {
			f.told <- Commits
		}
		if took := time.Since(began); took < 9*quiet {
			t.Errorf("ten notices in %v, want %v between them", took, quiet)
		}
		cancel()
		<-ended
	})
}

func TestTheLockFileTells(t *testing.T) {
	path := filepath.Join(t.TempDir(), "xtables.lock")
	if _, err := openLock(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v for a file that is not there, want %v", err, os.ErrNotExist)
	}
	touch := func() {
		t.Helper()
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	touch()
	l, err := openLock(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		touch()
		if what, err := l.Wait(); what != Lock || err != nil {
			t.Errorf("got %q, %v, want %q", what, err, Lock)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if what, err := l.Wait(); err == nil {
		t.Errorf("got %q after the file was removed, want an error", what)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if what, err := l.Wait(); err == nil {
		t.Errorf("got %q after Close, want an error", what)
	}
}
