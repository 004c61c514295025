// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/test/e2e/delayproxy"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// The policy is in the API before the Pod is, and the one replica there is will
// hear of it seconds later: without the barrier it would see a Pod that no
// policy isolates, and its engine has not isolated it yet either.
func delayedPolicyWatch(t *testing.T, f fixture) {
	const watchDelay = 5 * time.Second
	ns := f.namespace(t, injected)
	forbidden := f.server(t, ns, "forbidden", f.serverNode, serverLabels)
	f.behindProxy(t, "networkpolicies", watchDelay)
	for n := range 3 {
		labels := map[string]string{"app": fmt.Sprintf("late-%d", n)}
		f.slow(t, f.clientNode, 4*time.Second)
		f.apply(t, ns, policy(fmt.Sprintf("deny-%d", n), networkingv1.PolicyTypeEgress, labels, nil))
		name := fmt.Sprintf("client-%d", n)
		f.create(t, ns, pod{name: name, node: f.clientNode, labels: labels, args: []string{"dial", at(forbidden)}})
		for _, d := range f.dials(t, ns, name, 60*time.Second) {
			if d.OK {
				t.Errorf("%s was let go before its own policy was in force", name)
			}
		}
		if p := f.get(t, ns, name); !isOpen(p) {
			t.Errorf("%s was started without a confirmation: %s", name, describe(p))
		}
		f.calm(t)
	}
}

// behindProxy leaves one replica of the manager, which sees the resource
// through a proxy, its watches late by delay.
func (f fixture) behindProxy(t *testing.T, resource string, delay time.Duration) *delayproxy.Proxy {
	t.Helper()
	host := f.Cluster.HostIPs()[0]
	proxy, err := delayproxy.Start(t.Context(), host, filepath.Dir(f.Cluster.Kubeconfig()), f.Config.Host, resource, delay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.manager(t, 2, `{"name":"KUBERNETES_SERVICE_HOST","$patch":"delete"},{"name":"KUBERNETES_SERVICE_PORT","$patch":"delete"}`)
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	f.manager(t, 1, fmt.Sprintf(`{"name":"KUBERNETES_SERVICE_HOST","value":%q},{"name":"KUBERNETES_SERVICE_PORT","value":"%d"}`, host, proxy.Port()))
	return proxy
}

// manager sets the number of replicas and changes their environment, and waits
// until no other replica is left. It serves a test's end too.
func (f fixture) manager(t *testing.T, replicas int, env string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	deployments := f.Client.AppsV1().Deployments(testbed.Namespace)
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d,"template":{"spec":{"containers":[{"name":"manager","env":[%s]}]}}}}`, replicas, env)
	if _, err := deployments.Patch(ctx, "policygate-manager", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for ctx.Err() == nil {
		d, err := deployments.Get(ctx, "policygate-manager", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pods, err := f.Client.CoreV1().Pods(testbed.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=policygate-manager"})
		if err != nil {
			t.Fatal(err)
		}
		s := d.Status
		if s.ObservedGeneration == d.Generation && int(s.UpdatedReplicas) == replicas && int(s.ReadyReplicas) == replicas && len(pods.Items) == replicas {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("the manager did not come to %d replicas", replicas)
}
