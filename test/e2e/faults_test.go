// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/cluster/image"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// TestFaults has processes fail, in turn, on one cluster: nothing opens that
// must not, and nothing that was held stays held once they are back.
func TestFaults(t *testing.T) {
	t.Parallel()
	f := start(t, testbed.Options{Name: "faults", Nodes: 3, IPTables: cluster.IPTablesNFT})

	for _, scenario := range []struct {
		name string
		run  func(*testing.T, fixture)
	}{
		{name: "an agent that is killed opens nothing, and the next one goes on", run: agentsKilled},
		{name: "a rolling restart of the manager opens nothing and forgets nobody", run: managersRolled},
		{name: "Pods are let go once a manager is back that was killed whole", run: managersKilled},
		{name: "an engine that dies between its sets and its rules is waited for", run: engineCrashed},
		{name: "what is refused to an address's former Pod is not what its next one starts with", run: deniedAddressReused},
		{name: "a server at an open Pod's address is not taken for isolated", run: serverAddressReused},
		{name: "a held Pod that is deleted is forgotten everywhere, and its Job goes on", run: heldPodDeleted},
		{name: "a replica that lists anew after a gap trusts no address that changed hands in it", run: watchGap},
		{name: "without an API server for a minute nothing opens, and after it all does", run: apiServerGone},
		{name: "an upgrade leaves nobody held", run: upgraded},
		{name: "undeploying without a manager lets all held Pods go", run: undeployedWithoutManager},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			f.calm(t)
			scenario.run(t, f)
		})
	}
}

// heldOnServer has a namespace with a server that is isolated, freezes the
// engine of its node until the returned function is called, and holds a client
// of it on each of the nodes: client-0 and so on.
func (f fixture) heldOnServer(t *testing.T, nodes ...*cluster.Node) (ns string, server *corev1.Pod, thaw func()) {
	t.Helper()
	ns = f.namespace(t, injected)
	server = f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	thaw = f.freeze(t, f.serverNode)
	for i, node := range nodes {
		f.create(t, ns, pod{
			name: fmt.Sprintf("client-%d", i), node: node, labels: clientLabels, args: []string{"dial", at(server)},
			annotations: map[string]string{v1alpha1.KeyTimeout: "5m"},
		})
	}
	for i := range nodes {
		f.awaits(t, ns, fmt.Sprintf("client-%d", i), f.serverNode)
	}
	return ns, server, thaw
}

// awaits waits until a Pod is held and its gate says that it waits for a node.
func (f fixture) awaits(t *testing.T, ns, name string, node *cluster.Node) *corev1.Pod {
	t.Helper()
	return f.await(t, ns, name, 60*time.Second, "is held, with the node's name", func(p *corev1.Pod) bool {
		return isHeld(p) && isShut(p) && strings.Contains(gateOf(p).Message, "waiting for "+node.Name)
	})
}

