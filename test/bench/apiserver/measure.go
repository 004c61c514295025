// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/test/installation"
)

// promptly is how long a Pod may wait before the manager writes a message about
// it: one that is confirmed within is written once.
const promptly = 3 * time.Second

// Load is a run of gated Pods.
type Load struct {
	// Pods is how many are created, Rate how many each second.
	Pods int
	Rate float64
	// Halfway, if not nil, is called once half of them are created, while the
	// others are.
	Halfway func() error
	// Pause is set if no Pod is to be created while Halfway runs: one whose
	// admission is at a replica that is killed is let in without a gate.
	Pause bool
}

// Loaded is what a Load came to.
type Loaded struct {
	// Began and Ended are when the first Pod was created and the last gate was
	// open; Created is when the last Pod was created. Halfway is when that was
	// called.
	Began, Halfway, Created, Ended time.Time
	// Gated are the stories of the Pods. Ungated is how many were let in
	// without a gate.
	Gated   []Gated
	Ungated int
	// Usage is what each replica has used meanwhile, as CPU, and has at the
	// end, as RSS; one that was started meanwhile is not there.
	Usage map[string]installation.Usage
	// Requests are those of managers and agents.
	Requests []Requests
	Lists    []Lists
	// Patches is how often a Pod that was open within 3 s was patched: by
	// number of requests, how many Pods.
	Patches map[int]int
	// Judged is what the truth says of the gates.
	Judged Judged
}

// Load creates gated Pods and returns once all their gates are open.
func (c *Cluster) Load(ctx context.Context, l Load) (*Loaded, error) {
	c.agents.judge.result()
	before := c.usage()
	out := &Loaded{Began: time.Now()}
	uids, err := c.create(ctx, l, out)
	out.Created = time.Now()
	if err != nil {
		return nil, err
	}
	err = c.await(ctx, "every gate is open", func() bool {
		out.Gated = c.watcher.stories(uids)
		return len(out.Gated) == len(uids) && !slices.ContainsFunc(out.Gated, func(g Gated) bool { return !g.Ready })
	})
	out.Ended = time.Now()
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, c.shut(out.Gated))
	}
	out.Usage = c.usage()
	for name, u := range out.Usage {
		b, running := before[name]
		if !running || b.CPU > u.CPU {
			delete(out.Usage, name)
			continue
		}
		u.CPU -= b.CPU
		out.Usage[name] = u
	}
	out.Judged = c.agents.judge.result()
	requests, err := readAudit(c.control.audit, out.Began, out.Ended)
	if err != nil {
		return nil, err
	}
	out.Requests, out.Lists = countRequests(requests), countLists(requests)
	out.Patches = patchesOf(requests, out.Gated)
	return out, errors.Join(c.watcher.err(), c.replicasRun())
}

