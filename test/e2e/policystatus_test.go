// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/v1alpha1"
)

// statusNotProgrammed is how kubectl policygate status exits if a policy is
// known not to be in force.
const statusNotProgrammed = 2

// policyFollowed makes the engines of two nodes late by different times and
// watches the policy's status meanwhile. How late they are is found out with
// packets.
func policyFollowed(t *testing.T, f fixture) {
	const lag, longerLag = 3 * time.Second, 8 * time.Second
	ns := f.namespace(t, nil)
	soon := f.server(t, ns, "soon", f.clientNode, serverLabels)
	late := f.server(t, ns, "late", f.serverNode, serverLabels)
	stranger := f.server(t, ns, "stranger", f.otherNode, otherLabels)
	f.server(t, ns, "client", f.otherNode, clientLabels)
	for _, server := range []*corev1.Pod{soon, late} {
		f.admits(t, stranger, server, true)
	}

	history := f.watchStatus(t, ns, "allow-client")
	f.lag(t, f.clientNode, lag)
	f.lag(t, f.serverNode, longerLag)
	applied := time.Now()
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.admits(t, stranger, late, false)
	seen := time.Since(applied)

	status := history.await(t, "is in force on both nodes", inForceOn("2/2"))
	if got, want := history.summaries(0), []string{"0/2", "1/2", "2/2"}; !slices.Equal(got, want) {
		t.Errorf("the nodes went %q, want %q", got, want)
	}
	took, err := time.ParseDuration(status.Status.LastProgrammed.Took)
	if err != nil {
		t.Fatalf("took: %v in %+v", err, status.Status.LastProgrammed)
	}
	if difference := (took - seen).Abs(); difference > seen/5 {
		t.Errorf("took says %v, and packets say %v: they differ by more than a fifth", took, seen)
	}
	t.Logf("frozen for %v; packets say %v, took %v", longerLag, seen, took)
	f.describesPolicy(t, status)
	f.shown(t, status)

	t.Run("an edit", func(t *testing.T) {
		thaw := f.freeze(t, f.serverNode)
		edited := f.edit(t, ns, "allow-client", func(p *networkingv1.NetworkPolicy) {
			ports := &p.Spec.Ingress[0].Ports
			*ports = append(*ports, networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(servedPort + 1))})
		})
		history.await(t, "is not in force on the frozen node, and says for which generation it was", func(s v1alpha1.PolicyStatus) bool {
			generation := s.Status.LastProgrammed.Generation
			return observes(s, edited.Generation) && s.Status.Nodes.Summary == "1/2" && lags(s, f.serverNode.Name, v1alpha1.LagNotAdmitting) &&
				hasCondition(s, v1alpha1.PolicyProgrammed, metav1.ConditionFalse, v1alpha1.PolicyReasonLagging) &&
				generation != nil && *generation < edited.Generation
		})
		f.says(t, statusNotProgrammed, []string{"status", "-n", ns}, "allow-client", "1/2", f.serverNode.Name)
		wide, err := f.Kubectl(t.Context(), "-n", ns, "get", "policystatus", "-o", "wide")
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Fields(wide), []string{v1alpha1.PolicyReasonLagging, f.serverNode.Name, v1alpha1.LagNotAdmitting}; !slices.Equal(got[len(got)-len(want):], want) {
			t.Errorf("the wide columns end in no %q:\n%s", want, wide)
		}
		thaw()
		history.await(t, "is in force on both nodes again", func(s v1alpha1.PolicyStatus) bool {
			return observes(s, edited.Generation) && inForceOn("2/2")(s) && *s.Status.LastProgrammed.Generation == edited.Generation
		})
	})
	t.Run("edits that ask for nothing new", func(t *testing.T) {
		from := history.length()
		f.edit(t, ns, "allow-client", func(p *networkingv1.NetworkPolicy) { p.Annotations = map[string]string{"example.org/note": "1"} })
		edited := f.edit(t, ns, "allow-client", func(p *networkingv1.NetworkPolicy) {
			p.Spec.PodSelector = metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{
				Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{serverLabels["app"]},
			}}}
		})
		history.await(t, "observes the new generation", func(s v1alpha1.PolicyStatus) bool {
			return observes(s, edited.Generation) && inForceOn("2/2")(s)
		})
		for _, s := range history.since(from) {
			if !inForceOn("2/2")(s) {
				t.Errorf("it flickered: %s", describeStatus(s))
			}
		}
	})
	t.Run("its end", func(t *testing.T) {
		if err := f.Client.NetworkingV1().NetworkPolicies(ns).Delete(t.Context(), "allow-client", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the status is gone", func() (bool, string) { return history.deleted(), "it is there" })
	})
}

