// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package scan_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/expect/scan"
)

// history is a random sequence of events, told to a Cluster and to a scan.World.
type history struct {
	*rand.Rand
	cluster *expect.Cluster
	world   *scan.World
	count   int
	seq     uint64
	// most is about how many Pods there are at once.
	most int
}

func newHistory(seed uint64) *history {
	h := &history{Rand: rand.New(rand.NewPCG(seed, 7)), cluster: expect.NewCluster(), world: scan.New()}
	h.most = 4 + h.IntN(12)
	for n := range 3 {
		h.setNode(h.newNode(fmt.Sprintf("n%d", n)))
	}
	for _, name := range spaces {
		h.setNamespace(name)
	}
	return h
}

// Two policies of the first two namespaces can share their concatenation.
var spaces = []string{"a", "ab", "c"}

func one[T any](r *history, list ...T) T { return list[r.IntN(len(list))] }

// key returns one of the map's keys, the zero value if there is none.
func key[K ~string, V any](h *history, m map[K]V) K {
	keys := slices.Sorted(maps.Keys(m))
	if len(keys) == 0 {
		return ""
	}
	return one(h, keys...)
}

// step does one thing. It returns what it was, and the footprint.
func (h *history) step() (string, expect.Footprint) {
	h.count++
	uid := key(h, h.world.Pods)
	p := h.world.Pods[uid]
	add := len(h.world.Pods) < h.most && h.IntN(2) == 0
	switch kind := h.IntN(24); {
	case add || p == nil:
		return h.setPod("appears", h.newPod())
	case kind < 4:
		q := *p
		q.Labels = h.labels()
		return h.setPod("relabelled", &q)
	case kind < 6:
		q := *p
		h.place(&q)
		return h.setPod("moved", &q)
	case kind < 8:
		q := *p
		switch h.IntN(4) {
		case 0:
			q.Finished = !q.Finished
		case 1:
			q.Node, q.IPs = "", nil
		default:
			q.Terminating = !q.Terminating
		}
		return h.setPod("finished, terminating or back", &q)
	case kind < 9:
		q := *p
		q.Ports = h.ports()
		return h.setPod("other ports", &q)
	case kind < 12:
		delete(h.world.Pods, uid)
		return "delete pod " + string(uid), h.cluster.DeletePod(uid)
	case kind < 16:
		return h.setPolicy()
	case kind < 18:
		return h.deletePolicy()
	case kind < 20:
		return h.setNamespace(one(h, spaces...))
	case kind < 21:
		name := one(h, spaces...)
		delete(h.world.Namespaces, name)
		return "delete namespace " + name, h.cluster.DeleteNamespace(name)
	case kind < 23:
		return h.nodeEvent()
	}
	q := *p
	return h.setPod("the same", &q)
}

func (h *history) setPod(what string, p *expect.Pod) (string, expect.Footprint) {
	h.world.Pods[p.UID] = p
	return fmt.Sprintf("%s: pod %+v", what, *p), h.cluster.SetPod(p)
}

func (h *history) newPod() *expect.Pod {
	p := &expect.Pod{
		UID: types.UID(fmt.Sprintf("u%d", h.count)), Namespace: one(h, spaces...), Name: fmt.Sprintf("p%d", h.count),
		Labels: h.labels(), Ports: h.ports(), Created: time.Unix(int64(h.IntN(h.count+1)), 0),
		HostNetwork: h.IntN(20) == 0,
	}
	h.place(p)
	if h.IntN(10) == 0 {
		p.IPs, p.Node = nil, ""
	}
	return p
}

// place gives p a node, addresses and, at most times, the next Seq.
func (h *history) place(p *expect.Pod) {
	n := h.IntN(4)
	p.Node = fmt.Sprintf("n%d", n)
	p.IPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n), byte(1 + h.IntN(60))})}
	if h.IntN(3) == 0 {
		p.IPs = append(p.IPs, netip.MustParseAddr(fmt.Sprintf("fd00:0:0:%d::%x", n, 1+h.IntN(60))))
	}
	h.seq++
	switch h.IntN(12) {
	case 0:
		p.Seq = 0
	case 1:
		p.Seq = h.Uint64N(h.seq)
	default:
		p.Seq = h.seq
	}
}

func (h *history) labels() map[string]string {
	out := map[string]string{"app": one(h, "x", "y", "z")}
	if h.IntN(4) == 0 {
		out["job"] = fmt.Sprint(h.count)
	}
	return out
}

func (h *history) ports() []expect.ContainerPort {
	var out []expect.ContainerPort
	for _, name := range []string{"http", "db", ""} {
		if h.IntN(4) == 0 {
			out = append(out, expect.ContainerPort{
				Name: name, Protocol: flow.TCP, Number: uint16(8000 + h.IntN(4)), Sidecar: h.IntN(5) == 0,
			})
		}
	}
	return out
}

