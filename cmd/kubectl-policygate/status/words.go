// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
	"github.com/policygate/policygate/api/v1alpha1"
)

// Words writes in words what p says. Generation is the metadata.generation of
// the NetworkPolicy, 0 if that is not known.
func Words(w io.Writer, p *v1alpha1.PolicyStatus, generation int64, now time.Time) error {
	t := &words{now: Options{Now: now}}
	t.heading(p, generation)
	for _, n := range p.Status.LaggingNodes {
		t.line(0, "")
		t.line(0, "%s%s: %s (%s).", tracev1.Capital(place(n.Name)), t.now.since(n.Since), lag(n), n.Reason)
		if n.Message != "" {
			t.line(1, "%s", n.Message)
		}
	}
	if left := p.Status.LaggingNodesLeftOut; left != nil {
		t.line(0, "")
		t.line(0, "And %d more nodes that do not enforce it.", *left)
	}
	for _, d := range p.Status.Deviations {
		t.line(0, "")
		t.line(0, "The policy engine does not carry out all of it, %s:", where(d))
		t.line(1, "%s", d.Message)
	}
	t.line(0, "")
	for _, advice := range advice(p) {
		t.line(0, "%s", advice)
	}
	_, err := w.Write(t.Bytes())
	return err
}

// words writes lines.
type words struct {
	bytes.Buffer
	now Options
}

// line writes a line, indented by two spaces a level.
func (t *words) line(level int, format string, args ...any) {
	line := printable(strings.Repeat("  ", level)+fmt.Sprintf(format, args...), 0)
	_, _ = t.WriteString(strings.TrimRight(line, " ") + "\n")
}

// heading says whether the policy is in force, and what it is about.
func (t *words) heading(p *v1alpha1.PolicyStatus, generation int64) {
	s := &p.Status
	name := "NetworkPolicy " + p.Namespace + "/" + p.Name
	c := meta.FindStatusCondition(s.Conditions, v1alpha1.PolicyProgrammed)
	switch {
	case c == nil:
		t.line(0, "%s: nothing was said of it yet.", name)
	case c.Status == metav1.ConditionTrue && c.Reason == v1alpha1.PolicyReasonNoPods:
		t.line(0, "%s has nothing to enforce: it selects no Pod that has an address.", name)
	case c.Status == metav1.ConditionTrue:
		t.line(0, "%s is in force, on %s.", name, nodes(s.Nodes))
	case c.Status == metav1.ConditionFalse && c.Reason == v1alpha1.PolicyReasonDrifted:
		t.line(0, "%s is no longer in force everywhere: %s.", name, enforced(s.Nodes))
	case c.Status == metav1.ConditionFalse:
		t.line(0, "%s is not in force everywhere: %s.", name, enforced(s.Nodes))
	default:
		t.line(0, "%s: it cannot be told whether it is in force.", name)
	}
	for _, conditionType := range []string{v1alpha1.PolicyProgrammed, v1alpha1.PolicyDegraded} {
		if c := meta.FindStatusCondition(s.Conditions, conditionType); c != nil && c.Message != "" {
			t.line(1, "%s is %s%s: %s: %s", conditionType, c.Status, t.now.since(&c.LastTransitionTime), c.Reason, c.Message)
		}
	}
	if s.Pods.Selected != nil {
		t.line(1, "It selects %s Pods, of which %s are gated and %s of these wait for their gates.",
			number(s.Pods.Selected), number(s.Pods.Gated), number(s.Pods.Pending))
	}
	if generation != 0 && s.ObservedGeneration != nil && *s.ObservedGeneration != generation {
		t.line(1, "This is about generation %d of the policy, not about its last edit (generation %d).", *s.ObservedGeneration, generation)
	}
	if last := s.LastProgrammed; !last.Time.IsZero() {
		line := "It was last in force everywhere at " + last.Time.UTC().Format(time.RFC3339)
		if last.Generation != nil {
			line += fmt.Sprintf(", at generation %d", *last.Generation)
		}
		if last.Took != "" {
			line += ", which took " + last.Took
		}
		t.line(1, "%s.", line)
	}
}