// stayHeld looks at Pods for a second.
func (f fixture) stayHeld(t *testing.T, ns string, names ...string) {
	t.Helper()
	for range 10 {
		for _, name := range names {
			if p := f.get(t, ns, name); !isHeld(p) || isOpen(p) {
				t.Fatalf("%s is not held: %s", name, describe(p))
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func agentsKilled(t *testing.T, f fixture) {
	ns, _, thaw := f.heldOnServer(t, f.clientNode)
	for _, node := range []*cluster.Node{f.clientNode, f.serverNode} {
		agent, err := f.Agent(t.Context(), node.Name)
		if err != nil {
			t.Fatal(err)
		}
		if err := agent.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.stayHeld(t, ns, "client-0")
		beside := "beside-" + node.Name
		f.create(t, ns, pod{name: beside, node: f.otherNode, labels: otherLabels, args: []string{"sleep", "1s"}})
		f.await(t, ns, beside, 30*time.Second, "is open, as it concerns neither", isOpen)
		if err := agent.AwaitRestart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.awaits(t, ns, "client-0", f.serverNode)
	f.stayHeld(t, ns, "client-0")
	thaw()
	allOK(t, "client-0", f.dials(t, ns, "client-0", 60*time.Second))
}

func managersRolled(t *testing.T, f fixture) {
	ns, _, thaw := f.heldOnServer(t, f.clientNode, f.serverNode)
	for _, args := range [][]string{{"restart"}, {"status", "--timeout=2m"}} {
		args = append([]string{"-n", testbed.Namespace, "rollout", args[0], "deployment/policygate-manager"}, args[1:]...)
		if _, err := f.Kubectl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
	f.stayHeld(t, ns, "client-0", "client-1")
	f.awaits(t, ns, "client-0", f.serverNode)
	thaw()
	for _, name := range []string{"client-0", "client-1"} {
		allOK(t, name, f.dials(t, ns, name, 60*time.Second))
	}
}

// What the nodes confirm while nobody listens is told to the next replicas.
func managersKilled(t *testing.T, f fixture) {
	ns, _, thaw := f.heldOnServer(t, f.clientNode)
	managers, err := f.Managers(t.Context())
	if err != nil || len(managers) < 2 {
		t.Fatalf("managers %v, %v: want two", managers, err)
	}
	for _, m := range managers {
		if err := m.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	thaw()
	for _, m := range managers {
		if err := m.AwaitRestart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	allOK(t, "client-0", f.dials(t, ns, "client-0", 90*time.Second))
}

// The Job's next Pod is held for what its first one was held for.
func heldPodDeleted(t *testing.T, f fixture) {
	ns, server, thaw := f.heldOnServer(t)
	template := pod{node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)}}.object(ns)
	_, err := f.Client.BatchV1().Jobs(ns).Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "job"},
		Spec: batchv1.JobSpec{
			// A Pod that is deleted counts as failed.
			BackoffLimit: new(int32(3)),
			Template:     corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	first := f.podOf(t, ns, "job", "")
	f.awaits(t, ns, first, f.serverNode)
	f.delete(t, ns, first)
	f.gone(t, ns, first)
	second := f.podOf(t, ns, "job", first)
	f.awaits(t, ns, second, f.serverNode)
	thaw()
	allOK(t, second, f.dials(t, ns, second, 60*time.Second))
	f.settles(t)
}

// podOf returns the name of a Job's Pod that is not the former one.
func (f fixture) podOf(t *testing.T, ns, job, former string) (name string) {
	t.Helper()
	eventually(t, 60*time.Second, job+" has a Pod beside "+former, func() (bool, string) {
		pods, err := f.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "batch.kubernetes.io/job-name=" + job})
		if err != nil {
			return false, err.Error()
		}
		for _, p := range pods.Items {
			if p.Name != former {
				name = p.Name
			}
		}
		return name != "", fmt.Sprintf("%d Pods", len(pods.Items))
	})
	return name
}

// upgraded installs the same product under another image's name.
func upgraded(t *testing.T, f fixture) {
	const next = "policygate.test/policygate:next"
	bin := filepath.Dir(f.Probe())
	tar := filepath.Join(t.TempDir(), "next.tar")
	spec := image.Spec{Ref: next, User: "65532:65532", Files: map[string]string{
		"/manager": filepath.Join(bin, "manager"), "/agent": filepath.Join(bin, "agent"), "/hold": filepath.Join(bin, "hold"),
	}}
	if err := image.Write(t.Context(), tar, spec); err != nil {
		t.Fatal(err)
	}
	if err := f.Cluster.LoadImage(t.Context(), tar); err != nil {
		t.Fatal(err)
	}
	ns, server, thaw := f.heldOnServer(t, f.clientNode, f.otherNode, f.serverNode)
	if err := f.Make(t.Context(), "deploy", "IMG="+next); err != nil {
		t.Fatal(err)
	}
	f.stayHeld(t, ns, "client-0", "client-1", "client-2")
	// The former replicas admit Pods until they have ended.
	eventually(t, 60*time.Second, "every manager is of the next image", func() (bool, string) {
		pods, err := f.Client.CoreV1().Pods(testbed.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=policygate-manager"})
		if err != nil {
			return false, err.Error()
		}
		isFormer := func(p corev1.Pod) bool { return p.Spec.Containers[0].Image != next }
		return !slices.ContainsFunc(pods.Items, isFormer), fmt.Sprintf("%d Pods", len(pods.Items))
	})
	f.create(t, ns, pod{name: "after", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)}})
	after := f.awaits(t, ns, "after", f.serverNode)
	if got := after.Spec.InitContainers[0].Image; got != next {
		t.Errorf("the hold's image is %s after the upgrade, want %s", got, next)
	}
	thaw()
	for _, name := range []string{"client-0", "client-1", "client-2", "after"} {
		allOK(t, name, f.dials(t, ns, name, 60*time.Second))
	}
}

func undeployedWithoutManager(t *testing.T, f fixture) {
	nodes := []*cluster.Node{f.clientNode, f.otherNode, f.serverNode, f.clientNode}
	ns, _, _ := f.heldOnServer(t, nodes...)
	if _, err := f.Kubectl(t.Context(), "-n", testbed.Namespace, "scale", "deployment/policygate-manager", "--replicas=0"); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "no manager runs", func() (bool, string) {
		managers, err := f.Managers(t.Context())
		return err == nil && len(managers) == 0, fmt.Sprint(managers, err)
	})
	if err := f.Make(t.Context(), "undeploy"); err != nil {
		t.Fatal(err)
	}
	for i := range nodes {
		// What it dials is not in force: it was not promised.
		f.await(t, ns, fmt.Sprintf("client-%d", i), 60*time.Second, "was let go", func(p *corev1.Pod) bool { return isOpen(p) && isDone(p) })
	}
}
