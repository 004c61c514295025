// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package notice tells when the node's rules may have changed, so that nobody
// has to wait for the next look that is due by the clock.
//
// nf_tables tells of each commit. The legacy tables tell nothing, but those
// who write them close iptables' lock file. Nothing tells of ipsets, and who
// writes the legacy tables with a lock file of their own goes unnoticed: the
// package hints, and never says that nothing has changed. It reads no rules.
package notice

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"
)

// The sources of notices.
const (
	// Begun is noticed when a source begins to be watched, or does again:
	// nothing is known of what changed before.
	Begun = "begun"
	// Commits are those of nf_tables.
	Commits = "nftables"
	// Lost are commits of nf_tables that were too many to be told of.
	Lost = "nftables-lost"
	// Lock is iptables' lock file.
	Lock = "xtables-lock"
)

const (
	// quiet is the least time between two notices of one source: an engine
	// commits hundreds of times in a second.
	quiet = 5 * time.Millisecond
	// again is the time until a source that failed is tried again, a lock file that
	// is not there yet included.
	again = 5 * time.Second
)

// Options are what a Rules is made of.
type Options struct {
	// XtablesLock is the path of iptables' lock file. Empty: it is not watched.
	XtablesLock string
	Clock       clock.Clock
	Log         logr.Logger
}

// Rules tells when the node's rules may have changed. It is made by New and
// holds nothing open unless Watch runs. It is safe for concurrent use.
type Rules struct {
	options Options
	// commits and lock open the sources.
	commits, lock func() (source, error)

	mu     sync.Mutex // guards failed
	failed map[string]bool
}

// source is something that tells of changes.
type source interface {
	// Wait returns the name of what was noticed. It fails after Close.
	Wait() (string, error)
	Close() error
}

// New returns Rules that watch nothing yet.
func New(o Options) *Rules {
	return &Rules{
		options: o,
		commits: func() (source, error) { return Join(0) },
		lock:    func() (source, error) { return openLock(o.XtablesLock) },
		failed:  map[string]bool{},
	}
}

// Watch calls noticed with the name of a source each time that something may
// have changed, until ctx ends; then it returns, having left nothing open. It
// watches the network namespace of the calling thread. noticed may be called
// concurrently.
func (r *Rules) Watch(ctx context.Context, noticed func(source string)) {
	var others sync.WaitGroup
	if r.options.XtablesLock != "" {
		others.Go(func() { r.follow(ctx, Lock, r.lock, noticed) })
	}
	r.follow(ctx, Commits, r.commits, noticed)
	others.Wait()
}

// follow reads one source, and opens it again when it fails.
func (r *Rules) follow(ctx context.Context, name string, open func() (source, error), noticed func(string)) {
	for ctx.Err() == nil {
		s, err := open()
		if err == nil {
			r.succeeded(name)
			noticed(Begun)
			err = r.read(ctx, s, noticed)
		}
		if ctx.Err() != nil {
			return
		}
		r.complain(name, err)
		r.pause(ctx, again)
	}
}

// read passes notices on until the source fails or ctx ends, and closes it.
func (r *Rules) read(ctx context.Context, s source, noticed func(string)) error {
	closed := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { closed <- s.Close() })
	for {
		what, err := s.Wait()
		if err != nil {
			if stop() {
				return errors.Join(err, s.Close())
			}
			return errors.Join(err, <-closed)
		}
		noticed(what)
		r.pause(ctx, quiet)
	}
}

// complain logs that a source fails, once until it works again.
func (r *Rules) complain(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.failed[name] {
		r.options.Log.Info("Changes of the rules are not noticed by this source: they are found by the next look that is due", "source", name, "why", err)
	}
	r.failed[name] = true
}

func (r *Rules) succeeded(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed[name] {
		r.options.Log.Info("Changes of the rules are noticed by this source again", "source", name)
	}
	delete(r.failed, name)
}

// pause waits, at most until ctx ends.
func (r *Rules) pause(ctx context.Context, d time.Duration) {
	timer := r.options.Clock.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C():
	}
}
