// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/test/e2e/testbed"
	"github.com/policygate/policygate/test/observe"
)

// dashboardAnswers has a real Prometheus scrape every replica and agent while
// a policy comes into force and gates open, and asks it what the dashboard and
// the alerts ask.
func dashboardAnswers(t *testing.T, f fixture) {
	config, err := filepath.Abs("../../config/prometheus")
	if err != nil {
		t.Fatal(err)
	}
	queries, err := observe.Queries(config)
	if err != nil {
		t.Fatal(err)
	}
	prometheus, err := observe.Start(t.Context(), observe.Options{
		Dir: t.TempDir(), Rules: []string{filepath.Join(config, "alerts.yaml")}, Targets: f.targets(t), Interval: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := prometheus.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := prometheus.AwaitScrapes(ctx); err != nil {
		t.Fatal(err)
	}

	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	f.watchStatus(t, ns, "allow-client").await(t, "is in force", inForceOn("1/1"))
	for _, node := range f.Cluster.Nodes() {
		f.create(t, ns, pod{name: "client-" + node.Name, node: node, labels: clientLabels, args: []string{"dial", at(server)}})
	}
	for _, node := range f.Cluster.Nodes() {
		allOK(t, "client-"+node.Name, f.dials(t, ns, "client-"+node.Name, 40*time.Second))
	}

	check := observe.Check{
		URL: prometheus.URL, Queries: queries, Window: time.Minute,
		Quiet: observe.Quiet(),
	}
	eventually(t, 40*time.Second, fmt.Sprintf("%d queries are answered", len(queries)), func() (bool, string) {
		err := check.Run(t.Context())
		return err == nil, fmt.Sprint(err)
	})
}

// targets are the ports that are called metrics, as the shipped monitors have
// them.
func (f fixture) targets(t *testing.T) []observe.Target {
	t.Helper()
	var all []observe.Target
	for _, job := range []string{"policygate-manager", "policygate-agent"} {
		pods, err := f.Client.CoreV1().Pods(testbed.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + job})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pods.Items {
			target := observe.Target{Job: job, Instance: p.Name, Address: metricsAddress(&p)}
			if job == "policygate-agent" {
				target.Instance = p.Spec.NodeName
			}
			if target.Address == "" || p.DeletionTimestamp != nil {
				t.Fatalf("Pod %s has no port metrics, or ends", p.Name)
			}
			all = append(all, target)
		}
	}
	return all
}

func metricsAddress(p *corev1.Pod) string {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == "metrics" {
				return net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(port.ContainerPort)))
			}
		}
	}
	return ""
}
