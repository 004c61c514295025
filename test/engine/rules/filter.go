// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// acceptMark is set by a policy that allows a packet, and cleared once its
	// Pod's chain is through with it.
	acceptMark = "0x10000/0x10000"
	// passedMark stays on a packet that no Pod's chain has rejected.
	passedMark = "0x20000/0x20000"

	tailComment   = "rule to explicitly handle traffic for network policies ACCEPT/REJECT decision"
	passedComment = "rule to explicitly ACCEPT traffic that comply to network policies"
)

// compileTable builds the sets and chains of one family.
func compileTable(f Family, version int64, options Options, v view, policies []policy) Table {
	sets := setTable{family: f, drop: v.Faults.DropAddresses, sets: map[string]Set{}}
	table := Table{Family: f, Jumps: jumps()}

	chains := map[string]Chain{}
	put := func(name string, rules []string) {
		chains[name] = Chain{Name: name, Rules: append(chains[name].Rules, rules...)}
	}
	put(commonChain, commonRules(f))
	put(defaultChain, []string{`-m comment --comment "rule to mark traffic matching a network policy" -j MARK --set-xmark ` + acceptMark})
	put(tailChain, []string{`-m comment --comment "accept netpol-ok" -m mark --mark ` + passedMark + ` -j ACCEPT`})

	for _, p := range policies {
		rules := policyRules(f, p, sets)
		if v.Faults.DropPolicies[types.NamespacedName{Namespace: p.namespace, Name: p.name}] {
			rules = nil
		}
		put(policyChain(p.namespace, p.name, version, f), rules)
	}

	put(inputChain, inputHead(f, options))
	for _, p := range v.local {
		address, ok := p.primary(f)
		if !ok {
			continue
		}
		name := podChain(p.namespace, p.name, version)
		in, out, forward := podJumps(p, address, name)
		put(inputChain, out)
		put(forwardChain, forward)
		put(outputChain, slices.Concat(in, out))
		rules := podRules(f, version, p, address, policies)
		if v.Faults.FlushPodChains {
			rules = nil
		}
		put(name, rules)
	}
	for _, top := range []string{inputChain, forwardChain, outputChain} {
		put(top, []string{
			fmt.Sprintf(`-m comment --comment %q -j %s`, tailComment, tailChain),
			fmt.Sprintf(`-m comment --comment %q -m mark --mark %s -j ACCEPT`, passedComment, passedMark),
		})
	}

	for _, name := range sortedNames(chains) {
		table.Chains = append(table.Chains, chains[name])
	}
	table.Sets = sets.sorted()
	return table
}

