// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package engine_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// world is a fixture with a server and the Pods that dial it.
type world struct {
	*testing.T
	fixture *fixture.Fixture
	pods    map[string]*fixture.Pod
	labels  map[string]map[string]string
}

// newWorld has server and friend in namespace db and stranger in web, on as
// many nodes.
func newWorld(t *testing.T, options fixture.Options) *world {
	t.Helper()
	options.Nodes = 3
	w := &world{T: t, fixture: fixture.Start(t, options), pods: map[string]*fixture.Pod{}, labels: map[string]map[string]string{}}
	w.add("server", "db", "n1")
	w.add("friend", "db", "n2")
	w.add("stranger", "web", "n3")
	if err := w.fixture.WaitInstalled(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.pods["server"].Listen(80); err != nil {
		t.Fatal(err)
	}
	return w
}

// add adds a Pod with the label app of its name.
func (w *world) add(name, namespace, node string) {
	w.Helper()
	w.pods[name] = w.fixture.AddPod(fixture.PodOptions{Namespace: namespace, Name: name, Node: node})
	w.labels[name] = map[string]string{"app": name}
}

// cluster returns what the API has of the Pods that are named, with the
// policies given.
func (w *world) cluster(pods []string, policies ...*networkingv1.NetworkPolicy) engine.Cluster {
	c := engine.Cluster{Policies: policies}
	for _, name := range pods {
		c.Pods = append(c.Pods, w.pods[name].Object(w.labels[name]))
	}
	for _, n := range w.fixture.Nodes() {
		c.Nodes = append(c.Nodes, n.Object())
	}
	for _, name := range []string{"db", "web"} {
		c.Namespaces = append(c.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}})
	}
	return c
}

// sync waits until the nodes have what the northbound database has.
func (w *world) sync() {
	w.Helper()
	if err := w.fixture.Sync(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// want dials the server's ports 80, where it listens, and 81.
func (w *world) want(from string, at80, at81 fixture.Outcome) {
	w.Helper()
	for port, want := range map[uint16]fixture.Outcome{80: at80, 81: at81} {
		if got, err := w.pods[from].Dial(w.pods["server"], port); err != nil || got != want {
			w.Errorf("%s to server:%d is %q, %v, want %q", from, port, got, err, want)
		}
	}
}

// fromFriend lets friend reach port 80 of server.
func fromFriend() *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(80)
	tcp := corev1.ProtocolTCP
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "db", Name: "from-friend"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "friend"}}}},
				Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}},
			}},
		},
	}
}

func TestPolicyAdmitsItsPeersAndRefusesOthers(t *testing.T) {
	for name, shape := range map[string]engine.Shape{"1.15": engine.Release115(), "1.16": engine.Release116()} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fixture.Options{})
			e := engine.New(w.fixture, engine.Options{Shape: shape})
			all := []string{"server", "friend", "stranger"}
			w.want("stranger", fixture.Open, fixture.Refused)
			if err := e.Sync(t.Context(), w.cluster(all, fromFriend())); err != nil {
				t.Fatal(err)
			}
			w.sync()
			w.want("friend", fixture.Open, fixture.Silent)
			w.want("stranger", fixture.Silent, fixture.Silent)
			if err := e.Sync(t.Context(), w.cluster(all)); err != nil {
				t.Fatal(err)
			}
			w.sync()
			w.want("stranger", fixture.Open, fixture.Refused)
		})
	}
}