func (h *history) setPolicy() (string, expect.Footprint) {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
		Namespace: one(h, spaces...), Name: one(h, "q", "bq", "r"), Generation: int64(h.count),
	}}
	np.Spec.PodSelector = *h.selector("app", "x", "y", "z")
	for range h.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: h.peers(), Ports: h.policyPorts()})
	}
	for range h.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: h.peers(), Ports: h.policyPorts()})
	}
	np.Spec.PolicyTypes = one(h,
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
		[]networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
	)
	if h.IntN(15) == 0 {
		np.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}
	}
	name := types.NamespacedName{Namespace: np.Namespace, Name: np.Name}
	if before := h.world.Policies[name]; before != nil && h.IntN(6) == 0 {
		again := *before
		h.world.Policies[name] = &again
		return "the same policy " + name.String(), h.cluster.SetPolicy(&again)
	}
	q, _ := expect.NewPolicy(np) // its Err is part of the state
	h.world.Policies[name] = q
	return fmt.Sprintf("policy %s: %+v", name, np.Spec), h.cluster.SetPolicy(q)
}

func (h *history) deletePolicy() (string, expect.Footprint) {
	for _, q := range h.world.Sorted() {
		if q.Err != nil || h.IntN(3) == 0 {
			delete(h.world.Policies, types.NamespacedName{Namespace: q.Namespace, Name: q.Name})
			return "delete policy " + q.String(), h.cluster.DeletePolicy(q.Namespace, q.Name)
		}
	}
	return "delete no policy", h.cluster.DeletePolicy("a", "none")
}

func (h *history) selector(key string, values ...string) *metav1.LabelSelector {
	switch h.IntN(5) {
	case 0:
		return &metav1.LabelSelector{}
	case 1:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: []string{one(h, values...)}},
		}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{key: one(h, values...)}}
}

func (h *history) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range h.IntN(3) {
		var peer networkingv1.NetworkPolicyPeer
		switch h.IntN(6) {
		case 0:
			peer.IPBlock = &networkingv1.IPBlock{CIDR: one(h, "10.0.0.0/16", "0.0.0.0/0", "::/0", "10.0.1.0/26", "198.51.0.0/16")}
			if peer.IPBlock.CIDR == "10.0.0.0/16" {
				peer.IPBlock.Except = []string{"10.0.1.0/24"}
			}
		case 1:
			peer.NamespaceSelector = h.selector("tier", "1", "2")
		case 2:
			peer.NamespaceSelector = h.selector("tier", "1", "2")
			peer.PodSelector = h.selector("app", "x", "y", "z")
		default:
			peer.PodSelector = h.selector("app", "x", "y", "z")
		}
		out = append(out, peer)
	}
	return out
}

func (h *history) policyPorts() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range h.IntN(3) {
		port := one(h, intstr.FromString("http"), intstr.FromString("db"), intstr.FromInt32(80), intstr.FromInt32(8000), intstr.FromInt32(8003))
		out = append(out, networkingv1.NetworkPolicyPort{Port: &port})
	}
	if h.IntN(8) == 0 {
		udp := corev1.ProtocolUDP
		out = append(out, networkingv1.NetworkPolicyPort{Protocol: &udp})
	}
	return out
}

func (h *history) setNamespace(name string) (string, expect.Footprint) {
	ns := &expect.Namespace{
		Name: name, Inject: h.IntN(4) > 0,
		Labels: map[string]string{"tier": one(h, "1", "2", "3"), "other": one(h, "1", "2")},
	}
	h.world.Namespaces[name] = ns
	return fmt.Sprintf("namespace %+v", *ns), h.cluster.SetNamespace(ns)
}

func (h *history) nodeEvent() (string, expect.Footprint) {
	name := fmt.Sprintf("n%d", h.IntN(4))
	before := h.world.NodesByName[name]
	switch {
	case before == nil || h.IntN(5) == 0:
		return h.setNode(h.newNode(name))
	case h.IntN(5) == 0:
		delete(h.world.NodesByName, name)
		return "delete node " + name, h.cluster.DeleteNode(name)
	}
	n := *before
	n.Out = !n.Out
	return h.setNode(&n)
}

func (h *history) newNode(name string) *expect.Node {
	n := &expect.Node{Name: name, Out: h.IntN(6) == 0}
	if h.IntN(6) > 0 {
		n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0." + name[1:] + ".0/24"), netip.MustParsePrefix("fd00:0:0:" + name[1:] + "::/64")}
	}
	if h.IntN(3) == 0 {
		n.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{1, 0, 0, byte(h.IntN(3))})}
	}
	return n
}

func (h *history) setNode(n *expect.Node) (string, expect.Footprint) {
	h.world.NodesByName[n.Name] = n
	return fmt.Sprintf("node %+v", *n), h.cluster.SetNode(n)
}
