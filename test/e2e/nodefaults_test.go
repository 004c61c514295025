// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// startupTaint is that of config/startup-taint.
const startupTaint = "policygate.io/agent-not-ready"

// TestNodeFaults has nodes come, go, and fail in ways in which none of its
// Pods may be let go too early, nor others be held for long. Its nodes are
// waited for shorter than by default, so that the test need not wait either.
func TestNodeFaults(t *testing.T) {
	t.Parallel()
	f := start(t, testbed.Options{
		Name: "nodefaults", Nodes: 3, LateNodes: 1, IPTables: cluster.IPTablesNFT,
		// More than the 10 s after which kubelets renew their Leases.
		ControllerManagerArgs: []string{"--node-monitor-grace-period=20s", "--node-monitor-period=1s"},
		Components:            []string{"startup-taint", "fail", "../test/e2e/testdata/nodelimits"},
	})
	for _, scenario := range []struct {
		name string
		run  func(*testing.T, fixture)
	}{
		// The first, as it starts the last node.
		{"a new node that registers with the start-up taint takes no Pod before its agent is there", newNode},
		{"a new sandbox at the same address is held until its rules are back", sameAddress},
		{"a node that lost power holds its Pods until their addresses are covered, whose ever they were", nodeReboots},
		{"a node that is gone is not waited for, and covers on its return who was let go without it", nodeNotReady},
		{"a node whose engine stalls holds its own Pods, and others' no longer than the limit", nodeStalls},
		{"a node with an eBPF dataplane is named, holds its own Pods, and is not awaited by others", nodeWithBPF},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			if f.otherNode.Running() {
				f.calm(t)
			}
			scenario.run(t, f)
		})
	}
}

// patient is for Pods that wait longer than by default.
func patient(more map[string]string) map[string]string {
	all := map[string]string{v1alpha1.KeyTimeout: "5m"}
	maps.Copy(all, more)
	return all
}

// gated creates a Pod as soon as a replica of the manager answers: one may be
// on the node that went, and Pods are not let in without.
func (f fixture) gated(t *testing.T, ns string, p pod) {
	t.Helper()
	eventually(t, 60*time.Second, "Pod "+p.name+" is created", func() (bool, string) {
		created, err := f.Client.CoreV1().Pods(ns).Create(t.Context(), p.object(ns), metav1.CreateOptions{})
		if err == nil && !hasGate(created) {
			t.Fatalf("Pod %s has no gate", p.name)
		}
		return err == nil, fmt.Sprint(err)
	})
}