// describesPolicy holds a status against what is known of the policy's Pods.
func (f fixture) describesPolicy(t *testing.T, s v1alpha1.PolicyStatus) {
	t.Helper()
	p, err := f.Client.NetworkingV1().NetworkPolicies(s.Namespace).Get(t.Context(), s.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.OwnerReferences) != 1 || s.OwnerReferences[0].UID != p.UID || s.OwnerReferences[0].Kind != "NetworkPolicy" {
		t.Errorf("its owners are %+v, want the policy", s.OwnerReferences)
	}
	if !observes(s, p.Generation) {
		t.Errorf("it observes %s, want generation %d", describeStatus(s), p.Generation)
	}
	if pods := s.Status.Pods; pods.Selected == nil || *pods.Selected != 2 || pods.Pending == nil || *pods.Pending != 0 {
		t.Errorf("its Pods are %s, want 2 and none pending", describeStatus(s))
	}
	if !hasCondition(s, v1alpha1.PolicyDegraded, metav1.ConditionFalse, v1alpha1.PolicyReasonAsExpected) || len(s.Status.LaggingNodes) > 0 {
		t.Errorf("it is degraded: %s", describeStatus(s))
	}
}

// shown checks what kubectl shows of a status.
func (f fixture) shown(t *testing.T, s v1alpha1.PolicyStatus) {
	t.Helper()
	out, err := f.Kubectl(t.Context(), "-n", s.Namespace, "get", "policystatus")
	if err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out)
	header, row, _ := strings.Cut(out, "\n")
	if got, want := strings.Fields(header), []string{"NAME", "PROGRAMMED", "NODES", "PODS", "PENDING", "TOOK", "AGE"}; !slices.Equal(got, want) {
		t.Errorf("the columns are %q, want %q", got, want)
	}
	if got, want := strings.Fields(row), []string{s.Name, "True", "2/2", "2", "0", s.Status.LastProgrammed.Took}; len(got) != len(want)+1 || !slices.Equal(got[:len(want)], want) {
		t.Errorf("the row is %q, want %q and the age", got, want)
	}
	f.says(t, 0, []string{"status", "-n", s.Namespace}, s.Name, "2/2")
}

// policyDrifts flushes a Pod's rules by hand while nobody repairs them.
func policyDrifts(t *testing.T, f fixture) {
	const soon = 30 * time.Second
	ns := f.namespace(t, nil)
	f.server(t, ns, "kept", f.clientNode, serverLabels)
	flushed := f.server(t, ns, "flushed", f.serverNode, serverLabels)
	stranger := f.server(t, ns, "stranger", f.otherNode, otherLabels)
	f.server(t, ns, "client", f.otherNode, clientLabels)
	history := f.watchStatus(t, ns, "allow-client")
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	history.await(t, "is in force on both nodes", inForceOn("2/2"))

	thaw := f.freeze(t, f.serverNode)
	f.flush(t, f.serverNode, flushed)
	at := time.Now()
	f.admits(t, stranger, flushed, true)
	history.within(t, soon, "is degraded, naming the node", func(s v1alpha1.PolicyStatus) bool {
		return hasCondition(s, v1alpha1.PolicyProgrammed, metav1.ConditionFalse, v1alpha1.PolicyReasonDrifted) &&
			hasCondition(s, v1alpha1.PolicyDegraded, metav1.ConditionTrue, v1alpha1.PolicyReasonDrifted) &&
			lags(s, f.serverNode.Name, v1alpha1.LagNotIsolating) && s.Status.Nodes.Summary == "1/2"
	})
	t.Logf("degraded %v after the flush", time.Since(at))
	f.warned(t, ns, "allow-client", f.serverNode.Name)

	thaw()
	f.nudge(t)
	at = time.Now()
	history.within(t, soon, "is in force again", func(s v1alpha1.PolicyStatus) bool {
		return inForceOn("2/2")(s) && hasCondition(s, v1alpha1.PolicyDegraded, metav1.ConditionFalse, v1alpha1.PolicyReasonAsExpected) &&
			len(s.Status.LaggingNodes) == 0
	})
	t.Logf("in force %v after the engine was let go", time.Since(at))
	f.admits(t, stranger, flushed, false)
}

