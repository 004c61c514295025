// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package hub

import (
	"context"
	"strconv"
	"sync"
)

// line lets through so many callers at a time, and lets the sources from which
// they come take turns: a source that has many waiting delays another's first
// by one of its own. It is safe for concurrent use.
type line struct {
	mu      sync.Mutex // guards the following fields
	free    int
	turns   turns
	waiting map[string]*caller
	last    uint64
}

// caller is one that waits.
type caller struct {
	ticket *ticket
	// through is closed when the caller is let through.
	through chan struct{}
}

// newLine returns a line that lets through so many at a time.
func newLine(places int) *line {
	return &line{free: places, waiting: map[string]*caller{}}
}

// enter waits for a place. Whoever gets one gives it back with leave; the
// error is that of ctx, and then there is none.
func (l *line) enter(ctx context.Context, source string) error {
	l.mu.Lock()
	if l.free > 0 {
		l.free--
		l.mu.Unlock()
		return nil
	}
	l.last++
	name := strconv.FormatUint(l.last, 10)
	c := &caller{ticket: l.turns.add(source, name), through: make(chan struct{})}
	l.waiting[name] = c
	l.mu.Unlock()
	select {
	case <-c.through:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	_, waits := l.waiting[name]
	if waits {
		l.turns.remove(c.ticket)
		delete(l.waiting, name)
	}
	l.mu.Unlock()
	if !waits {
		// The place came at the same moment.
		l.leave()
	}
	return ctx.Err()
}

// leave gives a place to whose turn it is.
func (l *line) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	name, ok := l.turns.first()
	if !ok {
		l.free++
		return
	}
	c := l.waiting[name]
	l.turns.remove(c.ticket)
	delete(l.waiting, name)
	close(c.through)
}
