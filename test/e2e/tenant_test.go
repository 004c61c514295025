// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/policygate/policygate/api/v1alpha1"
)

// tenantSees has a tenant's Pods and policies wait for servers and policies of
// another namespace, and reads everything that the tenant may.
func tenantSees(t *testing.T, f fixture) {
	const tenant = "tenant"
	infra, ours := map[string]string{"example.org/team": "infra"}, map[string]string{"example.org/team": tenant}
	// Policies of a namespace without the label hold nobody else's Pods.
	other := f.namespace(t, union(injected, infra))
	own := f.namespace(t, union(injected, ours))
	f.view(t, own, tenant)

	// The other team's server, which the tenant's clients may reach, and a Pod
	// of it that they may not.
	server := f.server(t, other, "hidden-server", f.serverNode, serverLabels)
	outsider := f.server(t, other, "hidden-outsider", f.clientNode, otherLabels)
	hidden := policy("hidden-policy", networkingv1.PolicyTypeIngress, serverLabels, clientLabels)
	hidden.Spec.Ingress[0].From[0].NamespaceSelector = &metav1.LabelSelector{MatchLabels: ours}
	f.apply(t, other, hidden)
	f.admits(t, outsider, server, false)
	// The tenant's own policy, whose rules are lost.
	sleeper := f.server(t, own, "sleeper", f.clientNode, clientLabels)
	f.admits(t, sleeper, server, true)
	toInfra := policy("to-infra", networkingv1.PolicyTypeEgress, clientLabels, serverLabels)
	toInfra.Spec.Egress[0].To[0].NamespaceSelector = &metav1.LabelSelector{MatchLabels: infra}
	history := f.watchStatus(t, own, toInfra.Name)
	f.apply(t, own, toInfra)
	history.await(t, "is in force", inForceOn("1/1"))
	f.freeze(t, f.serverNode)
	f.freeze(t, f.clientNode)
	f.flush(t, f.clientNode, sleeper)
	f.create(t, own, pod{
		name: "held", node: f.clientNode, labels: clientLabels, args: []string{"sleep", "10m"},
		annotations: map[string]string{v1alpha1.KeyTimeout: "10s", v1alpha1.KeyOnTimeout: v1alpha1.OnTimeoutFail},
	})

	secrets := []string{other, server.Name, outsider.Name, hidden.Name, server.Status.PodIP, outsider.Status.PodIP, "KUBE-"}
	reader := f.reader(t, tenant, own, secrets)
	f.await(t, own, "held", 20*time.Second, "names the nodes that it waits for, and a policy of another namespace", func(p *corev1.Pod) bool {
		return isShut(p) && gateOf(p).Reason == v1alpha1.ReasonWaiting && strings.Contains(gateOf(p).Message, f.serverNode.Name) &&
			strings.Contains(gateOf(p).Message, "a policy in another namespace")
	})
	reader.read(t, "while it waits")
	f.warned(t, own, "held", v1alpha1.ReasonTimeout)
	history.await(t, "has drifted", func(s v1alpha1.PolicyStatus) bool {
		return hasCondition(s, v1alpha1.PolicyDegraded, metav1.ConditionTrue, v1alpha1.PolicyReasonDrifted) && s.Status.LaggingNodes[0].Message != ""
	})
	f.warned(t, own, toInfra.Name, v1alpha1.PolicyReasonDrifted, f.clientNode.Name)
	reader.read(t, "after the timeout and the drift")

	status, stdout, stderr := f.plugin(t, "status", "--as="+tenant, "-n", own)
	if status != statusNotProgrammed || !strings.Contains(stdout, toInfra.Name) || !strings.Contains(stdout, "0/1") {
		t.Errorf("kubectl policygate status: exit status %d, %q, %q; want the tenant's policy", status, stdout, stderr)
	}
	reader.check(t, "kubectl policygate status", stdout+stderr)
	for _, args := range [][]string{{"explain", "pod/held"}, {"doctor"}, {"status", "-A"}} {
		status, stdout, stderr := f.plugin(t, append(args, "--as="+tenant, "-n", own)...)
		if status == 0 {
			t.Errorf("kubectl policygate %v was answered: %q", args, stdout)
		}
		t.Logf("kubectl policygate %v\n%s%s", args, stdout, stderr)
		if said := stdout + stderr; !strings.Contains(said, "forbidden") && !strings.Contains(said, "may not") {
			t.Errorf("kubectl policygate %v does not say that a right is missing", args)
		}
		reader.check(t, fmt.Sprintf("kubectl policygate %v", args), stdout+stderr)
	}
}

func union(a, b map[string]string) map[string]string {
	both := maps.Clone(a)
	maps.Copy(both, b)
	return both
}

// view lets a user read a namespace, as the cluster's role for that says.
func (f fixture) view(t *testing.T, ns, user string) {
	t.Helper()
	_, err := f.Client.RbacV1().RoleBindings(ns).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "viewers"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "view"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// reader reads a namespace as one of its users, and knows what must not be in
// there.
type reader struct {
	client    dynamic.Interface
	kinds     []schema.GroupVersionResource
	namespace string
	secrets   *regexp.Regexp
}

func (f fixture) reader(t *testing.T, user, ns string, secrets []string) reader {
	t.Helper()
	config := rest.CopyConfig(f.Config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := f.Client.Discovery().ServerPreferredNamespacedResources()
	if err != nil {
		t.Fatal(err)
	}
	lists = discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"list"}}, lists)
	kinds, err := discovery.GroupVersionResources(lists)
	if err != nil {
		t.Fatal(err)
	}
	var quoted []string
	for _, s := range secrets {
		quoted = append(quoted, regexp.QuoteMeta(s))
	}
	return reader{
		client: client, kinds: slices.Collect(maps.Keys(kinds)), namespace: ns,
		// 10.1.2.3 is no part of 10.1.2.34.
		secrets: regexp.MustCompile(`(?:^|[^0-9])(` + strings.Join(quoted, "|") + `)(?:[^0-9]|$)`),
	}
}

// read reads all objects of the namespace that the user may.
func (r reader) read(t *testing.T, when string) {
	t.Helper()
	found := map[string]int{}
	for _, kind := range r.kinds {
		list, err := r.client.Resource(kind).Namespace(r.namespace).List(t.Context(), metav1.ListOptions{})
		if apierrors.IsForbidden(err) {
			continue
		}
		if err != nil {
			t.Fatalf("read %s: %v", kind, err)
		}
		found[kind.Resource] += len(list.Items)
		for _, item := range list.Items {
			text, err := item.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			r.check(t, fmt.Sprintf("%s, %s %s", when, kind.Resource, item.GetName()), string(text))
		}
	}
	t.Logf("%s the tenant reads %v", when, found)
	for _, kind := range []string{"pods", "events", "networkpolicies", "policystatuses"} {
		if found[kind] == 0 {
			t.Errorf("%s the tenant reads no %s", when, kind)
		}
	}
}

// check looks for secrets in a text.
func (r reader) check(t *testing.T, what, text string) {
	t.Helper()
	for _, at := range r.secrets.FindAllStringSubmatchIndex(text, -1) {
		t.Errorf("%s: it says %q in ...%s...", what, text[at[2]:at[3]], text[max(0, at[2]-200):min(len(text), at[3]+100)])
	}
}
