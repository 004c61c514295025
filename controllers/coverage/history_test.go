// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

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

	"github.com/policygate/policygate/api/v1alpha1"
)

// objects are what is in a cluster.
type objects struct {
	pods       map[string]*corev1.Pod
	policies   map[string]*networkingv1.NetworkPolicy
	namespaces map[string]*corev1.Namespace
	nodes      map[string]*corev1.Node
	services   map[string]*corev1.Service
}

func newObjects() objects {
	return objects{
		pods: map[string]*corev1.Pod{}, policies: map[string]*networkingv1.NetworkPolicy{},
		namespaces: map[string]*corev1.Namespace{}, nodes: map[string]*corev1.Node{},
		services: map[string]*corev1.Service{},
	}
}

// history is a random sequence of events and the objects that it leaves.
type history struct {
	*api
	objects
	seed  uint64
	r     *rand.Rand
	count int
	// last are the assignments as the gate holds them.
	last map[types.UID]Assignment
	any  netip.Addr
}

var (
	teams = []string{"red", "blue"}
	apps  = []string{"x", "y", "z"}
)

func (h *history) one(list ...string) string { return list[h.r.IntN(len(list))] }

func (h *history) oneIn(n int) bool { return h.r.IntN(n) == 0 }

// step does one thing to the cluster and says what.
func (h *history) step() string {
	h.count++
	type event struct {
		weight int
		name   string
		do     func()
	}
	events := []event{
		{14, "a new pod", h.newPod},
		{6, "a pod's deletion", h.deletePod},
		{12, "a pod's change", h.changePod},
		{8, "a policy", h.setPolicy},
		{4, "a policy's deletion", h.deletePolicy},
		{4, "a namespace", h.setNamespace},
		{1, "a namespace's deletion", h.deleteNamespace},
		{4, "a node", h.setNode},
		{1, "a node's deletion", h.deleteNode},
		{3, "a service", h.setService},
		{2, "a service's deletion", h.deleteService},
		{4, "time", h.wait},
	}
	total := 0
	for _, e := range events {
		total += e.weight
	}
	n := h.r.IntN(total)
	for _, e := range events {
		if n -= e.weight; n < 0 {
			e.do()
			return fmt.Sprintf("event %d, %s", h.count, e.name)
		}
	}
	panic("unreachable: n is less than the total")
}

// pick returns a random value of m, and false if there is none.
func pick[V any](h *history, m map[string]V) (string, V, bool) {
	names := slices.Sorted(maps.Keys(m))
	if len(names) == 0 {
		var none V
		return "", none, false
	}
	name := h.one(names...)
	return name, m[name], true
}

// address returns one of a few addresses of a node, so that some come back and
// some are given twice.
func (h *history) address(node string) string {
	return fmt.Sprintf("10.0.%s.%d", node[1:], 1+h.r.IntN(12))
}

func (h *history) newPod() {
	ns, node := h.one("a", "b", "c"), h.one("n0", "n1", "n2", "n3")
	name := fmt.Sprintf("%s/p%d", ns, h.count)
	ips := h.address(node)
	if h.oneIn(3) {
		ips += fmt.Sprintf(" fd00:%s::%d", node[1:], 1+h.r.IntN(12))
	}
	changes := []podChange{app(h.one(apps...))}
	if h.oneIn(2) {
		changes = append(changes, gated)
	}
	if h.oneIn(3) {
		changes = append(changes, func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: h.one("db", "web"), ContainerPort: 3306 + h.r.Int32N(2)}}
		})
	}
	if h.oneIn(12) {
		changes = append(changes, func(p *corev1.Pod) { p.Spec.HostNetwork = true })
	}
	if h.oneIn(8) {
		changes = append(changes, func(p *corev1.Pod) { p.Status.PodIPs = nil })
	}
	if h.oneIn(8) {
		changes = append(changes, annotated(v1alpha1.KeyScope, v1alpha1.ScopeLocal))
	}
	if h.oneIn(8) {
		h.before(func() { h.pods[name] = h.pod(name, node, ips, changes...) })
		return
	}
	h.pods[name] = h.pod(name, node, ips, changes...)
}

func (h *history) deletePod() {
	if name, p, ok := pick(h, h.pods); ok {
		h.x.DeletePod(p.UID)
		delete(h.pods, name)
	}
}

func (h *history) changePod() {
	name, p, ok := pick(h, h.pods)
	if !ok {
		return
	}
	changes := []podChange{
		app(h.one(apps...)),
		finished,
		terminating,
		func(p *corev1.Pod) { p.Status.PodIPs = []corev1.PodIP{{IP: h.address(p.Spec.NodeName)}} },
		func(p *corev1.Pod) { p.Status.PodIPs = nil },
		func(p *corev1.Pod) { p.Status.Message = "noise" },
		func(p *corev1.Pod) {
			if len(p.Spec.ReadinessGates) > 0 {
				opened(p)
			}
		},
		annotated(v1alpha1.KeyTimeout, h.one("30s", "90s")),
		func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{
				Name:  v1alpha1.HoldContainerName,
				State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(h.clock.Now())}},
			}}
		},
		func(p *corev1.Pod) { p.UID = types.UID(fmt.Sprintf("%s %d", name, h.count)) },
	}
	h.pods[name] = h.again(p, changes[h.r.IntN(len(changes))])
}

