// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// TestDualStackLegacy has Pods with addresses of both families, and rules in the
// kernel's older form.
func TestDualStackLegacy(t *testing.T) {
	t.Parallel()
	f := start(t, testbed.Options{Name: "e2e-legacy", DualStack: true, IPTables: cluster.IPTablesLegacy})
	f.slow(t, f.serverNode, 500*time.Millisecond)
	dualStack(t, f, true)
}

// TestEngineWithoutIPv6 has Pods with addresses of a family that nobody
// enforces: they must not wait for it.
func TestEngineWithoutIPv6(t *testing.T) {
	t.Parallel()
	f := start(t, testbed.Options{Name: "e2e-v4", DualStack: true, EngineIPv4Only: true})
	dualStack(t, f, false)
}

func dualStack(t *testing.T, f fixture, enforced bool) {
	ns := f.namespace(t, injected)
	server := f.server(t, ns, "server", f.serverNode, serverLabels)
	f.apply(t, ns, policy("allow-client", networkingv1.PolicyTypeIngress, serverLabels, clientLabels))
	var addrs []string
	for _, ip := range server.Status.PodIPs {
		addrs = append(addrs, atIP(ip.IP))
	}
	if len(addrs) != 2 {
		t.Fatalf("the server has addresses %v, want one of each family", server.Status.PodIPs)
	}
	f.settled(t, ns, server)
	for _, node := range []*cluster.Node{f.serverNode, f.clientNode} {
		for n := range 3 {
			name := fmt.Sprintf("client-%s-%d", node.Name, n)
			f.create(t, ns, pod{name: name, node: node, labels: clientLabels, args: append([]string{"dial"}, addrs...)})
		}
	}
	for _, node := range []*cluster.Node{f.serverNode, f.clientNode} {
		for n := range 3 {
			name := fmt.Sprintf("client-%s-%d", node.Name, n)
			allOK(t, name, f.dials(t, ns, name, 60*time.Second))
			if p := f.get(t, ns, name); !isOpen(p) {
				t.Errorf("%s was started without a confirmation: %s", name, describe(p))
			}
		}
	}
	stranger := f.get(t, ns, "settled-"+server.Name)
	for i, addr := range addrs {
		v6 := i == 1
		if d := f.dialFrom(t, stranger, addr); d.OK != (v6 && !enforced) {
			t.Errorf("a stranger dialling %s: let in %t; enforced: %t", addr, d.OK, enforced)
		}
	}
	// Isolation of a Pod's own in both families.
	f.apply(t, ns, policy("deny-egress", networkingv1.PolicyTypeEgress, otherLabels, nil))
	f.create(t, ns, pod{name: "isolated", node: f.clientNode, labels: otherLabels, args: append([]string{"dial"}, addrs...)})
	for _, d := range f.dials(t, ns, "isolated", 60*time.Second) {
		v6 := d.Addr == addrs[1]
		if d.OK != (v6 && !enforced) {
			t.Errorf("an isolated Pod dialling %s: let out %t; enforced: %t", d.Addr, d.OK, enforced)
		}
	}
	if p := f.get(t, ns, "isolated"); !isOpen(p) || p.Status.Phase == corev1.PodPending {
		t.Errorf("started without a confirmation: %s", describe(p))
	}
}
