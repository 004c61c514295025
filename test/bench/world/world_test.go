// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package world

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/api/v1alpha1"
)

// delay is that of every version on every node in these tests.
const delay = time.Second

// scene is a world whose clock is set by hand.
type scene struct {
	*World
	clock *clocktesting.FakePassiveClock
}

func newScene() *scene {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	return &scene{New(Options{Least: delay, Most: delay, Clock: clock}), clock}
}

func (s *scene) pass(d time.Duration) { s.clock.SetTime(s.clock.Now().Add(d)) }

func (s *scene) namespace(name, team string) {
	s.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: name, Labels: map[string]string{"team": team, v1alpha1.KeyInject: v1alpha1.InjectNamespace},
	}})
}

// pod adds a Pod of an app, named and labelled so, with an address.
func (s *scene) pod(namespace, app, node, ip string) types.UID {
	uid := types.UID(namespace + "/" + app)
	s.SetPod(podOf(namespace, app, node, ip))
	return uid
}

func podOf(namespace, app, node, ip string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: app, UID: types.UID(namespace + "/" + app), Labels: map[string]string{"app": app},
		},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{
			Ports: []corev1.ContainerPort{{Name: "sql", ContainerPort: 3306, Protocol: corev1.ProtocolTCP}},
		}}},
	}
	if ip != "" {
		p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	}
	return p
}

func app(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

// admit is a policy of db/db that admits a peer to a port.
func admit(peer networkingv1.NetworkPolicyPeer, port intstr.IntOrString) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "admit", UID: "admit", Generation: 1},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: *app("db"),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{peer},
				Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			}},
		},
	}
}

func (s *scene) policy(t *testing.T, np *networkingv1.NetworkPolicy) {
	t.Helper()
	if err := s.SetPolicy(np); err != nil {
		t.Fatal(err)
	}
}

// to is a flow to the database.
func to(src string, port uint16) flow.Flow {
	return flow.Flow{Protocol: flow.TCP, Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr("10.0.1.1"), Port: port}
}

func TestVerdict(t *testing.T) {
	const job, stranger, outside = "10.0.2.1", "10.0.2.2", "203.0.113.7"
	jobs := networkingv1.NetworkPolicyPeer{PodSelector: app("job")}
	team := networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "blue"}}}
	block := networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "203.0.113.0/24", Except: []string{"203.0.113.128/25"}}}
	cases := map[string]struct {
		peer *networkingv1.NetworkPolicyPeer
		port intstr.IntOrString
		node string
		flow flow.Flow
		want flow.Answer
	}{
		"without a policy everything is let through": {flow: to(stranger, 3306), want: flow.Allowed},
		"a rule admits whom it names":                {peer: &jobs, port: intstr.FromInt(3306), flow: to(job, 3306), want: flow.Allowed},
		"a rule admits to its port alone":            {peer: &jobs, port: intstr.FromInt(3306), flow: to(job, 3307), want: flow.Denied},
		"a stranger is denied":                       {peer: &jobs, port: intstr.FromInt(3306), flow: to(stranger, 3306), want: flow.Denied},
		"an address of nobody is denied":             {peer: &jobs, port: intstr.FromInt(3306), flow: to(outside, 3306), want: flow.Denied},
		"another node judges nothing":                {peer: &jobs, port: intstr.FromInt(3306), node: "n9", flow: to(stranger, 3306), want: flow.Allowed},
		"a port's name is the destination's":         {peer: &jobs, port: intstr.FromString("sql"), flow: to(job, 3306), want: flow.Allowed},
		"a port's name that is another number":       {peer: &jobs, port: intstr.FromString("sql"), flow: to(job, 3307), want: flow.Denied},
		"a namespace is named by its labels":         {peer: &team, port: intstr.FromInt(3306), flow: to(stranger, 3306), want: flow.Allowed},
		"a namespace of other labels is not":         {peer: &team, port: intstr.FromInt(3306), flow: to("10.0.3.1", 3306), want: flow.Denied},
		"a block admits its addresses":               {peer: &block, port: intstr.FromInt(3306), flow: to(outside, 3306), want: flow.Allowed},
		"a block does not admit what it excepts":     {peer: &block, port: intstr.FromInt(3306), flow: to("203.0.113.200", 3306), want: flow.Denied},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			s.namespace("db", "blue")
			s.namespace("green", "green")
			s.pod("db", "db", "n1", "10.0.1.1")
			s.pod("db", "job", "n2", job)
			s.pod("db", "other", "n2", stranger)
			s.pod("green", "job", "n3", "10.0.3.1")
			if tc.peer != nil {
				s.policy(t, admit(*tc.peer, tc.port))
			}
			s.pass(delay)
			node := tc.node
			if node == "" {
				node = "n1"
			}
			if got := s.Verdict(node, tc.flow, s.clock.Now()); got.Answer != tc.want {
				t.Errorf("%s on %s is %s: want %s", tc.flow, node, got, tc.want)
			}
		})
	}
}

