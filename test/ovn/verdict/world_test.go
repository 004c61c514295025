// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/ovn"
	"github.com/policygate/policygate/api/flow"
	"github.com/policygate/policygate/internal/ovs/ovsdb"
	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

// world is a fixture with four Pods and an agent's view of each node.
type world struct {
	testing.TB
	fixture *fixture.Fixture
	engine  *engine.Engine
	pods    map[string]*fixture.Pod
	nodes   map[string]*view
}

// view is OVN's dataplane on a node.
type view struct {
	*ovn.Dataplane
	registry *prometheus.Registry
	told     chan struct{}
}

// routes are those of a fixture's node.
type routes struct{ *fixture.Node }

func (r routes) NextHop(device string, to netip.Addr) (hop, own netip.Addr, err error) {
	r.Enter(func() { hop, own, err = ovn.KernelRoutes{}.NextHop(device, to) })
	return hop, own, err
}

// where the Pods are.
var where = map[string]string{"server": "n1", "beside": "n1", "friend": "n2", "stranger": "n2"}

// newWorld has server and friend in namespace db, beside and stranger in web.
// All listen on port 80. With one node, all are there.
func newWorld(tb testing.TB, options fixture.Options) *world {
	tb.Helper()
	w := &world{TB: tb, fixture: fixture.Start(tb, options), pods: map[string]*fixture.Pod{}, nodes: map[string]*view{}}
	w.engine = engine.New(w.fixture, engine.Options{Shape: engine.Release116()})
	for _, n := range w.fixture.Nodes() {
		w.nodes[n.Name()] = w.open(n)
	}
	for name, node := range where {
		if w.nodes[node] == nil {
			node = "n1"
		}
		w.pods[name] = w.fixture.AddPod(fixture.PodOptions{Namespace: namespaceOf(name), Name: name, Node: node})
	}
	w.must(w.fixture.WaitInstalled(tb.Context()))
	for _, p := range w.pods {
		w.must(p.Listen(80))
	}
	for name, p := range w.pods {
		w.eventually(name+" is local", func() bool { return w.nodes[p.Node().Name()].knows(p) })
	}
	return w
}

func namespaceOf(pod string) string {
	if pod == "server" || pod == "friend" {
		return "db"
	}
	return "web"
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) eventually(what string, so func() bool) {
	w.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("after 30s it is not so that %s", what)
		}
	}
}

func (w *world) open(n *fixture.Node) *view {
	w.Helper()
	v := &view{registry: prometheus.NewRegistry(), told: make(chan struct{}, 1)}
	client, err := ovsdb.New(ovsdb.Options{
		Endpoints: []string{"unix:" + n.RunDir() + "/db.sock"}, Database: ovn.DatabaseName, Tables: ovn.Tables(), Clock: clock.RealClock{},
	})
	w.must(err)
	v.Dataplane = ovn.New(ovn.Options{
		Connect: ovn.Connector(n.RunDir(), clock.RealClock{}), Database: ovn.NewView(client), Routes: routes{n},
		Clock: clock.RealClock{}, Registerer: v.registry,
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = client.Run(ctx) })
	running.Go(func() {
		v.Watch(ctx, func(string) {
			select {
			case v.told <- struct{}{}:
			default:
			}
		})
	})
	w.Cleanup(func() { cancel(); running.Wait(); v.Close() })
	return v
}

func (v *view) knows(p *fixture.Pod) bool {
	_, err := v.Survey(context.Background())
	return err == nil && v.Local(p.IP())
}

// ask answers once.
func (v *view) ask(ctx context.Context, flows ...flow.Flow) ([]ovn.Answer, error) {
	look, err := v.Look(ctx)
	if err != nil {
		return nil, err
	}
	questions := make([]ovn.Question, len(flows))
	for i, f := range flows {
		questions[i] = ovn.Question{Flow: f, External: !strings.HasPrefix(f.Dst.String(), "10.16.")}
	}
	return look.Together(ctx, questions)
}

const cached = "flow cache"

// settled asks until no answer waits for the flow cache.
func (v *view) settled(w *world, flows ...flow.Flow) []ovn.Answer {
	w.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		answers, err := v.ask(w.Context(), flows...)
		w.must(err)
		waiting := false
		for _, a := range answers {
			waiting = waiting || strings.Contains(a.Verdict.Reason, cached)
		}
		if !waiting {
			return answers
		}
		if time.Now().After(deadline) {
			w.Fatalf("after 30s the flow cache is still waited for: %v", answers)
		}
		select {
		case <-v.told:
		case <-time.After(time.Second):
		}
	}
}

