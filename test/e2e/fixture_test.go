// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// servedPort is where servers of the tests listen.
const servedPort = 8080

// Labels of the tests' Pods: policies admit clients to servers.
var (
	serverLabels = map[string]string{"app": "server"}
	clientLabels = map[string]string{"app": "client"}
	otherLabels  = map[string]string{"app": "other"}
)

// fixture is a testbed with its nodes by the part they play. In a cluster of
// two otherNode is clientNode.
type fixture struct {
	*testbed.Testbed
	serverNode, clientNode, otherNode *cluster.Node
}

// start brings a testbed up for one test and ends it with the test.
func start(t *testing.T, o testbed.Options) fixture {
	t.Helper()
	o.Progress = testLog{t}
	bed, err := testbed.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if t.Failed() {
			t.Log(bed.LastWords(ctx))
		}
		if err := bed.Stop(ctx); err != nil {
			t.Errorf("stop the cluster: %v", err)
		}
	})
	nodes := bed.Cluster.Nodes()
	return fixture{Testbed: bed, serverNode: nodes[0], clientNode: nodes[1], otherNode: nodes[len(nodes)-1]}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// namespace makes a namespace whose default ServiceAccount exists, and removes
// it with the test.
func (f fixture) namespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	ns, err := f.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "e2e-", Labels: labels},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := f.Client.CoreV1().Namespaces().Delete(context.Background(), ns.Name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	eventually(t, 30*time.Second, "the default ServiceAccount of "+ns.Name, func() (bool, string) {
		_, err := f.Client.CoreV1().ServiceAccounts(ns.Name).Get(t.Context(), "default", metav1.GetOptions{})
		return err == nil, fmt.Sprint(err)
	})
	return ns.Name
}

// injected is the label of a namespace whose Pods are gated.
var injected = map[string]string{v1alpha1.KeyInject: v1alpha1.InjectNamespace}

// eventually polls until check says yes, and fails with its last words if it
// does not within the time. It logs what took more than half of that.
func eventually(t *testing.T, timeout time.Duration, what string, check func() (bool, string)) {
	t.Helper()
	last, began := "", time.Now()
	err := wait.PollUntilContextTimeout(t.Context(), 50*time.Millisecond, timeout, true, func(context.Context) (bool, error) {
		done, words := check()
		last = words
		return done, nil
	})
	if err != nil {
		t.Fatalf("%s: not within %v: %s", what, timeout, last)
	}
	if took := time.Since(began); took > timeout/2 {
		t.Logf("%s: took %v of %v", what, took.Round(time.Millisecond), timeout)
	}
}

// pod describes a Pod of one probe container.
type pod struct {
	name        string
	node        *cluster.Node
	labels      map[string]string
	annotations map[string]string
	args        []string
	// restart is Never unless set.
	restart corev1.RestartPolicy
	// change is applied last.
	change func(*corev1.Pod)
}

func (p pod) object(namespace string) *corev1.Pod {
	object := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.name, Namespace: namespace, Labels: p.labels, Annotations: maps.Clone(p.annotations)},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever,
			Containers: []corev1.Container{{
				Name: "probe", Image: testbed.ProbeImage, ImagePullPolicy: corev1.PullIfNotPresent, Args: p.args,
			}},
			TerminationGracePeriodSeconds: new(int64(0)),
		},
	}
	if p.node != nil {
		object.Spec.NodeSelector = map[string]string{corev1.LabelHostname: p.node.Name}
	}
	if p.restart != "" {
		object.Spec.RestartPolicy = p.restart
	}
	if p.change != nil {
		p.change(object)
	}
	return object
}

func (f fixture) create(t *testing.T, namespace string, p pod) *corev1.Pod {
	t.Helper()
	created, err := f.Client.CoreV1().Pods(namespace).Create(t.Context(), p.object(namespace), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create Pod %s: %v", p.name, err)
	}
	return created
}

