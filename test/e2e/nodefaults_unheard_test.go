// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// The faults in which a node is awaited for a while and then no longer: one that
// is not heard of, one whose engine stands still, one that cannot be looked
// into.

func nodeNotReady(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.create(t, ns, pod{
		name: "server", node: f.serverNode, labels: serverLabels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		restart: corev1.RestartPolicyAlways, annotations: map[string]string{v1alpha1.KeyInject: v1alpha1.ValueFalse},
	})
	server := f.await(t, ns, "server", 30*time.Second, "serves", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && hasAddress(p)
	})
	f.settled(t, ns, server)
	// Created before, as a replica of the manager may go with the node.
	const later = "example.org/later"
	f.gated(t, ns, pod{
		name: "client", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "1h"}, annotations: patient(nil),
		change: func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: later}} },
	})
	// The wait is told before the node counts as gone, which is 20 s after it was
	// last heard of: by a leader that stays, whose successor would take as long.
	f.leadElsewhere(t, f.serverNode)
	f.renewed(t, corev1.NamespaceNodeLease, f.serverNode.Name, 30*time.Second)
	if err := f.Cluster.StopNode(t.Context(), f.serverNode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !f.serverNode.Running() {
			if err := f.StartNode(context.Background(), f.serverNode); err != nil {
				t.Error(err)
			}
		}
	})
	now := []byte(`{"spec":{"schedulingGates":null}}`)
	if _, err := f.Client.CoreV1().Pods(ns).Patch(t.Context(), "client", types.MergePatchType, now, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	f.await(t, ns, "client", 60*time.Second, "waits for the node, and names it", func(p *corev1.Pod) bool {
		return isHeld(p) && isShut(p) && strings.Contains(gateOf(p).Message, f.serverNode.Name)
	})
	client := f.await(t, ns, "client", 90*time.Second, "is open", isOpen)
	if f.ready(t, f.serverNode) {
		t.Errorf("open before the node counted as gone: %s", describe(client))
	}
	if gate := gateOf(client); gate.Reason != v1alpha1.ReasonConfirmed {
		t.Errorf("open by %s, want %s: %s", gate.Reason, v1alpha1.ReasonConfirmed, gate.Message)
	}

	if err := f.StartNode(t.Context(), f.serverNode); err != nil {
		t.Fatal(err)
	}
	server = f.await(t, ns, "server", 60*time.Second, "serves in a new sandbox", func(p *corev1.Pod) bool {
		return p.Status.PodIP != "" && p.Status.PodIP != server.Status.PodIP && p.Status.ContainerStatuses[0].State.Running != nil
	})
	f.admits(t, client, server, true)
	stranger := f.server(t, ns, "stranger", f.otherNode, otherLabels)
	f.admits(t, stranger, server, false)
	f.admits(t, client, server, true)
	f.gated(t, ns, pod{name: "second", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "1h"}, annotations: patient(nil)})
	f.await(t, ns, "second", 60*time.Second, "is confirmed by the node that returned as well", func(p *corev1.Pod) bool {
		return isOpen(p) && strings.HasPrefix(gateOf(p).Message, "confirmed on 2/2 nodes")
	})
}

// leadElsewhere waits until the manager's leader is not on that node, and the
// other replica is there as well; it deletes a leader that is.
func (f fixture) leadElsewhere(t *testing.T, node *cluster.Node) {
	t.Helper()
	eventually(t, 2*time.Minute, "a leader elsewhere than on "+node.Name, func() (bool, string) {
		lease, err := f.Client.CoordinationV1().Leases(testbed.Namespace).Get(t.Context(), leaderLease, metav1.GetOptions{})
		if err != nil || lease.Spec.HolderIdentity == nil {
			return false, fmt.Sprint(err)
		}
		holder, _, _ := strings.Cut(*lease.Spec.HolderIdentity, "_")
		managers := f.managers(t)
		i := slices.IndexFunc(managers, func(p corev1.Pod) bool { return p.Name == holder && p.DeletionTimestamp == nil })
		if i < 0 {
			return false, "there is no Pod " + holder
		}
		if managers[i].Spec.NodeName != node.Name {
			return true, ""
		}
		err = f.Client.CoreV1().Pods(testbed.Namespace).Delete(t.Context(), holder, metav1.DeleteOptions{})
		return false, fmt.Sprintf("%s is deleted: %v", holder, err)
	})
	f.rolledOut(t)
}

