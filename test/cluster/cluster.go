// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Cluster is a running cluster. Its methods may be called concurrently, but not with or after
// Stop.
type Cluster struct {
	cgroups cgroups
	client  *kubernetes.Clientset
	nodes   []*Node

	mu sync.Mutex // protects the following fields
	// state's Processes changes; the rest of it is constant.
	state     state
	processes map[string]*Process
	// archives are the images that LoadImage loaded into all nodes.
	archives []string
	// cuts counts the calls of Cut.
	cuts int
}

// newCluster returns a cluster with the given state, and its nodes, none of it started.
func newCluster(s state) (*Cluster, error) {
	hierarchies, err := findCgroups()
	if err != nil {
		return nil, err
	}
	c := &Cluster{cgroups: hierarchies, state: s, processes: map[string]*Process{}}
	for i := range s.Options.Nodes {
		planned := s.plan().Node(i)
		c.nodes = append(c.nodes, &Node{
			PlannedNode: planned,
			NetNS:       c.network().namespace(planned.Name),
			cluster:     c,
			index:       i,
			dir:         c.path(planned.Name),
		})
	}
	return c, nil
}

// Load attaches to a running cluster that another process started with the same Name and Dir
// (empty: the defaults of Options). The error says so if there is none.
func Load(name, dir string) (*Cluster, error) {
	o, err := Options{Name: name, Dir: dir}.withDefaults()
	if err != nil {
		return nil, err
	}
	s, err := lookup(o.Name, o.Dir)
	if err != nil {
		return nil, fmt.Errorf("load cluster: %w", err)
	}
	c, err := newCluster(s)
	if err != nil {
		return nil, fmt.Errorf("load cluster: %w", err)
	}
	for name, identity := range s.Processes {
		c.processes[name] = &Process{name: name, log: filepath.Join(c.Logs(), name+".log"), identity: identity}
	}
	for _, n := range c.nodes {
		holder := c.processes[n.Name+"-holder"]
		if holder != nil && holder.Exited() {
			return nil, fmt.Errorf("load cluster %q: node %s does not run", o.Name, n.Name)
		}
		n.setHolder(holder) // nil: the node is off
	}
	if c.client, err = newClient(c.pki("")); err != nil {
		return nil, fmt.Errorf("load cluster %q: %w", o.Name, err)
	}
	return c, nil
}

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.state.Options.Name }

// Kubeconfig returns the path of an administrator's kubeconfig file, complete in itself and
// usable from the network namespace that called Start. Stop removes it.
func (c *Cluster) Kubeconfig() string { return c.pki("admin.kubeconfig") }

// RESTConfig returns an administrator's client configuration, without a limit on its rate.
func (c *Cluster) RESTConfig() (*rest.Config, error) { return restConfig(c.Kubeconfig()) }

// Client returns an administrator's client.
func (c *Cluster) Client() kubernetes.Interface { return c.client }

// Nodes returns the nodes in the order of their names' numbers.
func (c *Cluster) Nodes() []*Node { return slices.Clone(c.nodes) }

// HostIPs returns the addresses at which nodes and Pods reach the namespace that called
// Start, IPv4 first.
func (c *Cluster) HostIPs() []string {
	var texts []string
	for _, addr := range c.state.plan().Host() {
		texts = append(texts, addr.String())
	}
	return texts
}

// Plan returns the addresses that the cluster uses.
func (c *Cluster) Plan() Plan { return c.state.plan() }

// Logs returns the directory of the logs of all processes, called NAME.log. Stop leaves it,
// the next Start of a cluster with the same Name and Dir removes it.
func (c *Cluster) Logs() string { return c.path("logs") }

func (c *Cluster) path(name string) string { return filepath.Join(c.state.dir(), name) }
func (c *Cluster) pki(name string) string  { return filepath.Join(c.state.dir(), "pki", name) }

func (c *Cluster) network() network {
	return network{name: c.state.Options.Name, plan: c.state.plan(), nodes: c.state.Options.Nodes}
}

// cgroup returns the path of a cgroup of the cluster within a hierarchy.
func (c *Cluster) cgroup(name string) string {
	return filepath.Join(cgroupParent, c.state.Options.Name, name)
}

// cgroupProcs returns the file by which a process joins a cgroup of the cluster.
func (c *Cluster) cgroupProcs(name string) string {
	return filepath.Join(c.cgroups.tracking, c.cgroup(name), "cgroup.procs")
}

// process returns the process with the given name that was started last, or nil.
func (c *Cluster) process(name string) *Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.processes[name]
}

// run starts a process in the named cgroup of the cluster, and records it.
func (c *Cluster) run(ctx context.Context, l launch, cgroup string) (*Process, error) {
	return c.runTo(ctx, l, cgroup, nil)
}

