// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	toLport, fromLport = "to-lport", "from-lport"

	allowPriority, dropPriority, nodePriority = 2001, 2000, 3000
	netpolTier                                = 2

	// Keys of external_ids.
	npKey, parentKey, vendorKey, nodeKey = "np", "parent", "vendor", "node"
	vendor                               = "kube-ovn"

	allocatedAnnotation   = "ovn.kubernetes.io/allocated"
	addressAnnotation     = "ovn.kubernetes.io/ip_address"
	enforcementAnnotation = "ovn.kubernetes.io/network_policy_enforcement"
)

// Allocate returns the Pod with the annotations by which kube-ovn-controller
// says that it has addresses and a logical port.
func Allocate(pod *corev1.Pod, ips ...netip.Addr) *corev1.Pod {
	pod = pod.DeepCopy()
	var words []string
	for _, ip := range ips {
		words = append(words, ip.String())
	}
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, allocatedAnnotation, "true")
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, addressAnnotation, strings.Join(words, ","))
	return pod
}

// Plan returns the rows of a cluster's policies. It fails for selectors and
// addresses that the API server would not have let in.
func Plan(cluster Cluster, shape Shape) (Objects, error) {
	var objects Objects
	for _, np := range cluster.Policies {
		p, err := planPolicy(cluster, shape, np)
		if err != nil {
			return Objects{}, fmt.Errorf("NetworkPolicy %s/%s: %w", np.Namespace, np.Name, err)
		}
		objects.Policies = append(objects.Policies, p)
	}
	slices.SortFunc(objects.Policies, func(a, b Policy) int {
		return cmp.Or(cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Name, b.Key.Name))
	})
	for _, n := range cluster.Nodes {
		objects.Nodes = append(objects.Nodes, planNode(n, len(cluster.Policies) > 0))
	}
	slices.SortFunc(objects.Nodes, func(a, b NodeGroup) int { return cmp.Compare(a.Name, b.Name) })
	return objects, nil
}

// family is one of the two, as names and matches write it.
type family struct{ name, prefix, all string }

func familyOf(address string) family {
	if strings.Contains(address, ":") {
		return family{"IPv6", "ip6", "::/0"}
	}
	return family{"IPv4", "ip4", "0.0.0.0/0"}
}

// policyPlan is one policy that is being planned.
type policyPlan struct {
	cluster  Cluster
	shape    Shape
	np       *networkingv1.NetworkPolicy
	name     string // the policy's, made to begin with a letter
	group    string
	families []family
	ports    map[string]int32
}

func planPolicy(cluster Cluster, shape Shape, np *networkingv1.NetworkPolicy) (Policy, error) {
	name := np.Name
	if !unicode.IsLetter([]rune(name)[0]) {
		name = "np" + name
	}
	if mode, ok := np.Annotations[enforcementAnnotation]; ok {
		shape.Lax = mode == "lax"
	}
	w := policyPlan{cluster: cluster, shape: shape, np: np, name: name, group: dotted(name + "." + np.Namespace), ports: namedPorts(cluster.Pods, np.Namespace)}
	ports, err := w.selected()
	if err != nil {
		return Policy{}, err
	}
	p := Policy{
		Key: types.NamespacedName{Namespace: np.Namespace, Name: np.Name},
		PortGroup: PortGroup{Name: w.group, Ports: ports,
			ExternalIDs: map[string]string{npKey: np.Namespace + "/" + name, vendorKey: vendor}},
	}
	if slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) || np.Spec.Ingress != nil {
		var rules []rule
		for _, r := range np.Spec.Ingress {
			rules = append(rules, rule{r.From, r.Ports})
		}
		if p.Ingress, err = w.direction(ingress(), rules); err != nil {
			return Policy{}, err
		}
	}
	if slices.Contains(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) || np.Spec.Egress != nil {
		var rules []rule
		for _, r := range np.Spec.Egress {
			rules = append(rules, rule{r.To, r.Ports})
		}
		if p.Egress, err = w.direction(egress(), rules); err != nil {
			return Policy{}, err
		}
	}
	if !shape.Lax && slices.ContainsFunc(w.families, func(f family) bool { return f.name == "IPv6" }) {
		p.Gateway = []ACL{
			w.acl(egress(), "", allowPriority, "icmp6", "allow-stateless"),
			w.acl(ingress(), "", allowPriority, "icmp6", "allow-stateless"),
		}
	}
	return p, nil
}

