// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"slices"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// policies makes these policies of a namespace, which has its servers admit its
// clients alone.
func (c *cluster) policies(namespace string, names ...string) {
	c.Helper()
	port := intstr.FromInt32(servedPort)
	for name, spec := range map[string]networkingv1.NetworkPolicySpec{
		"deny-all": {PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, PodSelector: app("server")},
		"clients": {
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, PodSelector: app("server"),
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: new(app("client"))}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	} {
		if !slices.Contains(names, name) {
			continue
		}
		c.must(c.api.Create(c.Context(), &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}))
	}
	c.controller.notice()
}

func app(name string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func TestServerIsHeldUntilItsPoliciesAreInForce(t *testing.T) {
	c := start(t)
	c.namespace("shop", true)
	c.namespace("outside", false)
	c.controller.Freeze()
	c.policies("shop", "deny-all", "clients")
	stranger := c.pod("outside", "stranger", "client", "n2")
	client := c.pod("shop", "client", "client", "n2")
	server := c.pod("shop", "server", "server", "n1")
	// The race that a gate is about: whoever would serve now, serves everybody.
	stranger.dials(server, fixture.Open)
	server.awaitSays("waiting for OVN's northbound database (kube-ovn:northbound): ", "shop/clients (this namespace) does not isolate its Pods there yet")
	server.staysShut(2 * time.Second)
	stranger.dials(server, fixture.Open)

	began := time.Now()
	c.controller.thaw()
	server.awaitOpen()
	// At the instant of opening.
	stranger.dials(server, fixture.Silent)
	client.dials(server, fixture.Open)
	t.Logf("the server's gate opened %v after the queue moved", time.Since(began))
	client.awaitOpen()

	// The queue stops again, between the ports of a group and its address set.
	c.controller.freezeBefore(func(s engine.Step) bool {
		return s.Part == engine.PartAddressSet && s.Object == "clients.shop.ingress.allow.IPv4.0"
	})
	late := c.pod("shop", "late", "client", "n2")
	late.awaitSays("waiting for OVN's northbound database (kube-ovn:northbound): ", "shop/clients (this namespace) does not admit "+late.IP().String()+" there yet")
	late.staysShut(2 * time.Second)
	late.dials(server, fixture.Silent)
	began = time.Now()
	c.controller.thaw()
	late.awaitOpen()
	late.dials(server, fixture.Open)
	t.Logf("the late client's gate opened %v after the queue moved", time.Since(began))
}

// TestFirstConnectionOfTwoThatStartTogether creates a client and its server,
// again and again, while kube-ovn-controller takes a second to write who may
// connect to whom.
func TestFirstConnectionOfTwoThatStartTogether(t *testing.T) {
	const rounds = 10
	c := start(t)
	for namespace, gated := range map[string]bool{"gated": true, "plain": false} {
		c.namespace(namespace, gated)
		c.policies(namespace, "clients")
		// As long as a policy selects nobody, it has no ACL.
		c.pod(namespace, "standing", "server", "n1")
	}
	// round returns what came of the client's first connection.
	round := func(namespace string, before func(client *pod)) fixture.Outcome {
		c.eventually("kube-ovn-controller has written all", func() string {
			if c.controller.rests() {
				return ""
			}
			return "it has not"
		})
		c.controller.delay(func(s engine.Step) time.Duration {
			if s.Object == "clients."+namespace+".ingress.allow.IPv4.0" {
				return time.Second
			}
			return 0
		})
		defer c.controller.delay(nil)
		server := c.pod(namespace, "server", "server", "n1")
		client := c.pod(namespace, "client", "client", "n2")
		before(client)
		outcome, err := client.Dial(server.Pod, servedPort)
		c.must(err)
		client.delete()
		server.delete()
		return outcome
	}
	failed := 0
	for range rounds {
		if round("plain", func(*pod) {}) != fixture.Open {
			failed++
		}
	}
	t.Logf("without a gate, %d of %d first connections failed", failed, rounds)
	if failed == 0 {
		t.Error("no first connection failed without a gate, so those with one show nothing")
	}
	var took []time.Duration
	for i := range rounds {
		if got := round("gated", func(client *pod) { took = append(took, client.awaitOpen()) }); got != fixture.Open {
			t.Errorf("with a gate, the first connection of round %d is %q", i, got)
		}
	}
	t.Logf("with a gate, the client started after %v", took)
}

func TestNodeWhoseControllerIsFrozenIsNamed(t *testing.T) {
	c := start(t)
	c.namespace("shop", true)
	c.policies("shop", "deny-all", "clients")
	server := c.pod("shop", "server", "server", "n1")
	server.awaitOpen()
	serverNode, clientNode := c.ovn.Node("n1"), c.ovn.Node("n2")

	c.must(serverNode.PauseController(t.Context()))
	client := c.pod("shop", "client", "client", "n2")
	client.awaitSays("n1")
	client.staysShut(2 * time.Second)
	client.dials(server, fixture.Silent)
	began := time.Now()
	c.must(serverNode.ResumeController(t.Context()))
	client.awaitOpen()
	client.dials(server, fixture.Open)
	t.Logf("the client's gate opened %v after ovn-controller went on", time.Since(began))

	// A node that has no part in it, and that would hold up hv_cfg.
	c.must(clientNode.PauseController(t.Context()))
	second := c.pod("shop", "second", "server", "n1")
	took := second.awaitOpen()
	t.Logf("the second server's gate opened after %v while n2's ovn-controller was paused", took)
	c.must(clientNode.ResumeController(t.Context()))
	client.dials(second, fixture.Open)
}
