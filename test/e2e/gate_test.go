// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// TestGate runs its scenarios one after another on one cluster: most of them
// freeze or slow down an engine that the others need.
func TestGate(t *testing.T) {
	t.Parallel()
	f := start(t, testbed.Options{Name: "e2e", Nodes: 3, IPTables: cluster.IPTablesNFT})

	for _, scenario := range []struct {
		name string
		run  func(*testing.T, fixture)
		// switches says that the scenario needs the test engine's switches: no
		// other engine can be told to misbehave so.
		switches bool
	}{
		{name: "Jobs on either node connect at their first try", run: jobsConnect},
		{name: "a client beside a server that is not programmed yet waits for the server's isolation", run: clientAndServerTogether},
		{name: "an engine frozen on the server's node holds the Pod, is named, and lets go on thaw", run: engineFrozen},
		{name: "a half-programmed Pod is not let go", run: halfProgrammed},
		{name: "a sync that lands with an older snapshot is noticed before the Pod is let go", run: staleSync, switches: true},
		{name: "a corrupted node holds the Pod that needs it", run: corruptedNode, switches: true},
		{name: "a replica whose policy watch is late does not let go", run: delayedPolicyWatch},
		{name: "a new sandbox shuts the gate until its new address is covered", run: sandboxKilled},
		{name: "an address of another Pod is not trusted at once", run: addressReused},
		{name: "a timeout with start lets the Pod go and keeps the gate shut", run: timeoutStart},
		{name: "a timeout with start for a remote node alone confirms partially", run: timeoutPartially},
		{name: "a timeout with fail says Timeout and fails the Pod", run: timeoutFail},
		{name: "a Deployment is given the gate and no hold", run: deployment},
		{name: "Pods that are not asked for are left alone", run: untouched},
		{name: "a malformed annotation is denied with words", run: malformed},
		{name: "a forged annotation opens nothing", run: forged},
		{name: "LimitRange, quota, Pod Security and QoS classes stay as they were", run: goodCitizen},
		{name: "a node without an agent is waited for and named", run: agentAbsent},
		{name: "kubectl shows the gate", run: kubectlShows},
		{name: "kubectl policygate traces what packets meet", run: kubectlTraces},
		{name: "a policy's status follows it from node to node", run: policyFollowed},
		{name: "rules that are flushed by hand degrade the policy until they are back", run: policyDrifts},
		{name: "a node that leaves counts no more", run: nodeLeaves},
		{name: "kubectl policygate explains a held Pod", run: kubectlExplains},
		{name: "kubectl policygate doctor finds what is wrong", run: kubectlDoctors},
		{name: "kubectl explains what a PolicyStatus is", run: kubectlDocuments},
		{name: "a tenant sees nothing of another namespace", run: tenantSees},
		{name: "every query of the dashboard and of the alerts is answered", run: dashboardAnswers},
		{name: "undeploying lets held Pods go and leaves nothing", run: undeploy},
		{name: "a policy that is older than the installation has a status", run: reinstalled},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			if scenario.switches && f.EngineKind != testbed.EngineTest {
				t.Logf("not for ENGINE=%s: it has no switch to misbehave so", f.EngineKind)
				return
			}
			f.calm(t)
			scenario.run(t, f)
		})
	}
}

var confirmedMessage = regexp.MustCompile(`^confirmed on (\d+)/(\d+) nodes? in \d+(\.\d+)?m?s`)

