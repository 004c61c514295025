// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/e2e/testbed"
)

func deployment(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	template := pod{node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"}, restart: corev1.RestartPolicyAlways}.object(ns)
	_, err := f.Client.AppsV1().Deployments(ns).Create(t.Context(), &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: clientLabels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: clientLabels}, Spec: template.Spec},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the Deployment is available", func() (bool, string) {
		d, err := f.Client.AppsV1().Deployments(ns).Get(t.Context(), "web", metav1.GetOptions{})
		return err == nil && d.Status.AvailableReplicas == 2, fmt.Sprintf("%v %+v", err, d.Status)
	})
	pods, err := f.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if !hasGate(&p) || hasHold(&p) || !isOpen(&p) {
			t.Errorf("%s: gate %t, hold %t; %s; want the gate, open, and no hold", p.Name, hasGate(&p), hasHold(&p), describe(&p))
		}
	}
}

func untouched(t *testing.T, f fixture) {
	labelled := f.namespace(t, injected)
	plain := f.namespace(t, nil)
	for name, tc := range map[string]struct {
		namespace string
		pod       pod
		gated     bool
	}{
		"namespace without the label": {namespace: plain, pod: pod{}},
		"host network":                {namespace: labelled, pod: pod{change: func(p *corev1.Pod) { p.Spec.HostNetwork = true }}},
		"annotated false":             {namespace: labelled, pod: pod{annotations: map[string]string{v1alpha1.KeyInject: "false"}}},
		"annotated true in a namespace without the label": {
			namespace: plain, pod: pod{annotations: map[string]string{v1alpha1.KeyInject: "true"}}, gated: true,
		},
	} {
		tc.pod.name, tc.pod.args = "p-"+strings.ReplaceAll(name, " ", "-"), []string{"sleep", "1s"}
		tc.pod.labels = otherLabels
		created := f.create(t, tc.namespace, tc.pod)
		if hasGate(created) != tc.gated || hasHold(created) != tc.gated {
			t.Errorf("%s: gate %t, hold %t, want both %t", name, hasGate(created), hasHold(created), tc.gated)
		}
	}
}

func malformed(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	for key, value := range map[string]string{
		v1alpha1.KeyTimeout:   "soon",
		v1alpha1.KeyOnTimeout: "explode",
		v1alpha1.KeyHold:      "maybe",
		v1alpha1.KeyScope:     "galaxy",
		v1alpha1.KeyInject:    "yes please",
	} {
		p := pod{name: "bad", labels: otherLabels, args: []string{"sleep", "1s"}, annotations: map[string]string{key: value}}.object(ns)
		_, err := f.Client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{})
		if err == nil {
			t.Errorf("%s=%q was accepted", key, value)
			f.delete(t, ns, "bad")
			continue
		}
		if !strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), value) {
			t.Errorf("%s=%q: the denial does not name both: %v", key, value, err)
		}
	}
}

func (f fixture) delete(t *testing.T, ns, name string) {
	t.Helper()
	if err := f.Client.CoreV1().Pods(ns).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

func forged(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	f.freeze(t, f.serverNode)
	const forgery = "uid=x;ips=10.0.0.1;boot=y"
	created := f.create(t, ns, pod{
		name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)},
		annotations: map[string]string{v1alpha1.KeyProgrammed: forgery},
	})
	if got := created.Annotations[v1alpha1.KeyProgrammed]; got != "" {
		t.Errorf("the annotation was not stripped: %q", got)
	}
	held := f.await(t, ns, "client", 20*time.Second, "is held", isHeld)
	node, err := f.Client.CoreV1().Nodes().Get(t.Context(), f.clientNode.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// What the agent would write, by somebody who may write everything else.
	right := fmt.Sprintf("uid=%s;ips=%s;boot=%s", held.UID, held.Status.PodIP, node.Status.NodeInfo.BootID)
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.KeyProgrammed, right)
	for _, sub := range [][]string{nil, {"status"}} {
		_, err := f.Client.CoreV1().Pods(ns).Patch(t.Context(), "client", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, sub...)
		if err == nil || !strings.Contains(err.Error(), "written by the policygate agent alone") {
			t.Errorf("an administrator's forgery on pods%v: %v, want a refusal that says who writes it", sub, err)
		}
	}
	if p := f.get(t, ns, "client"); !isHeld(p) || isOpen(p) {
		t.Errorf("not held: %s", describe(p))
	}
}

