// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package testbed brings up what the end-to-end tests and the demo run on: a
// real cluster, a policy engine on every node, the images, and Policy Gate
// deployed by `make deploy` as a user would.
//
// It asserts nothing about gates: the tests do.
package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/policygate/policygate/test/cluster"
)

// Namespace is where Policy Gate is deployed.
const Namespace = "policygate-system"

// Options say what to bring up.
type Options struct {
	// Name of the cluster.
	Name string
	// Nodes, 2 by default.
	Nodes int
	// LateNodes of them, the last ones, are off until StartNode.
	LateNodes int
	// DualStack gives Pods addresses of both families.
	DualStack bool
	// IPTables is the variant that the engine and kube-proxy write:
	// cluster.IPTablesNFT (default) or cluster.IPTablesLegacy.
	IPTables string
	// EngineIPv4Only leaves IPv6 to nobody in a cluster with DualStack.
	EngineIPv4Only bool
	// Boot is called for every node, before its engine starts: at the start and
	// after each StartNode, since what it sets in the node's network namespace
	// is gone then. Nil: nothing is to be done.
	Boot func(context.Context, *cluster.Node) error
	// Database adds DatabaseImage.
	Database bool
	// Keep leaves the cluster after the process ends.
	Keep bool
	// APIServerArgs is appended to kube-apiserver's arguments.
	APIServerArgs []string
	// ControllerManagerArgs is appended to kube-controller-manager's arguments.
	ControllerManagerArgs []string
	// Components are those of config that are deployed beside prometheus/ports.
	Components []string
	// Progress receives lines for the person who waits. Nil: none.
	Progress io.Writer
}

// Testbed is a running cluster with engines and Policy Gate.
type Testbed struct {
	Cluster *cluster.Cluster
	Config  *rest.Config
	Client  kubernetes.Interface
	// EngineKind is EngineTest or EngineKubeRouter.
	EngineKind string

	options   Options
	artifacts artifacts
	start     time.Time

	mu      sync.Mutex // guards engines
	engines map[string]*Engine
}

// Start brings everything up, or leaves nothing behind.
func Start(ctx context.Context, o Options) (_ *Testbed, err error) {
	t := &Testbed{options: o, start: time.Now(), engines: map[string]*Engine{}}
	if t.EngineKind, err = engineKind(); err != nil {
		return nil, err
	}
	if t.artifacts, err = build(ctx, t.progress, o.Database); err != nil {
		return nil, err
	}
	t.progress("starting the cluster")
	t.Cluster, err = cluster.Start(ctx, cluster.Options{
		Name: o.Name, Nodes: o.Nodes, LateNodes: o.LateNodes, DualStack: o.DualStack, IPTables: o.IPTables, Keep: o.Keep,
		KubeBinary: filepath.Join(t.artifacts.kube, "kube"), Progress: o.Progress, APIServerArgs: o.APIServerArgs,
		ControllerManagerArgs: o.ControllerManagerArgs,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			// The caller's context may be what ended.
			err = errors.Join(err, t.Cluster.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if t.Config, err = clientcmd.BuildConfigFromFlags("", t.Cluster.Kubeconfig()); err != nil {
		return nil, err
	}
	// The tests' own bursts must not be what delays anything.
	t.Config.QPS, t.Config.Burst = 200, 400
	if t.Client, err = kubernetes.NewForConfig(t.Config); err != nil {
		return nil, err
	}
	t.progress("loading images")
	for _, tar := range t.artifacts.images {
		if err := t.Cluster.LoadImage(ctx, tar); err != nil {
			return nil, err
		}
	}
	t.progress("starting the policy engine (" + t.EngineKind + ") on every node")
	for _, node := range t.Cluster.Nodes() {
		if !node.Running() {
			continue
		}
		if err := t.boot(ctx, node); err != nil {
			return nil, err
		}
	}
	t.progress("deploying Policy Gate")
	if err := t.Make(ctx, "deploy"); err != nil {
		return nil, err
	}
	t.progress("ready")
	return t, nil
}

// Stop ends everything and removes it.
func (t *Testbed) Stop(ctx context.Context) error {
	return t.Cluster.Stop(ctx)
}

// Make runs one of the Makefile's deployment targets against the cluster.
// Variables, as NAME=VALUE, overrule what it gives by itself.
func (t *Testbed) Make(ctx context.Context, target string, variables ...string) error {
	args := []string{
		"--no-print-directory", target,
		"IMG=" + GateImage, "COMPONENTS=" + strings.Join(append([]string{"prometheus/ports"}, t.options.Components...), " "),
		"KUBECTL=" + filepath.Join(t.artifacts.kube, "bin", "kubectl"), "DEPLOY=deploy-" + t.options.Name,
	}
	cmd := exec.CommandContext(ctx, "make", append(args, variables...)...)
	cmd.Dir = t.artifacts.root
	cmd.Env = append(os.Environ(), "KUBECONFIG="+t.Cluster.Kubeconfig())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make %s: %w\n%s", target, err, out)
	}
	return nil
}

// KubectlCommand returns a command that runs kubectl with args.
func (t *Testbed) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(t.artifacts.kube, "bin", "kubectl"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+t.Cluster.Kubeconfig())
	return cmd
}

// Kubectl returns what kubectl prints for args.
func (t *Testbed) Kubectl(ctx context.Context, args ...string) (string, error) {
	cmd := t.KubectlCommand(ctx, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return string(out), nil
}

func (t *Testbed) progress(step string) {
	if t.options.Progress != nil {
		_, _ = fmt.Fprintf(t.options.Progress, "[%6.1fs] %s\n", time.Since(t.start).Seconds(), step)
	}
}

// Probe is the path of the probe's executable, for use from a node.
func (t *Testbed) Probe() string {
	return filepath.Join(t.artifacts.root, "build", "e2e", "bin", "probe")
}

// Plugin is the path of kubectl-policygate.
func (t *Testbed) Plugin() string {
	return filepath.Join(t.artifacts.root, "build", "e2e", "bin", "kubectl-policygate")
}
