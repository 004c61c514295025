// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/controllers/queue"
)

// Reasons of Warning Events beside those of the Pod condition.
const (
	// ReasonUnsupported: the agent cannot see into the node's dataplane.
	ReasonUnsupported = "UnsupportedDataplane"
	// ReasonStalled: the node has confirmed nothing for long.
	ReasonStalled = "Stalled"
)

const (
	// warningsPerSecond and warningsBurst bound the Events in all.
	warningsPerSecond = 1
	warningsBurst     = 10
	// warningInterval is how often one object is warned about for one reason
	// at most. The API server keeps an Event for an hour.
	warningInterval = 10 * time.Minute
	// maxQueued bounds the warnings of one namespace that wait for their turn,
	// and maxWarned what is remembered of those before. Beyond that one is
	// dropped, or may come twice: conditions and metrics say the same.
	maxQueued = 64
	maxWarned = 10000
)

// Warning is something that a person should see. Its text is fit for whoever
// may see the object.
type Warning struct {
	Object corev1.ObjectReference
	// Reason is a CamelCase word, Note at most 1,024 bytes.
	Reason, Note string
}

// podReference and nodeReference are what Events are found by: kubectl looks for
// a Node's by its name as UID, as the kubelet writes them.
func podReference(uid types.UID, namespace, name string) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: namespace, Name: name, UID: uid}
}

func nodeReference(name string) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}
}

// Recorder writes Warning Events.
type Recorder interface {
	// Warn writes one. It must not block.
	Warn(w Warning)
}

// Warnings passes warnings on to a Recorder: on the elected replica only, not
// too many, the namespaces in turn. Its methods may be called from any
// goroutine. A nil *Warnings drops everything.
type Warnings struct {
	recorder Recorder
	clock    clock.Clock
	limiter  *rate.Limiter
	posted   chan struct{}

	// mu guards the following.
	mu      sync.Mutex
	leading bool
	queued  queue.Queue[Warning]
	// waiting counts what is queued by namespace, and warned has when objects
	// were warned about last.
	waiting map[string]int
	warned  map[subject]*warned
}

// subject is what is warned about once in a while.
type subject struct {
	object corev1.ObjectReference
	reason string
}

// warned is what was said of a subject last, and when. over is true if it has
// not been true since.
type warned struct {
	at   time.Time
	note string
	over bool
}

// NewWarnings returns Warnings that drop everything until Start is called.
func NewWarnings(r Recorder, clk clock.Clock) *Warnings {
	return &Warnings{
		recorder: r,
		clock:    clk,
		limiter:  rate.NewLimiter(warningsPerSecond, warningsBurst),
		posted:   make(chan struct{}, 1),
		waiting:  map[string]int{},
		warned:   map[subject]*warned{},
	}
}

// Warn has one written when its turn comes. It is dropped if this replica does
// not lead, if the object was warned about for that reason a short while ago
// or in the same words, and if too many wait. So it may be called as long as
// what it says is true.
func (w *Warnings) Warn(warning Warning) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	namespace, now := warning.Object.Namespace, w.clock.Now()
	if !w.leading || w.waiting[namespace] == maxQueued {
		return
	}
	about := subject{warning.Object, warning.Reason}
	last := w.warned[about]
	if last != nil && (now.Sub(last.at) < warningInterval || !last.over && last.note == warning.Note) {
		return
	}
	if len(w.warned) >= maxWarned {
		clear(w.warned)
	}
	w.warned[about] = &warned{at: now, note: warning.Note}
	w.waiting[namespace]++
	w.queued.Push(queue.Usual, namespace, warning)
	select {
	case w.posted <- struct{}{}:
	default:
	}
}

// Over says that a warning is true no more: the next in its words is news.
func (w *Warnings) Over(object corev1.ObjectReference, reason string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if last := w.warned[subject{object, reason}]; last != nil {
		last.over = true
	}
}

// NeedLeaderElection reports true.
func (w *Warnings) NeedLeaderElection() bool { return true }

// Start passes warnings on until ctx ends; it returns nil then.
func (w *Warnings) Start(ctx context.Context) error {
	w.lead(true)
	defer w.lead(false)
	for ctx.Err() == nil {
		next, wait := w.next(w.clock.Now())
		if next != nil {
			w.recorder.Warn(*next)
			continue
		}
		timer := w.clock.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-w.posted:
		case <-timer.C():
		}
		timer.Stop()
	}
	return nil
}

func (w *Warnings) lead(leading bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leading = leading
}

// next takes the warning whose turn it is. If it returns nil, there may be one
// after the time that it returns.
func (w *Warnings) next(now time.Time) (*Warning, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queued.Empty() {
		return nil, warningInterval
	}
	if !w.limiter.AllowN(now, 1) {
		return nil, time.Second / warningsPerSecond
	}
	next, _, _ := w.queued.Pop()
	if w.waiting[next.Object.Namespace]--; w.waiting[next.Object.Namespace] == 0 {
		delete(w.waiting, next.Object.Namespace)
	}
	return &next, 0
}
