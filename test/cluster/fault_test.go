// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// testContainer checks that the process of a container can be found, frozen, thawed and killed.
func testContainer(ctx context.Context, t *testing.T, c *Cluster) {
	pod := probePod("victim", "n1", "serve", ":8080")
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	awaitPod(ctx, t, c, createPod(ctx, t, c, pod), corev1.PodRunning)
	if _, err := c.Container(ctx, "default", "victim", "other"); err == nil || !strings.Contains(err.Error(), "0 of it run") {
		t.Errorf("a container that is not there is found: %v", err)
	}
	p, err := c.Container(ctx, "default", "victim", "probe")
	if err != nil {
		t.Fatal(err)
	}
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid())); err != nil || string(line) != "/probe\x00serve\x00:8080\x00" {
		t.Errorf("the process is %q, %v", line, err)
	}
	if err := p.Freeze(); err != nil {
		t.Fatal(err)
	}
	awaitState(ctx, t, p, "T")
	if err := p.Thaw(); err != nil {
		t.Fatal(err)
	}
	poll(ctx, t, "the process to go on", func() error {
		if state := processState(t, p); state == "T" {
			return errors.New("it is stopped")
		}
		return nil
	})
	if err := p.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("freezing what is gone: %v", err)
	}
	poll(ctx, t, "another process of the container", func() error {
		_, err := c.Container(ctx, "default", "victim", "probe")
		return err
	})
	// Left frozen, so that Stop has to end it.
	if p, err = c.Container(ctx, "default", "victim", "probe"); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(); err != nil {
		t.Error(err)
	}
}

