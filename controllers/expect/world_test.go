// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/flow"
)

// world builds a cluster of API objects, so that tests cover their reading.
type world struct {
	t          *testing.T
	pods       []*corev1.Pod
	policies   []*networkingv1.NetworkPolicy
	namespaces []*corev1.Namespace
	nodes      []*Node
}

type podOption func(*corev1.Pod)

// pod adds a Pod; each is a second younger than the one before.
func (w *world) pod(name, node, ips string, options ...podOption) {
	ns, short, _ := strings.Cut(name, "/")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: short, UID: types.UID(name),
			CreationTimestamp: metav1.NewTime(time.Unix(int64(len(w.pods)), 0)),
			Labels:            map[string]string{"app": short},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c"}}},
	}
	for ip := range strings.FieldsSeq(ips) {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	for _, option := range options {
		option(p)
	}
	w.pods = append(w.pods, p)
}

func labelled(name string) podOption { return func(p *corev1.Pod) { p.Labels["app"] = name } }

func port(name string, number int32) podOption {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports,
			corev1.ContainerPort{Name: name, ContainerPort: number, Protocol: corev1.ProtocolTCP})
	}
}

func sidecarPort(name string, number int32) podOption {
	return func(p *corev1.Pod) {
		always := corev1.ContainerRestartPolicyAlways
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
			RestartPolicy: &always,
			Ports:         []corev1.ContainerPort{{Name: name, ContainerPort: number, Protocol: corev1.ProtocolTCP}},
		})
	}
}

func (w *world) namespace(name string, inject bool, kv ...string) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}}
	for i := 0; i+1 < len(kv); i += 2 {
		ns.Labels[kv[i]] = kv[i+1]
	}
	if inject {
		ns.Labels["policygate.io/inject"] = "enabled"
	}
	w.namespaces = append(w.namespaces, ns)
}

func (w *world) node(name string, cidrs ...string) *Node {
	n := &Node{Name: name}
	for _, c := range cidrs {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	w.nodes = append(w.nodes, n)
	return n
}

// policy adds a policy that selects app=selected; "" selects all.
func (w *world) policy(name, selected string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	ns, short, _ := strings.Cut(name, "/")
	if selected != "" {
		spec.PodSelector = *app(selected)
	}
	if spec.PolicyTypes == nil {
		if spec.Ingress != nil || spec.Egress == nil {
			spec.PolicyTypes = append(spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		}
		if spec.Egress != nil {
			spec.PolicyTypes = append(spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	q := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: short, UID: types.UID("policy " + name)},
		Spec:       spec,
	}
	w.policies = append(w.policies, q)
	return q
}

type (
	spec  = networkingv1.NetworkPolicySpec
	in    = networkingv1.NetworkPolicyIngressRule
	out   = networkingv1.NetworkPolicyEgressRule
	peer  = networkingv1.NetworkPolicyPeer
	pport = networkingv1.NetworkPolicyPort
)

func app(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func pods(name string) peer { return peer{PodSelector: app(name)} }

func podsIn(namespace, name string) peer {
	return peer{
		PodSelector:       app(name),
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": namespace}},
	}
}

func everywhere() peer { return peer{NamespaceSelector: &metav1.LabelSelector{}} }

func block(cidr string, except ...string) peer {
	return peer{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}
}

func from(peers ...peer) []peer { return peers }

func tcp(ports ...any) []pport {
	var list []pport
	for _, p := range ports {
		switch v := p.(type) {
		case int:
			n := intstr.FromInt32(int32(v))
			list = append(list, pport{Port: &n})
		case string:
			n := intstr.FromString(v)
			list = append(list, pport{Port: &n})
		case [2]int32:
			n := intstr.FromInt32(v[0])
			list = append(list, pport{Port: &n, EndPort: &v[1]})
		}
	}
	return list
}

func proto(p corev1.Protocol, ports ...any) []pport {
	list := tcp(ports...)
	if len(ports) == 0 {
		list = []pport{{}}
	}
	for i := range list {
		list[i].Protocol = &p
	}
	return list
}

// cluster gives the Pods a Seq in the order in which they were added.
func (w *world) cluster() *Cluster {
	w.t.Helper()
	c := NewCluster()
	for _, n := range w.nodes {
		c.SetNode(n)
	}
	for _, ns := range w.namespaces {
		c.SetNamespace(&Namespace{
			Name: ns.Name, Labels: ns.Labels,
			Inject: ns.Labels["policygate.io/inject"] == "enabled",
		})
	}
	for _, np := range w.policies {
		q, err := NewPolicy(np)
		if err != nil {
			w.t.Fatal(err)
		}
		c.SetPolicy(q)
	}
	for i, pod := range w.pods {
		p := NewPod(pod)
		p.Seq = uint64(i + 1)
		c.SetPod(p)
	}
	return c
}

func (w *world) expect(name string) Result {
	w.t.Helper()
	return w.expectWith(name, DefaultOptions(), nil)
}

func (w *world) expectWith(name string, o Options, change func(*Subject)) Result {
	w.t.Helper()
	c := w.cluster()
	p := c.Pod(types.UID(name))
	if p == nil {
		w.t.Fatalf("no pod %s", name)
	}
	s := Subject{Pod: p}
	if change != nil {
		change(&s)
	}
	return c.Expect(s, o)
}

// lines renders what a node is asked, sorted: "allowed tcp a -> b:1 advisory".
func lines(list []Expectation) []string {
	var out []string
	for _, e := range list {
		line := e.Want.String() + " " + e.Flow.String()
		if e.Advisory {
			line += " advisory"
		}
		if e.External {
			line += " external"
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// find returns the expectation for a flow on a node, in the words of
// flow.String.
func find(r Result, node, text string) (Expectation, bool) {
	for _, e := range r.Nodes[node] {
		if e.Flow.String() == text {
			return e, true
		}
	}
	return Expectation{}, false
}

func wantFlow(t *testing.T, r Result, node, text string, want flow.Answer, advisory bool) {
	t.Helper()
	e, ok := find(r, node, text)
	if !ok {
		t.Errorf("%s is not asked %q; it is asked:\n%s", node, text, strings.Join(lines(r.Nodes[node]), "\n"))
		return
	}
	if e.Want != want || e.Advisory != advisory {
		t.Errorf("%s: %q: got %v advisory=%v, want %v advisory=%v", node, text, e.Want, e.Advisory, want, advisory)
	}
}

func wantNoFlow(t *testing.T, r Result, node, part string) {
	t.Helper()
	for _, line := range lines(r.Nodes[node]) {
		if strings.Contains(line, part) {
			t.Errorf("%s is asked %q, want nothing with %q", node, line, part)
		}
	}
}

func hasNote(r Result, kind NoteKind) bool {
	return slices.ContainsFunc(r.Notes, func(n Note) bool { return n.Kind == kind })
}

func addr(i, j int) string { return fmt.Sprintf("10.0.%d.%d", i, j) }

func policyTypes(list ...networkingv1.PolicyType) []networkingv1.PolicyType { return list }
