// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	// callTimeout ends a call to an API server that does not answer.
	callTimeout = 10 * time.Second
	// pace is the time between two units: what two processors can start, with
	// 1.3 Pods to a unit.
	pace = 750 * time.Millisecond
	// maxWaiting is how many Pods may wait for their gates: faults are to meet
	// many, and kubelets not to choke on them.
	maxWaiting = 24
	// maxServers is how many servers a namespace has at a time.
	maxServers = 4
	// editEvery is the time between two edits, of whichever namespace.
	editEvery = 5 * time.Second
)

// The shapes of units.
const (
	shapeJob        = "job"
	shapePod        = "pod"
	shapeDeployment = "deployment"
)

// unit is what the workload creates and deletes as one.
type unit struct {
	name, namespace, shape string
	created                time.Time
	// exists says that its creation was acknowledged.
	exists bool
	// lasts is for how long it is kept; a Job until it has been judged.
	lasts time.Duration
}

// workload makes Pods and policies come and go.
type workload struct {
	client     kubernetes.Interface
	record     *record
	random     *rand.Rand
	namespaces []string
	nodes      []string
	// timeout is the annotation of all Pods, if not empty.
	timeout string
	// patient has every client dial for longer than an engine may blink.
	patient bool

	calls sync.WaitGroup

	mu    sync.Mutex // guards what follows
	count int
	units map[string]*unit
}

// Run creates and deletes until the context ends, and returns when what it has
// begun is done.
func (w *workload) Run(ctx context.Context) {
	create, reap, edit := time.NewTicker(pace), time.NewTicker(pace), time.NewTicker(editEvery)
	defer create.Stop()
	defer reap.Stop()
	defer edit.Stop()
	defer w.calls.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-create.C:
			waiting := w.record.pods(func(l Life) bool { return l.Gated() && l.Decided.IsZero() && l.Gone.IsZero() })
			if len(waiting) < maxWaiting {
				w.next(ctx)
			}
		case <-reap.C:
			w.Reap(ctx)
		case <-edit.C:
			ns := w.namespaces[w.random.IntN(len(w.namespaces))]
			if intent, settled := w.record.intent(ns); settled {
				after, policy := intent.Edit(w.random)
				w.calls.Go(func() { w.edit(ctx, ns, after, policy) })
			}
		}
	}
}

// next creates something somewhere.
func (w *workload) next(ctx context.Context) {
	ns := w.namespaces[w.random.IntN(len(w.namespaces))]
	spec := podSpec{namespace: ns, node: w.node(), annotations: map[string]string{}, restart: corev1.RestartPolicyNever}
	if w.timeout != "" {
		spec.annotations[v1alpha1.KeyTimeout] = w.timeout
	} else if w.random.IntN(3) == 0 {
		spec.annotations[v1alpha1.KeyTimeout] = "20s"
	}
	intent, _ := w.record.intent(ns)
	servers := w.record.pods(func(l Life) bool {
		return l.Pod.Namespace == ns && l.RoleOf() == Server && l.Gone.IsZero() && !l.Addressed.IsZero()
	})
	ready := slices.DeleteFunc(slices.Clone(servers), func(l Life) bool { return l.Running().IsZero() })
	spec.role = Client
	dial := w.dial()
	if w.random.IntN(6) == 0 && intent.Allows(Guest, Server, servedPort) {
		spec.role = Guest
	}
	admitted := intent.Allows(spec.role, Server, servedPort)
	lasts := between(w.random, 20*time.Second, 45*time.Second)
	draw := w.random.IntN(100)
	switch {
	case len(ready) > 0 && admitted && (draw < 60 || len(servers) >= maxServers && draw < 93):
		spec.args = slices.Concat(dial, addresses(ready[w.random.IntN(len(ready))], ready[len(ready)-1]))
		w.create(ctx, shapeJob, spec, 0)
	case draw >= 93 || len(servers) >= maxServers:
		spec.args, spec.annotations[v1alpha1.KeyHold] = []string{"sleep", "10m"}, v1alpha1.ValueTrue
		w.create(ctx, shapePod, spec, lasts)
	case draw < 75 && admitted:
		spec.args = dial
		w.together(ctx, spec, lasts)
	case draw < 86:
		spec.role, spec.args, spec.annotations[v1alpha1.KeyHold] = Server, serves(), strconv.FormatBool(w.random.IntN(2) == 0)
		w.create(ctx, shapePod, spec, lasts)
	default:
		spec.role, spec.args, spec.restart = Server, serves(), corev1.RestartPolicyAlways
		spec.annotations[v1alpha1.KeyHold] = v1alpha1.ValueTrue
		w.create(ctx, shapeDeployment, spec, lasts)
	}
}

func (w *workload) node() string { return w.nodes[w.random.IntN(len(w.nodes))] }

// dial returns the arguments of a client that dials first of all, but for whom.
func (w *workload) dial() []string {
	switch {
	case w.patient:
		return []string{"dial", "-for", (blink + time.Second).String()}
	case w.random.IntN(3) == 0:
		return []string{"dial", "-for", "2s"}
	}
	return []string{"dial"}
}

// addresses returns what to dial for servers.
func addresses(servers ...Life) []string {
	var all []string
	for i, s := range servers {
		if i > 0 && s.Pod.UID == servers[0].Pod.UID {
			continue
		}
		for _, ip := range s.Pod.Status.PodIPs {
			all = append(all, net.JoinHostPort(ip.IP, strconv.Itoa(servedPort)))
		}
	}
	return all
}

