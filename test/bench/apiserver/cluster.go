// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/test/bench/world"
	"github.com/policygate/policygate/test/installation"
)

// Options are what a Cluster is made of.
type Options struct {
	Shape
	// Replicas is how many managers run, one or more.
	Replicas int
	// Least and Most bound how long the kernels take to realize a change.
	Least, Most time.Duration
	// Seed makes those delays.
	Seed uint64
	// Dir is where logs, tokens and the audit log go. It must exist.
	Dir string
	// Progress is told what happens next.
	Progress func(what string)
	// Log is the agents'.
	Log logr.Logger
}

// Validate returns an error that says what is not usable, or nil.
func (o *Options) Validate() error {
	errs := []error{o.Shape.Validate()}
	if o.Replicas < 1 {
		errs = append(errs, fmt.Errorf("%d replicas: want 1 or more", o.Replicas))
	}
	if o.Least < 0 || o.Most < o.Least {
		errs = append(errs, fmt.Errorf("delays of %s to %s: want none below 0, the least first", o.Least, o.Most))
	}
	return errors.Join(errs...)
}

// pollInterval is how often something is asked that nothing tells.
const pollInterval = 50 * time.Millisecond

// Cluster is all of it, running. Its methods are not safe for concurrent use.
type Cluster struct {
	options  Options
	truth    *world.World
	control  *controlPlane
	kwok     *installation.Process
	balancer *balancer
	replicas []*installation.Manager
	watcher  *watcher
	agents   *agents
	// running lasts until Close, as do the watcher and the agents. ended has
	// what these returned.
	running context.Context
	end     context.CancelFunc
	ended   chan error
	// gated is how many gated Pods were created so far.
	gated int
	// InstalledIn is how long it took from the first replica's start until
	// every agent had a session.
	InstalledIn time.Duration
}

// Start starts everything, and returns once every agent has a session. What has
// been started is ended if it fails.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	if err := errors.Join(o.Validate(), checkAssets()); err != nil {
		return nil, err
	}
	root, err := installation.Root()
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		options: o,
		truth:   world.New(world.Options{Seed: o.Seed, Least: o.Least, Most: o.Most, Clock: clock.RealClock{}}),
		ended:   make(chan error, 1),
	}
	c.running, c.end = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	o.Progress("building kwok and the manager")
	kwok, err := buildKwok(ctx, root)
	if err != nil {
		return nil, err
	}
	if err := installation.Build(ctx, root, o.Dir, "manager"); err != nil {
		return nil, err
	}
	o.Progress("starting etcd and the API server")
	if c.control, err = startControlPlane(o.Dir); err != nil {
		return nil, err
	}
	if c.kwok, err = startKwok(o.Dir, kwok, c.control.kubeconfig); err != nil {
		return nil, err
	}
	if err := c.populate(ctx); err != nil {
		return nil, err
	}
	return c, c.install(ctx, root)
}

// populate makes what is there before Policy Gate is, and waits until all Pods
// have addresses.
func (c *Cluster) populate(ctx context.Context) error {
	o := &c.options
	o.Progress(fmt.Sprintf("making %d nodes, %d namespaces with policies and %d Pods", o.Nodes, o.namespaces(), o.Pods))
	var err error
	if c.watcher, err = c.control.watch(ctx, c.running.Done(), c.truth); err != nil {
		return err
	}
	if err := o.populate(ctx, c.control.client); err != nil {
		return err
	}
	if err := c.await(ctx, "every Pod has an address", func() bool { return c.watcher.running() >= o.Pods }); err != nil {
		return fmt.Errorf("%w: %d of %d have\n%s", err, c.watcher.running(), o.Pods, c.kwok.Tail())
	}
	return nil
}

