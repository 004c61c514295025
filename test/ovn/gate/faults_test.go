// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package gate

import (
	"fmt"
	"strings"
	"testing"
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

// TestFlowsThatVanish: what the northbound database has and what ovn-controller
// acknowledged stays as it was, and packets pass that must not, or none do.
func TestFlowsThatVanish(t *testing.T) {
	c := start(t)
	node := c.ovn.Node("n1")
	c.namespace("shop", true)
	c.namespace("outside", false)
	c.policies("shop", "clients")
	stranger := c.pod("outside", "stranger", "client", "n2")
	first := c.pod("shop", "first", "server", "n1")
	first.awaitOpen()
	c.awaitProgrammed("shop", "clients", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce)
	stranger.dials(first, fixture.Silent)

	// A server that is isolated, and a peer of it that is not written yet. Then
	// the flows that isolate are deleted, which ovn-controller does not notice.
	c.controller.freezeBefore(func(s engine.Step) bool { return s.Object == "clients.shop.ingress.allow.IPv4.0" })
	client := c.pod("shop", "client", "client", "n2")
	server := c.pod("shop", "server", "server", "n1")
	server.awaitSays("OVN's northbound database", "shop/clients")
	n, err := node.DeleteDropFlows(t.Context(), "clients.shop")
	c.must(err)
	t.Logf("deleted %d flows", n)
	c.controller.thaw()
	server.awaitSays("waiting for n1: shop/clients (this namespace) does not isolate its Pods there yet")
	c.must(c.ovn.Sync(t.Context())) // all nodes acknowledge what they do not have
	server.staysShut(2 * time.Second)
	stranger.dials(server, fixture.Open)
	client.awaitOpen() // it is allowed, which is all that it needs
	c.awaitProgrammed("shop", "clients", metav1.ConditionFalse, "n1")

	// A new vswitchd gets all flows anew.
	c.must(node.RestartVSwitchd(t.Context()))
	c.give(node)
	server.awaitOpen()
	stranger.dials(server, fixture.Silent)
	client.dials(server, fixture.Open)
	c.awaitProgrammed("shop", "clients", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce)

	// Another one gets none: br-int drops everything, and that is no denial.
	c.must(node.PauseController(t.Context()))
	c.must(node.RestartVSwitchd(t.Context()))
	c.give(node)
	late := c.pod("shop", "late", "client", "n2")
	late.awaitSays("n1")
	late.staysShut(2 * time.Second)
	late.dials(server, fixture.Silent)
	if status, says := c.programmed("shop", "clients"); status == metav1.ConditionTrue {
		t.Errorf("PolicyStatus shop/clients is %s", says)
	}
	c.must(node.ResumeController(t.Context()))
	late.awaitOpen()
	late.dials(server, fixture.Open)
	stranger.dials(server, fixture.Silent)
	c.awaitProgrammed("shop", "clients", metav1.ConditionTrue, v1alpha1.PolicyReasonInForce)
}