func newNode(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	admit := f.noMorePods(t, testbed.Namespace)
	f.gated(t, ns, pod{name: "client", node: f.otherNode, labels: clientLabels, args: []string{"dial", "-for", "2s", at(server)}})
	if err := f.StartNode(t.Context(), f.otherNode, "--register-with-taints="+startupTaint+":NoSchedule"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if p := f.get(t, ns, "client"); p.Spec.NodeName != "" || !f.tainted(t, f.otherNode) {
			t.Fatalf("before the agent is there the taint is gone, or the Pod scheduled: %q", p.Spec.NodeName)
		}
		time.Sleep(100 * time.Millisecond)
	}
	admit()
	client := f.await(t, ns, "client", 90*time.Second, "is scheduled", func(p *corev1.Pod) bool { return p.Spec.NodeName == f.otherNode.Name })
	if f.tainted(t, f.otherNode) {
		t.Error("scheduled in spite of the taint: it shows nothing")
	}
	f.agentRuns(t, f.otherNode)
	allOK(t, "client", f.dials(t, ns, "client", 60*time.Second))
	// Nothing else of the Node is touched.
	node, err := f.Client.CoreV1().Nodes().Get(t.Context(), client.Spec.NodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if node.Spec.Unschedulable || len(node.Spec.Taints) > 0 {
		t.Errorf("the node is %+v", node.Spec)
	}
}

// noMorePods has the API server refuse further Pods in a namespace, until the
// returned function is called, which waits for those of the agents.
func (f fixture) noMorePods(t *testing.T, ns string) func() {
	t.Helper()
	quotas := f.Client.CoreV1().ResourceQuotas(ns)
	_, err := quotas.Create(t.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "no-more"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("0")}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	end := func() {
		if err := quotas.Delete(context.Background(), "no-more", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
	t.Cleanup(end)
	eventually(t, 30*time.Second, "the quota is in force", func() (bool, string) {
		q, err := quotas.Get(t.Context(), "no-more", metav1.GetOptions{})
		return err == nil && len(q.Status.Hard) > 0, fmt.Sprint(err)
	})
	return func() {
		end()
		// Any change has the controller try at once. It may be behind its own writes
		// then, and would try again after a time that has grown with each refusal, to
		// minutes, if nothing changed any more.
		var changed time.Time
		eventually(t, 60*time.Second, "the agents have a Pod for each node", func() (bool, string) {
			pods, err := f.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=policygate-agent"})
			if err != nil {
				return false, err.Error()
			}
			if len(pods.Items) == len(f.Cluster.Nodes()) {
				return true, ""
			}
			if time.Since(changed) > time.Second {
				changed = time.Now()
				change := fmt.Appendf(nil, `{"metadata":{"annotations":{"example.org/tried":%q}}}`, changed)
				_, err = f.Client.AppsV1().DaemonSets(ns).Patch(t.Context(), "policygate-agent", types.MergePatchType, change, metav1.PatchOptions{})
			}
			return false, fmt.Sprintf("%d Pods, %v", len(pods.Items), err)
		})
	}
}

func (f fixture) tainted(t *testing.T, node *cluster.Node) bool {
	t.Helper()
	n, err := f.Client.CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(n.Spec.Taints, func(x corev1.Taint) bool { return x.Key == startupTaint })
}

func (f fixture) agentRuns(t *testing.T, node *cluster.Node) {
	t.Helper()
	if _, err := f.Agent(t.Context(), node.Name); err != nil {
		t.Error(err)
	}
}

// A server whose rules are gone gets a new sandbox at its former address, so
// what opened its gate names it exactly.
func sameAddress(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	stranger := f.server(t, ns, "stranger", f.clientNode, otherLabels)
	client := f.server(t, ns, "client", f.clientNode, clientLabels)
	first := f.heldServer(t, ns, "server", f.serverNode)
	f.refused(t, stranger, first)
	thaw := f.freeze(t, f.serverNode)
	f.flush(t, f.serverNode, first)
	f.markAddress(t, f.serverNode, first.Status.PodIP)
	if err := f.Cluster.KillSandbox(t.Context(), ns, "server"); err != nil {
		t.Fatal(err)
	}
	again := f.await(t, ns, "server", 60*time.Second, "is held again, its gate shut", func(p *corev1.Pod) bool {
		return heldSince(p, gateOf(first).LastTransitionTime.Time) && isShut(p)
	})
	if again.Status.PodIP != first.Status.PodIP {
		t.Fatalf("the new sandbox has address %s, want the former one's, %s", again.Status.PodIP, first.Status.PodIP)
	}
	f.staysHeld(t, ns, "server")
	thaw()
	f.nudge(t)
	open := f.await(t, ns, "server", 60*time.Second, "is open and runs", runs)
	f.refused(t, stranger, open)
	f.admits(t, client, open, true)
}

// heldServer runs a server that is gated and held, and waits until it serves.
func (f fixture) heldServer(t *testing.T, ns, name string, node *cluster.Node) *corev1.Pod {
	t.Helper()
	f.gated(t, ns, pod{
		name: name, node: node, labels: serverLabels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		restart: corev1.RestartPolicyAlways, annotations: patient(map[string]string{v1alpha1.KeyHold: v1alpha1.ValueTrue}),
	})
	return f.await(t, ns, name, 60*time.Second, "is open and runs", runs)
}

// runs says that the gate is open and the Pod's containers run.
func runs(p *corev1.Pod) bool {
	return isOpen(p) && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].State.Running != nil &&
		strings.Contains(p.Annotations[v1alpha1.KeyProgrammed], p.Status.PodIP) && !isHeld(p)
}

// heldSince says that a hold runs that began after that time.
func heldSince(p *corev1.Pod, since time.Time) bool {
	return isHeld(p) && hasAddress(p) && heldFrom(p).After(since)
}

// heldFrom returns when the newest hold began, whether or not it has ended, and
// zero if there was none.
func heldFrom(p *corev1.Pod) time.Time {
	switch hold := holdOf(p); {
	case hold.Running != nil:
		return hold.Running.StartedAt.Time
	case hold.Terminated != nil:
		return hold.Terminated.StartedAt.Time
	}
	return time.Time{}
}

// staysHeld looks for two seconds whether a Pod stays held and its gate shut.
func (f fixture) staysHeld(t *testing.T, ns, name string) {
	t.Helper()
	for range 20 {
		if p := f.get(t, ns, name); !isHeld(p) || isOpen(p) {
			t.Fatalf("Pod %s is not held: %s", name, describe(p))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// refused fails the test if a server lets a Pod in now.
func (f fixture) refused(t *testing.T, from, server *corev1.Pod) {
	t.Helper()
	if d := f.dialFrom(t, from, at(server)); d.OK {
		t.Errorf("%s is open, and lets %s in", server.Name, from.Name)
	}
}

// markAddress has the address plugin go on from an address that is not free
// yet.
func (f fixture) markAddress(t *testing.T, node *cluster.Node, ip string) {
	t.Helper()
	const script = `printf %s "$1" > /var/lib/cni/networks/kube-bridge/last_reserved_ip.0`
	before := netip.MustParseAddr(ip).Prev().String()
	if out, err := node.Command(t.Context(), "sh", "-c", script, "sh", before).CombinedOutput(); err != nil {
		t.Fatalf("set the next address of %s: %v: %s", node.Name, err, out)
	}
}

// The addresses of a node that lost power are given out again, to whoever asks
// first, while no rule is in its kernel.
func nodeReboots(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	peer := f.server(t, ns, "peer", f.serverNode, clientLabels)
	stranger := f.server(t, ns, "stranger", f.serverNode, otherLabels)
	// From the start of the range, where they will be given out again.
	if err := f.clientNode.LowestAddress(); err != nil {
		t.Fatal(err)
	}
	f.gated(t, ns, pod{
		name: "client", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "1h"},
		restart: corev1.RestartPolicyAlways, annotations: patient(map[string]string{v1alpha1.KeyHold: v1alpha1.ValueTrue}),
	})
	f.heldServer(t, ns, "held-server", f.clientNode)
	f.job(t, ns, pod{name: "job", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "1h"}, annotations: patient(nil)})
	first := f.nextPodOf(t, ns, "job", "")
	names := []string{"client", "held-server", first}
	former := map[string]string{}
	for _, name := range names {
		former[name] = f.await(t, ns, name, 60*time.Second, "is open and runs", runs).Status.PodIP
	}

	forget := f.clientNode.Command(t.Context(), "sh", "-c", "rm -f /var/lib/cni/networks/kube-bridge/*")
	if out, err := forget.CombinedOutput(); err != nil {
		t.Fatalf("forget the addresses of %s: %v: %s", f.clientNode.Name, err, out)
	}
	off := time.Now()
	if err := f.Cluster.StopNode(t.Context(), f.clientNode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Engine(f.clientNode.Name).Start(context.Background()); err != nil {
			t.Error(err)
		}
	})
	// Its engine is late.
	if err := f.Cluster.StartNode(t.Context(), f.clientNode); err != nil {
		t.Fatal(err)
	}
	// The Pod of the Job has failed, and the Job makes another.
	names[2] = f.nextPodOf(t, ns, "job", first)
	for _, name := range names {
		p := f.await(t, ns, name, 90*time.Second, "is held in a new sandbox", func(p *corev1.Pod) bool {
			return hasAddress(p) && heldFrom(p).After(off)
		})
		t.Logf("%s had %s, and has %s", name, former[name], p.Status.PodIP)
	}
	// The server whose rules are gone is held, and its clients as soon as it has an
	// address: one that was looked at before may be let go, if its own is still let
	// in elsewhere. That is told by packets below.
	f.await(t, ns, "held-server", 90*time.Second, "has its gate shut", isShut) // the leader may have been there
	f.staysHeld(t, ns, "held-server")
	if err := f.Engine(f.clientNode.Name).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"client", names[2]} {
		client := f.await(t, ns, name, 60*time.Second, "is open and runs", func(p *corev1.Pod) bool {
			return runs(p) && heldFrom(p).After(off)
		})
		if d := f.dialFrom(t, client, at(server)); !d.OK {
			t.Errorf("%s is open, and refused: %s", name, d.Error)
		}
	}
	held := f.await(t, ns, "held-server", 60*time.Second, "is open and runs", runs)
	f.refused(t, stranger, held)
	f.admits(t, peer, held, true)
	f.agentRuns(t, f.clientNode)
}

// job runs a Job of one Pod.
func (f fixture) job(t *testing.T, ns string, p pod) {
	t.Helper()
	template := p.object(ns)
	_, err := f.Client.BatchV1().Jobs(ns).Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: p.name},
		Spec: batchv1.JobSpec{Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// nextPodOf waits for a Pod of a Job beside the one of that name, and returns its
// name.
func (f fixture) nextPodOf(t *testing.T, ns, job, beside string) string {
	t.Helper()
	name := ""
	eventually(t, 90*time.Second, "another Pod of the Job than "+beside, func() (bool, string) {
		list, err := f.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: batchv1.JobNameLabel + "=" + job})
		if err != nil {
			return false, err.Error()
		}
		for i := range list.Items {
			if name = list.Items[i].Name; name != beside {
				return true, ""
			}
		}
		return false, fmt.Sprintf("%d Pods", len(list.Items))
	})
	return name
}
