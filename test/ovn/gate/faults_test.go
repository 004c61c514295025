// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// programmed returns what the status of a policy says of its being in force.
func (c *cluster) programmed(namespace, name string) (status metav1.ConditionStatus, says string) {
	c.Helper()
	var policy v1alpha1.PolicyStatus
	if err := c.api.Get(c.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &policy); err != nil {
		return "", err.Error()
	}
	condition := meta.FindStatusCondition(policy.Status.Conditions, v1alpha1.PolicyProgrammed)
	if condition == nil {
		return "", "no condition"
	}
	says = fmt.Sprintf("%s: %s: %s", condition.Status, condition.Reason, condition.Message)
	for _, n := range policy.Status.LaggingNodes {
		says += fmt.Sprintf("; %s: %s: %s", n.Name, n.Reason, n.Message)
	}
	return condition.Status, says
}

// awaitProgrammed waits until the status of a policy is so and says all of
// these words.
func (c *cluster) awaitProgrammed(namespace, name string, want metav1.ConditionStatus, words ...string) {
	c.Helper()
	c.eventually(fmt.Sprintf("PolicyStatus %s/%s is %s", namespace, name, want), func() string {
		status, says := c.programmed(namespace, name)
		if status != want {
			return says
		}
		for _, w := range words {
			if !strings.Contains(says, w) {
				return says
			}
		}
		c.Logf("PolicyStatus %s/%s is %s", namespace, name, says)
		return ""
	})
}

// testAcknowledgement makes a policy that says what another says already: what a
// trace shows of a node is right from the beginning, and tells nothing of whether
// the node has heard of the policy.
func testAcknowledgement(c *cluster) {
	c.namespace("ack", true)
	c.policies("ack", "clients")
	c.pod("ack", "client", "client", "n2")
	for _, n := range c.ovn.Nodes() {
		c.pod("ack", "server-"+n.Name(), "server", n.Name()).awaitOpen()
	}
	c.awaitProgrammed("ack", "clients", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce, "in force on 2 nodes")

	c.must(c.ovn.Node("n1").PauseController(c.Context()))
	c.policies("ack", "clients-again")
	c.awaitProgrammed("ack", "clients-again", metav1.ConditionUnknown, "n1", "has not acknowledged yet what the northbound database has of the policy")
	for began := time.Now(); time.Since(began) < awhile; time.Sleep(20 * time.Millisecond) {
		if status, says := c.programmed("ack", "clients-again"); status == metav1.ConditionTrue {
			c.Fatalf("PolicyStatus ack/clients-again is %s", says)
		}
	}
	c.must(c.ovn.Node("n1").ResumeController(c.Context()))
	c.awaitProgrammed("ack", "clients-again", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce, "in force on 2 nodes")
}

// testFlowsThatVanish: what the northbound database has and what ovn-controller
// acknowledged stays as it was, and packets pass that must not, or none do.
func testFlowsThatVanish(c *cluster) {
	node := c.ovn.Node("n1")
	c.namespace("vanish", true)
	c.namespace("beyond", false)
	c.policies("vanish", "clients", "outwards")
	stranger := c.pod("beyond", "stranger", "client", "n2")
	client := c.pod("vanish", "client", "client", "n2")
	first := c.pod("vanish", "first", "server", "n1")
	first.awaitOpen()
	c.awaitProgrammed("vanish", "clients", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce)
	stranger.dials(first, fixture.Silent)

	// A server whose ingress is isolated, and whose egress is not yet. Then the
	// flows that isolate are deleted, which ovn-controller does not notice.
	c.controller.freezeBefore(func(s engine.Step) bool { return s.Policy.Name == "outwards" && s.Part == engine.PartPorts })
	server := c.pod("vanish", "server", "server", "n1")
	server.awaitSays("OVN's northbound database", "vanish/outwards (this namespace) does not isolate")
	c.must(c.ovn.Sync(c.Context()))
	n, err := node.DeleteDropFlows(c.Context(), "clients.vanish")
	c.must(err)
	c.Logf("deleted %d flows", n)
	c.controller.thaw()
	server.awaitSays("waiting for n1: vanish/clients (this namespace) does not isolate its Pods there yet")
	c.must(c.ovn.Sync(c.Context())) // all nodes acknowledge what they do not have
	server.staysShut()
	stranger.dials(server, fixture.Open)
	c.awaitProgrammed("vanish", "clients", metav1.ConditionFalse, "n1")

	// A new vswitchd gets all flows anew.
	c.must(node.RestartVSwitchd(c.Context()))
	c.give(node)
	server.awaitOpen()
	stranger.dials(server, fixture.Silent)
	client.dials(server, fixture.Open)
	c.awaitProgrammed("vanish", "clients", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce)

	// Another one gets none: br-int drops everything, and that is no denial.
	c.must(node.PauseController(c.Context()))
	c.must(node.RestartVSwitchd(c.Context()))
	c.give(node)
	late := c.pod("vanish", "late", "client", "n2")
	late.awaitSays("n1")
	late.staysShut()
	late.dials(server, fixture.Silent)
	c.awaitProgrammed("vanish", "clients", metav1.ConditionUnknown, "n1")
	c.must(node.ResumeController(c.Context()))
	late.awaitOpen()
	late.dials(server, fixture.Open)
	stranger.dials(server, fixture.Silent)
	c.awaitProgrammed("vanish", "clients", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce)
}
