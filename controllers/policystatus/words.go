// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package policystatus

import (
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/policygate/policygate/api/flow"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/demand"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/gate/deviation"
)

// answerOf returns what a report on d says to the owner of policy.
func answerOf(r *hubv1.Report, d demand.Demand, policy types.NamespacedName) answer {
	a := answer{given: true, confirmed: r.GetConfirmed()}
	if !a.confirmed && len(r.GetUnmet()) > 0 {
		a.lag, a.text = lacks(r.GetUnmet()[0], d, policy)
	}
	if a.confirmed || r.GetSteady() {
		a.deviates = deviates(r, d, policy)
	}
	return a
}

// lacks returns what an unmet expectation of d means: a reason of a lagging
// node, and the same in words.
func lacks(unmet *hubv1.Unmet, d demand.Demand, policy types.NamespacedName) (lag, text string) {
	if strings.HasPrefix(unmet.GetReason(), hubv1.ReasonUnacknowledged) {
		return v1alpha1.LagInconclusive, "the node's OVN has not acknowledged yet what the northbound database has of the policy"
	}
	rule, want, ok := d.Asked(unmet.GetExpectation())
	if !ok || !conclusive(unmet.GetReason()) {
		return v1alpha1.LagInconclusive, "it cannot be told what the node does; its agent's log says why"
	}
	whose := ""
	switch {
	case rule.Policy == policy, rule.Policy.Name == "":
	case rule.Policy.Namespace == policy.Namespace:
		whose = ", as " + rule.Policy.Name + " is not in force there"
	default:
		whose = ", as a policy in another namespace is not in force there"
	}
	if want == flow.Denied {
		return v1alpha1.LagNotIsolating, "connections that the policy does not allow would pass" + whose
	}
	what := "the policy"
	if name, own := ruleName(rule, policy); own {
		what = name
	}
	return v1alpha1.LagNotAdmitting, "connections that " + what + " allows would be refused" + whose
}

// conclusive reports whether an agent's reason is that of a verdict: it begins
// with the flow's answer then.
func conclusive(reason string) bool {
	return strings.HasPrefix(reason, flow.Allowed.String()) || strings.HasPrefix(reason, flow.Denied.String())
}

// ruleName returns the name of a rule of the policy within it, such as
// "ingress[0]". It returns false for what is no rule, or not the policy's:
// texts of others may hold names of other namespaces.
func ruleName(rule deviation.Rule, policy types.NamespacedName) (string, bool) {
	if rule.Policy != policy {
		return "", false
	}
	name, ok := strings.CutPrefix(rule.Why, policy.String()+" ")
	if !ok {
		return "", false
	}
	index, ok := strings.CutPrefix(name, "ingress[")
	if !ok {
		index, ok = strings.CutPrefix(name, "egress[")
	}
	digits, closed := strings.CutSuffix(index, "]")
	if !ok || !closed || digits == "" || strings.Trim(digits, "0123456789") != "" {
		return "", false
	}
	return name, true
}

// deviates returns what an engine does not carry out though the node has
// confirmed, or rests.
func deviates(r *hubv1.Report, d demand.Demand, policy types.NamespacedName) []string {
	var out []string
	say := func(rule deviation.Rule) {
		switch name, own := ruleName(rule, policy); {
		case own:
			out = append(out, name+" does not admit all that it allows")
		case rule.Policy.Name == "":
			out = append(out, "connections that no policy restricts are refused")
		case rule.Policy.Namespace != policy.Namespace:
			out = append(out, "a policy in another namespace does not admit all that it allows")
		default:
			out = append(out, rule.Policy.Name+" does not admit all that it allows")
		}
	}
	whys := d.Whys()
	for _, i := range r.GetUnrealized() {
		if int64(i) < int64(len(whys)) {
			say(whys[i].Rule)
		}
	}
	if r.GetConfirmed() {
		// What is unmet is advisory then.
		for _, u := range r.GetUnmet() {
			if rule, _, ok := d.Asked(u.GetExpectation()); ok {
				say(rule)
			}
		}
	}
	switch {
	case r.GetIpv4Unenforced():
		out = append(out, "IPv4 is not enforced")
	case r.GetIpv6Unenforced():
		out = append(out, "IPv6 is not enforced")
	}
	return sorted(out)
}

// notesOf returns what the engine is known not to carry out on any node. Notes'
// own texts name objects of any namespace.
func notesOf(notes []expect.Note) []string {
	var out []string
	for _, n := range notes {
		switch n.Kind {
		case expect.EngineConflict:
			out = append(out, "the engine cannot tell this policy from another whose namespace and name make the same word")
		case expect.EngineOverAllows:
			out = append(out, "a named port that no Pod has opens every port to the peers of its rule")
		case expect.EngineLimit:
			out = append(out, "a rule means more Pods than the engine's sets hold")
		case expect.DuplicatePodIP, expect.PolicyNotUnderstood:
			// Not the engine's doing.
		}
	}
	return sorted(out)
}
