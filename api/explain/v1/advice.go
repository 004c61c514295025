// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package explainv1

import (
	"fmt"
	"slices"
	"strings"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

// advice says what to do next, the most useful first; each once.
func (e *Explanation) advice() []string {
	switch e.State {
	case NotFound:
		return []string{"See whether the namespace is right: --namespace."}
	case NotGated:
		return []string{"Pods are given a gate when they are created, in namespaces with the label policygate.io/inject=enabled. \"kubectl policygate doctor\" says whether the webhook is reached."}
	case Ended:
		return []string{"There is nothing to do."}
	case Open:
		return []string{"If it does not do its work, \"kubectl policygate trace SRC DST:PORT\" says what becomes of a connection."}
	case NotSeen:
		return []string{"Ask again in a moment. If it stays so, see the manager's log."}
	case NoAddress:
		return []string{"The kubelet or the network plugin is at work: \"kubectl describe pod\" says what on."}
	case Held:
	}
	var all []string
	add := func(format string, args ...any) {
		if line := fmt.Sprintf(format, args...); !slices.Contains(all, line) {
			all = append(all, line)
		}
	}
	if !e.Computed {
		add("Nothing is released before that. The notes say what is wrong; without any, ask again in a moment.")
	}
	for i := range e.Nodes {
		if n := &e.Nodes[i]; n.Holds {
			n.advise(add)
		}
	}
	if len(all) == 0 {
		add("Ask again in a moment.")
	}
	return all
}

// advise adds what to do about a node that holds the Pod.
func (n *Node) advise(add func(format string, args ...any)) {
	if n.northbound() {
		n.adviseNorthbound(add)
		return
	}
	switch {
	case !n.Connected:
		add("Node %s: see whether the agent's Pod runs there, and its log: kubectl policygate doctor", n.Name)
		return
	case n.Unsupported:
		add("Node %s: kubectl policygate doctor says what its agent cannot see. Pods there cannot be gated.", n.Name)
		return
	case !n.Answered || len(n.Lacks) == 0:
		add("Node %s: ask again in a moment. If it stays so, see the agent's log there.", n.Name)
		return
	}
	for i := range n.Lacks {
		l := &n.Lacks[i]
		misses, enough := l.misses()
		switch {
		case l.Flow == nil:
			add("Node %s: ask again in a moment. If it stays so, see the agent's log there.", n.Name)
		case l.Advisory:
		case l.Now == nil || l.Now.Error != "":
			add("Node %s: its rules were not asked again: the traces above show them.", n.Name)
		case l.Now.Verdict == l.Want:
			add("Node %s: its rules are there by now. It confirms with its next looks.", n.Name)
		case l.Now.Verdict == tracev1.Inconclusive:
			add("Node %s: its rules were not understood in full: the trace above shows where.", n.Name)
		case l.Want == tracev1.Denied:
			add("Node %s: the isolation is not in force there. Policy engines get to it within seconds; if it lasts, see the engine's log on that node.", n.Name)
		case enough && !misses[0].Held:
			add("Node %s: the policy engine has not put %s there yet. Engines do so within seconds; if it lasts, see the engine's log on that node.", n.Name, missing(misses))
		default:
			add("Node %s: the policy engine has no rule there yet that lets it in. Engines write it within seconds; if it lasts, see the engine's log on that node.", n.Name)
		}
	}
}

// adviseNorthbound is advise of OVN's northbound database.
func (n *Node) adviseNorthbound(add func(format string, args ...any)) {
	const log = "see the log of Deployment policygate-northbound."
	lacks := func(of func(*Lack) bool) bool {
		for i := range n.Lacks {
			if l := &n.Lacks[i]; l.Flow != nil && !l.Advisory && of(l) {
				return true
			}
		}
		return false
	}
	switch {
	case !n.Connected:
		add(hubv1.NorthboundTitle + ": see whether a Pod of Deployment policygate-northbound runs, and its log.")
	case lacks(func(l *Lack) bool { return l.Now != nil && l.Now.Error == "" && l.Now.Verdict == l.Want }):
		add(hubv1.NorthboundTitle + ": it is there by now. It confirms with its next looks.")
	case lacks(func(l *Lack) bool { return l.Now == nil || l.Now.Verdict != tracev1.Inconclusive }):
		add(hubv1.NorthboundTitle + ": kube-ovn-controller has not written there yet what the policies demand. It does so within seconds; if it lasts, see its log: no node can enforce it before.")
	default:
		add(hubv1.NorthboundTitle + ": ask again in a moment. If it stays so, " + log)
	}
}

// missing names the first few elements that sets lack, and these sets.
func missing(misses []tracev1.NearMiss) string {
	const most = 3
	var words []string
	for _, m := range misses {
		if word := m.Element + " into set " + m.Set; !m.Held && !slices.Contains(words, word) {
			words = append(words, word)
		}
	}
	if len(words) > most {
		words = append(words[:most], fmt.Sprintf("%d more", len(words)-most))
	}
	return strings.Join(words, ", ")
}
