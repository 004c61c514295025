// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/programmed"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/expect"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// api stands for the API server: it numbers what is written and feeds it to an
// index.
type api struct {
	x       *Index
	clock   *testingclock.FakeClock
	version int
}

func newAPI() *api {
	a := &api{clock: testingclock.NewFakeClock(epoch), version: 100}
	o := DefaultOptions()
	o.Clock = a.clock
	a.x = New(o)
	a.x.Listed()
	return a
}

func (a *api) next() string {
	a.version++
	return strconv.Itoa(a.version)
}

func (a *api) node(name, cidr string, change ...func(*corev1.Node)) {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{cidr}},
	}
	n.Status.NodeInfo.BootID = "boot-" + name
	for _, c := range change {
		c(n)
	}
	a.x.SetNode(n)
}

func (a *api) namespace(name string, kv ...string) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, UID: types.UID("ns " + name), ResourceVersion: a.next(),
		Labels: map[string]string{"name": name, v1alpha1.KeyInject: v1alpha1.InjectNamespace},
	}}
	for i := 0; i+1 < len(kv); i += 2 {
		ns.Labels[kv[i]] = kv[i+1]
	}
	a.x.SetNamespace(ns)
	return ns
}

type podChange func(*corev1.Pod)

func gated(p *corev1.Pod) {
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
}

func opened(p *corev1.Pod) {
	gated(p)
	id := programmed.Identity{UID: string(p.UID), BootID: "boot-" + p.Spec.NodeName}
	for _, ip := range p.Status.PodIPs {
		one, err := programmed.New(id.UID, []string{ip.IP}, id.BootID)
		if err != nil {
			panic(err) // a test's own address
		}
		id.IPs = append(id.IPs, one.IPs...)
	}
	p.Annotations = map[string]string{v1alpha1.KeyProgrammed: id.String()}
	p.Status.Conditions = []corev1.PodCondition{{Type: v1alpha1.ConditionProgrammed, Status: corev1.ConditionTrue}}
}

func app(name string) podChange { return func(p *corev1.Pod) { p.Labels["app"] = name } }

func annotated(key, value string) podChange {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{key: value} }
}

// before does write as if it were among what was there at the start.
func (a *api) before(write func()) {
	a.x.listed = false
	write()
	a.x.Listed()
}

// pod writes a Pod whose UID is its name, and then its addresses if it has any.
func (a *api) pod(name, node, ips string, changes ...podChange) *corev1.Pod {
	ns, short, _ := strings.Cut(name, "/")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: short, UID: types.UID(name), ResourceVersion: a.next(), Generation: 1,
			CreationTimestamp: metav1.NewTime(epoch.Add(time.Duration(a.version)*time.Second - 24*time.Hour)),
			Labels:            map[string]string{"app": short},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c"}}},
	}
	for ip := range strings.FieldsSeq(ips) {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	for _, c := range changes {
		c(p)
	}
	if _, known := a.x.pods[p.UID]; !known && a.x.listed && len(p.Status.PodIPs) > 0 {
		young := p.DeepCopy()
		young.Status.PodIPs = nil
		a.x.SetPod(young)
	}
	a.x.SetPod(p)
	return p
}

// again writes a changed copy of p.
func (a *api) again(p *corev1.Pod, changes ...podChange) *corev1.Pod {
	p = p.DeepCopy()
	p.ResourceVersion = a.next()
	for _, c := range changes {
		c(p)
	}
	a.x.SetPod(p)
	return p
}

// policy writes a policy that admits to selected whom peer means, on 3306.
func (a *api) policy(name, selected string, peer networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	ns, short, _ := strings.Cut(name, "/")
	port := intstr.FromInt32(3306)
	q := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns, Name: short, UID: types.UID("np " + name),
			ResourceVersion: a.next(), Generation: int64(a.version),
		},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *selector(selected),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{peer},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
	a.x.SetPolicy(q)
	return q
}

func selector(name string) *metav1.LabelSelector {
	if name == "" {
		return &metav1.LabelSelector{}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func pods(name string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: selector(name)}
}

func podsOfTeam(team, name string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{
		PodSelector:       selector(name),
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": team}},
	}
}

// asked renders what one node is asked for a subject.
func asked(list []expect.Expectation) string {
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s %s", e.Want, e.Flow))
	}
	return strings.Join(out, "\n")
}