func TestVerdictComesLate(t *testing.T) {
	jobs := networkingv1.NetworkPolicyPeer{PodSelector: app("job")}
	cases := map[string]struct {
		change func(t *testing.T, s *scene)
		flow   flow.Flow
		// before is the answer until the node has realized the change.
		before, after flow.Answer
	}{
		"a Pod is open until its isolation is realized": {
			change: func(t *testing.T, s *scene) { t.Helper(); s.policy(t, admit(jobs, intstr.FromInt(3306))) },
			flow:   to("10.0.2.2", 3306), before: flow.Allowed, after: flow.Denied,
		},
		"a peer is refused until it is known": {
			change: func(t *testing.T, s *scene) {
				t.Helper()
				s.policy(t, admit(jobs, intstr.FromInt(3306)))
				s.pass(delay)
				s.pod("db", "job", "n2", "10.0.2.1")
			},
			flow: to("10.0.2.1", 3306), before: flow.Denied, after: flow.Allowed,
		},
		"a peer that is gone is let in until that is known": {
			change: func(t *testing.T, s *scene) {
				t.Helper()
				s.policy(t, admit(jobs, intstr.FromInt(3306)))
				uid := s.pod("db", "job", "n2", "10.0.2.1")
				s.pass(2 * delay)
				s.DeletePod(uid)
			},
			flow: to("10.0.2.1", 3306), before: flow.Allowed, after: flow.Denied,
		},
		"a policy that is gone isolates until that is known": {
			change: func(t *testing.T, s *scene) {
				t.Helper()
				s.policy(t, admit(jobs, intstr.FromInt(3306)))
				s.pass(2 * delay)
				s.DeletePolicy("admit")
			},
			flow: to("10.0.2.2", 3306), before: flow.Denied, after: flow.Allowed,
		},
		"an edited policy is the former until the edit is known": {
			change: func(t *testing.T, s *scene) {
				t.Helper()
				s.policy(t, admit(networkingv1.NetworkPolicyPeer{PodSelector: app("other")}, intstr.FromInt(3306)))
				s.pass(2 * delay)
				next := admit(jobs, intstr.FromInt(3306))
				next.Generation = 2
				s.policy(t, next)
			},
			flow: to("10.0.2.2", 3306), before: flow.Allowed, after: flow.Denied,
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			s.namespace("db", "blue")
			s.pod("db", "db", "n1", "10.0.1.1")
			s.pod("db", "other", "n2", "10.0.2.2")
			s.pass(2 * delay)
			tc.change(t, s)
			now := s.clock.Now()
			if got := s.Verdict("n1", tc.flow, now.Add(delay-1)); got.Answer != tc.before {
				t.Errorf("%s is %s before the node has realized the change: want %s", tc.flow, got, tc.before)
			}
			if got := s.Verdict("n1", tc.flow, now.Add(delay)); got.Answer != tc.after {
				t.Errorf("%s is %s when the node has realized the change: want %s", tc.flow, got, tc.after)
			}
		})
	}
}

func TestPause(t *testing.T) {
	const early, late = "10.0.2.1", "10.0.2.2"
	s := newScene()
	s.namespace("db", "blue")
	s.pod("db", "db", "n1", "10.0.1.1")
	s.policy(t, admit(networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}}, intstr.FromInt(3306)))
	s.pod("db", "early", "n2", early)
	s.pass(delay)
	s.Pause("db")
	uid := s.pod("db", "late", "n2", late)
	s.pass(100 * delay)
	expect := func(when, src string, want flow.Answer) {
		t.Helper()
		if got := s.Verdict("n1", to(src, 3306), s.clock.Now()); got.Answer != want {
			t.Errorf("%s: %s is %s: want %s", when, src, got, want)
		}
	}
	expect("while engines rest", early, flow.Allowed)
	expect("while engines rest", late, flow.Denied)
	if opening := s.Opened(uid, s.clock.Now()); len(opening.Wrong) == 0 {
		t.Error("a gate that opens while engines rest is not judged as wrong")
	}
	s.Resume("db")
	s.pass(delay / 2)
	expect("before engines are done", late, flow.Denied)
	s.pass(delay)
	expect("when engines are done", late, flow.Allowed)
	s.pod("db", "next", "n2", "10.0.2.3")
	s.pass(delay)
	expect("afterwards", "10.0.2.3", flow.Allowed)
}

