// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules

import "strings"

// policyRules are the rules of a policy's chain in one family. The sets that
// they use are added to sets.
func policyRules(f Family, p policy, sets setTable) []string {
	var rules []string
	for _, d := range []direction{ingress, egress} {
		if !p.isolates[d] {
			continue
		}
		w := ruleWriter{
			family: f, direction: d, policy: p, sets: sets,
			target: sets.addPods(targetSet(d, p.namespace, p.name, f), HashIP, p.targets, false),
		}
		for i, r := range p.rules[d] {
			w.pods(i, r)
			w.any(i, r)
			w.blocks(i, r)
		}
		rules = append(rules, w.rules...)
	}
	return rules
}

// ruleWriter writes the rules of one direction of a policy, in the order of
// kube-router: for each rule the Pods, then any peer, then the ipBlocks; in
// each numbered ports, then named ones, then all ports.
type ruleWriter struct {
	family    Family
	direction direction
	policy    policy
	sets      setTable
	target    string
	rules     []string
}

// pods writes the rules for selected peers. There is none as long as no Pod is
// selected: then not even the set exists.
func (w *ruleWriter) pods(i int, r rule) {
	if len(r.peers) == 0 {
		return
	}
	peers := w.sets.addPods(peerSet(w.direction, w.policy.namespace, w.policy.name, i, w.family), HashIP, r.peers, true)
	for _, p := range r.ports {
		w.write("pods", peers, w.target, p)
	}
	for n, np := range r.named {
		// The destinations of a named port are the only ones for which the
		// number holds: in egress they take the place of the peers.
		if w.direction == ingress {
			w.write("pods np", peers, w.namedPort(i, n, HashIP, np), np.port)
		} else {
			w.write("pods np", w.namedPort(i, n, HashIP, np), w.target, np.port)
		}
	}
	// A named port that nobody has leaves no port at all, and kube-router then
	// writes the rule for all of them.
	if len(r.ports) == 0 && len(r.named) == 0 {
		w.write("pods", peers, w.target, port{})
	}
}

// any writes the rules for a rule without peers.
func (w *ruleWriter) any(i int, r rule) {
	if !r.anyPeer {
		return
	}
	for _, p := range r.ports {
		w.write("any", "", w.target, p)
	}
	for n, np := range r.named {
		if w.direction == ingress {
			w.write("any np", "", w.namedPort(i, n, HashIP, np), np.port)
		} else {
			w.write("any np", "", w.target, np.port)
		}
	}
	if r.allPorts {
		w.write("any", "", w.target, port{})
	}
}

// blocks writes the rules for ipBlocks.
func (w *ruleWriter) blocks(i int, r rule) {
	members := blockMembers(w.family, r.blocks)
	if len(members) == 0 {
		return
	}
	peers := w.sets.add(blockSet(w.direction, w.policy.namespace, w.policy.name, i, w.family), HashNet, members)
	for _, p := range r.ports {
		w.write("cidr", peers, w.target, p)
	}
	// In egress nobody knows the named ports of addresses outside, and
	// kube-router writes no rule.
	if w.direction == ingress {
		for n, np := range r.named {
			w.write("cidr np", peers, w.namedPort(i, n, HashNet, np), np.port)
		}
	}
	if r.allPorts {
		w.write("cidr", peers, w.target, port{})
	}
}

// namedPort adds the set of the destinations of a named port and returns its
// name. A later use of the same name with another type wins.
func (w *ruleWriter) namedPort(i, n int, kind SetType, np namedPort) string {
	name := namedPortSet(w.direction, w.policy.namespace, w.policy.name, i, n, w.family)
	return w.sets.addPods(name, kind, np.pods, w.direction == egress)
}

// write appends the pair of rules that marks a packet and returns. An empty
// peer set means any peer; target is the set at the policy's own end.
func (w *ruleWriter) write(kind, peers, target string, p port) {
	source, destination := peers, target
	if w.direction == egress {
		source, destination = target, peers
	}
	comment := clampComment(w.policy.namespace + "/" + w.policy.name + " " + w.direction.String() + " " + kind)
	var match []string
	if p.protocol != "" {
		match = append(match, "-p "+p.protocol)
	}
	match = append(match, `-m comment --comment "`+comment+`"`)
	if source != "" {
		match = append(match, "-m set --match-set "+source+" src")
	}
	if destination != "" {
		match = append(match, "-m set --match-set "+destination+" dst")
	}
	if p.number != "" {
		match = append(match, "-m "+p.protocol+" --dport "+p.number)
	}
	text := strings.Join(match, " ")
	w.rules = append(w.rules,
		text+" -j MARK --set-xmark "+acceptMark,
		text+" -m mark --mark "+acceptMark+" -j RETURN",
	)
}
