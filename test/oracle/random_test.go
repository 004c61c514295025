// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/controllers/expect"
)

// maker makes up a world. Everything in it is from so few names, labels,
// numbers and addresses that what belongs together meets.
type maker struct {
	*rand.Rand
	world *world
	// free is the next address of each node.
	free map[string]int
	// ranges is unset in a cluster whose nodes have no pod CIDRs: there the
	// Pods' addresses come from elsewhere.
	ranges bool
}

// randomWorld returns the same world for the same seed.
func randomWorld(seed uint64) *world {
	m := &maker{Rand: rand.New(rand.NewPCG(seed, 0x0a)), world: &world{}, free: map[string]int{}}
	m.ranges = !m.once(4)
	m.addNodes()
	spaces := m.addNamespaces()
	for i := range 4 + m.IntN(7) {
		m.addPod(fmt.Sprintf("p%d", i), pick(m, spaces))
	}
	for i := range 2 + m.IntN(6) {
		m.addPolicy(i, pick(m, spaces))
	}
	return m.world
}

// once is true one time in n.
func (m *maker) once(n int) bool { return m.IntN(n) == 0 }

func pick[T any](m *maker, from []T) T { return from[m.IntN(len(from))] }

func (m *maker) addNodes() {
	for i := range 1 + m.IntN(4) {
		n := &expect.Node{
			Name: fmt.Sprintf("n%d", i),
			Addresses: []netip.Addr{
				netip.MustParseAddr(fmt.Sprintf("192.168.1.%d", 1+i)),
				netip.MustParseAddr(fmt.Sprintf("fd01::%x", 1+i)),
			},
			Out: m.once(12),
		}
		if m.ranges {
			n.PodCIDRs = []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.0.%d.0/24", i)),
				netip.MustParsePrefix(fmt.Sprintf("fd00:0:0:%d::/64", i)),
			}
		}
		m.world.nodes = append(m.world.nodes, n)
	}
}

// addNamespaces returns the names of all, and of one, at times, that is not
// known yet although it has Pods.
func (m *maker) addNamespaces() []string {
	spaces := []string{"a", "ab", "c"}
	for _, name := range spaces {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: m.labels("team", "tier")}}
		ns.Labels[corev1.LabelMetadataName] = name
		if !m.once(3) {
			ns.Labels[injectLabel] = "enabled"
		}
		m.world.namespaces = append(m.world.namespaces, ns)
	}
	if m.once(4) {
		spaces = append(spaces, "unknown")
	}
	return spaces
}

func (m *maker) labels(keys ...string) map[string]string {
	out := map[string]string{}
	for _, key := range keys {
		if !m.once(3) {
			out[key] = m.value()
		}
	}
	return out
}

func (m *maker) value() string {
	if m.once(8) {
		return ""
	}
	return pick(m, []string{"x", "y", "z"})
}

func (m *maker) addPod(name, namespace string) {
	i := len(m.world.pods)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, UID: objectUID("pod", namespace, name),
			// Some are of one second.
			CreationTimestamp: metav1.NewTime(time.Unix(int64(i-m.IntN(2)), 0).UTC()),
			Labels:            m.labels("app", "tier"),
		},
		Spec: corev1.PodSpec{NodeName: pick(m, m.world.nodes).Name},
	}
	m.addContainers(&p.Spec)
	switch m.IntN(14) {
	case 0:
		p.Spec.HostNetwork = true
	case 1:
		p.Status.Phase = pick(m, []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed})
	case 2:
		now := metav1.NewTime(time.Unix(100, 0).UTC())
		p.DeletionTimestamp = &now
	case 3:
		// A node that is not known yet.
		p.Spec.NodeName = "new"
	}
	for _, addr := range m.addresses(p) {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: addr})
	}
	// Some have their addresses later than a younger Pod, or at a time that is
	// not known.
	seq := uint64(1 + i)
	if m.once(4) {
		seq = uint64(1 + m.IntN(10))
	}
	m.world.pods = append(m.world.pods, newPod(p, seq))
}