func sortedNames(chains map[string]Chain) []string {
	names := make([]string, 0, len(chains))
	for name := range chains {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// jumps lead from the builtin chains into the engine's.
func jumps() []Chain {
	var result []Chain
	for _, j := range [][2]string{{"INPUT", inputChain}, {"FORWARD", forwardChain}, {"OUTPUT", outputChain}} {
		const comment = "kube-router netpol"
		stamped := stampedComment(j[0], comment, "-m", "comment", "--comment", comment, "-j", j[1])
		result = append(result, Chain{Name: j[0], Rules: []string{
			fmt.Sprintf(`-m comment --comment %q -j %s`, stamped, j[1]),
		}})
	}
	return result
}

func commonRules(f Family) []string {
	rules := []string{
		`-m comment --comment "\"rule to drop invalid state for pod\"" -m conntrack --ctstate INVALID -j DROP`,
		`-m comment --comment "\"rule for stateful firewall for pod\"" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
	}
	icmp := func(number int, what string) {
		match := "-p icmp -m comment --comment %q -m icmp --icmp-type %d -j ACCEPT"
		if f == IPv6 {
			match = "-p ipv6-icmp -m comment --comment %q -m icmp6 --icmpv6-type %d -j ACCEPT"
		}
		rules = append(rules, fmt.Sprintf(match, "allow icmp "+what+" messages", number))
	}
	if f == IPv6 {
		rules = append(rules, `-p ipv6-icmp -m comment --comment "allow icmp echo requests" -m icmp6 --icmpv6-type 128 -j ACCEPT`)
		icmp(1, "destination unreachable")
		icmp(3, "time exceeded")
		icmp(135, "neighbor solicitation")
		icmp(136, "neighbor advertisement")
		icmp(129, "echo reply")
		return rules
	}
	rules = append(rules, `-p icmp -m comment --comment "allow icmp echo requests" -m icmp --icmp-type 8 -j ACCEPT`)
	icmp(3, "destination unreachable")
	icmp(11, "time exceeded")
	return rules
}

// inputHead lets traffic to Services through before the Pods' own chains see
// it in INPUT.
func inputHead(f Family, options Options) []string {
	var rules []string
	ranges := func(prefixes []netip.Prefix, comment func(cidr string) string) {
		for _, p := range prefixes {
			if !f.contains(p.Addr()) {
				continue
			}
			cidr := p.Masked().String()
			text := comment(cidr)
			stamped := stampedComment(inputChain, text, "-m", "comment", "--comment", text, "-d", cidr, "-j", "RETURN")
			rules = append(rules, fmt.Sprintf(`-d %s -m comment --comment %q -j RETURN`, cidr, stamped))
		}
	}
	ranges(options.ClusterIPRanges, func(string) string { return "allow traffic to primary/secondary cluster IP range" })
	for _, protocol := range [][2]string{{"tcp", "TCP"}, {"udp", "UDP"}, {"sctp", "SCTP"}} {
		text := "allow LOCAL " + protocol[1] + " traffic to node ports"
		stamped := stampedComment(inputChain, text, "-p", protocol[0], "-m", "comment", "--comment", text,
			"-m", "addrtype", "--dst-type", "LOCAL", "-m", "multiport", "--dports", options.NodePorts, "-j", "RETURN")
		rules = append(rules, fmt.Sprintf(`-p %s -m comment --comment %q -m addrtype --dst-type LOCAL -m multiport --dports %s -j RETURN`,
			protocol[0], stamped, options.NodePorts))
	}
	ranges(options.ExternalIPRanges, func(cidr string) string { return "allow traffic to external IP range: " + cidr })
	ranges(options.LoadBalancerRanges, func(cidr string) string { return "allow traffic to load balancer IP range: " + cidr })
	return rules
}

// podJumps lead from the top chains into a Pod's chain. The copies for bridged
// packets never match anything that the others left; kube-router has them.
func podJumps(p pod, address netip.Addr, chain string) (in, out, forward []string) {
	jump := func(flag, match, way string) string {
		comment := clampComment(p.namespace + "/" + p.name + " " + way)
		return fmt.Sprintf(`%s %s %s-m comment --comment %q -j %s`, flag, host(address), match, comment, chain)
	}
	const bridged = "-m physdev --physdev-is-bridged "
	in = []string{jump("-d", "", "in")}
	out = []string{jump("-s", "", "out")}
	forward = []string{in[0], jump("-d", bridged, "in"), out[0], jump("-s", bridged, "out")}
	return in, out, forward
}

// podRules are the rules of a Pod's own chain.
func podRules(f Family, version int64, p pod, address netip.Addr, policies []policy) []string {
	comment := func(text string) string { return fmt.Sprintf("-m comment --comment %q", clampComment(text)) }
	var isolated [2]bool
	var applied []string
	for _, np := range policies {
		if !np.targetKeys[p.key] {
			continue
		}
		match := ""
		switch np.isolates {
		case [2]bool{ingress: true}:
			match = "-d " + host(address) + " "
		case [2]bool{egress: true}:
			match = "-s " + host(address) + " "
		}
		isolated[ingress] = isolated[ingress] || np.isolates[ingress]
		isolated[egress] = isolated[egress] || np.isolates[egress]
		applied = append(applied, fmt.Sprintf("%s%s -j %s", match,
			comment(np.namespace+"/"+np.name+" policy"), policyChain(np.namespace, np.name, version, f)))
	}

	rules := []string{
		comment("common netpol rules") + " -j " + commonChain,
		fmt.Sprintf("-d %s %s -m addrtype --src-type LOCAL -j ACCEPT", host(address), comment("from local node")),
	}
	if !isolated[egress] {
		rules = append(rules, fmt.Sprintf("-s %s %s -j %s", host(address), comment("default egress"), defaultChain))
	}
	if !isolated[ingress] {
		rules = append(rules, fmt.Sprintf("-d %s %s -j %s", host(address), comment("default ingress"), defaultChain))
	}
	rules = append(rules, applied...)
	reject := "icmp-port-unreachable"
	if f == IPv6 {
		reject = "icmp6-port-unreachable"
	}
	who := p.namespace + "/" + p.name
	return append(rules,
		fmt.Sprintf("%s -m mark ! --mark %s -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100", comment(who+" log-drop"), acceptMark),
		fmt.Sprintf("%s -m mark ! --mark %s -j REJECT --reject-with %s", comment(who+" reject"), acceptMark, reject),
		"-j MARK --set-xmark 0x0/0x10000",
		comment("set netpol-ok mark")+" -j MARK --set-xmark "+passedMark,
	)
}