// The hold must not change what else the cluster says of a Pod.
func goodCitizen(t *testing.T, f fixture) {
	small := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")}
	restricted := func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{
			RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		}
	}
	with := func(requests, limits corev1.ResourceList) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
		}
	}
	limits := &corev1.LimitRange{
		ObjectMeta: metav1.ObjectMeta{Name: "limits"},
		Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
			Type: corev1.LimitTypeContainer, Min: small,
			Max:     corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi")},
			Default: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
		}}},
	}
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "quota"},
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
			corev1.ResourceRequestsCPU: resource.MustParse("10m"), corev1.ResourceRequestsMemory: resource.MustParse("32Mi"),
			corev1.ResourceLimitsCPU: resource.MustParse("10m"), corev1.ResourceLimitsMemory: resource.MustParse("32Mi"),
		}},
	}
	for name, tc := range map[string]struct {
		labels map[string]string
		limits *corev1.LimitRange
		quota  *corev1.ResourceQuota
		change func(*corev1.Pod)
		qos    corev1.PodQOSClass
	}{
		"best effort":            {qos: corev1.PodQOSBestEffort},
		"guaranteed":             {change: with(small, small), qos: corev1.PodQOSGuaranteed},
		"burstable":              {change: with(small, nil), qos: corev1.PodQOSBurstable},
		"a LimitRange":           {limits: limits, change: with(small, nil), qos: corev1.PodQOSBurstable},
		"a quota that just fits": {quota: quota, change: with(small, small), qos: corev1.PodQOSGuaranteed},
		"a restricted namespace": {labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}, change: restricted, qos: corev1.PodQOSBestEffort},
		"a Pod of root":          {change: func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(0))} }, qos: corev1.PodQOSBestEffort},
		"a Pod of root by its containers": {change: func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: new(int64(0))}
		}, qos: corev1.PodQOSBestEffort},
	} {
		t.Run(name, func(t *testing.T) {
			labels := map[string]string{}
			for _, m := range []map[string]string{injected, tc.labels} {
				maps.Copy(labels, m)
			}
			ns := f.namespace(t, labels)
			if tc.limits != nil {
				if _, err := f.Client.CoreV1().LimitRanges(ns).Create(t.Context(), tc.limits, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if tc.quota != nil {
				if _, err := f.Client.CoreV1().ResourceQuotas(ns).Create(t.Context(), tc.quota, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				eventually(t, 20*time.Second, "the quota is counted", func() (bool, string) {
					q, err := f.Client.CoreV1().ResourceQuotas(ns).Get(t.Context(), tc.quota.Name, metav1.GetOptions{})
					return err == nil && len(q.Status.Hard) > 0, fmt.Sprint(err)
				})
			}
			created := f.create(t, ns, pod{name: "citizen", labels: otherLabels, args: []string{"sleep", "10ms"}, change: tc.change})
			if !hasHold(created) {
				t.Fatal("no hold was injected")
			}
			done := f.await(t, ns, "citizen", 40*time.Second, "succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
			if done.Status.QOSClass != tc.qos {
				t.Errorf("QoS class %s, want %s", done.Status.QOSClass, tc.qos)
			}
		})
	}
}

func kubectlShows(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	f.create(t, ns, pod{name: "shown", labels: otherLabels, args: []string{"sleep", "10m"}})
	f.await(t, ns, "shown", 30*time.Second, "is open", isOpen)
	out, err := f.Kubectl(t.Context(), "-n", ns, "get", "pod", "shown", "-o", "wide")
	if err != nil {
		t.Fatal(err)
	}
	header, row, _ := strings.Cut(out, "\n")
	column := strings.Index(header, "READINESS GATES")
	if column < 0 || !strings.HasPrefix(row[min(column, len(row)):], "1/1") {
		t.Errorf("kubectl get pod -o wide shows no READINESS GATES 1/1:\n%s", out)
	}
}

// agentAbsent leaves the server's node without an agent.
func agentAbsent(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)

	agents := f.Client.AppsV1().DaemonSets(testbed.Namespace)
	set := func(affinity string) {
		patch := fmt.Appendf(nil, `{"spec":{"template":{"spec":{"affinity":%s}}}}`, affinity)
		if _, err := agents.Patch(context.Background(), "policygate-agent", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	rolledOut := func(want int32) {
		eventually(t, 60*time.Second, fmt.Sprintf("%d agents", want), func() (bool, string) {
			d, err := agents.Get(t.Context(), "policygate-agent", metav1.GetOptions{})
			if err != nil {
				return false, err.Error()
			}
			s := d.Status
			return s.ObservedGeneration == d.Generation && s.CurrentNumberScheduled == want && s.NumberMisscheduled == 0 &&
				s.NumberReady == want && s.UpdatedNumberScheduled == want, fmt.Sprintf("%+v", s)
		})
	}
	set(fmt.Sprintf(`{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[
		{"key":%q,"operator":"NotIn","values":[%q]}]}]}}}`, corev1.LabelHostname, f.serverNode.Name))
	rolledOut(int32(len(f.Cluster.Nodes()) - 1))

	f.create(t, ns, pod{name: "client", node: f.clientNode, labels: clientLabels, args: []string{"dial", at(server)}})
	f.await(t, ns, "client", 30*time.Second, "is shut and says whose agent is missing", func(p *corev1.Pod) bool {
		return isShut(p) && isHeld(p) && strings.Contains(gateOf(p).Message, f.serverNode.Name) && strings.Contains(gateOf(p).Message, "no agent")
	})
	f.says(t, doctorFinds, []string{"doctor"}, "no agent is connected from "+f.serverNode.Name)
	set("null")
	rolledOut(int32(len(f.Cluster.Nodes())))
	allOK(t, "client", f.dials(t, ns, "client", 40*time.Second))
}

func undeploy(t *testing.T, f fixture) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.settled(t, ns, server)
	f.freeze(t, f.serverNode)
	f.create(t, ns, pod{name: "held", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"}})
	f.await(t, ns, "held", 20*time.Second, "is held", isHeld)
	if err := f.Make(t.Context(), "undeploy"); err != nil {
		t.Fatal(err)
	}
	f.await(t, ns, "held", 20*time.Second, "runs", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning && isOpen(p) })
	created := f.create(t, ns, pod{name: "after", labels: otherLabels, args: []string{"sleep", "1s"}})
	if hasGate(created) {
		t.Error("a Pod was gated after Policy Gate was removed")
	}
	eventually(t, 60*time.Second, "nothing of Policy Gate is left", func() (bool, string) {
		out, err := f.Kubectl(t.Context(), "get", "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,"+
			"validatingadmissionpolicies,validatingadmissionpolicybindings", "-o", "name", "-l", "app.kubernetes.io/part-of=policygate")
		return err == nil && strings.TrimSpace(strings.ReplaceAll(out, "No resources found", "")) == "", out
	})
}