// install installs Policy Gate, and returns once every agent has a session.
func (c *Cluster) install(ctx context.Context, root string) (err error) {
	o := &c.options
	o.Progress("installing Policy Gate")
	if c.balancer, err = newBalancer(ctx); err != nil {
		return err
	}
	if err := installation.Install(ctx, installation.Options{
		Client: c.control.client, Kubectl: asset("kubectl"), Kubeconfig: c.control.kubeconfig,
		Directory: filepath.Join(root, "config", "default"), WebhookPort: c.balancer.port(),
	}); err != nil {
		return err
	}
	tokens := filepath.Join(o.Dir, "tokens")
	if err := os.MkdirAll(tokens, 0o700); err != nil {
		return err
	}
	o.Progress("making the agents' Pods and tokens")
	if c.agents, err = c.control.newAgents(ctx, tokens, o.Shape, c.truth, o.Log); err != nil {
		return err
	}
	go func() { c.ended <- c.agents.run(c.running) }()
	for i := range o.Replicas {
		name := fmt.Sprintf("policygate-manager-%d", i)
		pod := newPod(installation.Namespace, name, o.node(i), "manager")
		pod.Spec.ServiceAccountName = installation.ManagerAccount
		_, token, err := installation.CreatePod(ctx, c.control.client, pod)
		if err != nil {
			return fmt.Errorf("make a token of the manager: %w", err)
		}
		r, err := installation.NewManager(ctx, o.Dir, filepath.Join(o.Dir, "manager"), name, c.control.config, token)
		if err != nil {
			return err
		}
		c.replicas = append(c.replicas, r)
	}
	began := time.Now()
	for _, r := range c.replicas {
		if err := r.Start(); err != nil {
			return err
		}
	}
	for _, r := range c.replicas {
		if err := r.AwaitReady(ctx); err != nil {
			return err
		}
	}
	roots, err := c.control.roots(ctx)
	if err != nil {
		return err
	}
	o.Progress(fmt.Sprintf("connecting %d agents", o.Nodes))
	c.agents.setRoots(roots)
	c.route()
	if err := c.awaitAgents(ctx); err != nil {
		return err
	}
	c.InstalledIn = time.Since(began)
	return nil
}

// route has the webhook's requests go to the replicas that are ready, and tells
// the agents which these are, as Services and EndpointSlices do.
func (c *Cluster) route() {
	var backends []string
	for _, r := range c.replicas {
		if r.Ready {
			backends = append(backends, r.Webhook)
		}
	}
	c.balancer.set(backends)
	c.agents.setReplicas(c.replicas)
}

// awaitAgents returns once every agent has a session.
func (c *Cluster) awaitAgents(ctx context.Context) error {
	err := c.await(ctx, "every agent has a session", func() bool { return c.agents.synced() == c.options.Nodes })
	if err != nil {
		return fmt.Errorf("%w: %d of %d have\n%s", err, c.agents.synced(), c.options.Nodes, c.replicas[0].Process.Tail())
	}
	return nil
}

// await returns when cond does, or with an error that says what was awaited.
func (c *Cluster) await(ctx context.Context, what string, cond func() bool) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}

// Leader returns the index of the replica that leads, once there is one.
func (c *Cluster) Leader(ctx context.Context) (int, error) {
	leader := -1
	err := c.await(ctx, "a replica leads", func() bool {
		for i, r := range c.replicas {
			if r.Leads(ctx) {
				leader = i
				return true
			}
		}
		return false
	})
	return leader, err
}

// Kill ends a replica without a warning.
func (c *Cluster) Kill(i int) {
	c.replicas[i].Kill()
	c.route()
}

// Restart starts a replica again that does not run, and returns once it is
// ready.
func (c *Cluster) Restart(ctx context.Context, i int) error {
	r := c.replicas[i]
	if err := r.Start(); err != nil {
		return err
	}
	if err := r.AwaitReady(ctx); err != nil {
		return err
	}
	c.route()
	return nil
}

// Close ends everything.
func (c *Cluster) Close() error {
	var errs []error
	c.end()
	if c.agents != nil {
		errs = append(errs, <-c.ended)
	}
	for _, r := range c.replicas {
		if r.Process != nil && !r.Process.Exited() {
			errs = append(errs, r.Process.Stop())
		}
	}
	if c.balancer != nil {
		c.balancer.close()
	}
	if c.kwok != nil {
		errs = append(errs, c.kwok.Stop())
	}
	if c.control != nil {
		errs = append(errs, c.control.close())
	}
	return errors.Join(errs...)
}
