// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package reporter

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

const (
	// workers patch at a time: a node starts a few Pods at once, and its
	// share of the API server is small.
	workers = 4
	// patchTimeout bounds one request.
	patchTimeout = 10 * time.Second
	// firstRetry and lastRetry bound the time before a patch that failed is
	// tried again, slowRetry is for one that was refused.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 10 * time.Second
	slowRetry  = 30 * time.Second
	// echoWithin is how long after a gate was opened another release for it is
	// taken for an echo: of another replica, or of one that has not seen the
	// Pod's change yet. A replica that sees the gate shut releases again, and
	// at least each 5 s.
	echoWithin = 3 * time.Second
	// replicasWithin is how far apart the releases of several replicas for one
	// gate may be expected. After the echoes and within it the first one's patch
	// is sent again, so that the API server finds nothing to write and tells no
	// watcher, while a gate that was shut in between is opened.
	replicasWithin = 10 * time.Second
	// rememberFor is for how long an open gate's annotation may be written
	// again: by then the kubelet has looked by itself (60 to 90 s).
	rememberFor = 2 * time.Minute
)

// Subjects knows what this node confirms at present.
type Subjects interface {
	// Stale reports whether r was computed from an older state, or for other
	// addresses, than what is assigned, and why.
	Stale(r *hubv1.Release) (stale bool, reason string)
	// Holds takes one more look and reports whether the subject holds on this
	// node, its own. If not, it says why and reports the retraction.
	Holds(ctx context.Context, uid string) (holds bool, reason string)
}

// Options are what a Reporter is made of.
type Options struct {
	Subjects Subjects
	Pods     Pods
	// ConditionType is the readiness gate's.
	ConditionType corev1.PodConditionType
	// BootID is that of the node's present boot.
	BootID string
	Clock  clock.WithTicker
	Log    logr.Logger
	// Registerer exposes the metrics. nil: they are counted for nobody.
	Registerer prometheus.Registerer
}

// Reporter writes what was released. It is made by New and safe for
// concurrent use.
type Reporter struct {
	options Options
	queue   workqueue.TypedRateLimitingInterface[string]
	patches *prometheus.CounterVec

	mu sync.Mutex // guards the following fields
	// releases are those that are not written yet, by uid.
	releases map[string]*hubv1.Release
	// recent are the patches that were written within replicasWithin.
	recent map[gate]writing
	// opened are the gates that were opened within rememberFor, by uid.
	opened map[string]opened
	// refused are the uids whose refusal was logged.
	refused map[string]bool
}

// opened is a gate that this agent opened.
type opened struct {
	identity string
	at       time.Time
	// written is when it was opened last.
	written time.Time
	// again is how often its annotation was written again.
	again uint32
}

// writing is a patch and when it was written first.
type writing struct {
	patch []byte
	at    time.Time
}

// New returns a Reporter. It writes nothing before Run.
func New(o Options) *Reporter {
	return &Reporter{
		options: o,
		queue: workqueue.NewTypedRateLimitingQueueWithConfig(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](firstRetry, lastRetry),
			workqueue.TypedRateLimitingQueueConfig[string]{Clock: o.Clock},
		),
		patches: promauto.With(o.Registerer).NewCounterVec(prometheus.CounterOpts{
			Name: "policygate_agent_status_patches_total",
			Help: "Patches of Pod statuses that open a gate, by result (written, gone, refused, failed; again_ before it for one that only wakes the kubelet), and releases that were dropped (stale, not_held, malformed, not_opened, repeated).",
		}, []string{"result"}),
		releases: make(map[string]*hubv1.Release),
		recent:   make(map[gate]writing),
		opened:   make(map[string]opened),
		refused:  make(map[string]bool),
	}
}

// Release has r written, in place of an earlier release of its uid that is
// not written yet. It does not block. The message must not be changed
// afterwards.
func (r *Reporter) Release(release *hubv1.Release) {
	uid := release.GetSubject().GetUid()
	r.mu.Lock()
	r.releases[uid] = release
	r.mu.Unlock()
	r.queue.Add(uid)
}

// Run writes releases until ctx ends; then it returns nil.
func (r *Reporter) Run(ctx context.Context) error {
	var working sync.WaitGroup
	for range workers {
		working.Go(func() { r.work(ctx) })
	}
	<-ctx.Done()
	r.queue.ShutDown()
	working.Wait()
	return nil
}

// work handles one uid after the other until the queue is shut down.
func (r *Reporter) work(ctx context.Context) {
	for {
		uid, shutdown := r.queue.Get()
		if shutdown {
			return
		}
		if ctx.Err() == nil {
			r.handle(ctx, uid)
		}
		r.queue.Done(uid)
	}
}

// handle writes the release of uid, and plans the next try if it fails.
func (r *Reporter) handle(ctx context.Context, uid string) {
	r.mu.Lock()
	release := r.releases[uid]
	r.mu.Unlock()
	if release == nil {
		return
	}
	switch r.write(ctx, release) {
	case failed:
		r.queue.AddRateLimited(uid)
	case refused:
		r.queue.AddAfter(uid, slowRetry)
	case gone, written:
		r.finish(uid, release)
	}
}

// finish forgets the release, unless a newer one has come since.
func (r *Reporter) finish(uid string, release *hubv1.Release) {
	r.queue.Forget(uid)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.releases[uid] == release {
		delete(r.releases, uid)
	}
	delete(r.refused, uid)
}

