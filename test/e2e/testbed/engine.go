// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/engine"
)

// The values of $ENGINE.
const (
	// EngineTest is test/engine, whose switches make it slow or wrong.
	EngineTest = "test"
	// EngineKubeRouter is the executable that $KUBE_ROUTER names, with
	// $KUBE_ROUTER_FLAGS added to its arguments.
	EngineKubeRouter = "kube-router"
)

func engineKind() (string, error) {
	switch kind := os.Getenv("ENGINE"); kind {
	case "", EngineTest:
		return EngineTest, nil
	case EngineKubeRouter:
		path := os.Getenv("KUBE_ROUTER")
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			return "", fmt.Errorf("KUBE_ROUTER=%q: want the path of the kube-router executable", path)
		}
		return kind, nil
	default:
		return "", fmt.Errorf("ENGINE=%q: want %q or %q", kind, EngineTest, EngineKubeRouter)
	}
}

// Engine is the policy engine of one node. Its methods may be called
// concurrently.
type Engine struct {
	cluster *cluster.Cluster
	node    *cluster.Node
	argv    []string
	control string

	mu      sync.Mutex // guards the following fields
	process *cluster.Process
	set     engine.Control
}

func (t *Testbed) startEngine(ctx context.Context, node *cluster.Node) error {
	// Beside the logs, which tell what it did with it.
	e := &Engine{
		cluster: t.Cluster,
		node:    node,
		control: filepath.Join(t.Cluster.Logs(), "engine-"+node.Name+".json"),
	}
	ipv6 := t.options.DualStack && !t.options.EngineIPv4Only
	services := t.Cluster.Plan().ServiceRange()
	if t.EngineKind == EngineKubeRouter {
		e.argv = []string{
			os.Getenv("KUBE_ROUTER"), "--kubeconfig=" + t.Cluster.Kubeconfig(),
			"--hostname-override=" + node.Name,
			"--run-firewall=true", "--run-router=false", "--run-service-proxy=false",
			"--enable-ipv4=true", fmt.Sprintf("--enable-ipv6=%t", ipv6),
		}
		for i, cidr := range services {
			if i == 0 || ipv6 {
				e.argv = append(e.argv, "--service-cluster-ip-range="+cidr.String())
			}
		}
		e.argv = append(e.argv, strings.Fields(os.Getenv("KUBE_ROUTER_FLAGS"))...)
	} else {
		e.argv = []string{
			t.artifacts.engine, "--kubeconfig=" + t.Cluster.Kubeconfig(), "--node=" + node.Name,
			"--mode=" + t.iptables(), "--control=" + e.control, fmt.Sprintf("--ipv6=%t", ipv6),
		}
		for i, cidr := range services {
			if i == 0 || ipv6 {
				e.argv = append(e.argv, "--cluster-ip-range="+cidr.String())
			}
		}
	}
	if err := e.Start(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.engines[node.Name] = e
	return nil
}

func (t *Testbed) iptables() string {
	if t.options.IPTables == "" {
		return cluster.IPTablesNFT
	}
	return t.options.IPTables
}

// Engine returns the engine of a node; nil if none was started.
func (t *Testbed) Engine(node string) *Engine {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.engines[node]
}

// Engines returns the engines of all nodes that have one, in the order of the
// nodes.
func (t *Testbed) Engines() []*Engine {
	var all []*Engine
	for _, node := range t.Cluster.Nodes() {
		if e := t.Engine(node.Name); e != nil {
			all = append(all, e)
		}
	}
	return all
}

// Start starts the engine with the arguments of before, and its switches as
// they are now. It is no error if it runs, and one if its node is off.
func (e *Engine) Start(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.process != nil && !e.process.Exited() {
		return nil
	}
	process, err := e.cluster.StartProcess(ctx, e.node, "engine-"+e.node.Name, e.argv, nil)
	if err != nil {
		return err
	}
	e.process = process
	return nil
}

// Kill ends the engine as a crash would, frozen or not. What it wrote into the
// kernel stays, and a tool that it had just started finishes.
func (e *Engine) Kill(ctx context.Context) error {
	return e.Process().Kill(ctx)
}

// Process is the engine's process, the one that was started last.
func (e *Engine) Process() *cluster.Process {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.process
}

// Freeze stops the engine where it is, whichever it is.
func (e *Engine) Freeze() error {
	return e.Process().Freeze()
}

// Thaw lets it go on.
func (e *Engine) Thaw() error {
	return e.Process().Thaw()
}

// Log is the path of what it printed.
func (e *Engine) Log() string {
	return e.Process().Log()
}

// Control returns the switches of the test engine as Set made them last.
func (e *Engine) Control() engine.Control {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.set
}

// Set changes the switches of the test engine; they take effect at its next
// step, or when it starts.
func (e *Engine) Set(s engine.Control) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	// The engine must never read half a file.
	next := e.control + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	e.set = s
	return os.Rename(next, e.control)
}

// demoLag is how late the test engine is in the demo: a third of what the real
// kube-router's full sync takes with 110 Pods on the node.
const demoLag = 700 * time.Millisecond

// SlowEngines makes test engines as slow as real ones are in clusters that are
// not empty. The real one is left as it is.
func (t *Testbed) SlowEngines() error {
	if t.EngineKind != EngineTest {
		return nil
	}
	for _, e := range t.Engines() {
		if err := e.Set(engine.Control{Lag: metav1.Duration{Duration: demoLag}}); err != nil {
			return err
		}
	}
	return nil
}
