// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/test/engine/rules"
)

const (
	// look is how often the switches are read, idle or not: short against
	// every lag that a test sets, long against the cost of reading a file.
	look = 50 * time.Millisecond
	// retry is how long a failed sync waits for its second attempt.
	retry = time.Second
)

// Kernel programs one node.
type Kernel interface {
	// Apply makes the sets and the filter table of every family in the program
	// what it says, in the order that the package describes. After an error
	// anything from nothing to all of it may have been applied. between is
	// called once all sets are written and no rule is; if it returns an error,
	// so does Apply, at once.
	Apply(ctx context.Context, program rules.Program, between func() error) error
	// Remove removes the engine's own chains, jumps and sets of a family. It
	// is no error if there are none.
	Remove(ctx context.Context, family rules.Family) error
}

// Options configure an Engine. All fields but Report are required.
type Options struct {
	Client kubernetes.Interface
	// Node is the name of the node whose Pods are local.
	Node   string
	Kernel Kernel
	Rules  rules.Options
	// Control returns the switches as they are now. After an error the last
	// ones that were read stay.
	Control func() (Control, error)
	// SyncPeriod is the longest time between two syncs, 5m in kube-router.
	SyncPeriod time.Duration
	Clock      clock.WithTicker
	// Report is told of every change of State and of every error, one after
	// the other. Nil reports to nobody.
	Report func(State)
}

// State is what an engine has done so far.
type State struct {
	// Control are the switches that the engine goes by since this state.
	Control Control `json:"control"`
	// Frozen is true while the engine is at rest because of Control.Freeze.
	Frozen bool `json:"frozen"`
	// StaleKept is true while a snapshot is kept for Control.StaleSync.
	StaleKept bool `json:"staleKept"`
	// Syncs counts the programs that were applied, Stale those of them that
	// were a kept snapshot.
	Syncs int `json:"syncs"`
	Stale int `json:"stale"`
	// Last is how long the newest application took, without its lag.
	Last metav1.Duration `json:"last"`
	// Crashed is true in the last state of an engine that ends as
	// Control.Crash says.
	Crashed bool `json:"crashed,omitempty"`
	// Error is what went wrong in this step, empty if nothing did.
	Error string `json:"error,omitempty"`
}

// ErrCrashed is what Run returns because of Control.Crash.
var ErrCrashed = errors.New("crashed between sets and rules, as was asked for")

// Engine syncs one node. Make one with New; it is not for concurrent use.
type Engine struct {
	options Options
	// trigger holds at most one request for a sync.
	trigger chan struct{}
	watch   *watch
	state   State
	// crash is true from when Control.Crash is set until the engine ends.
	crash bool
	// controlRead is true once the switches were read.
	controlRead bool
	// controlError is the last error of the source of switches.
	controlError string
	// kept is the snapshot of Control.StaleSync, nil if there is none, and
	// keptSince the number of syncs when it was taken.
	kept      *snapshot
	keptSince int
	// applied are the local Pods of the last sync.
	applied map[podAddress]bool
	// next is when a Pod's lag ends, zero if none is waiting.
	next time.Time
	// ipv6 is true while the kernel may hold IPv6 rules of the engine.
	ipv6 bool
}

// New returns an engine that does nothing until Run.
func New(options Options) *Engine {
	return &Engine{
		options: options,
		trigger: make(chan struct{}, 1),
		ipv6:    slices.Contains(options.Rules.Families, rules.IPv6),
	}
}

// Run syncs until the context ends, which is no error, or until it crashes as
// Control.Crash says: the error is ErrCrashed then. It leaves in the kernel
// what is there.
func (e *Engine) Run(ctx context.Context) error {
	w, err := startWatch(ctx, e.options.Client, e.options.Node, e.options.Clock, e.request)
	if err != nil {
		if ctx.Err() != nil {
			return nil // ended before it could begin
		}
		return err
	}
	e.watch = w
	e.request()
	period := e.options.Clock.NewTicker(e.options.SyncPeriod)
	defer period.Stop()
	for ctx.Err() == nil {
		if e.state.Crashed {
			return ErrCrashed
		}
		e.readControl()
		switch {
		case e.state.Control.Freeze:
			e.thaw(ctx)
		case e.staleDue():
			e.syncStale(ctx)
		case e.podDue() || e.requested() || fired(period.C()):
			e.sync(ctx)
		default:
			e.pause(ctx, look)
		}
	}
	return nil
}

// request asks for a sync. It is safe for concurrent use and never blocks.
func (e *Engine) request() {
	select {
	case e.trigger <- struct{}{}:
	default:
	}
}

func (e *Engine) requested() bool { return fired(e.trigger) }

func fired[T any](c <-chan T) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// pause waits, but not longer than for the next request.
func (e *Engine) pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-e.options.Clock.After(d):
	case <-e.trigger:
		e.request()
	}
}

func (e *Engine) report() {
	if e.options.Report != nil {
		e.options.Report(e.state)
	}
	e.state.Error = ""
}

func (e *Engine) fail(err error) {
	e.state.Error = err.Error()
	e.report()
}

