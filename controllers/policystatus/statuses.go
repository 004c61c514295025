// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/queue"
)

const (
	// writesPerSecond is how many requests are made in all; a creation takes
	// two.
	writesPerSecond = 20
	// transitionInterval and numbersInterval are how far a transition and
	// other changes are from the object's last write, at least.
	transitionInterval = time.Second
	numbersInterval    = 10 * time.Second
	// writeTimeout bounds one write; retryFirst and retryMost are when one that
	// failed is tried again.
	writeTimeout = 5 * time.Second
	retryFirst   = time.Second
	retryMost    = time.Minute
)

// kind is what a write does; empty: nothing.
type kind string

// The kinds.
const (
	// creation makes an object and writes its status.
	creation kind = "create"
	// transition writes another condition, generation, or number of nodes.
	transition kind = "transition"
	// numbers writes anything else.
	numbers kind = "numbers"
	// deletion removes an object that is not the policy's.
	deletion kind = "delete"
)

// Policy names a NetworkPolicy.
type Policy struct {
	Name types.NamespacedName
	// UID is empty where it is not known.
	UID types.UID
}

// Write is what is to be written of one policy.
type Write struct {
	Policy Policy
	Kind   kind
	// Object is what there is; nil if nothing is.
	Object *v1alpha1.PolicyStatus
	// Status is what it is to say. Nobody writes to it.
	Status *v1alpha1.PolicyStatusStatus
	// Done is called with what was written or removed. It must not block.
	Done func(*v1alpha1.PolicyStatus)
}

// Objects writes PolicyStatus objects to the API.
type Objects interface {
	// Create makes an object without a status and returns it.
	Create(ctx context.Context, o *v1alpha1.PolicyStatus) (*v1alpha1.PolicyStatus, error)
	// UpdateStatus writes the status of o if the object is still of o's
	// resourceVersion, and returns it.
	UpdateStatus(ctx context.Context, o *v1alpha1.PolicyStatus) (*v1alpha1.PolicyStatus, error)
	// Delete removes o if it is still of o's uid and resourceVersion.
	Delete(ctx context.Context, o *v1alpha1.PolicyStatus) error
}

// Statuses writes what objects are to say, at a bounded rate. Its methods may
// be called from any goroutine.
type Statuses struct {
	objects Objects
	metrics *Metrics
	clock   clock.Clock
	log     logr.Logger
	limiter *rate.Limiter
	told    chan struct{}

	// mu guards the following.
	mu sync.Mutex
	// slips has a slip for each policy of which something is to be written or
	// was written, ready those whose turn may come, and later the others.
	slips map[types.NamespacedName]*slip
	ready queue.Queue[*slip]
	later queue.Timers[*slip]
}

// slip is what is to be written of one policy, and when it was written last.
type slip struct {
	queue.Timer
	// write is nil if nothing is to be written.
	write *Write
	// written is when a write was begun last, zero: never. retry is when one
	// may be tried after one that failed, of which there were that many.
	written, retry time.Time
	failures       int
	// in says in which lanes of ready the slip is.
	in [queue.Lanes]bool
}

// due returns when the slip's write may be made.
func (s *slip) due() time.Time {
	at := s.retry
	if s.written.IsZero() {
		return at
	}
	interval := transitionInterval
	if s.write.Kind == numbers {
		interval = numbersInterval
	}
	if next := s.written.Add(interval); next.After(at) {
		at = next
	}
	return at
}

// NewStatuses returns Statuses that write to o.
func NewStatuses(o Objects, m *Metrics, clk clock.Clock, log logr.Logger) *Statuses {
	return &Statuses{
		objects: o,
		metrics: m,
		clock:   clk,
		log:     log,
		limiter: rate.NewLimiter(writesPerSecond, writesPerSecond),
		told:    make(chan struct{}, 1),
		slips:   map[types.NamespacedName]*slip{},
	}
}

// Write asks for w, in place of what was asked for the same policy.
func (w *Statuses) Write(write Write) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.slips[write.Policy.Name]
	if s == nil {
		s = &slip{}
		w.slips[write.Policy.Name] = s
	}
	w.schedule(s, &write)
	select {
	case w.told <- struct{}{}:
	default:
	}
}

// schedule makes write what is to be written next. The caller holds mu.
func (w *Statuses) schedule(s *slip, write *Write) {
	s.write = write
	if due := s.due(); w.clock.Now().Before(due) {
		w.later.Set(s, due)
		return
	}
	w.later.Set(s, time.Time{})
	in := queue.Urgent
	if write.Kind == numbers {
		in = queue.Usual
	}
	if !s.in[in] {
		s.in[in] = true
		w.ready.Push(in, write.Policy.Name.Namespace, s)
	}
}

// Drop takes back what was asked for a policy.
func (w *Statuses) Drop(policy types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.slips[policy]; s != nil {
		s.write = nil
		w.later.Set(s, time.Time{})
	}
}

// Forget says that the policy is gone.
func (w *Statuses) Forget(policy types.NamespacedName) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.slips[policy]; s != nil {
		s.write = nil
		w.later.Set(s, time.Time{})
		delete(w.slips, policy)
	}
}

// NeedLeaderElection reports true: one replica writes.
func (w *Statuses) NeedLeaderElection() bool { return true }

