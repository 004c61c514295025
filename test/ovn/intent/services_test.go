// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package intent

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/policygate/policygate/agent/northbound"
	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// TestServicesAreLinked has two Services of which kube-ovn-controller knows one
// by and by, in the shape that has ClusterIPs and in the one that has none.
func TestServicesAreLinked(t *testing.T) {
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "to-servers"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *selector("client"),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress: []networkingv1.NetworkPolicyEgressRule{{
				To: []networkingv1.NetworkPolicyPeer{{PodSelector: selector("server")}},
			}},
		},
	}
	service := func(name, vip, label string) *corev1.Service {
		return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: name},
			Spec:       corev1.ServiceSpec{ClusterIPs: []string{vip}, ClusterIP: vip, Selector: map[string]string{"app": label}},
		}
	}
	first, second := service("first", "10.96.0.1", "server"), service("second", "10.96.0.2", "server")
	const set = "to.servers.db.egress.allow.IPv4.0"
	for name, tc := range map[string]struct {
		shape engine.Shape
		// late is what is lacking before the second Service is known.
		late, linked northbound.Link
	}{
		"1.15": {shape: engine.Release115(), late: northbound.Link{Lacking: []string{set}}, linked: northbound.Link{Linked: 1}},
		"1.16": {shape: engine.Release116()},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3, fixture.Options{})
			cluster := w.labelled([]string{"client", "elsewhere", "server"}, policy)
			e := engine.New(w, engine.Options{Shape: tc.shape})
			// Pods a and c are in db.
			server := []netip.Addr{w.pods[2].IP()}
			asked := []northbound.Service{
				{VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Backends: server},
				{VIPs: []netip.Addr{netip.MustParseAddr("10.96.0.2")}, Backends: server},
			}
			for _, step := range []struct {
				services []*corev1.Service
				second   northbound.Link
			}{{[]*corev1.Service{first}, tc.late}, {[]*corev1.Service{first, second}, tc.linked}} {
				cluster.Services = step.services
				if err := e.Sync(t.Context(), cluster); err != nil {
					t.Fatal(err)
				}
				w.awaitVersion(fmt.Sprint("services-", len(step.services)))
				w.await(func() error {
					links, err := w.Linked(asked)
					if err != nil {
						return err
					}
					if diff := cmp.Diff([]northbound.Link{tc.linked, step.second}, links); diff != "" {
						return fmt.Errorf("of %d Services (-want +got):\n%s", len(step.services), diff)
					}
					return nil
				})
			}
		})
	}
}