// dial is a way from one Pod to another.
type dial struct {
	from, to string
	port     uint16
}

func (w *world) flow(d dial) flow.Flow {
	return flow.Flow{Protocol: flow.TCP, Src: w.pods[d.from].IP(), Dst: w.pods[d.to].IP(), Port: d.port}
}

// verdicts returns what the nodes of both ends say together of each way, as a
// packet meets them.
func (w *world) verdicts(dials ...dial) []flow.Verdict {
	w.Helper()
	all := make([]flow.Verdict, len(dials))
	for i := range all {
		all[i] = flow.Verdict{Answer: flow.Allowed}
	}
	for name, v := range w.nodes {
		var flows []flow.Flow
		var of []int
		for i, d := range dials {
			if w.pods[d.from].Node().Name() == name || w.pods[d.to].Node().Name() == name {
				flows, of = append(flows, w.flow(d)), append(of, i)
			}
		}
		for i, a := range v.settled(w, flows...) {
			at := of[i]
			switch {
			case all[at].Answer == flow.Denied:
			case a.Verdict.Answer != flow.Allowed:
				all[at] = a.Verdict
			}
		}
	}
	return all
}

// agree compares the verdicts with packets.
func (w *world) agree(dials ...dial) {
	w.Helper()
	verdicts := w.verdicts(dials...)
	var packets sync.WaitGroup
	for i, d := range dials {
		packets.Go(func() {
			got, err := w.pods[d.from].Dial(w.pods[d.to], d.port)
			want := flow.Allowed
			if got == fixture.Silent {
				want = flow.Denied
			}
			if err != nil || verdicts[i].Answer != want {
				w.Errorf("%s to %s:%d is %s; the packet is %q, %v", d.from, d.to, d.port, verdicts[i], got, err)
			}
		})
	}
	packets.Wait()
}

// everyWay is from each Pod to each other, to the server by two ports.
func everyWay() []dial {
	var all []dial
	for from := range where {
		for to := range where {
			if from == to {
				continue
			}
			all = append(all, dial{from, to, 80})
			if to == "server" {
				all = append(all, dial{from, to, 81})
			}
		}
	}
	return all
}

// cluster returns what the API has, with the policies given.
func (w *world) cluster(policies ...*networkingv1.NetworkPolicy) engine.Cluster {
	c := engine.Cluster{Policies: policies}
	for name, p := range w.pods {
		c.Pods = append(c.Pods, p.Object(map[string]string{"app": name}))
	}
	for _, n := range w.fixture.Nodes() {
		c.Nodes = append(c.Nodes, n.Object())
	}
	for _, name := range []string{"db", "web"} {
		c.Namespaces = append(c.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}})
	}
	return c
}

// apply writes the policies and waits for the nodes.
func (w *world) apply(policies ...*networkingv1.NetworkPolicy) {
	w.Helper()
	w.must(w.engine.Sync(w.Context(), w.cluster(policies...)))
	w.must(w.fixture.Settle(w.Context()))
}

func selects(namespace, app string, types ...networkingv1.PolicyType) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "of-" + app},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, PolicyTypes: types,
		},
	}
}

func tcp80() []networkingv1.NetworkPolicyPort {
	port, protocol := intstr.FromInt32(80), corev1.ProtocolTCP
	return []networkingv1.NetworkPolicyPort{{Protocol: &protocol, Port: &port}}
}

func peersOf(app string) []networkingv1.NetworkPolicyPeer {
	return []networkingv1.NetworkPolicyPeer{{
		PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, NamespaceSelector: &metav1.LabelSelector{},
	}}
}

// fromFriend lets friend reach port 80 of server.
func fromFriend() *networkingv1.NetworkPolicy {
	p := selects("db", "server", networkingv1.PolicyTypeIngress)
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peersOf("friend"), Ports: tcp80()}}
	return p
}

// toServer lets a Pod send to port 80 of server and nowhere else.
func toServer(app string) *networkingv1.NetworkPolicy {
	p := selects(namespaceOf(app), app, networkingv1.PolicyTypeEgress)
	p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peersOf("server"), Ports: tcp80()}}
	return p
}