func (f fixture) get(t *testing.T, namespace, name string) *corev1.Pod {
	t.Helper()
	got, err := f.Client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// await polls a Pod until check holds and returns it.
func (f fixture) await(t *testing.T, namespace, name string, timeout time.Duration, what string, check func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var last *corev1.Pod
	eventually(t, timeout, "Pod "+name+" "+what, func() (bool, string) {
		got, err := f.Client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false, err.Error()
		}
		last = got
		return check(got), describe(got)
	})
	return last
}

// describe says where a Pod stands, for a failure's message.
func describe(p *corev1.Pod) string {
	text := fmt.Sprintf("phase %s, address %q", p.Status.Phase, p.Status.PodIP)
	if c := gateOf(p); c != nil {
		text += fmt.Sprintf(", gate %s %s: %s", c.Status, c.Reason, c.Message)
	}
	for _, s := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		state, _ := json.Marshal(s.State)
		text += fmt.Sprintf(", %s %s", s.Name, state)
	}
	return text
}

// server runs a server Pod that is listening, ungated unless annotated otherwise.
func (f fixture) server(t *testing.T, namespace, name string, node *cluster.Node, labels map[string]string) *corev1.Pod {
	t.Helper()
	f.create(t, namespace, pod{
		name: name, node: node, labels: labels, args: []string{"serve", fmt.Sprintf(":%d", servedPort)},
		annotations: map[string]string{v1alpha1.KeyInject: v1alpha1.ValueFalse},
	})
	return f.await(t, namespace, name, 30*time.Second, "serves", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && p.Status.PodIP != ""
	})
}

// policy returns an ingress or egress policy for the Pods with labels "of" that
// allows the peers with labels "peer" the served port; nil allows nobody.
func policy(name string, direction networkingv1.PolicyType, of, peer map[string]string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: of},
			PolicyTypes: []networkingv1.PolicyType{direction},
		},
	}
	if peer == nil {
		return p
	}
	peers := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: peer}}}
	ports := []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(servedPort))}}
	if direction == networkingv1.PolicyTypeIngress {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers, Ports: ports}}
	} else {
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}}
	}
	return p
}