// dotted is how names become ones that OVN's matches can refer to. It maps
// different policies to one name at times, as in the original.
func dotted(name string) string { return strings.ReplaceAll(name, "-", ".") }

// selected returns the logical ports of the Pods that the policy selects, and
// sets their families.
func (w *policyPlan) selected() ([]string, error) {
	selector, err := metav1.LabelSelectorAsSelector(&w.np.Spec.PodSelector)
	if err != nil {
		return nil, err
	}
	ports, found := []string{}, map[family]bool{}
	for _, pod := range w.cluster.Pods {
		if pod.Namespace != w.np.Namespace || pod.Spec.HostNetwork || !selector.Matches(labels.Set(pod.Labels)) ||
			pod.Annotations[allocatedAnnotation] != "true" {
			continue
		}
		ports = append(ports, pod.Name+"."+pod.Namespace)
		for _, ip := range addressesOf(pod) {
			found[familyOf(ip)] = true
		}
	}
	for _, f := range []family{familyOf("."), familyOf(":")} {
		if found[f] {
			w.families = append(w.families, f)
		}
	}
	slices.Sort(ports)
	return ports, nil
}

func addressesOf(pod *corev1.Pod) []string {
	return slices.DeleteFunc(strings.Split(pod.Annotations[addressAnnotation], ","), func(ip string) bool { return ip == "" })
}

// namedPorts returns the numbers of the named ports of a namespace's Pods.
func namedPorts(pods []*corev1.Pod, namespace string) map[string]int32 {
	numbers := map[string]int32{}
	for _, pod := range pods {
		if pod.Namespace != namespace {
			continue
		}
		var containers []corev1.Container
		for _, c := range pod.Spec.InitContainers {
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				containers = append(containers, c)
			}
		}
		for _, c := range append(containers, pod.Spec.Containers...) {
			for _, port := range c.Ports {
				if _, taken := numbers[port.Name]; port.Name != "" && port.ContainerPort != 0 && !taken {
					numbers[port.Name] = port.ContainerPort
				}
			}
		}
	}
	return numbers
}

// rule is a rule of either direction.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

// way is what differs between the directions.
type way struct{ name, direction, port, end string }

func ingress() way { return way{"ingress", toLport, "outport", "src"} }
func egress() way  { return way{"egress", fromLport, "inport", "dst"} }

// direction plans one direction. While no Pod is selected there is neither a
// set nor an ACL.
func (w *policyPlan) direction(way way, rules []rule) (Direction, error) {
	d := Direction{Isolated: true, Rules: len(rules)}
	if len(w.families) > 0 {
		d.ACLs = w.drops(way)
	}
	for _, f := range w.families {
		for i, r := range rules {
			if err := w.rule(&d, way, f, strconv.Itoa(i), r); err != nil {
				return Direction{}, fmt.Errorf("rule %d of %s: %w", i, way.name, err)
			}
		}
		if len(rules) == 0 {
			allow, except := w.sets(&d, way, f, "all", nil, nil)
			d.ACLs = append(d.ACLs, w.allows(way, w.aclName(way, f, "all"), w.setMatch(way, f, allow, except), nil)...)
		}
	}
	return d, nil
}

// drops are the ACLs that deny what no other admits.
func (w *policyPlan) drops(way way) []ACL {
	name, match := w.np.Namespace+"/"+w.np.Name, way.port+" == @"+w.group+" && "
	if !w.shape.Lax {
		return []ACL{w.acl(way, name, dropPriority, match+"ip", "drop")}
	}
	// Address configuration goes on.
	client, server := "546", "547"
	client4, server4 := "68", "67"
	from, to, from4, to4 := server, client, server4, client4
	if way.direction == fromLport {
		from, to, from4, to4 = client, server, client4, server4
	}
	return []ACL{
		w.acl(way, name, dropPriority, match+"(tcp || udp || sctp)", "drop"),
		w.acl(way, name, allowPriority, match+"udp.src == "+from+" && udp.dst == "+to+" && ip6", "allow-related"),
		w.acl(way, name, allowPriority, match+"udp.src == "+from4+" && udp.dst == "+to4+" && ip4", "allow-related"),
	}
}

