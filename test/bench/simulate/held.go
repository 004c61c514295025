// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"github.com/policygate/policygate/api/v1alpha1"
)

const (
	// perLate is how many held Pods there are of a namespace.
	perLate = 100
	// arrivals is how many held Pods come a second: what schedulers place.
	arrivals = 250
	// latest is more than engines are late by.
	latest = 5 * time.Minute
)

// Held is what many held Pods cost, and what they do to others.
type Held struct {
	// Calm is of unrelated Pods before, and Beside while the others wait.
	Calm, Beside Outcome
	// Arrival is while the held Pods come, and Release from when engines begin
	// to carry out their rules until all are open; its Pods are the held ones.
	Arrival, Release Outcome
	// Count is how many were held at once, and Said how many of them said in
	// the end what they wait for.
	Count, Said int
	// Waited is for how long all of them were held.
	Waited time.Duration
	// Opened is from when engines begin until a gate opens.
	Opened Distribution
}

// HeldAtOnce has Jobs of many namespaces wait at once, on all nodes, for rules
// that no engine carries out; lets a stream of unrelated Pods run beside them
// for twice l.Lasts; and then has the engines carry them out.
func HeldAtOnce(ctx context.Context, o Options, s Shape, l Load, count int) (_ *Held, err error) {
	c, err := start(ctx, o, func(c *cluster) {
		rng := rand.New(rand.NewPCG(o.Seed, 0))
		s.furnish(c, rng)
		furnishLate(c, rng, count)
	})
	if err != nil {
		return nil, err
	}
	held, giveUp := context.WithCancel(ctx)
	defer func() {
		giveUp()
		c.held.Wait()
		err = c.join(err)
	}()
	out := &Held{Count: count}
	stream := func(lasts time.Duration) func(context.Context, *outcome) error {
		return func(ctx context.Context, _ *outcome) error {
			ctx, cancel := context.WithTimeout(ctx, lasts)
			defer cancel()
			c.stream(ctx, s, l.Rate, o.Seed)
			return nil
		}
	}
	if _, err = c.phase(ctx, &out.Calm, stream(l.Lasts)); err != nil {
		return nil, err
	}
	for i := range lateNamespaces(count) {
		c.world.Pause(lateName(i))
	}
	if _, err = c.phase(ctx, &out.Arrival, func(ctx context.Context, _ *outcome) error {
		return c.holdLate(ctx, held, count)
	}); err != nil {
		return nil, err
	}
	began := time.Now()
	if _, err = c.phase(ctx, &out.Beside, stream(2*l.Lasts)); err != nil {
		return nil, err
	}
	out.Waited = time.Since(began)
	var waiting int
	waiting, out.Said = c.pods.late()
	resumed := time.Now()
	released, err := c.phase(ctx, &out.Release, func(context.Context, *outcome) error {
		for i := range lateNamespaces(count) {
			c.world.Resume(lateName(i))
		}
		c.held.Wait()
		return nil
	})
	if err != nil {
		return nil, err
	}
	out.judge(released.passages, waiting, resumed)
	return out, nil
}

// phase is measured into an Outcome.
func (c *cluster) phase(ctx context.Context, into *Outcome, do func(context.Context, *outcome) error) (*outcome, error) {
	done, err := c.measured(ctx, do)
	if err != nil {
		return nil, err
	}
	*into = done.Outcome
	return done, nil
}

// judge adds what must be of the held Pods, beside what holds for every Pod.
func (h *Held) judge(passages []*passage, waiting int, resumed time.Time) {
	wrong := func(format string, args ...any) {
		h.Release.Wrong = append(h.Release.Wrong, fmt.Sprintf(format, args...))
	}
	if waiting != h.Count {
		wrong("%d Pods were held when the engines began: want all %d", waiting, h.Count)
	}
	var opened []time.Duration
	for _, x := range passages {
		if x.opened.IsZero() {
			continue // which is blamed already
		}
		opened = append(opened, x.opened.Sub(resumed))
		if x.opened.Before(resumed) {
			wrong("pod %s was opened before any engine had begun", x.uid)
		}
		if x.reason != v1alpha1.ReasonConfirmed {
			wrong("pod %s was opened as %q: want %s, as its time is not over and no engine hangs", x.uid, x.reason, v1alpha1.ReasonConfirmed)
		}
	}
	h.Opened = distribution(opened)
}

func lateName(i int) string { return fmt.Sprintf("late-%03d", i) }

func lateNamespaces(count int) int { return max((count+perLate-1)/perLate, 1) }