// create creates the Pods of l, and returns the UIDs of those with a gate.
func (c *Cluster) create(ctx context.Context, l Load, out *Loaded) ([]types.UID, error) {
	tick := time.NewTicker(time.Duration(float64(time.Second) / l.Rate))
	defer tick.Stop()
	var (
		creating sync.WaitGroup
		mu       sync.Mutex // guards the following variables and out.Ungated
		uids     []types.UID
		errs     []error
	)
	do := func(f func() error) {
		creating.Go(func() {
			if err := f(); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	for i := range l.Pods {
		if l.Halfway != nil && i == l.Pods/2 {
			if l.Pause {
				creating.Wait()
			}
			out.Halfway = time.Now()
			do(l.Halfway)
			if l.Pause {
				creating.Wait()
			}
		}
		n := c.gated
		c.gated++
		do(func() error {
			pod := c.options.newGated(n)
			created, err := c.control.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
			if err != nil {
				return fmt.Errorf("create a gated Pod: %w", err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(created.Spec.ReadinessGates) == 0 {
				out.Ungated++
				return nil
			}
			uids = append(uids, created.UID)
			return nil
		})
		select {
		case <-ctx.Done():
			creating.Wait()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
	creating.Wait()
	return uids, errors.Join(errs...)
}

// shut says which gates are shut, for an error's text.
func (c *Cluster) shut(gated []Gated) string {
	const most = 10
	text, n := "", 0
	for i := range gated {
		if g := &gated[i]; !g.Ready {
			if n++; n <= most {
				text += fmt.Sprintf("%s/%s: addressed %t, condition %s %q, %d messages\n",
					g.Namespace, g.Name, !g.Addressed.IsZero(), g.Reason, g.Message, g.Messages)
			}
		}
	}
	for _, r := range c.replicas {
		text += r.Name + ": " + r.Process.Tail() + "\n"
	}
	return fmt.Sprintf("%d of %d are shut:\n%s", n, len(gated), text)
}

// patchesOf counts the requests by which Pods that were open within 3 s were
// patched, by anybody of the product.
func patchesOf(requests []request, gated []Gated) map[int]int {
	count := make(map[string]int)
	for i := range requests {
		if r := &requests[i]; r.Verb == "patch" && r.what() == "pods/status" {
			count[r.Object.Namespace+"/"+r.Object.Name]++
		}
	}
	out := make(map[int]int)
	for i := range gated {
		if gated[i].Latency() < promptly {
			out[count[gated[i].Namespace+"/"+gated[i].Name]]++
		}
	}
	return out
}

// usage returns what each replica that runs has used since it began.
func (c *Cluster) usage() map[string]installation.Usage {
	out := make(map[string]installation.Usage)
	for _, r := range c.replicas {
		if r.Process.Exited() {
			continue
		}
		if u, err := r.Process.Usage(); err == nil {
			out[r.Name] = u
		}
	}
	return out
}

// replicasRun returns an error if one has ended without being asked to.
func (c *Cluster) replicasRun() error {
	for _, r := range c.replicas {
		if r.Process.Exited() && !r.Killed {
			return r.Process.Err()
		}
	}
	return nil
}

// Idle is a span of time in which nothing happens.
type Idle struct {
	Took time.Duration
	// Writes are requests that change objects, but for Leases.
	Writes []Requests
	// Requests are all.
	Requests []Requests
	// CPU is the time of each replica.
	CPU map[string]time.Duration
}

// Idle watches for a while in which nothing happens.
func (c *Cluster) Idle(ctx context.Context, took time.Duration) (*Idle, error) {
	before, began := c.usage(), time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(took):
	}
	out := &Idle{Took: took, CPU: make(map[string]time.Duration)}
	for name, u := range c.usage() {
		out.CPU[name] = u.CPU - before[name].CPU
	}
	requests, err := readAudit(c.control.audit, began, time.Now())
	if err != nil {
		return nil, err
	}
	out.Requests = countRequests(requests)
	out.Writes = countRequests(slices.DeleteFunc(requests, func(r request) bool { return !r.writes() }))
	return out, c.replicasRun()
}

// Rest waits until what the start has caused is written: every policy has its
// status then. It returns what it took, without the rest itself.
func (c *Cluster) Rest(ctx context.Context) (*Idle, error) {
	began := time.Now()
	for took := time.Duration(0); took < restWithin; took = time.Since(began) {
		idle, err := c.Idle(ctx, quietFor)
		if err != nil {
			return nil, err
		}
		if len(idle.Writes) > 0 {
			continue
		}
		requests, err := readAudit(c.control.audit, began, time.Now())
		if err != nil {
			return nil, err
		}
		return &Idle{
			Took:   took,
			Writes: countRequests(slices.DeleteFunc(requests, func(r request) bool { return !r.writes() })),
		}, nil
	}
	return nil, fmt.Errorf("something is still written after %s", restWithin)
}

// Storm is what it takes all agents to come back.
type Storm struct {
	// Ready is how long the replicas took from their start until they were
	// ready, Back until every agent had a session with one of them, and All
	// until every agent had presented its token to each.
	Ready, Back, All time.Duration
	// Reviews is how many tokens were reviewed, Busiest the most within a
	// second at one replica.
	Reviews, Busiest int
}

// Storm restarts every replica at once.
func (c *Cluster) Storm(ctx context.Context) (*Storm, error) {
	for _, r := range c.replicas {
		if err := r.Stop(); err != nil {
			return nil, err
		}
	}
	c.route()
	if err := c.await(ctx, "every session is over", func() bool { return c.agents.synced() == 0 }); err != nil {
		return nil, err
	}
	began := time.Now()
	for _, r := range c.replicas {
		if err := r.Start(); err != nil {
			return nil, err
		}
	}
	for _, r := range c.replicas {
		if err := r.AwaitReady(ctx); err != nil {
			return nil, err
		}
	}
	c.route()
	out := &Storm{Ready: time.Since(began)}
	if err := c.awaitAgents(ctx); err != nil {
		return nil, err
	}
	out.Back = time.Since(began)
	wanted := c.options.Nodes * len(c.replicas)
	var times map[string][]time.Time
	err := c.await(ctx, "every agent has a session with each replica", func() bool {
		requests, err := readAudit(c.control.audit, began, time.Now())
		times = reviews(requests)
		n := 0
		for _, of := range times {
			n += len(of)
		}
		out.Reviews = n
		return err == nil && n >= wanted
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %d of %d tokens were reviewed", err, out.Reviews, wanted)
	}
	for _, of := range times {
		out.Busiest = max(out.Busiest, busiest(of))
		out.All = max(out.All, out.Back, of[len(of)-1].Sub(began))
	}
	return out, nil
}

// reviews returns when each replica had tokens reviewed.
func reviews(requests []request) map[string][]time.Time {
	out := make(map[string][]time.Time)
	for i := range requests {
		if r := &requests[i]; r.Verb == "create" && r.what() == "tokenreviews" && r.account() == installation.ManagerAccount {
			out[r.pod()] = append(out[r.pod()], r.Received)
		}
	}
	return out
}

// Percentile returns the p-th percentile, p from 0 to 1, of the latencies of
// the Pods for which keep returns true, and how many these are.
func Percentile(gated []Gated, p float64, keep func(*Gated) bool) (time.Duration, int) {
	var all []time.Duration
	for i := range gated {
		if g := &gated[i]; keep(g) && !g.Opened.IsZero() {
			all = append(all, g.Latency())
		}
	}
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[min(int(p*float64(len(all))), len(all)-1)], len(all)
}