// readControl looks at the switches and does what their change asks for.
func (e *Engine) readControl() {
	c, err := e.options.Control()
	if err != nil {
		if e.controlError != err.Error() {
			e.controlError = err.Error()
			e.fail(err)
		}
		return
	}
	e.controlError = ""
	first := !e.controlRead
	e.controlRead = true
	if reflect.DeepEqual(c, e.state.Control) {
		return
	}
	before := e.state.Control
	e.state.Control = c
	if c.StaleSync != before.StaleSync {
		e.keep()
	}
	e.crash = c.Crash == CrashBetween && (e.crash || before.Crash != c.Crash && !first)
	e.request()
	e.report()
}

// keep takes the snapshot of Control.StaleSync, or drops it.
func (e *Engine) keep() {
	e.kept = nil
	e.state.StaleKept = false
	if e.state.Control.StaleSync.Duration == 0 {
		return
	}
	s, err := e.watch.snapshot(e.state.Control.PodLag.Duration)
	if err != nil {
		e.fail(err)
		return
	}
	e.kept, e.keptSince = &s, e.state.Syncs
	e.state.StaleKept = true
}

func (e *Engine) staleDue() bool {
	return e.kept != nil && e.state.Syncs > e.keptSince &&
		e.options.Clock.Since(e.kept.taken) >= e.state.Control.StaleSync.Duration
}

func (e *Engine) podDue() bool {
	return !e.next.IsZero() && !e.options.Clock.Now().Before(e.next)
}

// thaw rests until the engine may move again.
func (e *Engine) thaw(ctx context.Context) {
	e.state.Frozen = true
	e.report()
	for ctx.Err() == nil && e.state.Control.Freeze {
		select {
		case <-ctx.Done():
		case <-e.options.Clock.After(look):
			e.readControl()
		}
	}
	e.state.Frozen = false
	e.report()
	e.request()
}

// sync makes one full sync from a fresh snapshot.
func (e *Engine) sync(ctx context.Context) {
	s, err := e.watch.snapshot(e.state.Control.PodLag.Duration)
	if err != nil {
		e.failSync(ctx, err)
		return
	}
	e.next = s.next
	if !e.lag(ctx, s.taken) {
		return
	}
	local := map[podAddress]bool{}
	half := map[types.UID]bool{}
	for _, p := range s.input.Pods {
		if rules.Actionable(p) && slices.Contains(s.input.NodeAddresses, p.Status.HostIP) {
			local[addressOf(p)] = true
			half[p.UID] = e.state.Control.HalfProgrammed && !e.applied[addressOf(p)]
		}
	}
	s.input.HalfProgrammed = half
	if err := e.apply(ctx, s); err != nil {
		e.failSync(ctx, err)
		return
	}
	e.applied = local
	for _, incomplete := range half {
		if incomplete {
			e.request()
		}
	}
	e.report()
}

// syncStale applies the kept snapshot.
func (e *Engine) syncStale(ctx context.Context) {
	s := *e.kept
	e.kept = nil
	e.state.StaleKept = false
	if err := e.apply(ctx, s); err != nil {
		e.failSync(ctx, err)
		return
	}
	e.state.Stale++
	e.report()
	e.request()
}

func (e *Engine) failSync(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	if errors.Is(err, ErrCrashed) {
		e.state.Crashed = true
		e.report()
		return
	}
	e.fail(err)
	select {
	case <-ctx.Done():
	case <-e.options.Clock.After(retry):
	}
	e.request()
}

// lag waits until a snapshot is as old as the lag, which may change meanwhile.
// It returns false if the sync is to be given up.
func (e *Engine) lag(ctx context.Context, taken time.Time) bool {
	for {
		e.readControl()
		if e.state.Control.Freeze || ctx.Err() != nil {
			return false
		}
		left := e.state.Control.Lag.Duration - e.options.Clock.Since(taken)
		if left <= 0 {
			return true
		}
		select {
		case <-ctx.Done():
		case <-e.options.Clock.After(min(left, look)):
		}
	}
}

// apply writes a snapshot into the kernel.
func (e *Engine) apply(ctx context.Context, s snapshot) error {
	faults, err := e.state.Control.faults()
	if err != nil {
		return err
	}
	s.input.Faults = faults
	s.input.Shuffle = rand.Shuffle
	options := e.options.Rules
	without6 := e.state.Control.IPv6Off
	if without6 {
		options.Families = slices.DeleteFunc(slices.Clone(options.Families), func(f rules.Family) bool { return f == rules.IPv6 })
	}
	program, err := rules.Compile(s.taken.UnixNano(), options, s.input)
	if err != nil {
		return fmt.Errorf("compile: %w", err)
	}
	start := e.options.Clock.Now()
	var removed error
	if without6 && e.ipv6 {
		if removed = e.options.Kernel.Remove(ctx, rules.IPv6); removed == nil {
			e.ipv6 = false
		}
	}
	if err := errors.Join(removed, e.options.Kernel.Apply(ctx, program, e.between)); err != nil {
		return err
	}
	e.ipv6 = e.ipv6 || slices.Contains(options.Families, rules.IPv6)
	e.state.Syncs++
	e.state.Last = metav1.Duration{Duration: e.options.Clock.Since(start)}
	return nil
}

// between says whether the engine is to end before it writes the rules.
func (e *Engine) between() error {
	if e.crash {
		return ErrCrashed
	}
	return nil
}