// rule plans one rule in one family.
func (w *policyPlan) rule(d *Direction, way way, f family, index string, r rule) error {
	var allowed, excepted []string
	var blocks []networkingv1.IPBlock
	if len(r.peers) == 0 {
		allowed = []string{f.all}
	}
	for _, peer := range r.peers {
		if b := peer.IPBlock; b != nil {
			if w.shape.InlineBlocks {
				blocks = append(blocks, *b)
			} else if familyOf(b.CIDR) == f {
				allowed, excepted = append(allowed, b.CIDR), append(excepted, b.Except...)
			}
			continue
		}
		addresses, err := w.peer(f, peer)
		if err != nil {
			return err
		}
		allowed = append(allowed, addresses...)
	}
	allow, except := w.sets(d, way, f, index, allowed, excepted)
	name, match := w.aclName(way, f, index), w.setMatch(way, f, allow, except)
	switch {
	case len(allowed) > 0 || len(excepted) > 0:
		d.ACLs = append(d.ACLs, w.allows(way, name, match, r.ports)...)
	case !w.shape.InlineBlocks:
		d.ACLs = append(d.ACLs, w.allows(way, name, match, nil)...)
	}
	match, err := w.blockMatch(way, f, blocks)
	if err != nil {
		return err
	}
	if match != "" {
		d.ACLs = append(d.ACLs, w.allows(way, name+"/ipBlock", match, r.ports)...)
	}
	return nil
}

// peer returns the addresses of the Pods that a peer selects, those that are
// not allocated yet included once they have an address.
func (w *policyPlan) peer(f family, peer networkingv1.NetworkPolicyPeer) ([]string, error) {
	in := map[string]bool{}
	if peer.NamespaceSelector == nil {
		in[w.np.Namespace] = true
	} else {
		selector, err := metav1.LabelSelectorAsSelector(peer.NamespaceSelector)
		if err != nil {
			return nil, err
		}
		for _, n := range w.cluster.Namespaces {
			in[n.Name] = selector.Matches(labels.Set(n.Labels))
		}
	}
	selector := labels.Everything()
	if peer.PodSelector != nil {
		var err error
		if selector, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return nil, err
		}
	}
	var addresses []string
	for _, pod := range w.cluster.Pods {
		if !in[pod.Namespace] || !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		addresses = append(addresses, addressesOf(pod)...)
		if w.shape.ClusterIPs {
			addresses = append(addresses, clusterIPs(w.cluster.Services, pod)...)
		}
	}
	return slices.DeleteFunc(addresses, func(ip string) bool { return familyOf(ip) != f }), nil
}

// clusterIPs returns those of the Services that select a Pod. A Service without
// a selector selects all Pods of its namespace, as in the original.
func clusterIPs(services []*corev1.Service, pod *corev1.Pod) []string {
	var ips []string
	for _, s := range services {
		if s.Namespace != pod.Namespace || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(pod.Labels)) {
			continue
		}
		all := s.Spec.ClusterIPs
		if len(all) == 0 {
			all = []string{s.Spec.ClusterIP}
		}
		for _, ip := range all {
			if ip != "" && ip != corev1.ClusterIPNone {
				ips = append(ips, ip)
			}
		}
	}
	return ips
}

// sets plans the two address sets of a rule and returns their names.
func (w *policyPlan) sets(d *Direction, way way, f family, index string, allowed, excepted []string) (allow, except string) {
	name := func(kind string) string {
		return dotted(w.name+"."+w.np.Namespace+"."+way.name+"."+kind) + "." + f.name + "." + index
	}
	allow, except = name("allow"), name("except")
	ids := map[string]string{npKey: w.np.Namespace + "/" + w.name + "/" + way.name, vendorKey: vendor}
	d.AddressSets = append(d.AddressSets,
		AddressSet{Name: allow, Addresses: distinct(allowed), ExternalIDs: ids},
		AddressSet{Name: except, Addresses: distinct(excepted), ExternalIDs: ids})
	return allow, except
}

// distinct returns the values in order, each once.
func distinct(values []string) []string { return slices.Compact(slices.Sorted(slices.Values(values))) }

func (w *policyPlan) aclName(way way, f family, index string) string {
	return "np/" + w.name + "." + w.np.Namespace + "/" + way.name + "/" + f.name + "/" + index
}