func jobsConnect(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.slow(t, f.serverNode, 500*time.Millisecond)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	const each = 5
	for _, node := range []*cluster.Node{f.serverNode, f.clientNode} {
		for n := range each {
			template := pod{node: node, labels: clientLabels, args: []string{"dial", "-for", "1s", at(server)}}.object(ns)
			job := &batchv1.Job{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("job-%s-%d", node.Name, n)},
				Spec: batchv1.JobSpec{
					BackoffLimit: new(int32(0)),
					Template:     corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels}, Spec: template.Spec},
				},
			}
			if _, err := f.Client.BatchV1().Jobs(ns).Create(t.Context(), job, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, node := range []*cluster.Node{f.serverNode, f.clientNode} {
		for n := range each {
			var pods []corev1.Pod
			job := fmt.Sprintf("job-%s-%d", node.Name, n)
			eventually(t, 60*time.Second, job+" ends", func() (bool, string) {
				list, err := f.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "batch.kubernetes.io/job-name=" + job})
				if err != nil || len(list.Items) == 0 {
					return false, fmt.Sprint(err)
				}
				pods = list.Items
				return isDone(&pods[0]), describe(&pods[0])
			})
			allOK(t, pods[0].Name, f.dials(t, ns, pods[0].Name, time.Second))
			gate := gateOf(&pods[0])
			if gate == nil || gate.Reason != v1alpha1.ReasonConfirmed {
				t.Fatalf("%s: %s", job, describe(&pods[0]))
			}
			want := "2"
			if node == f.serverNode {
				want = "1"
			}
			if m := confirmedMessage.FindStringSubmatch(gate.Message); m == nil || m[1] != want || m[2] != want {
				t.Errorf("%s: message %q, want confirmed on %s/%s nodes and the time", job, gate.Message, want, want)
			}
		}
	}
}

// The server's address is known and its rules are not: everybody is let in
// until they are, which proves nothing.
func clientAndServerTogether(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	thaw := f.slow(t, f.serverNode, 3*time.Second)
	f.create(t, ns, pod{
		name: "server", node: f.serverNode, labels: serverLabels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		annotations: map[string]string{v1alpha1.KeyHold: v1alpha1.ValueFalse},
	})
	server := f.await(t, ns, "server", 20*time.Second, "has an address", hasAddress)
	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", "-for", "8s", at(server)}})
	time.AfterFunc(4*time.Second, thaw)
	allOK(t, "client", f.dials(t, ns, "client", 60*time.Second))
	f.await(t, ns, "server", 20*time.Second, "is open too", isOpen)
}

func engineFrozen(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	thaw := f.freeze(t, f.serverNode)
	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)}})
	f.await(t, ns, "client", 20*time.Second, "is shut, with the node's name", func(p *corev1.Pod) bool {
		return isShut(p) && gateOf(p).Reason == v1alpha1.ReasonWaiting && strings.Contains(gateOf(p).Message, f.serverNode.Name)
	})
	for range 20 {
		if p := f.get(t, ns, "client"); !isHeld(p) || isOpen(p) {
			t.Fatalf("not held while the engine is frozen: %s", describe(p))
		}
		time.Sleep(100 * time.Millisecond)
	}
	// As a word: the namespace's name is made up of what may hold a node's.
	own := regexp.MustCompile(`\b` + regexp.QuoteMeta(f.clientNode.Name) + `\b`)
	if message := gateOf(f.get(t, ns, "client")).Message; own.MatchString(message) {
		t.Errorf("the message names the client's own node, which has confirmed: %q", message)
	}
	thaw()
	allOK(t, "client", f.dials(t, ns, "client", 30*time.Second))
}

