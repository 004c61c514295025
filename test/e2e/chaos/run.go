// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/chaos/fault"
	"github.com/policygate/policygate/test/e2e/chaos/packet"
	"github.com/policygate/policygate/test/e2e/testbed"
	"github.com/policygate/policygate/test/engine"
)

// Options of a run. All are required but Variant.
type Options struct {
	Bed *testbed.Testbed
	// Duration is for how long Pods come and go; the end of the last fault and
	// of the last Pod's wait come on top.
	Duration time.Duration
	Seed     uint64
	Kinds    []fault.Kind
	Variant  Variant
	// Evidence is a directory, made if there is something to save.
	Evidence string
	// Progress receives lines for the person who waits.
	Progress io.Writer
}

// namespaces are where the workload lives, with the intents that they begin
// with.
func namespaces() map[string]Intent {
	return map[string]Intent{
		"chaos-1": {AdmitClients: true},
		"chaos-2": {DenyAll: true, AdmitClients: true},
		"chaos-3": {DenyAll: true, AdmitClients: true, AdmitGuests: true, ConfineClients: true},
		"chaos-4": {},
	}
}

// Run lets the workload run while faults come and go, and returns what was
// found. The error says that the run itself could not go on: the report is
// what there was until then.
func Run(ctx context.Context, o Options) (Report, error) {
	r, err := newRun(ctx, o)
	if err != nil {
		return Report{}, err
	}
	defer r.observer.places.closeAll()
	defer r.observer.outside.Close()
	watching, stopWatching := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		follow(watching, o.Bed.Client, r.record.known, func(p *corev1.Pod, deleted bool) { r.observer.see(watching, p, deleted) })
	})
	err = r.run(ctx)
	stopWatching()
	watch.Wait()
	r.observer.work.Wait()
	var report Report
	r.record.tell(func(found *Report) {
		if r.observer.evidence.saved > 0 {
			found.Evidence = o.Evidence
		}
		report = *found
	})
	return report, err
}

// run is the state of a Run.
type run struct {
	Options
	record   *record
	observer *observer
	workload *workload
	start    time.Time
}

func newRun(ctx context.Context, o Options) (*run, error) {
	r := &run{Options: o, start: time.Now()}
	report := Report{Seed: o.Seed, Duration: o.Duration, Variant: o.Variant}
	for _, k := range o.Kinds {
		report.Kinds = append(report.Kinds, k.Name)
	}
	r.record = newRecord(report)
	// No node has this address: engines let nodes in.
	outside, err := packet.Open("", o.Bed.Cluster.Plan().Host()[0])
	if err != nil {
		return nil, err
	}
	r.observer = &observer{
		record: r.record, places: newPlaces(o.Bed.Cluster), variant: o.Variant, outside: outside, client: o.Bed.Client,
		evidence: &evidence{dir: o.Evidence, bed: o.Bed, out: o.Progress}, let: map[types.UID]bool{},
	}
	r.workload = &workload{
		client: o.Bed.Client, record: r.record, random: stream(o.Seed, streamWorkload), units: map[string]*unit{},
	}
	if o.Bed.EngineKind == testbed.EngineKubeRouter {
		r.observer.blinks, r.workload.patient = blink, true
	}
	if o.Variant == NoBridgeNF {
		// Next to none can be confirmed: none is to wait for long.
		r.workload.timeout = "8s"
	}
	for _, node := range o.Bed.Cluster.Nodes() {
		r.workload.nodes = append(r.workload.nodes, node.Name)
		if err := o.Variant.apply(ctx, o.Bed.Cluster, node); err != nil {
			outside.Close()
			return nil, err
		}
	}
	return r, nil
}

func (r *run) progress(format string, args ...any) {
	_, _ = fmt.Fprintf(r.Progress, "[%6.1fs] %s\n", time.Since(r.start).Seconds(), fmt.Sprintf(format, args...))
}

func (r *run) run(ctx context.Context) error {
	if err := r.settle(ctx); err != nil {
		return err
	}
	began := time.Now()
	r.progress("chaos for %v, seed %d", r.Duration, r.Seed)
	working, stopWorking := context.WithCancel(ctx)
	defer stopWorking()
	until, cancel := context.WithTimeout(ctx, r.Duration)
	defer cancel()
	var all sync.WaitGroup
	all.Go(func() { r.workload.Run(until) })
	ended := make(chan error, 1)
	all.Go(func() {
		err := r.faults(until)
		ended <- err
		if err != nil {
			cancel()
		}
	})
	all.Go(func() { r.lookForStuck(working) })
	<-until.Done()
	// The workload and the last fault end by themselves; looking for the stuck
	// does not, and takes what they leave.
	if ctx.Err() == nil && time.Since(began) >= r.Duration {
		r.progress("no more Pods and faults; waiting for the last gates")
		r.drain(ctx)
	}
	stopWorking()
	all.Wait()
	failed := <-ended
	if failed == nil && ctx.Err() == nil {
		for _, name := range r.workload.unborn() {
			r.record.lost("%s never had a Pod", name)
		}
	}
	return errors.Join(failed, ctx.Err())
}