// nodeLeaves gives a policy a Pod on a node that nobody is on, and takes the
// node away.
func nodeLeaves(t *testing.T, f fixture) {
	const ghost = "ghost"
	ns := f.namespace(t, nil)
	f.server(t, ns, "real", f.serverNode, serverLabels)
	nodes := f.Client.CoreV1().Nodes()
	leave := func() {
		if err := nodes.Delete(context.Background(), ghost, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	}
	_, err := nodes.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: ghost},
		// No other scenario's Pods, nor an agent.
		Spec: corev1.NodeSpec{Unschedulable: true, Taints: []corev1.Taint{{Key: "example.org/ghost", Effect: corev1.TaintEffectNoSchedule}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(leave)
	ready := []byte(`{"status":{"conditions":[{"type":"Ready","status":"True","reason":"Test","message":"it has no kubelet"}]}}`)
	if _, err := nodes.Patch(t.Context(), ghost, types.StrategicMergePatchType, ready, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	f.create(t, ns, pod{name: "ghostly", labels: serverLabels, args: []string{"sleep", "10m"}, change: func(p *corev1.Pod) { p.Spec.NodeName = ghost }})
	t.Cleanup(func() { f.forget(ns, "ghostly") })
	addressed := []byte(`{"status":{"phase":"Running","podIP":"192.0.2.7","podIPs":[{"ip":"192.0.2.7"}],"hostIP":"192.0.2.8"}}`)
	if _, err := f.Client.CoreV1().Pods(ns).Patch(t.Context(), "ghostly", types.StrategicMergePatchType, addressed, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}

	history := f.watchStatus(t, ns, "allow-client")
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	history.await(t, "cannot tell of the node without an agent", func(s v1alpha1.PolicyStatus) bool {
		return s.Status.Nodes.Summary == "1/2" && lags(s, ghost, v1alpha1.LagNoAgent) &&
			hasCondition(s, v1alpha1.PolicyProgrammed, metav1.ConditionUnknown, v1alpha1.PolicyReasonUnknown)
	})
	leave()
	history.await(t, "forgets the node", inForceOn("1/1"))
}

// reinstalled installs Policy Gate anew, into a cluster that has a policy.
func reinstalled(t *testing.T, f fixture) {
	if err := f.Make(t.Context(), "undeploy"); err != nil {
		t.Fatal(err)
	}
	ns := f.namespace(t, nil)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	if err := f.Make(t.Context(), "deploy"); err != nil {
		t.Fatal(err)
	}
	history := f.watchStatus(t, ns, "allow-client")
	s := history.await(t, "is in force", inForceOn("1/1"))
	if took := s.Status.LastProgrammed.Took; took != "" {
		t.Errorf("it claims to know that a policy which was there before took %s", took)
	}
}

// edit changes a policy and returns it.
func (f fixture) edit(t *testing.T, ns, name string, change func(*networkingv1.NetworkPolicy)) *networkingv1.NetworkPolicy {
	t.Helper()
	policies := f.Client.NetworkingV1().NetworkPolicies(ns)
	p, err := policies.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	change(p)
	if p, err = policies.Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// forget removes a Pod of which no kubelet knows.
func (f fixture) forget(ns, name string) {
	// It went with its namespace if this fails.
	_ = f.Client.CoreV1().Pods(ns).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
}
