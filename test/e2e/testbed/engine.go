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
	"syscall"
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

// Engine is the policy engine of one node.
type Engine struct {
	process *cluster.Process
	control string
}

func (t *Testbed) startEngine(ctx context.Context, node *cluster.Node) error {
	// Beside the logs, which tell what it did with it.
	e := &Engine{control: filepath.Join(t.Cluster.Logs(), "engine-"+node.Name+".json")}
	var argv []string
	ipv6 := t.options.DualStack && !t.options.EngineIPv4Only
	services := t.Cluster.Plan().ServiceRange()
	if t.EngineKind == EngineKubeRouter {
		argv = []string{
			os.Getenv("KUBE_ROUTER"), "--kubeconfig=" + t.Cluster.Kubeconfig(),
			"--hostname-override=" + node.Name,
			"--run-firewall=true", "--run-router=false", "--run-service-proxy=false",
			"--enable-ipv4=true", fmt.Sprintf("--enable-ipv6=%t", ipv6),
		}
		for i, cidr := range services {
			if i == 0 || ipv6 {
				argv = append(argv, "--service-cluster-ip-range="+cidr.String())
			}
		}
		argv = append(argv, strings.Fields(os.Getenv("KUBE_ROUTER_FLAGS"))...)
	} else {
		argv = []string{
			t.artifacts.engine, "--kubeconfig=" + t.Cluster.Kubeconfig(), "--node=" + node.Name,
			"--mode=" + t.iptables(), "--control=" + e.control, fmt.Sprintf("--ipv6=%t", ipv6),
		}
		for i, cidr := range services {
			if i == 0 || ipv6 {
				argv = append(argv, "--cluster-ip-range="+cidr.String())
			}
		}
	}
	process, err := t.Cluster.StartProcess(ctx, node, "engine-"+node.Name, argv, nil)
	if err != nil {
		return err
	}
	e.process = process
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

// Engine returns the engine of a node.
func (t *Testbed) Engine(node string) *Engine {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.engines[node]
}

// Freeze stops the engine where it is, whichever it is.
func (e *Engine) Freeze() error {
	return e.process.Signal(syscall.SIGSTOP)
}

// Thaw lets it go on.
func (e *Engine) Thaw() error {
	return e.process.Signal(syscall.SIGCONT)
}

// Log is the path of what it printed.
func (e *Engine) Log() string {
	return e.process.Log()
}

// Set changes the switches of the test engine; they take effect at its next
// step.
func (e *Engine) Set(s engine.Control) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	// The engine must never read half a file.
	next := e.control + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
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
	for _, node := range t.Cluster.Nodes() {
		if err := t.Engine(node.Name).Set(engine.Control{Lag: metav1.Duration{Duration: demoLag}}); err != nil {
			return err
		}
	}
	return nil
}