// engineLag is how late the test engine is in each sync: what it takes the real
// one with a few dozen Pods on a node.
const engineLag = 400 * time.Millisecond

// roughen makes test engines do what real ones do under churn: they are late,
// and a new Pod is open to everybody until the sync after its first.
func (r *run) roughen() error {
	if r.Bed.EngineKind != testbed.EngineTest {
		return nil
	}
	for _, node := range r.workload.nodes {
		rough := engine.Control{HalfProgrammed: true, Lag: metav1.Duration{Duration: engineLag}}
		if err := r.Bed.Engine(node).Set(rough); err != nil {
			return fmt.Errorf("set the engine of %s: %w", node, err)
		}
	}
	return nil
}

// settle makes namespaces, strangers and the policies to begin with.
func (r *run) settle(ctx context.Context) error {
	if err := r.roughen(); err != nil {
		return err
	}
	client := r.Bed.Client
	makeNamespace := func(name string, injected bool) error {
		if _, err := client.CoreV1().Namespaces().Create(ctx, newNamespace(name, injected), metav1.CreateOptions{}); err != nil {
			return err
		}
		return wait.PollUntilContextTimeout(ctx, again, time.Minute, true, func(ctx context.Context) (bool, error) {
			_, err := client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
			return err == nil, nil
		})
	}
	if err := makeNamespace(strangersNamespace, false); err != nil {
		return fmt.Errorf("make the strangers' namespace: %w", err)
	}
	for _, node := range r.workload.nodes {
		for _, kind := range []string{"a", "b"} {
			if _, err := client.CoreV1().Pods(strangersNamespace).Create(ctx, newStranger(node, kind), metav1.CreateOptions{}); err != nil {
				return fmt.Errorf("make a stranger: %w", err)
			}
		}
	}
	for name, intent := range namespaces() {
		if err := makeNamespace(name, true); err != nil {
			return fmt.Errorf("make namespace %s: %w", name, err)
		}
		for _, p := range intent.Policies() {
			if _, err := client.NetworkingV1().NetworkPolicies(name).Create(ctx, p, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				return fmt.Errorf("make policy %s/%s: %w", name, p.Name, err)
			}
		}
		r.workload.namespaces = append(r.workload.namespaces, name)
		r.record.mu.Lock()
		r.record.intents[name] = intent
		r.record.mu.Unlock()
	}
	slices.Sort(r.workload.namespaces)
	err := wait.PollUntilContextTimeout(ctx, again, time.Minute, true, func(context.Context) (bool, error) {
		want := len(r.workload.nodes)
		return len(r.observer.strangers("a")) == want && len(r.observer.strangers("b")) == want, nil
	})
	if err != nil {
		return fmt.Errorf("wait for the strangers: %w", err)
	}
	return nil
}

// faults lets parts fail, one at a time, until the context ends; the fault that
// is in force then is ended. An error says that what failed did not come back.
func (r *run) faults(ctx context.Context) error {
	order, random := newSchedule(r.Seed, len(r.Kinds)), stream(r.Seed, streamFaults)
	for len(r.Kinds) > 0 {
		next := order.next()
		if !pause(ctx, next.calm) {
			return nil
		}
		kind := r.Kinds[next.kind]
		if err := r.fail(ctx, kind, next.lasts, random); err != nil {
			return fmt.Errorf("end fault %q: %w", kind.Name, err)
		}
	}
	return nil
}

func (r *run) fail(ctx context.Context, kind fault.Kind, lasts time.Duration, random *rand.Rand) error {
	window := r.record.begin(kind.Name)
	defer window(func(w *Window) { w.End = time.Now() })
	// What has begun is ended, however long that takes.
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	f, err := kind.Begin(whole, r.Bed, random)
	if err != nil {
		r.progress("fault %q could not be begun: %v", kind.Name, err)
		r.record.tell(func(report *Report) { report.Failed[kind.Name]++ })
		return nil
	}
	window(func(w *Window) { w.Began, w.Target, w.Severs, w.Rewrites = time.Now(), f.Target, f.Severs, f.Rewrites })
	r.record.tell(func(report *Report) { report.Faults[kind.Name]++ })
	r.progress("fault: %s, %s", kind.Name, f.Target)
	pause(ctx, max(lasts, kind.Least))
	window(func(w *Window) { w.Ending = time.Now() })
	if err := f.End(whole); err != nil {
		return err
	}
	for _, node := range r.Bed.Cluster.Nodes() {
		if slices.Contains(f.Rewrites, node.Name) {
			if err := r.Variant.apply(whole, r.Bed.Cluster, node); err != nil {
				return err
			}
		}
	}
	if betweenWebhook(kind.Name) {
		if err := r.webhookAnswers(whole); err != nil {
			return err
		}
	}
	r.record.tell(func(report *Report) {
		r.progress("end of: %s, %s; gates %d, wrong %d, stuck %d, lost %d", kind.Name, f.Target,
			report.Gates(), len(report.Wrong), len(report.Stuck), len(report.Lost))
	})
	return nil
}