// addresses returns one of either family, of both, or none yet. An address of
// another Pod is given again, at times.
func (m *maker) addresses(p *corev1.Pod) []string {
	node := p.Spec.NodeName
	number := slices.IndexFunc(m.world.nodes, func(n *expect.Node) bool { return n.Name == node })
	if number < 0 {
		number = 9
	}
	m.free[node]++
	v4, v6 := fmt.Sprintf("10.0.%d.%d", number, m.free[node]), fmt.Sprintf("fd00:0:0:%d::%x", number, m.free[node])
	if !m.ranges {
		v4, v6 = fmt.Sprintf("10.128.%d.%d", number, m.free[node]), fmt.Sprintf("fd02:0:0:%d::%x", number, m.free[node])
	}
	if p.Spec.HostNetwork {
		v4, v6 = fmt.Sprintf("192.168.1.%d", 1+number), fmt.Sprintf("fd01::%x", 1+number)
	}
	if len(m.world.pods) > 0 && m.once(12) {
		if other := pick(m, m.world.pods); len(other.addrs) > 0 && !p.Spec.HostNetwork && !other.hostNetwork() {
			return []string{other.addrs[0].String()}
		}
	}
	switch m.IntN(16) {
	case 0:
		return nil
	case 1, 2, 3, 4, 5, 6:
		return []string{v4}
	case 7, 8:
		return []string{v6}
	}
	return []string{v4, v6}
}

func (m *maker) addContainers(spec *corev1.PodSpec) {
	for i := range 1 + m.IntN(2) {
		spec.Containers = append(spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", i), Ports: m.containerPorts()})
	}
	if m.once(4) {
		always := corev1.ContainerRestartPolicyAlways
		spec.InitContainers = append(spec.InitContainers, corev1.Container{
			Name: "sidecar", RestartPolicy: &always, Ports: m.containerPorts(),
		})
	}
	if m.once(6) {
		spec.InitContainers = append(spec.InitContainers, corev1.Container{Name: "init", Ports: m.containerPorts()})
	}
}

// The names and numbers of ports.
func portNames() []string  { return []string{"http", "db", "dns"} }
func portNumbers() []int32 { return []int32{53, 80, 443, 8080, 8081} }
func portRanges() [][]int32 {
	return [][]int32{{80, 80}, {80, 443}, {8080, 8081}, {1, 65535}, {30000, 32767}}
}

func protocols() []corev1.Protocol {
	return []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
}

// containerPorts gives no name twice, which the API server demands of one
// container.
func (m *maker) containerPorts() []corev1.ContainerPort {
	var out []corev1.ContainerPort
	names := append(portNames(), "")
	m.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[:m.IntN(4)] {
		port := corev1.ContainerPort{Name: name, ContainerPort: pick(m, portNumbers())}
		if !m.once(3) {
			port.Protocol = m.protocol()
		}
		out = append(out, port)
	}
	return out
}

func (m *maker) protocol() corev1.Protocol {
	if m.once(2) {
		return corev1.ProtocolTCP
	}
	return pick(m, protocols())
}

func (m *maker) addPolicy(i int, namespace string) {
	// "a" with "bq1" and "ab" with "q1" are one to kube-router.
	name := fmt.Sprintf("q%d", i/2)
	if namespace == "a" && m.once(2) {
		name = fmt.Sprintf("bq%d", i/2)
	}
	for _, other := range m.world.policies {
		if other.Namespace == namespace && other.Name == name {
			name += "x"
		}
	}
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: objectUID("policy", namespace, name), Generation: 1},
	}
	// Half of them select all Pods, so that many are isolated.
	if m.once(2) {
		np.Spec.PodSelector = *m.selector("app", "tier")
	}
	for range m.IntN(4) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: m.peers(), Ports: m.policyPorts()})
	}
	for range m.IntN(4) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: m.peers(), Ports: m.policyPorts()})
	}
	ingress, egress := networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	np.Spec.PolicyTypes = pick(m, [][]networkingv1.PolicyType{
		nil, {ingress}, {egress}, {ingress, egress}, {egress, ingress}, {ingress, ingress},
	})
	m.world.policies = append(m.world.policies, np)
}

