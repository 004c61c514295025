// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package queue

import "sync"

// Inbox is what others have one goroutine do, in order. Do is that goroutine's;
// everything else may be called by any.
type Inbox struct {
	posted chan struct{}

	mu   sync.Mutex // guards todo
	todo []func()
}

// NewInbox returns an Inbox that is empty.
func NewInbox() *Inbox { return &Inbox{posted: make(chan struct{}, 1)} }

// Post has do done behind all that was posted before.
func (b *Inbox) Post(do func()) {
	b.mu.Lock()
	b.todo = append(b.todo, do)
	b.mu.Unlock()
	select {
	case b.posted <- struct{}{}:
	default:
	}
}

// Posted receives after something was posted. It holds one element: there is
// one receiver.
func (b *Inbox) Posted() <-chan struct{} { return b.posted }

// Empty reports whether nothing is left to do.
func (b *Inbox) Empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.todo) == 0
}

// Do does what was posted before it was called.
func (b *Inbox) Do() {
	b.mu.Lock()
	todo := b.todo
	b.todo = nil
	b.mu.Unlock()
	for _, do := range todo {
		do()
	}
}