func (h *history) selector() metav1.LabelSelector {
	switch h.r.IntN(4) {
	case 0:
		return metav1.LabelSelector{}
	case 1:
		return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{h.one(apps...)}},
		}}
	}
	return *selector(h.one(apps...))
}

func (h *history) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range h.r.IntN(3) {
		s := h.selector()
		switch h.r.IntN(4) {
		case 0:
			out = append(out, podsOfTeam(h.one(teams...), h.one(apps...)))
		case 1:
			out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{
				CIDR: h.one("10.0.0.0/16", "0.0.0.0/0", "192.0.2.0/24"),
			}})
		default:
			out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: &s})
		}
	}
	return out
}

func (h *history) ports() []networkingv1.NetworkPolicyPort {
	last := int32(3310)
	number, name := intstr.FromInt32(3306), intstr.FromString(h.one("db", "web"))
	switch h.r.IntN(4) {
	case 0:
		return nil
	case 1:
		return []networkingv1.NetworkPolicyPort{{Port: &name}}
	case 2:
		return []networkingv1.NetworkPolicyPort{{Port: &number, EndPort: &last}}
	}
	return []networkingv1.NetworkPolicyPort{{Port: &number}}
}

func (h *history) setPolicy() {
	// "a" + "bq0" is what kube-router takes "ab" + "q0" for.
	name := h.one("a/q0", "a/q1", "b/q0", "b/q1", "c/q0", "a/bq0", "ab/q0")
	ns, short := name[:len(name)-3], name[len(name)-2:]
	if name == "a/bq0" {
		ns, short = "a", "bq0"
	}
	q := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: short, UID: types.UID("np " + name), ResourceVersion: h.next(), Generation: int64(h.version),
		},
		Spec: networkingv1.NetworkPolicySpec{PodSelector: h.selector()},
	}
	if !h.oneIn(3) {
		q.Spec.PolicyTypes = append(q.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		for range h.r.IntN(3) {
			q.Spec.Ingress = append(q.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: h.peers(), Ports: h.ports()})
		}
	}
	if h.oneIn(2) || len(q.Spec.PolicyTypes) == 0 {
		q.Spec.PolicyTypes = append(q.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		for range h.r.IntN(3) {
			q.Spec.Egress = append(q.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: h.peers(), Ports: h.ports()})
		}
	}
	if h.oneIn(12) {
		q.Spec.PodSelector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}
	}
	if before := h.policies[name]; before != nil && h.oneIn(5) {
		q.Spec, q.Generation = before.Spec, before.Generation // labels only
	}
	h.policies[name] = q
	h.x.SetPolicy(q)
}

func (h *history) deletePolicy() {
	if name, q, ok := pick(h, h.policies); ok {
		h.x.DeletePolicy(q)
		delete(h.policies, name)
	}
}

func (h *history) setNamespace() {
	name := h.one("a", "b", "c")
	kv := []string{"team", h.one(teams...)}
	if h.oneIn(4) {
		kv = append(kv, v1alpha1.KeyInject, "no")
	}
	h.namespaces[name] = h.namespace(name, kv...)
}

func (h *history) deleteNamespace() {
	if name, ns, ok := pick(h, h.namespaces); ok {
		h.x.DeleteNamespace(ns)
		delete(h.namespaces, name)
	}
}

func (h *history) setNode() {
	name := h.one("n0", "n1", "n2", "n3")
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{fmt.Sprintf("10.0.%s.0/24", name[1:]), fmt.Sprintf("fd00:%s::/64", name[1:])}},
	}
	n.Status.NodeInfo.BootID = "boot-" + name
	n.Status.Addresses = []corev1.NodeAddress{{Address: "192.0.2." + name[1:]}}
	switch h.r.IntN(6) {
	case 0:
		n.Status.Conditions = []corev1.NodeCondition{{
			Type: corev1.NodeReady, Status: corev1.ConditionUnknown,
			LastTransitionTime: metav1.NewTime(h.clock.Now().Add(-time.Duration(h.r.IntN(2)) * DefaultNotReadyLimit / 2)),
		}}
	case 1:
		n.Status.NodeInfo.BootID = "another"
	case 2:
		n.Spec.PodCIDRs = nil
	}
	h.nodes[name] = n
	h.x.SetNode(n)
}

func (h *history) deleteNode() {
	if name, _, ok := pick(h, h.nodes); ok {
		h.x.DeleteNode(name)
		delete(h.nodes, name)
	}
}

func (h *history) setService() {
	name := h.one("a/s", "b/s")
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: name[:1], Name: "s", UID: types.UID("svc " + name), CreationTimestamp: metav1.NewTime(h.clock.Now()),
		},
	}
	if !h.oneIn(4) {
		s.Spec.Selector = map[string]string{"app": h.one(apps...)}
	}
	h.services[name] = s
	h.x.SetService(s)
}

func (h *history) deleteService() {
	if name, s, ok := pick(h, h.services); ok {
		h.x.DeleteService(s)
		delete(h.services, name)
	}
}
