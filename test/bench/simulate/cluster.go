// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/session"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/bench/fleet"
	"github.com/policygate/policygate/test/bench/replica"
	"github.com/policygate/policygate/test/bench/store"
	"github.com/policygate/policygate/test/bench/world"
)

// pollEvery is how often the driver looks at what is about to happen.
const pollEvery = 10 * time.Millisecond

// Options are what a cluster is made of.
type Options struct {
	// Nodes have an agent each.
	Nodes int
	// Replicas of the manager. The first leads.
	Replicas int
	// Seed makes what is drawn, delays included.
	Seed uint64
	// Least and Most bound the delay until a node realizes a change.
	Least, Most time.Duration
	// Patience is how long a gated Pod is waited for. One that is not open by
	// then is wrong.
	Patience time.Duration
	// Lies has every replica's barrier believe that there is nothing to wait
	// for: the control that shows that wrong releases are seen.
	Lies bool
	// Log is for the driver and the agents, Verbose lets replicas log to the
	// standard error.
	Log     logr.Logger
	Verbose bool
}

// cluster is a simulated cluster that runs.
type cluster struct {
	options   Options
	store     *store.Store
	world     *world.World
	fleet     *fleet.Fleet
	identity  *identity
	directory string
	names     []string
	addresses []*addresses
	pods      *pods
	// held are the Pods that a scenario holds to its end.
	held    sync.WaitGroup
	unwatch func()
	// steady is the index of a replica that stays to the end of the run.
	steady  int
	stop    context.CancelFunc
	stopped chan error

	mu       sync.Mutex // guards what follows
	started  int
	replicas []*replica.Replica
}

// start makes nodes, agents and replicas. Furnish puts in what is there from
// the beginning.
func start(ctx context.Context, o Options, furnish func(*cluster)) (*cluster, error) {
	directory, err := os.MkdirTemp("", "policygate-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a directory: %w", err)
	}
	c := &cluster{
		options: o, directory: directory,
		store: store.New(clock.RealClock{}),
		world: world.New(world.Options{Seed: o.Seed, Least: o.Least, Most: o.Most, Clock: clock.RealClock{}}),
	}
	c.pods = newPods(c)
	if err := c.begin(ctx, furnish); err != nil {
		return nil, errors.Join(err, c.end())
	}
	return c, nil
}

func (c *cluster) begin(ctx context.Context, furnish func(*cluster)) error {
	var err error
	if c.identity, err = newIdentity(); err != nil {
		return err
	}
	c.unwatch = c.store.Watch(c.observe)
	var nodes []fleet.Node
	for i := range c.options.Nodes {
		n := fleet.Node{Name: fmt.Sprintf("node-%04d", i), BootID: fmt.Sprintf("boot-%04d", i)}
		n.TokenFile = filepath.Join(c.directory, n.Name)
		if err := os.WriteFile(n.TokenFile, []byte(replica.TokenOf(n.Name)), 0o600); err != nil {
			return fmt.Errorf("write a token: %w", err)
		}
		c.addNode(n.Name, n.BootID)
		nodes = append(nodes, n)
	}
	furnish(c)
	c.fleet = fleet.New(fleet.Options{
		World: c.world, Pods: c.pods, ServerName: serverName,
		ConditionType: v1alpha1.ConditionProgrammed, Clock: clock.RealClock{}, Log: c.options.Log,
	}, nodes)
	c.fleet.SetRoots(c.identity.roots)
	for range c.options.Replicas {
		if err := c.addReplica(ctx); err != nil {
			return err
		}
	}
	c.lead(0)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.stop, c.stopped = stop, make(chan error, 1)
	go func() { c.stopped <- c.fleet.Run(running) }()
	for c.fleet.Synced() < len(nodes) {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d agents are synced: %w", c.fleet.Synced(), len(nodes), ctx.Err())
		case <-time.After(pollEvery):
		}
	}
	for i := range c.options.Replicas {
		if err := c.awaitSessions(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// addNode adds a Node; without an agent it is dark.
func (c *cluster) addNode(name, bootID string) {
	i := len(c.addresses)
	a := &addresses{block: i}
	c.addresses, c.names = append(c.addresses, a), append(c.names, name)
	c.store.Create(&corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: a.cidr(), PodCIDRs: []string{a.cidr()}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.168.%d.%d", i/250, i%250+1)}},
			NodeInfo:   corev1.NodeSystemInfo{BootID: bootID},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	})
}

// addReplica starts another replica and tells the agents.
func (c *cluster) addReplica(ctx context.Context) error {
	c.mu.Lock()
	c.started++
	name := fmt.Sprintf("manager-%d", c.started)
	c.mu.Unlock()
	r, err := replica.Start(ctx, replica.Options{
		Store: c.store, Directory: c.directory, Name: name,
		Certificate: c.identity.certificate, Key: c.identity.key,
		ConditionType: string(v1alpha1.ConditionProgrammed), Lies: c.options.Lies, Verbose: c.options.Verbose,
		Patched: c.pods.messageWritten,
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.replicas = append(c.replicas, r)
	c.mu.Unlock()
	c.announce()
	return nil
}

// announce tells the agents of the replicas.
func (c *cluster) announce() {
	var known []session.Replica
	for _, r := range c.running() {
		known = append(known, session.Replica{Name: r.Name(), Address: r.Address(), Ready: true})
	}
	c.fleet.SetReplicas(known)
}

// running returns the replicas.
func (c *cluster) running() []*replica.Replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*replica.Replica(nil), c.replicas...)
}

// kill ends a replica at once. Agents learn that it is gone from its
// connections; that it is no longer among the replicas is told by announce.
func (c *cluster) kill(i int) {
	r := c.running()[i]
	r.Kill()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replicas = append(c.replicas[:i:i], c.replicas[i+1:]...)
}

// lead makes one replica the leader.
func (c *cluster) lead(i int) {
	for j, r := range c.running() {
		r.Lead(i == j)
	}
}

// awaitSessions waits until a replica has a session with every agent.
func (c *cluster) awaitSessions(ctx context.Context, i int) error {
	r := c.running()[i]
	for {
		told, err := r.Tell(ctx)
		if err != nil {
			return err
		}
		if told.Sessions >= c.options.Nodes {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d agents have a session with %s: %w", told.Sessions, c.options.Nodes, r.Name(), ctx.Err())
		case <-time.After(pollEvery):
		}
	}
}

// observe passes the store's events on to the world. What it is given was made
// here, so every policy is understood.
func (c *cluster) observe(e store.Event) {
	switch o := e.Object.(type) {
	case *corev1.Pod:
		if e.Deleted {
			c.world.DeletePod(o.UID)
			return
		}
		c.world.SetPod(o)
	case *corev1.Namespace:
		if e.Deleted {
			c.world.DeleteNamespace(o.Name)
			return
		}
		c.world.SetNamespace(o)
	case *networkingv1.NetworkPolicy:
		if e.Deleted {
			c.world.DeletePolicy(o.UID)
			return
		}
		if err := c.world.SetPolicy(o); err != nil {
			c.options.Log.Error(err, "A policy of the scenario is not understood")
		}
	}
}

// end ends all of it.
func (c *cluster) end() error {
	var errs []error
	if c.stop != nil {
		c.stop()
		errs = append(errs, <-c.stopped)
	}
	for _, r := range c.running() {
		r.Kill()
	}
	if c.unwatch != nil {
		c.unwatch()
	}
	return errors.Join(append(errs, os.RemoveAll(c.directory))...)
}

// identity is what the replicas present and whom the agents trust.
type identity struct {
	certificate, key []byte
	roots            *x509.CertPool
}