// runTo is run with the process' standard output going to stdout, unless that is nil.
func (c *Cluster) runTo(ctx context.Context, l launch, cgroup string, stdout *os.File) (*Process, error) {
	procs, err := c.cgroups.create(c.cgroup(cgroup))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", l.name, err)
	}
	l.cgroupProcs = procs
	p, err := l.start(ctx, c.Logs(), stdout)
	if err != nil {
		return nil, err
	}
	p.cgroup = cgroup
	c.mu.Lock()
	defer c.mu.Unlock()
	c.processes[l.name] = p
	c.state.Processes[l.name] = p.identity
	return p, c.state.save()
}

// StartProcess starts a program in node n, as Node.Command does, or in the namespaces of the
// caller if n is nil. Its log is NAME.log in Logs, appended to if it exists. env is added to
// the environment. It is supervised only in the sense that its log is kept and Stop ends it;
// ctx bounds the start alone. Starting a second process with the name of a running one is an
// error, and so is a node that is off.
func (c *Cluster) StartProcess(ctx context.Context, n *Node, name string, argv []string, env []string) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	if len(argv) == 0 {
		return nil, fmt.Errorf("start %s: no program given", name)
	}
	if p := c.process(name); p != nil && !p.Exited() {
		return nil, fmt.Errorf("start %s: it runs as process %d", name, p.Pid())
	}
	l, cgroup := launch{name: name, argv: argv}, "host"
	if n != nil {
		var err error
		if l, err = n.launch(name, argv); err != nil {
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		cgroup = n.systemCgroup()
	}
	l.env = append(l.env, env...)
	return c.run(ctx, l, cgroup)
}

// Stop ends every process of the cluster at once, as a power cut would, and leaves no process,
// mount, network namespace, cgroup, interface or file but the logs behind. It tries everything
// even after an error, and can be called again.
func (c *Cluster) Stop(ctx context.Context) error {
	if err := c.remove(ctx); err != nil {
		return fmt.Errorf("stop cluster %q: %w", c.state.Options.Name, err)
	}
	return nil
}

// remove is Stop, for a cluster of which perhaps only parts exist.
func (c *Cluster) remove(ctx context.Context) error {
	name := c.cgroup("")
	if err := c.cgroups.killAll(ctx, name); err != nil {
		return err // what follows would pull away the ground from under the living
	}
	// After the runtimes, which could start more of them.
	containers, err := c.containerCgroups()
	if err != nil {
		return err
	}
	for _, container := range containers {
		if err := c.cgroups.killAll(ctx, container); err != nil {
			return err
		}
	}
	c.mu.Lock()
	children := slices.Collect(maps.Values(c.processes))
	c.mu.Unlock()
	for _, p := range children {
		// All are dead; children of this process become reaped.
		if err := p.Wait(ctx); err != nil && ctx.Err() != nil {
			return err
		}
	}
	errs := []error{c.network().remove(ctx), c.cgroups.remove(ctx, name)}
	for _, container := range containers {
		errs = append(errs, c.cgroups.remove(ctx, container))
	}
	// The files last: they name the containers.
	if err := errors.Join(errs...); err != nil {
		return err // and stay in the registry, for another try
	}
	if err := c.removeFiles(); err != nil {
		return err
	}
	return release(c.state)
}

// containerCgroups returns the cgroups of all containers that the nodes' runtimes know of.
func (c *Cluster) containerCgroups() ([]string, error) {
	var found []string
	for _, n := range c.nodes {
		of, err := n.containerCgroups()
		if err != nil {
			return nil, err
		}
		found = append(found, of...)
	}
	return found, nil
}

// removeFiles removes all files of the cluster but its logs.
func (c *Cluster) removeFiles() error {
	entries, err := os.ReadDir(c.state.dir())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove files: %w", err)
	}
	for _, entry := range entries {
		if path := c.path(entry.Name()); path != c.Logs() {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove files: %w", err)
			}
		}
	}
	return nil
}

// Cleanup removes what clusters left whose starting process has ended without Stop, unless
// they were started with Options.Keep: those with the given Dir, or all of the machine if dir
// is empty. Start calls it for its own Dir.
func Cleanup(ctx context.Context, dir string) error {
	if dir != "" {
		var err error
		if dir, err = absDir(dir); err != nil {
			return err
		}
	}
	all, err := readRegistry()
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	var errs []error
	for _, s := range all {
		if !s.leftover() || (dir != "" && s.Options.Dir != dir) {
			continue
		}
		c, err := newCluster(s)
		if err == nil {
			err = c.remove(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("clean up cluster %q: %w", s.Options.Name, err))
		}
	}
	return errors.Join(errs...)
}

// restConfig reads a kubeconfig file for a client without a limit on its rate: tests wait for
// the cluster, not for themselves.
func restConfig(path string) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.QPS = -1
	return config, nil
}