func (f fixture) ready(t *testing.T, node *cluster.Node) bool {
	t.Helper()
	n, err := f.Client.CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func nodeStalls(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	thaw := f.freeze(t, f.serverNode)
	history := f.watchStatus(t, ns, "later")
	f.apply(t, ns, policy("later", networkingv1.PolicyTypeEgress, serverLabels, clientLabels))
	dials := pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "1h"}, annotations: patient(nil)}
	f.gated(t, ns, dials)
	own := dials
	own.name, own.node = "own", f.serverNode
	f.gated(t, ns, own)
	client := f.await(t, ns, "client", 90*time.Second, "is let go without the node, which it names", func(p *corev1.Pod) bool {
		return isOpen(p) && strings.Contains(gateOf(p).Message, "not awaited: "+f.serverNode.Name+" (stalled)")
	})
	f.warned(t, metav1.NamespaceDefault, f.serverNode.Name, "Stalled")
	if n := f.stalledNodes(t); n != 1 {
		t.Errorf("policygate_nodes_stalled is %v, want 1", n)
	}
	history.await(t, "lags on the node", func(s v1alpha1.PolicyStatus) bool {
		return slices.ContainsFunc(s.Status.LaggingNodes, func(n v1alpha1.LaggingNode) bool { return n.Name == f.serverNode.Name })
	})
	next := dials
	next.name = "next"
	f.gated(t, ns, next)
	f.await(t, ns, "next", 30*time.Second, "is not held for the node at all", isOpen)
	f.staysHeld(t, ns, "own")
	thaw()
	f.await(t, ns, "own", 60*time.Second, "is open", isOpen)
	f.admits(t, client, server, true)
	eventually(t, 30*time.Second, "no node is stalled", func() (bool, string) {
		n := f.stalledNodes(t)
		return n == 0, fmt.Sprint(n)
	})
	last := dials
	last.name = "last"
	f.gated(t, ns, last)
	f.await(t, ns, "last", 60*time.Second, "is confirmed by the node as well", func(p *corev1.Pod) bool {
		return isOpen(p) && strings.HasPrefix(gateOf(p).Message, "confirmed on 2/2 nodes")
	})
}

// stalledNodes returns the most stalled nodes that a replica counts.
func (f fixture) stalledNodes(t *testing.T) float64 {
	t.Helper()
	most := 0.0
	for _, target := range f.targets(t) {
		if target.Job != "policygate-manager" {
			continue
		}
		n, err := scrape(target.Address, "policygate_nodes_stalled")
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, n)
	}
	return most
}

func nodeWithBPF(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.clientNode, serverLabels)
	history := f.watchStatus(t, ns, "allow-client")
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	history.await(t, "is in force", inForceOn("1/1"))
	detach := f.attachBPF(t, f.clientNode)
	// The agent looks for such every 15 s.
	history.within(t, time.Minute, "says that the node is unsupported", func(s v1alpha1.PolicyStatus) bool {
		return lags(s, f.clientNode.Name, v1alpha1.LagUnsupported)
	})
	f.warned(t, metav1.NamespaceDefault, f.clientNode.Name, "XDP program")
	f.gated(t, ns, pod{name: "own", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "1h"}, annotations: patient(nil)})
	f.gated(t, ns, pod{name: "client", node: f.serverNode, labels: clientLabels, args: []string{"dial", at(server)}, annotations: patient(nil)})
	f.await(t, ns, "client", 60*time.Second, "is let go without the node, which it names", func(p *corev1.Pod) bool {
		return isOpen(p) && strings.Contains(gateOf(p).Message, "not awaited: "+f.clientNode.Name+" (its dataplane cannot be seen)")
	})
	f.await(t, ns, "own", 30*time.Second, "is held, and told why", func(p *corev1.Pod) bool {
		return isHeld(p) && isShut(p) && strings.Contains(gateOf(p).Message, "the agent on "+f.clientNode.Name+" cannot see into that node's dataplane")
	})
	f.says(t, doctorFinds, []string{"doctor"}, "cannot be seen on "+f.clientNode.Name)
	f.staysHeld(t, ns, "own")
	detach()
	f.await(t, ns, "own", 60*time.Second, "is open", isOpen)
	history.within(t, time.Minute, "is in force again", inForceOn("1/1"))
}

// attachBPF has an XDP program on the bridge of a node until the returned
// function is called or the test ends. It leaves all packets alone.
func (f fixture) attachBPF(t *testing.T, node *cluster.Node) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := node.Command(ctx, f.Probe(), "bpf", "kube-bridge")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	detach := func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}
	t.Cleanup(detach)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || !strings.Contains(line, `"ok":true`) {
		detach()
		t.Fatalf("attach a BPF program on %s: %v: %q %s", node.Name, err, line, &stderr)
	}
	return detach
}