// together creates a server, whose gate alone holds nothing, and as soon as it
// has an address its client: both race for the same rules.
func (w *workload) together(ctx context.Context, client podSpec, lasts time.Duration) {
	server := client
	server.role, server.args, server.node = Server, serves(), w.node()
	server.annotations = maps.Clone(client.annotations)
	server.annotations[v1alpha1.KeyHold] = v1alpha1.ValueFalse
	name := w.create(ctx, shapePod, server, lasts)
	w.calls.Go(func() {
		deadline := time.Now().Add(callTimeout)
		for ctx.Err() == nil && time.Now().Before(deadline) {
			found := w.record.pods(func(l Life) bool { return l.Pod.Labels[unitLabel] == name && !l.Addressed.IsZero() })
			if len(found) > 0 {
				client.args = append(client.args, addresses(found[0])...)
				w.create(ctx, shapeJob, client, 0)
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

// create makes a unit and returns its name. A call that fails is part of what
// faults do; it may have had its effect.
func (w *workload) create(ctx context.Context, shape string, spec podSpec, lasts time.Duration) string {
	w.mu.Lock()
	w.count++
	spec.name = fmt.Sprintf("%s-%s-%04d", spec.role, shape, w.count)
	spec.unit = spec.name
	u := &unit{name: spec.name, namespace: spec.namespace, shape: shape, created: time.Now(), lasts: lasts}
	w.units[u.name] = u
	replicas := int32(1 + w.count%2)
	w.mu.Unlock()
	w.calls.Go(func() {
		// What has begun when the run ends is finished.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		var err error
		switch shape {
		case shapeJob:
			_, err = w.client.BatchV1().Jobs(spec.namespace).Create(ctx, spec.job(), metav1.CreateOptions{})
		case shapeDeployment:
			_, err = w.client.AppsV1().Deployments(spec.namespace).Create(ctx, spec.deployment(replicas), metav1.CreateOptions{})
		default:
			_, err = w.client.CoreV1().Pods(spec.namespace).Create(ctx, spec.pod(), metav1.CreateOptions{})
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		u.exists = err == nil
	})
	return spec.name
}

// Reap deletes the units that have had their time.
func (w *workload) Reap(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range w.units {
		if !w.due(u) {
			continue
		}
		delete(w.units, u.name)
		w.record.end(u.name, time.Now())
		w.calls.Go(func() { w.remove(context.WithoutCancel(ctx), u) })
	}
}

// judging is for how long a Job that has ended is kept, so that its log can be
// read when the API server answers.
const judging = 6 * time.Second

func (w *workload) due(u *unit) bool {
	now := time.Now()
	if now.Sub(u.created) < u.lasts {
		return false
	}
	pods := w.record.pods(func(l Life) bool { return l.Pod.Labels[unitLabel] == u.name })
	if len(pods) == 0 {
		return !u.exists && now.Sub(u.created) > 2*callTimeout
	}
	return !slices.ContainsFunc(pods, func(l Life) bool {
		if u.shape == shapeJob {
			return l.Gone.IsZero() || now.Sub(l.Gone) < judging
		}
		return l.Gone.IsZero() && l.Gated() && l.Decided.IsZero()
	})
}

// patience is for how long a call is repeated that an API server does not
// answer: longer than any fault.
const patience = 3 * time.Minute

// remove deletes a unit.
func (w *workload) remove(ctx context.Context, u *unit) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	options := metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}
	for first := true; ctx.Err() == nil; first = false {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		var err error
		switch u.shape {
		case shapeJob:
			err = w.client.BatchV1().Jobs(u.namespace).Delete(calling, u.name, options)
		case shapeDeployment:
			err = w.client.AppsV1().Deployments(u.namespace).Delete(calling, u.name, options)
		default:
			err = w.client.CoreV1().Pods(u.namespace).Delete(calling, u.name, options)
		}
		cancel()
		// A second try may follow a first one that had its effect.
		if apierrors.IsNotFound(err) && first && u.exists {
			w.record.lost("%s %s/%s vanished, and nobody has deleted it", u.shape, u.namespace, u.name)
		}
		if err == nil || apierrors.IsNotFound(err) {
			return
		}
		time.Sleep(time.Second)
	}
}

// unborn returns the names of what was created, exists, and never had a Pod.
func (w *workload) unborn() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for _, u := range w.units {
		if u.exists && len(w.record.pods(func(l Life) bool { return l.Pod.Labels[unitLabel] == u.name })) == 0 {
			names = append(names, u.shape+" "+u.namespace+"/"+u.name)
		}
	}
	return names
}

// edit changes one policy.
func (w *workload) edit(ctx context.Context, ns string, after Intent, policy string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	done := w.record.edit(ns, after)
	policies := w.client.NetworkingV1().NetworkPolicies(ns)
	for ctx.Err() == nil {
		calling, cancel := context.WithTimeout(ctx, callTimeout)
		err := func() error {
			want := find(after.Policies(), policy)
			if want == nil {
				err := policies.Delete(calling, policy, metav1.DeleteOptions{})
				if apierrors.IsNotFound(err) {
					return nil
				}
				return err
			}
			present, err := policies.Get(calling, policy, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				_, err = policies.Create(calling, want, metav1.CreateOptions{})
				return err
			}
			if err != nil {
				return err
			}
			present.Spec = want.Spec
			_, err = policies.Update(calling, present, metav1.UpdateOptions{})
			return err
		}()
		cancel()
		if err == nil {
			done()
			return
		}
		time.Sleep(again)
	}
}