// write writes the release if it still may be. It returns gone for one that
// is dropped.
func (r *Reporter) write(ctx context.Context, release *hubv1.Release) outcome {
	subject := release.GetSubject()
	log := r.options.Log.WithValues("namespace", subject.GetNamespace(), "pod", subject.GetName(), "uid", subject.GetUid())
	patch, opens, err := patchOf(release, r.options.ConditionType, r.options.BootID, r.options.Clock.Now())
	if err != nil {
		log.Error(err, "Release is malformed")
		r.count("malformed")
		return gone
	}
	if release.GetAgain() > 0 {
		return r.writeAgain(ctx, log, release, opens)
	}
	if r.echoes(subject.GetUid(), opens) {
		return r.drop(log, "repeated", "the gate was opened a moment ago")
	}
	if stale, reason := r.options.Subjects.Stale(release); stale {
		return r.drop(log, "stale", reason)
	}
	if holds, reason := r.options.Subjects.Holds(ctx, subject.GetUid()); !holds {
		return r.drop(log, "not_held", reason)
	}
	// An assignment may have come during the look.
	if stale, reason := r.options.Subjects.Stale(release); stale {
		return r.drop(log, "stale", reason)
	}

	patch = r.again(opens, patch)
	patchCtx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	err = r.options.Pods.PatchStatus(patchCtx, subject.GetNamespace(), subject.GetName(), patch)
	result := outcomeOf(err)
	r.count(result.String())
	switch result {
	case written:
		r.note(subject.GetUid(), opens, patch)
		log.Info("Gate opened", "reason", release.GetReason())
	case gone:
		log.V(1).Info("Pod is gone, release is dropped", "reason", err.Error())
	case refused:
		r.logRefusal(log, subject.GetUid(), err)
	case failed:
		log.V(1).Info("Patch failed, it is tried again", "reason", err.Error())
	}
	return result
}

// writeAgain writes the annotation of a gate that this agent opened once more,
// with another value, so that the kubelet passes it on. Nothing is opened by
// it, so nothing is looked at.
func (r *Reporter) writeAgain(ctx context.Context, log logr.Logger, release *hubv1.Release, opens gate) outcome {
	uid := release.GetSubject().GetUid()
	r.mu.Lock()
	known := r.opened[uid]
	r.mu.Unlock()
	if known.identity != opens.identity || r.options.Clock.Since(known.at) >= rememberFor {
		return r.drop(log, "not_opened", "this agent did not open the gate, or long ago")
	}
	if known.again >= release.GetAgain() {
		return r.drop(log, "repeated", "another replica asked already")
	}
	patch, _, err := patchOf(release, r.options.ConditionType, r.options.BootID, known.at)
	if err != nil {
		return r.drop(log, "malformed", err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	result := outcomeOf(r.options.Pods.PatchStatus(ctx, release.GetSubject().GetNamespace(), release.GetSubject().GetName(), patch))
	r.count("again_" + result.String())
	if result != written {
		// The manager asks once more if the hold still runs.
		return gone
	}
	log.V(1).Info("Annotation written again, for the kubelet to notice", "times", release.GetAgain())
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.opened[uid]; now.identity == known.identity {
		now.again = max(now.again, release.GetAgain())
		r.opened[uid] = now
	}
	return written
}

// drop gives up a release. The replicas learn of it, if at all, from Subjects.
func (r *Reporter) drop(log logr.Logger, result, reason string) outcome {
	r.count(result)
	log.V(1).Info("Release is dropped", "result", result, "reason", reason)
	return gone
}

// logRefusal logs that the API server refuses to open a gate, once for a uid:
// it is tried again until the subject is withdrawn.
func (r *Reporter) logRefusal(log logr.Logger, uid string, err error) {
	r.mu.Lock()
	logged := r.refused[uid]
	r.refused[uid] = true
	r.mu.Unlock()
	if !logged {
		log.Error(err, "The API server refuses to open the gate")
	}
}

// echoes reports whether the gate was opened a moment ago, for whatever reason.
func (r *Reporter) echoes(uid string, opens gate) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.opened[uid]
	return o.identity == opens.identity && r.options.Clock.Since(o.written) < echoWithin
}

// again returns the patch that was written for the gate a moment ago, or patch
// if there is none.
func (r *Reporter) again(opens gate, patch []byte) []byte {
	now := r.options.Clock.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, w := range r.recent {
		if now.Sub(w.at) >= replicasWithin {
			delete(r.recent, other)
		}
	}
	if w, known := r.recent[opens]; known {
		return w.patch
	}
	return patch
}

// note remembers what was written.
func (r *Reporter) note(uid string, opens gate, patch []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.options.Clock.Now()
	for other, o := range r.opened {
		if now.Sub(o.at) >= rememberFor {
			delete(r.opened, other)
		}
	}
	o := r.opened[uid]
	_, repeated := r.recent[opens]
	if !repeated {
		r.recent[opens] = writing{patch: patch, at: now}
	}
	if !repeated || o.identity != opens.identity {
		// Also of a gate that was opened before: a new sandbox can have the
		// addresses of the former one, and its kubelet may have to be woken.
		o = opened{identity: opens.identity, at: now}
	}
	o.written = now
	r.opened[uid] = o
}

func (r *Reporter) count(result string) { r.patches.WithLabelValues(result).Inc() }
