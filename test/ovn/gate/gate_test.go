// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"context"
	"slices"
	"sync"
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
	ingress, egress := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	clients := []networkingv1.NetworkPolicyPeer{{PodSelector: new(app("client"))}}
	fromClients := networkingv1.NetworkPolicySpec{PolicyTypes: ingress, PodSelector: app("server"), Ingress: []networkingv1.NetworkPolicyIngressRule{{
		From: clients, Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
	}}}
	for name, spec := range map[string]networkingv1.NetworkPolicySpec{
		"deny-all":      {PolicyTypes: ingress, PodSelector: app("server")},
		"clients":       fromClients,
		"clients-again": fromClients,
		"outwards":      {PolicyTypes: egress, PodSelector: app("server"), Egress: []networkingv1.NetworkPolicyEgressRule{{To: clients}}},
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

// TestGate runs all scenarios in one cluster, each in namespaces of its own: it
// takes longer to start than they take.
func TestGate(t *testing.T) {
	c := start(t)
	for _, scenario := range []struct {
		name string
		run  func(c *cluster)
	}{
		{"a server is held until its policies are in force", testServerIsHeld},
		{"a client is held until its address is written", testClientIsHeld},
		{"the first connection of two that start together", testFirstConnection},
		{"a node whose ovn-controller is paused is named", testPausedController},
		{"a policy is in force once nodes have acknowledged it", testAcknowledgement},
		{"flows that vanish", testFlowsThatVanish},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			own := *c
			own.T = t
			t.Cleanup(func() {
				own.controller.thaw()
				for _, n := range own.ovn.Nodes() {
					// Not the test's context, which has ended.
					if err := n.ResumeController(context.Background()); err != nil {
						t.Error(err)
					}
				}
			})
			scenario.run(&own)
		})
		if t.Failed() {
			break // what is left of it might be in the others' way
		}
	}
}

func testServerIsHeld(c *cluster) {
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
	server.staysShut()
	stranger.dials(server, fixture.Open)

	began := time.Now()
	c.controller.thaw()
	server.awaitOpen()
	took := time.Since(began)
	// At the instant of opening.
	var dials sync.WaitGroup
	dials.Go(func() { stranger.dials(server, fixture.Silent) })
	dials.Go(func() { client.dials(server, fixture.Open) })
	dials.Wait()
	c.Logf("the server's gate opened %v after the queue moved", took)
	client.awaitOpen()
}

// testClientIsHeld has the queue stop between the ports of a group, which isolate
// its server already, and its address set.
func testClientIsHeld(c *cluster) {
	c.namespace("queue", true)
	c.policies("queue", "clients")
	server := c.pod("queue", "server", "server", "n1")
	server.awaitOpen()
	c.controller.freezeBefore(func(s engine.Step) bool { return s.Object == "clients.queue.ingress.allow.IPv4.0" })
	late := c.pod("queue", "late", "client", "n2")
	late.awaitSays("waiting for OVN's northbound database (kube-ovn:northbound): ", "queue/clients (this namespace) does not admit "+late.IP().String()+" there yet")
	late.staysShut()
	late.dials(server, fixture.Silent)
	began := time.Now()
	c.controller.thaw()
	late.awaitOpen()
	c.Logf("the late client's gate opened %v after the queue moved", time.Since(began))
	late.dials(server, fixture.Open)
}

// testFirstConnection creates a client and its server,
// again and again, while kube-ovn-controller takes a second to write who may
// connect to whom.
func testFirstConnection(c *cluster) {
	const rounds = 10
	for namespace, gated := range map[string]bool{"gated": true, "plain": false} {
		c.namespace(namespace, gated)
		c.policies(namespace, "clients")
		// As long as a policy selects nobody, it has no ACL.
		c.pod(namespace, "standing", "server", "n1")
	}
	// round returns what came of the client's first connection, which is made
	// once started has returned for both.
	round := func(namespace string, clientFirst bool, started func(*pod)) fixture.Outcome {
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
		var server, client *pod
		if clientFirst {
			client = c.pod(namespace, "client", "client", "n2")
		}
		server = c.pod(namespace, "server", "server", "n1")
		if client == nil {
			client = c.pod(namespace, "client", "client", "n2")
		}
		started(server)
		started(client)
		outcome, err := client.Dial(server.Pod, servedPort)
		c.must(err)
		client.delete()
		server.delete()
		return outcome
	}
	failed := 0
	for range rounds {
		if round("plain", false, func(*pod) {}) != fixture.Open {
			failed++
		}
	}
	c.Logf("without a gate, %d of %d first connections failed", failed, rounds)
	if failed == 0 {
		c.Error("no first connection failed without a gate, so those with one show nothing")
	}
	var took []time.Duration
	began := time.Now()
	countBefore, secondsBefore := c.traces()
	for i := range rounds {
		if got := round("gated", i%2 == 1, func(p *pod) { took = append(took, p.awaitOpen()) }); got != fixture.Open {
			c.Errorf("with a gate, the first connection of round %d is %q", i, got)
		}
	}
	c.Logf("with a gate, server and client of each round started after %v", took)
	count, seconds := c.traces()
	if count == countBefore {
		c.Error("no packet was traced")
	}
	c.Logf("%.1f packets were traced for each Pod, which took vswitchd %.2f %% of the time on each node",
		(count-countBefore)/(2*rounds), 100*(seconds-secondsBefore)/time.Since(began).Seconds()/float64(len(c.ovn.Nodes())))
}

func testPausedController(c *cluster) {
	c.namespace("paused", true)
	c.policies("paused", "deny-all", "clients")
	server := c.pod("paused", "server", "server", "n1")
	server.awaitOpen()
	serverNode, clientNode := c.ovn.Node("n1"), c.ovn.Node("n2")

	c.must(serverNode.PauseController(c.Context()))
	client := c.pod("paused", "client", "client", "n2")
	client.awaitSays("n1")
	client.staysShut()
	client.dials(server, fixture.Silent)
	began := time.Now()
	c.must(serverNode.ResumeController(c.Context()))
	client.awaitOpen()
	c.Logf("the client's gate opened %v after ovn-controller went on", time.Since(began))
	client.dials(server, fixture.Open)

	// A node that has no part in it, and that would hold up hv_cfg.
	c.must(clientNode.PauseController(c.Context()))
	second := c.pod("paused", "second", "server", "n1")
	took := second.awaitOpen()
	c.Logf("the second server's gate opened after %v while n2's ovn-controller was paused", took)
	c.must(clientNode.ResumeController(c.Context()))
	// The client's gate was open before there was this server: nobody has waited
	// for the client's node to know it.
	c.must(c.ovn.Settle(c.Context()))
	client.dials(second, fixture.Open)
}