func nodes(n v1alpha1.NodeCounts) string {
	if n.Desired == nil {
		return "every node"
	}
	if *n.Desired == 1 {
		return "the one node that has to enforce it"
	}
	return fmt.Sprintf("all %d nodes that have to enforce it", *n.Desired)
}

func enforced(n v1alpha1.NodeCounts) string {
	if n.Desired == nil || n.Programmed == nil {
		return "some node does not enforce it"
	}
	return fmt.Sprintf("%d of %d nodes enforce it", *n.Programmed, *n.Desired)
}

// place returns what people call one that lags: a node, or OVN's northbound
// database.
func place(name string) string {
	if name == hubv1.Northbound {
		return hubv1.NorthboundPlace
	}
	return "node " + name
}

// lag says what the reason of one that lags means.
func lag(n v1alpha1.LaggingNode) string {
	if n.Name == hubv1.Northbound {
		switch n.Reason {
		case v1alpha1.LagInconclusive:
			return "it cannot be told what is written there"
		case v1alpha1.LagNoAgent:
			return "no agent is connected that sees it"
		case v1alpha1.LagUnsupported:
			return "its agent cannot read it"
		}
	}
	switch n.Reason {
	case v1alpha1.LagNotAdmitting:
		return "connections that the policy allows would be refused"
	case v1alpha1.LagNotIsolating:
		return "connections that the policy does not allow would pass"
	case v1alpha1.LagInconclusive:
		return "it cannot be told what the node would do"
	case v1alpha1.LagNoAnswer:
		return "its agent has not answered yet"
	case v1alpha1.LagNoAgent:
		return "no agent is connected from there"
	case v1alpha1.LagUnsupported:
		return "its agent cannot see the node's dataplane"
	}
	return "it does not enforce the policy"
}

// advice says what to do next, each once.
func advice(p *v1alpha1.PolicyStatus) []string {
	behind, unseen, unwritten, unread := false, false, false, false
	for _, n := range p.Status.LaggingNodes {
		wrong := n.Reason == v1alpha1.LagNotAdmitting || n.Reason == v1alpha1.LagNotIsolating
		if n.Name == hubv1.Northbound {
			unwritten, unread = wrong, !wrong
			continue
		}
		switch n.Reason {
		case v1alpha1.LagNoAgent, v1alpha1.LagUnsupported, v1alpha1.LagNoAnswer:
			unseen = true
		default:
			behind = true
		}
	}
	var lines []string
	if len(p.Status.Deviations) > 0 {
		lines = append(lines, "Waiting does not mend what the policy engine does not carry out: write the policy otherwise, or see the engine's documentation.")
	}
	if unwritten {
		lines = append(lines, "No node can enforce what is not in "+hubv1.NorthboundTitle+": kube-ovn-controller writes it within seconds; if it lasts, see its log.")
	}
	if unread {
		lines = append(lines, "See whether a Pod of Deployment policygate-northbound runs, and its log, which says why it cannot tell.")
	}
	if behind {
		lines = append(lines, "Policy engines write their rules within seconds; if it lasts, see the engine's log on these nodes.",
			"\"kubectl policygate trace SRC DST:PORT\" says which rules a connection meets.")
	}
	if unseen {
		lines = append(lines, "\"kubectl policygate doctor\" says what keeps the agents from seeing these nodes.")
	}
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.PolicyProgrammed)
	switch {
	case c == nil:
		lines = append(lines, "See whether the manager runs: kubectl policygate doctor")
	case c.Reason == v1alpha1.PolicyReasonNotUnderstood:
		lines = append(lines, "Correct the policy that the message names: until then nothing can be said of any in this namespace.")
	case len(lines) == 0 && c.Status == metav1.ConditionTrue:
		lines = append(lines, "There is nothing to do.")
	case len(lines) == 0:
		lines = append(lines, "Ask again in a moment.")
	}
	return lines
}