// Start writes until ctx ends; it returns nil then.
func (w *Statuses) Start(ctx context.Context) error {
	for ctx.Err() == nil {
		write, wait := w.next(w.clock.Now())
		if write != nil {
			w.make(ctx, write)
			continue
		}
		timer := w.clock.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-w.told:
		case <-timer.C():
		}
		timer.Stop()
	}
	return nil
}

// next takes the write that is to be made now. If there is none it returns when
// there may be, unless another is asked for before.
func (w *Statuses) next(now time.Time) (*Write, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s, ok := w.later.Pop(now); ok; s, ok = w.later.Pop(now) {
		w.schedule(s, s.write)
	}
	for !w.ready.Empty() {
		// A creation takes two, so what is left over is a debt of at most one.
		if w.limiter.TokensAt(now) < 1 {
			return nil, time.Second / writesPerSecond
		}
		s, in, _ := w.ready.Pop()
		s.in[in] = false
		write := s.write
		switch {
		case write == nil: // taken back, or written from the other lane
			continue
		case now.Before(s.due()): // replaced by what is not as urgent
			w.later.Set(s, s.due())
			continue
		}
		requests := 1
		if write.Kind == creation {
			requests = 2
		}
		w.limiter.ReserveN(now, requests)
		s.write, s.written = nil, now
		return write, 0
	}
	if due := w.later.Next(); !due.IsZero() {
		return nil, due.Sub(now)
	}
	return nil, numbersInterval
}

// make makes one write and says what came of it.
func (w *Statuses) make(ctx context.Context, write *Write) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	o, err := w.perform(ctx, write)
	if o != nil {
		write.Done(o)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.slips[write.Policy.Name]
	if err == nil {
		w.metrics.wrote(write.Kind)
		switch {
		case s == nil:
		case write.Policy.UID == "": // there is no policy, and no object any more
			delete(w.slips, write.Policy.Name)
		default:
			s.failures, s.retry = 0, time.Time{}
		}
		return
	}
	log := w.log.WithValues("policy", write.Policy.Name, "kind", write.Kind)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		// What there is has changed: its event brings another write. Should
		// none come, this one is tried again.
		log.V(1).Info("status of a policy has changed meanwhile", "error", err.Error())
	case ctx.Err() != nil:
		log.Info("status of a policy was not written in time", "error", err.Error())
	default:
		log.Error(err, "status of a policy could not be written")
	}
	if s == nil {
		return // nobody waits for it any more
	}
	s.retry = w.clock.Now().Add(min(retryFirst<<min(s.failures, 10), retryMost))
	s.failures++
	if s.write == nil {
		if o != nil {
			write.Kind, write.Object = transition, o // it was made, and says nothing yet
		}
		s.write = write
	}
	w.schedule(s, s.write)
}

// perform makes the requests of one write. The object is what there is by now,
// or was; nil if that is not known.
func (w *Statuses) perform(ctx context.Context, write *Write) (*v1alpha1.PolicyStatus, error) {
	o := write.Object
	switch write.Kind {
	case deletion:
		if err := w.objects.Delete(ctx, o); err != nil {
			return nil, err
		}
		return o, nil
	case creation:
		made, err := w.objects.Create(ctx, newObject(write.Policy))
		if err != nil {
			return nil, err
		}
		o = made
	case transition, numbers:
	}
	next := o.DeepCopy()
	next.Status = *write.Status
	written, err := w.objects.UpdateStatus(ctx, next)
	if err != nil && write.Kind == creation {
		return o, err
	}
	return written, err
}

// newObject returns the object of a policy, which goes when the policy goes.
func newObject(p Policy) *v1alpha1.PolicyStatus {
	return &v1alpha1.PolicyStatus{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.Name.Namespace,
		Name:      p.Name.Name,
		OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Name: p.Name.Name, UID: p.UID,
			Controller: new(true),
		}},
	}}
}

// owned reports whether o belongs to the policy of that uid.
func owned(o *v1alpha1.PolicyStatus, uid types.UID) bool {
	owner := metav1.GetControllerOf(o)
	return owner != nil && owner.UID == uid
}

// newer reports whether known is of a later state than o. Both are of one uid.
func newer(known, o *v1alpha1.PolicyStatus) bool {
	order, err := resourceversion.CompareResourceVersion(known.ResourceVersion, o.ResourceVersion)
	return err == nil && order > 0
}

// difference returns the kind of write that makes after of before; empty if
// they say the same.
func difference(before, after *v1alpha1.PolicyStatusStatus) kind {
	for _, which := range []string{v1alpha1.PolicyProgrammed, v1alpha1.PolicyDegraded} {
		a, b := meta.FindStatusCondition(before.Conditions, which), meta.FindStatusCondition(after.Conditions, which)
		if (a == nil) != (b == nil) || a != nil && (a.Status != b.Status || a.Reason != b.Reason || a.ObservedGeneration != b.ObservedGeneration) {
			return transition
		}
	}
	switch {
	case !apiequality.Semantic.DeepEqual(before.Nodes, after.Nodes),
		!apiequality.Semantic.DeepEqual(before.ObservedGeneration, after.ObservedGeneration):
		return transition
	case !apiequality.Semantic.DeepEqual(before, after):
		return numbers
	}
	return ""
}