func (w *policyPlan) setMatch(way way, f family, allow, except string) string {
	end := f.prefix + "." + way.end
	return fmt.Sprintf("%s == @%s && ip && %s == $%s && %s != $%s", way.port, w.group, end, allow, end, except)
}

// blockMatch returns the match of ipBlocks, or "" if none is of the family.
func (w *policyPlan) blockMatch(way way, f family, blocks []networkingv1.IPBlock) (string, error) {
	end := f.prefix + "." + way.end
	var matches []string
	for _, b := range blocks {
		if familyOf(b.CIDR) != f {
			continue
		}
		cidr, err := netip.ParsePrefix(b.CIDR)
		if err != nil {
			return "", err
		}
		match, excepts := end+" == "+b.CIDR, []string{}
		for _, e := range b.Except {
			except, err := netip.ParsePrefix(e)
			if err != nil {
				return "", err
			}
			if except.Bits() >= cidr.Bits() && cidr.Contains(except.Addr()) {
				excepts = append(excepts, e)
			}
		}
		if len(excepts) > 0 {
			match += " && " + end + " != {" + strings.Join(excepts, ", ") + "}"
		}
		matches = append(matches, match)
	}
	if len(matches) == 0 {
		return "", nil
	}
	if len(matches) > 1 {
		for i, m := range matches {
			if strings.Contains(m, "&&") {
				matches[i] = "(" + m + ")"
			}
		}
	}
	return way.port + " == @" + w.group + " && ip && (" + strings.Join(matches, " || ") + ")", nil
}

// allows returns one ACL for each port of a rule, or one for all ports. Named
// ports that no Pod of the namespace has are left out.
func (w *policyPlan) allows(way way, name, match string, ports []networkingv1.NetworkPolicyPort) []ACL {
	if len(ports) == 0 {
		return []ACL{w.acl(way, name, allowPriority, match, "allow-related")}
	}
	var acls []ACL
	for _, p := range ports {
		protocol := "tcp"
		if p.Protocol != nil {
			protocol = strings.ToLower(string(*p.Protocol))
		}
		var layer4 string
		switch {
		case p.Port == nil:
			layer4 = protocol
		case p.Port.Type == intstr.String:
			number, known := w.ports[p.Port.StrVal]
			if !known || p.EndPort != nil {
				continue
			}
			layer4 = fmt.Sprintf("%s.dst == %d", protocol, number)
		case p.EndPort != nil:
			layer4 = fmt.Sprintf("%d <= %s.dst <= %d", p.Port.IntVal, protocol, *p.EndPort)
		default:
			layer4 = fmt.Sprintf("%s.dst == %d", protocol, p.Port.IntVal)
		}
		acls = append(acls, w.acl(way, name, allowPriority, match+" && "+layer4, "allow-related"))
	}
	return acls
}

func (w *policyPlan) acl(way way, name string, priority int, match, action string) ACL {
	return newACL(w.group, way, name, priority, match, action)
}

// newACL fills what all ACLs have.
func newACL(group string, way way, name string, priority int, match, action string) ACL {
	// The column takes 63 bytes.
	if len(name) > 63 {
		name = name[:60] + "..."
	}
	a := ACL{Name: name, Direction: way.direction, Priority: priority, Match: match, Action: action,
		ExternalIDs: map[string]string{parentKey: group, vendorKey: vendor}}
	if way.direction == fromLport {
		a.Options = map[string]string{"apply-after-lb": "true"}
	}
	return a
}

// planNode lets a node reach its Pods, and they it, while there are policies.
func planNode(node *corev1.Node, policies bool) NodeGroup {
	group := NodeGroup{Name: dotted("node-" + node.Name)}
	for _, a := range node.Status.Addresses {
		if a.Type != corev1.NodeInternalIP || !policies {
			continue
		}
		f := familyOf(a.Address)
		pods := "$" + group.Name + "_" + f.prefix
		in, out := ingress(), egress()
		group.ACLs = append(group.ACLs,
			newACL(group.Name, in, "", nodePriority, fmt.Sprintf("%s.src == %s && %s.dst == %s", f.prefix, a.Address, f.prefix, pods), "allow-related"),
			newACL(group.Name, out, "", nodePriority, fmt.Sprintf("%s.dst == %s && %s.src == %s", f.prefix, a.Address, f.prefix, pods), "allow-related"))
	}
	return group
}