const (
	// webhookTimeout is how long managers that run again may take until each
	// Pod gets its gate: several times what it takes on a busy machine.
	webhookTimeout = time.Minute
	// asked is how many Pods in a row have to get one: each replica is asked
	// half of the times.
	asked = 6
)

// webhookAnswers waits until the webhook is asked again of each Pod.
func (r *run) webhookAnswers(ctx context.Context) error {
	ns := r.workload.namespaces[0]
	try := podSpec{namespace: ns, name: "asks-for-a-gate", unit: "none", role: Client, args: serves(), restart: corev1.RestartPolicyNever}
	inARow, last := 0, ""
	err := wait.PollUntilContextTimeout(ctx, again, webhookTimeout, true, func(ctx context.Context) (bool, error) {
		for inARow < asked {
			pod, err := r.Bed.Client.CoreV1().Pods(ns).Create(ctx, try.pod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if err != nil || !(Life{Pod: pod}).Gated() {
				inARow, last = 0, fmt.Sprint(err)
				return false, nil
			}
			inARow++
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("wait until each Pod gets a gate: %w, and at last %s", err, last)
	}
	return nil
}

// pause waits; false says that the context has ended.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// lookForStuck reports who is stuck until the context ends.
func (r *run) lookForStuck(ctx context.Context) {
	for pause(ctx, time.Second) {
		now, history := time.Now(), r.record.past()
		suspects := r.record.pods(func(l Life) bool { return history.Stuck(l, now) != "" })
		// The kubelet of a node that was cut off tells only then what became of
		// a Pod meanwhile.
		if len(suspects) == 0 || !pause(ctx, settleFault) {
			continue
		}
		for _, l := range suspects {
			l = r.asOfNow(ctx, l)
			if how := r.record.past().Stuck(l, time.Now()); how != "" {
				r.stuck(ctx, l, how)
			}
		}
	}
}

// asOfNow returns the life with the Pod as the API server has it, or as it was
// if that cannot be found out.
func (r *run) asOfNow(ctx context.Context, l Life) Life {
	calling, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pod, err := r.Bed.Client.CoreV1().Pods(l.Pod.Namespace).Get(calling, l.Pod.Name, metav1.GetOptions{})
	switch {
	case err == nil && pod.UID == l.Pod.UID:
		l.Pod = pod
	case err == nil || apierrors.IsNotFound(err):
		l.Gone = time.Now()
	}
	return l
}

// stuck reports a Pod, once.
func (r *run) stuck(ctx context.Context, l Life, how string) {
	r.record.mu.Lock()
	known := r.record.stuckPods[l.Pod.UID]
	r.record.stuckPods[l.Pod.UID] = true
	r.record.mu.Unlock()
	if known {
		return
	}
	text := fmt.Sprintf("%s/%s on %s, address since %s: %s; %s", l.Pod.Namespace, l.Pod.Name, l.Pod.Spec.NodeName,
		l.Addressed.Format(clock), how, states(l.Pod))
	if c := l.Condition(); c != nil {
		text += fmt.Sprintf("; condition %s %s %q", c.Status, c.Reason, c.Message)
	}
	saved := r.observer.evidence.save(ctx, "stuck", text, l.Pod.Spec.NodeName)
	r.record.tell(func(report *Report) { report.Stuck = append(report.Stuck, text+"; saved in "+saved) })
}

// drain waits until every Pod is decided, or as long as a Pod may take before
// it counts as stuck.
func (r *run) drain(ctx context.Context) {
	const longest = v1alpha1.DefaultTimeout + graceStuck + settleFault
	// From the end of the last fault on.
	for start := time.Now(); ctx.Err() == nil && time.Since(start) < longest; {
		now := time.Now()
		if r.record.past().Disturbed(now, now) {
			start = now
		}
		left := r.record.pods(func(l Life) bool {
			return l.Gated() && l.Gone.IsZero() && (l.Decided.IsZero() || l.holding())
		})
		if len(left) == 0 && len(r.workload.unborn()) == 0 && now.Sub(start) > settleFault {
			return
		}
		r.workload.Reap(ctx)
		pause(ctx, time.Second)
	}
}