// furnishLate makes the namespaces of the held Pods, each with databases that
// admit its Jobs.
func furnishLate(c *cluster, rng *rand.Rand, count int) {
	database := map[string]string{"app": "db"}
	for i := range lateNamespaces(count) {
		c.addNamespace(lateName(i), nil)
		for range databases {
			c.stand(job{namespace: lateName(i), labels: database}, rng.IntN(c.options.Nodes))
		}
		c.addPolicy(lateName(i), "default-deny", networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		})
		c.addPolicy(lateName(i), "admit-jobs", networkingv1.NetworkPolicySpec{
			PodSelector: *selecting(database),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: selecting(map[string]string{"app": "job"})}},
				Ports: []networkingv1.NetworkPolicyPort{tcp(5432)},
			}},
		})
	}
}

// holdLate creates the held Pods and returns when all have had addresses for a
// while. They live until ctx held ends at the latest.
func (c *cluster) holdLate(ctx, held context.Context, count int) error {
	rng := rand.New(rand.NewPCG(c.options.Seed, 3))
	began := time.Now()
	for i := range count {
		if !sleep(ctx, time.Until(began.Add(time.Duration(i)*time.Second/arrivals))) {
			return ctx.Err()
		}
		seed := rng.Uint64()
		c.held.Go(func() {
			c.pods.live(held, job{
				namespace: lateName(i / perLate), labels: map[string]string{"app": "job"}, life: jobLife,
				late: latest, node: i % c.options.Nodes,
			}, rand.New(rand.NewPCG(seed, 0)))
		})
	}
	if !sleep(ctx, 2*sandboxMost) {
		return ctx.Err()
	}
	return nil
}

// late returns how many Pods wait whose engines are late, and how many of them
// say what for.
func (p *pods) late() (waiting, said int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.byName {
		if !x.late || !x.opened.IsZero() || x.addressed.IsZero() {
			continue
		}
		waiting++
		if x.messages > 0 {
			said++
		}
	}
	return waiting, said
}

// held adds what HeldAtOnce shows.
func (r *Report) held(ctx context.Context, x Run) error {
	s, err := ShapeOf("small")
	if err != nil {
		return err
	}
	h, err := HeldAtOnce(ctx, x.Options, s, x.Load, x.Held)
	if err != nil {
		return err
	}
	run := fmt.Sprintf("held, %d nodes", x.Options.Nodes)
	add := func(name, text string, value float64) { r.add(run, x.Scale, name, text, value) }
	r.blame(run, x.Scale, slices.Concat(h.Calm.Wrong, h.Arrival.Wrong, h.Beside.Wrong, h.Release.Wrong))
	add("Pods held at once", fmt.Sprintf("%d for %s", h.Count, short(h.Waited)), float64(h.Count))
	add("held Pods opened", fmt.Sprintf("%d of %d", h.Release.Opened, h.Release.Created), float64(h.Release.Opened))
	add("opened wrongly, of flows judged", fmt.Sprintf("%d of %d",
		h.Calm.WrongFlows+h.Beside.WrongFlows+h.Release.WrongFlows,
		h.Calm.Strangers+h.Calm.Peers+h.Beside.Strangers+h.Beside.Peers+h.Release.Strangers+h.Release.Peers), 0)
	add("nodes assigned per held Pod", fmt.Sprintf("%.1f", h.Release.Nodes), h.Release.Nodes)
	r.duration(run, x.Scale, "engines begin to gate open", h.Opened)
	add("engines begin to the last gate open", short(h.Opened.Greatest), float64(h.Opened.Greatest))
	for _, p := range []struct {
		name string
		o    *Outcome
	}{{"before", &h.Calm}, {"while they come", &h.Arrival}, {"while they are held", &h.Beside}, {"while they are let go", &h.Release}} {
		add("manager's memory "+p.name, fmt.Sprintf("%d MiB", p.o.Resident>>20), float64(p.o.Resident))
		add("manager's processors "+p.name, fmt.Sprintf("%.3f", p.o.Cores), p.o.Cores)
		add("agents', kernels' and driver's processors "+p.name, fmt.Sprintf("%.2f", p.o.Rest), p.o.Rest)
		add("LISTs a second of one kind "+p.name, fmt.Sprintf("%.2f", p.o.Lists), p.o.Lists)
		add("messages "+p.name, fmt.Sprint(p.o.Messages), float64(p.o.Messages))
	}
	add("manager's memory, greatest", fmt.Sprintf("%d MiB", h.Release.Peak>>20), float64(h.Release.Peak))
	add("held Pods that say what they wait for", fmt.Sprintf("%d of %d", h.Said, h.Count), 0)
	compare(&h.Calm, &h.Beside, func(name string, calm, beside Distribution, ratios string) {
		add("unrelated Pods: "+name+", before", calm.String(), 0)
		add("unrelated Pods: "+name+", beside", beside.String(), 0)
		add("unrelated Pods: "+name+", beside to before", ratios, 0)
	})
	return nil
}
