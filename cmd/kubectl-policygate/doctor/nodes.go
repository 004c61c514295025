// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	explainv1 "github.com/policygate/policygate/api/explain/v1"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// maxNamed bounds the nodes and Pods that a finding names.
const maxNamed = 5

// dataplanes adds which dataplanes hold rules on which nodes, and which cannot
// be seen.
func (e *examination) dataplanes() {
	const subject = "dataplanes"
	seen, unseen := map[string][]string{}, map[string][]string{}
	var none []string
	for _, v := range e.views() {
		switch {
		case v.Version == "" && v.connected == 0: // nothing was ever told
		case v.Unsupported != "":
			unseen[v.Unsupported] = append(unseen[v.Unsupported], v.Name)
		case len(v.Dataplanes) == 0:
			none = append(none, v.Name)
		default:
			planes := strings.Join(v.Dataplanes, " and ")
			seen[planes] = append(seen[planes], v.Name)
		}
	}
	for _, planes := range slices.Sorted(maps.Keys(seen)) {
		e.add(OK, subject, "", "rules of %s: %s", planes, named(seen[planes]))
	}
	if len(none) > 0 {
		// Engines write some with the first policy that selects a Pod there.
		e.add(OK, subject, "", "no rules that refuse forwarded packets, as where no policy selects a Pod: %s", named(none))
	}
	for _, why := range slices.Sorted(maps.Keys(unseen)) {
		e.add(Warn, subject, "Pods on these nodes cannot be gated: leave them out by a node selector, or take a policy engine that works by iptables or nftables.",
			"cannot be seen on %s: %s", named(unseen[why]), why)
	}
}

// remarks adds what agents remark on their nodes, by kind.
func (e *examination) remarks() {
	const subject = "nodes"
	nodes := map[explainv1.Remark][]string{}
	for _, v := range e.views() {
		for _, r := range v.Remarks {
			nodes[r] = append(nodes[r], v.Name)
		}
	}
	byKind := map[string][]explainv1.Remark{}
	for r := range nodes {
		byKind[r.Kind] = append(byKind[r.Kind], r)
	}
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		var all []string
		texts := map[string]bool{}
		for _, r := range byKind[kind] {
			all = append(all, nodes[r]...)
			if r.Text != "" {
				texts[r.Text] = true
			}
		}
		slices.Sort(all)
		all = slices.Compact(all)
		text, do := meaning(kind)
		line := fmt.Sprintf("%s: %s", text, named(all))
		if len(texts) > 0 {
			line += " (" + strings.Join(shortened(slices.Sorted(maps.Keys(texts)), 2), "; ") + ")"
		}
		e.add(Warn, subject, do, "%s", line)
	}
}

// meaning says what a kind of remark means, and what to do about it.
func meaning(kind string) (text, do string) {
	switch kind {
	case hubv1.RemarkTwoVariants:
		return "both iptables-legacy and iptables-nft hold rules, so what one of them prints is half of what counts",
			"Have everything on the node use one variant, and flush the other's rules."
	case hubv1.RemarkSourceRewritten:
		return "packets between Pods leave with another source, so no other node can tell whose they are",
			"Exempt the Pods' network from masquerading, or rules that name Pods as peers are not confirmed."
	case hubv1.RemarkBridgeUnfiltered:
		return "packets that stay on one bridge pass no rules",
			"Set net.bridge.bridge-nf-call-iptables and -ip6tables to 1, or policies between Pods of one node are not enforced."
	case hubv1.RemarkIPVS:
		return "virtual servers (IPVS) are in the kernel, whose packets take other ways",
			"Connections to Services cannot be judged; those between Pods can."
	case hubv1.RemarkUnlinkedServices:
		return "kube-ovn-controller has not put ClusterIPs of Services into all address sets of policies that reach their Pods",
			"If it stays so, see the queue and the log of kube-ovn-controller. Without OVN's load balancers, egress to these ClusterIPs is refused until then."
	case hubv1.RemarkUnjudgedPorts:
		return "of some Pods on OVN's ports nothing can be concluded",
			"Gates of those Pods, and of Pods whose rules name them, run into their timeouts: see the reason. Pods with several logical ports are not judged."
	case hubv1.RemarkUnenforcedFamily:
		return "the policy engine does not enforce an address family",
			"Set the manager's --families to the one that is enforced, or have the engine enforce both."
	}
	return "remark " + kind, "The agent is newer than this command, which does not know the remark: get the same version."
}

// ungated adds the Pods that should have a gate and have none.
func (e *examination) ungated() {
	const subject = "pods"
	var most *explainv1.Ungated
	for _, r := range e.asked() {
		if u := r.Diagnosis.Ungated; u != nil && (most == nil || u.Total > most.Total) {
			most = u
		}
	}
	switch {
	case most == nil:
	case most.Total == 0:
		e.add(OK, subject, "", "every Pod that should have a gate has one")
	default:
		names := slices.Clone(most.Pods[:min(len(most.Pods), maxNamed)])
		if more := most.Total - len(names); more > 0 {
			names = append(names, fmt.Sprintf("%d more", more))
		}
		e.add(Warn, subject, "They were created before their namespace had the label, or while the webhook was not reached: create them anew.",
			"%s without a gate that should have one: %s", plural(most.Total, "Pod"), strings.Join(names, ", "))
	}
}

// named joins the names, the first few of many.
func named(names []string) string {
	return strings.Join(shortened(names, maxNamed), ", ")
}

// shortened keeps the first names and counts the others.
func shortened(names []string, most int) []string {
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("%d more", len(names)-most))
}

// grouped says who is of which version.
func grouped(who map[string][]string) string {
	var words []string
	for _, version := range slices.Sorted(maps.Keys(who)) {
		words = append(words, version+" ("+named(who[version])+")")
	}
	return strings.Join(words, ", ")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func isAre(names []string) string {
	if len(names) == 1 {
		return "is"
	}
	return "are"
}

func itThem(names []string) string {
	if len(names) == 1 {
		return "it"
	}
	return "them"
}