// selector is never nil.
func (m *maker) selector(keys ...string) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if m.once(4) {
		return s
	}
	if m.once(2) {
		s.MatchLabels = map[string]string{pick(m, keys): m.value()}
		if m.once(2) {
			return s
		}
	}
	for range 1 + m.IntN(2) {
		r := metav1.LabelSelectorRequirement{
			Key: pick(m, append(keys, "nobody")),
			Operator: pick(m, []metav1.LabelSelectorOperator{
				metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist,
			}),
		}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = []string{m.value()}
			if v := m.value(); v != r.Values[0] {
				r.Values = append(r.Values, v)
			}
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return s
}

func (m *maker) namespaceSelector() *metav1.LabelSelector {
	if m.once(3) {
		return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: pick(m, []string{"a", "ab", "c"})}}
	}
	return m.selector("team", "tier")
}

func (m *maker) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range m.IntN(4) {
		var peer networkingv1.NetworkPolicyPeer
		switch m.IntN(6) {
		case 0, 1:
			peer.PodSelector = m.selector("app", "tier")
		case 2:
			peer.NamespaceSelector = m.namespaceSelector()
		case 3:
			peer.PodSelector, peer.NamespaceSelector = m.selector("app", "tier"), m.namespaceSelector()
		default:
			peer.IPBlock = m.block()
		}
		out = append(out, peer)
	}
	return out
}

// block returns CIDRs in every spelling that the API server has admitted in
// some version.
func (m *maker) block() *networkingv1.IPBlock {
	b := pick(m, []networkingv1.IPBlock{
		{CIDR: "0.0.0.0/0", Except: []string{"10.0.0.0/16", "198.51.100.0/25"}},
		{CIDR: "10.0.0.0/8"},
		{CIDR: "10.0.0.0/16", Except: []string{"10.0.1.0/24", "10.0.0.1/32"}},
		{CIDR: "10.0.1.77/24"},
		{CIDR: "010.000.0.0/16", Except: []string{"10.00.1.0/24"}},
		{CIDR: "::ffff:10.0.0.0/112"},
		{CIDR: "10.128.0.0/29", Except: []string{"10.128.0.4/30"}},
		{CIDR: "10.128.1.1/32"},
		{CIDR: "192.168.1.0/30"},
		{CIDR: "198.51.100.0/24", Except: []string{"198.51.100.64/26"}},
		{CIDR: "169.254.0.0/16"},
		{CIDR: "::/0", Except: []string{"fd00:0:0:1::/64"}},
		{CIDR: "fc00::/7", Except: []string{"fd00::/48", "fd02:0:0:1::/64"}},
		{CIDR: "fd00:0:0:0::5/64", Except: []string{"fd00::1/128"}},
		{CIDR: "fd02::/125"},
		{CIDR: "2001:db8::/32", Except: []string{"2001:DB8:0:1::/64"}},
	})
	if m.once(2) {
		b.Except = nil
	}
	return &b
}

func (m *maker) policyPorts() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range m.IntN(4) {
		var port networkingv1.NetworkPolicyPort
		if !m.once(3) {
			protocol := m.protocol()
			port.Protocol = &protocol
		}
		switch m.IntN(5) {
		case 0:
		case 1, 2:
			name := intstr.FromString(pick(m, append(portNames(), "nobody")))
			port.Port = &name
		case 3:
			number := intstr.FromInt32(pick(m, portNumbers()))
			port.Port = &number
		case 4:
			bounds := pick(m, portRanges())
			first := intstr.FromInt32(bounds[0])
			port.Port, port.EndPort = &first, &bounds[1]
		}
		out = append(out, port)
	}
	return out
}