func processState(t *testing.T, p *Process) string {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	state, _, err := parseStat(string(content))
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func awaitState(ctx context.Context, t *testing.T, p *Process, want string) {
	t.Helper()
	poll(ctx, t, "the process to be in state "+want, func() error {
		if state := processState(t, p); state != want {
			return fmt.Errorf("it is in %s", state)
		}
		return nil
	})
}

// testCut checks what passes during cuts, and that nothing changes in the nodes.
func testCut(ctx context.Context, t *testing.T, c *Cluster) {
	n1, n2 := c.Nodes()[0], c.Nodes()[1]
	rules := nodeOutput(ctx, t, n1, "iptables-save", "-t", "filter")
	expect := func(what string, between, outside bool) {
		t.Helper()
		for _, from := range []struct{ node, other *Node }{{n1, n2}, {n2, n1}} {
			for i := range from.other.IPs { // both families
				if got := pings(ctx, from.node, from.other.IPs[i].String()); got != between {
					t.Errorf("%s: %s reaches %s: %v, want %v", what, from.node.Name, from.other.IPs[i], got, between)
				}
			}
		}
		if got := pings(ctx, n1, c.HostIPs()[0]); got != outside {
			t.Errorf("%s: n1 reaches the host: %v, want %v", what, got, outside)
		}
		if !pings(ctx, n2, c.HostIPs()[0]) {
			t.Errorf("%s: n2 does not reach the host", what)
		}
	}
	expect("before", true, true)
	mendPair, err := c.Cut(ctx, n1, n2)
	if err != nil {
		t.Fatal(err)
	}
	expect("pair cut", false, true)
	mendAll, err := c.Cut(ctx, n1, nil)
	if err != nil {
		t.Fatal(err)
	}
	expect("pair and node cut", false, false)
	if now := nodeOutput(ctx, t, n1, "iptables-save", "-t", "filter"); stripComments(now) != stripComments(rules) {
		t.Errorf("the node's rules changed from\n%s\nto\n%s", rules, now)
	}
	if err := mendPair(ctx); err != nil {
		t.Fatal(err)
	}
	expect("node cut", false, false)
	if err := mendAll(ctx); err != nil {
		t.Fatal(err)
	}
	poll(ctx, t, "the nodes to reach each other again", func() error {
		if !pings(ctx, n1, n2.IPs[0].String()) || !pings(ctx, n1, n2.IPs[1].String()) {
			return errors.New("they do not")
		}
		return nil
	})
	expect("mended", true, true)
	if _, err := c.Cut(canceled(ctx), n1, n2); err == nil {
		t.Error("a cut with a context that has ended succeeds")
	}
	expect("after a cut that failed", true, true)
}

func canceled(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

// stripComments removes what iptables-save tells of the time and the counters of chains.
func stripComments(rules string) string {
	var kept []string
	for line := range strings.Lines(rules) {
		if !strings.HasPrefix(line, "#") {
			before, _, _ := strings.Cut(line, "[")
			kept = append(kept, before)
		}
	}
	return strings.Join(kept, "")
}

// pings says whether a host answers a node. It asks the kubelets' ports: a node refuses or
// accepts a connection to them at once, and so does the host.
func pings(ctx context.Context, from *Node, to string) bool {
	ctx, cancel := context.WithTimeout(ctx, 1500*time.Millisecond)
	defer cancel()
	output, _ := from.Command(ctx, "bash", "-c", "exec 3<>/dev/tcp/$0/$1", to, "10250").CombinedOutput()
	return ctx.Err() == nil && !strings.Contains(string(output), "No route to host")
}

// testReboot checks what of a node survives its reboot, and that its Pods come back.
func testReboot(ctx context.Context, t *testing.T, c *Cluster) {
	n := c.Nodes()[1]
	pod := probePod("sailor", n.Name, "serve", ":8080")
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod = awaitPod(ctx, t, c, createPod(ctx, t, c, pod), corev1.PodRunning)
	nodeOutput(ctx, t, n, "iptables", "-A", "FORWARD", "-j", "DROP")
	nodeOutput(ctx, t, n, "ip", "route", "add", "192.0.2.0/24", "dev", "lo")
	nodeOutput(ctx, t, n, "sh", "-c", "echo old > /run/of-memory; echo old > /var/lib/of-disk")
	daemon, err := c.StartProcess(ctx, n, "daemon", []string{"sleep", "3600"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.StopNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	if n.Running() || !daemon.Exited() || c.process("daemon") != nil {
		t.Errorf("a node that is off runs: %v, its process has exited: %v", n.Running(), daemon.Exited())
	}
	if _, err := os.Stat(netnsPath(n.NetNS)); err == nil {
		t.Error("a node that is off has a network namespace")
	}
	if output, err := n.Command(ctx, "true").CombinedOutput(); err == nil {
		t.Errorf("a command runs in a node that is off: %q", output)
	}
	if err := c.StopNode(ctx, n); err != nil {
		t.Errorf("stop a node that is off: %v", err)
	}
	if loaded, err := Load("test-a", c.state.Options.Dir); err != nil || loaded.Nodes()[1].Running() {
		t.Errorf("a cluster with a node that is off cannot be loaded: %v", err)
	}
	if err := c.StartNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	if err := c.StartNode(ctx, n); err == nil {
		t.Error("a node that runs can be started")
	}
	if rules := nodeOutput(ctx, t, n, "iptables-save"); strings.Contains(rules, "-A FORWARD -j DROP") {
		t.Error("a rule outlived the reboot")
	}
	if routes := nodeOutput(ctx, t, n, "ip", "route"); strings.Contains(routes, "192.0.2.0") || !strings.Contains(routes, " via ") {
		t.Errorf("the routes are\n%s", routes)
	}
	if got := nodeOutput(ctx, t, n, "sh", "-c", "cat /run/of-memory; cat /var/lib/of-disk; true"); got != "cat: /run/of-memory: No such file or directory\nold\n" {
		t.Errorf("of the files there is %q", got)
	}
	poll(ctx, t, "the Pod to serve with another address", func() error {
		now, err := c.Client().CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if now.Status.PodIP == pod.Status.PodIP {
			return fmt.Errorf("it has the address %s of before", pod.Status.PodIP)
		}
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", net.JoinHostPort(now.Status.PodIP, "8080"))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if restarts := awaitPod(ctx, t, c, pod, corev1.PodRunning).Status.ContainerStatuses[0].RestartCount; restarts != 1 {
		t.Errorf("the container was restarted %d times, want once", restarts)
	}
}

// testLateNode checks that a node can be added while the cluster runs.
func testLateNode(ctx context.Context, t *testing.T, c *Cluster) {
	n := c.Nodes()[2]
	if _, err := c.Client().CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{}); err == nil {
		t.Error("there is a Node object of a node that has not started")
	}
	if err := c.StartNode(ctx, n, "--register-with-taints=example.org/start-up=:NoSchedule"); err != nil {
		t.Fatal(err)
	}
	node, err := c.Client().CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Key != "example.org/start-up" {
		t.Errorf("its taints are %v", node.Spec.Taints)
	}
	if len(node.Spec.PodCIDRs) != 2 || node.Spec.PodCIDRs[0] != n.PodCIDRs[0].String() {
		t.Errorf("its ranges are %v", node.Spec.PodCIDRs)
	}
	pod := probePod("pioneer", n.Name, "serve", ":8080")
	pod.Spec.Tolerations = []corev1.Toleration{{Key: "example.org/start-up", Operator: corev1.TolerationOpExists}}
	pod = awaitPod(ctx, t, c, createPod(ctx, t, c, pod), corev1.PodRunning)
	if !n.PodCIDRs[0].Contains(mustAddr(t, pod.Status.PodIP)) {
		t.Errorf("its Pod has the address %s", pod.Status.PodIP)
	}
	if entries, err := filepath.Glob(filepath.Join(n.dir, "lib/cni/networks/kube-bridge/*")); err != nil || len(entries) == 0 {
		t.Errorf("host-local's reservations are not where StartNode says: %v, %v", entries, err)
	}

	// Nothing keeps its namespace, in which connections were open, once it stops: neither the
	// links in there nor their other ends. (The test itself holds those of the other nodes.)
	const witness = "witness"
	if err := ip(ctx, c.network().switchNS(), []string{"link add " + witness + " type veth peer name end netns " + n.NetNS}); err != nil {
		t.Fatal(err)
	}
	if err := c.StopNode(ctx, n); err != nil {
		t.Fatal(err)
	}
	poll(ctx, t, "the node's links to be gone", func() error {
		if err := ip(ctx, c.network().switchNS(), []string{"link show " + witness}); err == nil {
			return errors.New("one of them is there")
		}
		return nil
	})
}