func (f fixture) apply(t *testing.T, namespace string, p *networkingv1.NetworkPolicy) {
	t.Helper()
	if _, err := f.Client.NetworkingV1().NetworkPolicies(namespace).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// gateOf returns the gate's condition, or nil.
func gateOf(p *corev1.Pod) *corev1.PodCondition {
	for i, c := range p.Status.Conditions {
		if c.Type == v1alpha1.ConditionProgrammed {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func isOpen(p *corev1.Pod) bool {
	c := gateOf(p)
	return c != nil && c.Status == corev1.ConditionTrue
}

func isShut(p *corev1.Pod) bool {
	c := gateOf(p)
	return c != nil && c.Status == corev1.ConditionFalse
}

func hasGate(p *corev1.Pod) bool {
	for _, g := range p.Spec.ReadinessGates {
		if g.ConditionType == v1alpha1.ConditionProgrammed {
			return true
		}
	}
	return false
}

func hasHold(p *corev1.Pod) bool {
	return len(p.Spec.InitContainers) > 0 && p.Spec.InitContainers[0].Name == v1alpha1.HoldContainerName
}

// isHeld says that the hold runs.
func isHeld(p *corev1.Pod) bool { return holdOf(p).Running != nil }

// holdOf returns how the newest hold is, and zero if there was none.
func holdOf(p *corev1.Pod) corev1.ContainerState {
	for _, s := range p.Status.InitContainerStatuses {
		if s.Name == v1alpha1.HoldContainerName {
			return s.State
		}
	}
	return corev1.ContainerState{}
}

func isDone(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func hasAddress(p *corev1.Pod) bool { return p.Status.PodIP != "" }

func at(p *corev1.Pod) string { return atIP(p.Status.PodIP) }

func atIP(ip string) string {
	if strings.Contains(ip, ":") {
		return fmt.Sprintf("[%s]:%d", ip, servedPort)
	}
	return fmt.Sprintf("%s:%d", ip, servedPort)
}

// warned waits for a Warning Event about an object of that name, which says
// all of the words.
func (f fixture) warned(t *testing.T, ns, name string, words ...string) {
	t.Helper()
	eventually(t, 20*time.Second, "a Warning about "+name, func() (bool, string) {
		events, err := f.Client.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "type=Warning,involvedObject.name=" + name})
		if err != nil {
			return false, err.Error()
		}
		var all []string
		for _, e := range events.Items {
			text := e.Reason + ": " + e.Message
			all = append(all, text)
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(text, word) }) {
				t.Logf("%s %s: %s", e.InvolvedObject.Kind, name, text)
				return true, ""
			}
		}
		return false, fmt.Sprintf("want %q in one of %q", words, all)
	})
}

// dialled is one line of the probe's log.
type dialled struct {
	At      int64  `json:"at"`
	Addr    string `json:"addr"`
	OK      bool   `json:"ok"`
	Refused bool   `json:"refused"`
	Error   string `json:"error"`
}

func parseDials(log []byte) ([]dialled, error) {
	var all []dialled
	decoder := json.NewDecoder(bytes.NewReader(log))
	for decoder.More() {
		var d dialled
		if err := decoder.Decode(&d); err != nil {
			return all, fmt.Errorf("%w in %q", err, log)
		}
		all = append(all, d)
	}
	return all, nil
}

// dials waits for a Pod's end and returns what it dialled.
func (f fixture) dials(t *testing.T, namespace, name string, timeout time.Duration) []dialled {
	t.Helper()
	f.await(t, namespace, name, timeout, "ends", isDone)
	log, err := f.Client.CoreV1().Pods(namespace).GetLogs(name, &corev1.PodLogOptions{Container: "probe"}).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := parseDials(log)
	if err != nil || len(all) == 0 {
		t.Fatalf("Pod %s dialled nothing: %v; %s", name, err, describe(f.get(t, namespace, name)))
	}
	return all
}

// allOK fails the test unless every dial was let in.
func allOK(t *testing.T, name string, all []dialled) {
	t.Helper()
	for i, d := range all {
		if !d.OK {
			t.Errorf("Pod %s, dial %d of %d to %s: %s", name, i+1, len(all), d.Addr, d.Error)
		}
	}
}

// dialFrom dials at once from inside a running Pod's network namespace: the
// independent observer, which knows nothing of gates.
func (f fixture) dialFrom(t *testing.T, from *corev1.Pod, addr string) dialled {
	t.Helper()
	const script = `for ns in /var/run/netns/* /run/netns/*; do
  if nsenter --net="$ns" ip -o addr show 2>/dev/null | grep -qF " $1/"; then
    exec nsenter --net="$ns" "$2" dial "$3"
  fi
done
echo "no network namespace with address $1" >&2; exit 3`
	for _, node := range f.Cluster.Nodes() {
		if node.Name != from.Spec.NodeName {
			continue
		}
		out, err := node.Command(t.Context(), "sh", "-c", script, "sh", from.Status.PodIP, f.Probe(), addr).Output()
		// The probe exits with 1 if the dial failed, which its output says too.
		if failed := (*exec.ExitError)(nil); errors.As(err, &failed) && failed.ExitCode() > 1 {
			t.Fatalf("dial from %s: %v: %s", from.Name, err, failed.Stderr)
		}
		all, err := parseDials(out)
		if err != nil || len(all) != 1 {
			t.Fatalf("dial from %s: %v, %q", from.Name, err, out)
		}
		return all[0]
	}
	t.Fatalf("Pod %s runs on no node of the cluster: %q", from.Name, from.Spec.NodeName)
	return dialled{}
}