// A gate alone, so that the server accepts while it is open to everyone: the
// stranger must have been let in before the gate opened, and never after.
func halfProgrammed(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	stranger := f.server(t, ns, "stranger", f.clientNode, otherLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.control(t, f.serverNode, controlHalfProgrammed(1500*time.Millisecond))
	openBefore := 0
	for n := range 3 {
		name := fmt.Sprintf("server-%d", n)
		before, after := f.watchStranger(t, ns, name, stranger)
		openBefore += before
		if after > 0 {
			t.Errorf("%s: the stranger was let in %d times after the gate opened", name, after)
		}
	}
	// kube-router does it by itself, if a Pod arrives during a sync.
	if openBefore == 0 && f.EngineKind == testbed.EngineTest {
		t.Error("the stranger was never let in before a gate opened: the engine did not half-program")
	}
}

// watchStranger creates a gated server without a hold and lets a stranger dial
// it from its address's appearance until well after the gate opened. It returns
// how often the stranger was let in before and after.
func (f fixture) watchStranger(t *testing.T, ns, name string, stranger *corev1.Pod) (before, after int) {
	t.Helper()
	f.create(t, ns, pod{
		name: name, node: f.serverNode, labels: serverLabels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		annotations: map[string]string{v1alpha1.KeyHold: v1alpha1.ValueFalse},
	})
	server := f.await(t, ns, name, 20*time.Second, "has an address", hasAddress)
	for opened, looks := false, 0; looks < 15; {
		// Read before dialling: a dial that began while it was shut says
		// nothing about an open gate.
		opened = opened || isOpen(f.get(t, ns, name))
		let := f.dialFrom(t, stranger, at(server)).OK
		switch {
		case opened && let:
			after++
		case let:
			before++
		}
		if opened {
			looks++
		}
		// The kernel answers six refusals at once and then one a second.
		time.Sleep(200 * time.Millisecond)
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
		if !opened && time.Since(server.CreationTimestamp.Time) > 50*time.Second {
			t.Fatalf("the gate did not open: %s", describe(f.get(t, ns, name)))
		}
	}
	return before, after
}

// A sync from a snapshot without the Pod lands after one with it: what the
// server's node had confirmed is not so any more, and it has to say so before
// the Pod's own node, which is late, lets the Pod go.
func staleSync(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.apply(t, ns, policy("to-server", networkingv1.PolicyTypeEgress, clientLabels, serverLabels))
	f.settled(t, ns, server)
	thaw := f.freeze(t, f.clientNode)
	// The snapshot is taken now. The sync that repairs what it breaks takes as
	// long as the others.
	f.control(t, f.serverNode, controlStaleSync(9*time.Second, 3*time.Second))
	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", "-for", "6s", at(server)}})
	client := f.await(t, ns, "client", 8*time.Second, "has an address", hasAddress)
	let := func(want bool) func() (bool, string) {
		return func() (bool, string) {
			// The kernel answers six refusals at once and then one a second.
			time.Sleep(200 * time.Millisecond)
			d := f.dialFrom(t, client, at(server))
			return d.OK == want, fmt.Sprintf("%+v", d)
		}
	}
	eventually(t, 12*time.Second, "the server's node lets the client in", let(true))
	eventually(t, 12*time.Second, "the old snapshot lands, which does not", let(false))
	if p := f.get(t, ns, "client"); !isHeld(p) || isOpen(p) {
		t.Fatalf("not held: %s", describe(p))
	}
	thaw()
	allOK(t, "client", f.dials(t, ns, "client", 40*time.Second))
}

func corruptedNode(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	// The server's chain is there and empty: the client would be let in, and
	// so would anybody.
	f.control(t, f.serverNode, controlFlushed())
	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)}})
	f.await(t, ns, "client", 20*time.Second, "is shut, with the node's name", func(p *corev1.Pod) bool {
		return isShut(p) && strings.Contains(gateOf(p).Message, f.serverNode.Name)
	})
	f.calm(t)
	allOK(t, "client", f.dials(t, ns, "client", 30*time.Second))
}

func sandboxKilled(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.create(t, ns, pod{
		name: "client", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"},
		restart: corev1.RestartPolicyAlways, annotations: map[string]string{v1alpha1.KeyHold: v1alpha1.ValueTrue},
	})
	first := f.await(t, ns, "client", 30*time.Second, "is open and runs", func(p *corev1.Pod) bool {
		return isOpen(p) && p.Status.Phase == corev1.PodRunning
	})
	thaw := f.freeze(t, f.serverNode)
	if err := f.Cluster.KillSandbox(t.Context(), ns, "client"); err != nil {
		t.Fatal(err)
	}
	second := f.await(t, ns, "client", 40*time.Second, "is held again at a new address, its gate shut", func(p *corev1.Pod) bool {
		return p.Status.PodIP != "" && p.Status.PodIP != first.Status.PodIP && isHeld(p) && isShut(p)
	})
	for range 10 {
		if p := f.get(t, ns, "client"); !isHeld(p) || isOpen(p) {
			t.Fatalf("not held at the new address: %s", describe(p))
		}
		time.Sleep(100 * time.Millisecond)
	}
	thaw()
	open := f.await(t, ns, "client", 40*time.Second, "is open for the new address", func(p *corev1.Pod) bool {
		return isOpen(p) && strings.Contains(p.Annotations[v1alpha1.KeyProgrammed], second.Status.PodIP)
	})
	if d := f.dialFrom(t, open, at(server)); !d.OK {
		t.Errorf("open, and refused: %s", d.Error)
	}
}