func TestDelays(t *testing.T) {
	d := delays{seed: 7, least: 10, most: 1000}
	seen := map[time.Duration]bool{}
	for node := range uint64(10) {
		for version := range uint64(10) {
			got := d.of(node, 1, version)
			if got < 10 || got >= 1000 {
				t.Fatalf("delay of version %d on node %d is %s: want 10ns to 1µs", version, node, got)
			}
			if again := d.of(node, 1, version); again != got {
				t.Fatalf("delay of version %d on node %d is %s, then %s", version, node, got, again)
			}
			seen[got] = true
		}
	}
	if len(seen) < 50 {
		t.Errorf("100 delays have %d values: want them spread", len(seen))
	}
}

func TestOpened(t *testing.T) {
	jobs := networkingv1.NetworkPolicyPeer{PodSelector: app("job")}
	addressed := func(s *scene, name string) types.UID {
		s.SetPod(podOf("db", name, "n2", ""))
		s.pass(time.Millisecond)
		return s.pod("db", name, "n2", "10.0.2.1")
	}
	cases := map[string]struct {
		// do returns the Pod whose gate opens when do has returned.
		do func(t *testing.T, s *scene) types.UID
		// wrong is part of the only thing that is wrong, or empty.
		wrong            string
		strangers, peers int
	}{
		"a peer that everybody knows": {
			do: func(t *testing.T, s *scene) types.UID {
				t.Helper()
				s.policy(t, admit(jobs, intstr.FromInt(3306)))
				s.pass(2 * delay)
				uid := addressed(s, "job")
				s.pass(delay)
				return uid
			},
			peers: 1,
		},
		"a peer that the database's node does not know yet": {
			do: func(t *testing.T, s *scene) types.UID {
				t.Helper()
				s.policy(t, admit(jobs, intstr.FromInt(3306)))
				s.pass(2 * delay)
				return addressed(s, "job")
			},
			peers: 1, wrong: "is denied on n1, though db/admit ingress[0] admits it",
		},
		"a peer that is let in only because the policy has not come": {
			do: func(t *testing.T, s *scene) types.UID {
				t.Helper()
				s.policy(t, admit(jobs, intstr.FromInt(3306)))
				s.pass(time.Millisecond)
				// The node knows the policy before it knows the Pod.
				return addressed(s, "job")
			},
			peers: 1, wrong: "is denied on n1 998ms later",
		},
		"a policy that is younger than the Pod binds nobody": {
			do: func(t *testing.T, s *scene) types.UID {
				t.Helper()
				uid := addressed(s, "job")
				s.policy(t, admit(jobs, intstr.FromInt(3306)))
				return uid
			},
		},
		"a Pod whose isolation is in force": {
			do: func(t *testing.T, s *scene) types.UID {
				t.Helper()
				np := admit(jobs, intstr.FromInt(3306))
				np.Spec.PodSelector = *app("server")
				s.policy(t, np)
				s.pass(2 * delay)
				uid := addressed(s, "server")
				s.pass(delay)
				return uid
			},
			strangers: 2,
		},
		"a Pod that is open still": {
			do: func(t *testing.T, s *scene) types.UID {
				t.Helper()
				np := admit(jobs, intstr.FromInt(3306))
				np.Spec.PodSelector = *app("server")
				s.policy(t, np)
				s.pass(2 * delay)
				return addressed(s, "server")
			},
			strangers: 2, wrong: "is allowed on n2, though db/admit isolates it",
		},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			s.namespace("db", "blue")
			s.pod("db", "db", "n1", "10.0.1.1")
			s.pass(2 * delay)
			got := s.Opened(tc.do(t, s), s.clock.Now())
			if got.Unjudged != "" || got.Strangers != tc.strangers || got.Peers != tc.peers {
				t.Errorf("judged %d strangers and %d peers (%s): want %d and %d", got.Strangers, got.Peers, got.Unjudged, tc.strangers, tc.peers)
			}
			if tc.wrong == "" {
				if len(got.Wrong) > 0 {
					t.Errorf("wrong is %q: want nothing", got.Wrong)
				}
				return
			}
			if len(got.Wrong) == 0 || !strings.Contains(got.Wrong[0], tc.wrong) {
				t.Errorf("wrong is %q: want %q", got.Wrong, tc.wrong)
			}
		})
	}
}

func BenchmarkVerdict(b *testing.B) {
	s := newScene()
	s.namespace("db", "blue")
	s.pod("db", "db", "n1", "10.0.1.1")
	s.pod("db", "job", "n2", "10.0.2.1")
	if err := s.SetPolicy(admit(networkingv1.NetworkPolicyPeer{PodSelector: app("job")}, intstr.FromInt(3306))); err != nil {
		b.Fatal(err)
	}
	at := s.clock.Now().Add(delay)
	for b.Loop() {
		s.Verdict("n1", to("10.0.2.1", 3306), at)
	}
}