func addressReused(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.create(t, ns, pod{name: "first", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"}})
	first := f.await(t, ns, "first", 30*time.Second, "is open", isOpen)
	if d := f.dialFrom(t, first, at(server)); !d.OK {
		t.Fatalf("the first Pod is refused: %s", d.Error)
	}
	// The server's node will not hear of the change for a while.
	thaw := f.freeze(t, f.serverNode)
	if err := f.Client.CoreV1().Pods(ns).Delete(t.Context(), "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.gone(t, ns, "first")
	f.nextAddress(t, f.clientNode, first.Status.PodIP)
	f.create(t, ns, pod{name: "second", node: f.clientNode, labels: otherLabels, args: []string{"dial", "-for", "3s", at(server)}})
	second := f.await(t, ns, "second", 20*time.Second, "has an address", hasAddress)
	if second.Status.PodIP != first.Status.PodIP {
		t.Fatalf("the second Pod has address %s, want the first one's, %s", second.Status.PodIP, first.Status.PodIP)
	}
	f.await(t, ns, "second", 20*time.Second, "is shut", isShut)
	if d := f.dialFrom(t, second, at(server)); !d.OK {
		t.Fatalf("the frozen node refuses the address already, which leaves nothing to show: %s", d.Error)
	}
	thaw()
	for _, d := range f.dials(t, ns, "second", 60*time.Second) {
		if d.OK {
			t.Error("the second Pod was let in as if it were the first")
		}
	}
}

func timeoutStart(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.clientNode, serverLabels)
	// Its own isolation cannot be confirmed: not even partially, then.
	f.apply(t, ns, policy("deny", networkingv1.PolicyTypeEgress, clientLabels, serverLabels))
	f.settled(t, ns, server)
	f.freeze(t, f.clientNode)
	f.create(t, ns, pod{
		name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)},
		annotations: map[string]string{v1alpha1.KeyTimeout: "4s"},
	})
	f.await(t, ns, "client", 30*time.Second, "is held first", isHeld)
	f.await(t, ns, "client", 30*time.Second, "was started", isDone)
	f.await(t, ns, "client", 15*time.Second, "is shut and says Timeout", func(p *corev1.Pod) bool {
		return isShut(p) && gateOf(p).Reason == v1alpha1.ReasonTimeout
	})
	f.warned(t, ns, "client", v1alpha1.ReasonTimeout, f.clientNode.Name)
}

func timeoutPartially(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	f.freeze(t, f.serverNode)
	f.create(t, ns, pod{
		name: "client", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"},
		annotations: map[string]string{v1alpha1.KeyTimeout: "4s"},
	})
	f.await(t, ns, "client", 30*time.Second, "is partially confirmed, naming the node", func(p *corev1.Pod) bool {
		return isOpen(p) && gateOf(p).Reason == v1alpha1.ReasonPartiallyConfirmed && strings.Contains(gateOf(p).Message, f.serverNode.Name)
	})
}

func timeoutFail(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	f.freeze(t, f.serverNode)
	f.create(t, ns, pod{
		name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)},
		annotations: map[string]string{v1alpha1.KeyTimeout: "4s", v1alpha1.KeyOnTimeout: v1alpha1.OnTimeoutFail},
	})
	f.await(t, ns, "client", 30*time.Second, "says Timeout while it is still held", func(p *corev1.Pod) bool {
		return isHeld(p) && isShut(p) && gateOf(p).Reason == v1alpha1.ReasonTimeout
	})
	failed := f.await(t, ns, "client", 30*time.Second, "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	state := failed.Status.InitContainerStatuses[0].State.Terminated
	if state == nil || state.ExitCode != v1alpha1.HoldTimeoutExitCode {
		t.Errorf("the hold ended with %v, want exit code %d", state, v1alpha1.HoldTimeoutExitCode)
	}
}
