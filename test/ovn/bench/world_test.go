// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package bench_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
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
	"github.com/policygate/policygate/internal/ovs/ovsdb"
	"github.com/policygate/policygate/test/ovn/engine"
	"github.com/policygate/policygate/test/ovn/fixture"
)

const (
	servedPort = 80
	// peersOfAll is how many Pods each policy admits, at most.
	peersOfAll = 200
	// allowedSet and serverGroup are what Kube-OVN writes for the policy that is
	// measured.
	allowedSet  = "measured.bench.ingress.allow.IPv4.0"
	serverGroup = "measured.bench"
)

// size is how large the cluster is.
type size struct{ pods, policies int }

func (s size) String() string { return fmt.Sprintf("%dPods%dPolicies", s.pods, s.policies) }

func sizes() []size { return []size{{3, 1}, {300, 100}} }

// world is a cluster of a server on n1, and a client on n2 that is in no address
// set, with other Pods and policies around them.
type world struct {
	testing.TB
	*fixture.Fixture
	server, client *fixture.Pod
	others         []*fixture.Pod
	agent          *agent
}

// newWorld returns one that all nodes have installed.
func newWorld(b *testing.B, s size) *world {
	b.Helper()
	w := &world{TB: b, Fixture: fixture.Start(b, fixture.Options{Nodes: 2})}
	named := func(name, node string) fixture.PodOptions {
		return fixture.PodOptions{Namespace: "bench", Name: name, Node: node}
	}
	w.server, w.client = w.AddPod(named("server", "n1")), w.AddPod(named("client", "n2"))
	if err := w.server.Listen(servedPort); err != nil {
		b.Fatal(err)
	}
	var more []fixture.PodOptions
	for i := range s.pods - 2 {
		o := named(fmt.Sprintf("other%d", i), fmt.Sprintf("n%d", 1+i%2))
		o.Bare = true
		more = append(more, o)
	}
	w.others = w.AddPods(more...)
	if err := w.WaitInstalled(b.Context()); err != nil {
		b.Fatal(err)
	}
	port := intstr.FromInt32(servedPort)
	cluster := engine.Cluster{Namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}}}
	policy := func(name, selects, admits string) {
		cluster.Policies = append(cluster.Policies, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "bench", Name: name},
			Spec: networkingv1.NetworkPolicySpec{
				PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": selects}},
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
				Ingress: []networkingv1.NetworkPolicyIngressRule{{
					From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"peer": admits}}}},
					Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
				}},
			},
		})
	}
	policy("measured", "server", "all")
	for i := range s.policies - 1 {
		policy(fmt.Sprintf("policy%d", i), fmt.Sprintf("app%d", i), "all")
	}
	cluster.Pods = append(cluster.Pods, w.server.Object(map[string]string{"app": "server"}), w.client.Object(nil))
	for i, p := range w.others {
		labels := map[string]string{"app": fmt.Sprintf("app%d", i%max(1, s.policies-1))}
		if i < peersOfAll {
			labels["peer"] = "all"
		}
		cluster.Pods = append(cluster.Pods, p.Object(labels))
	}
	if err := engine.New(w, engine.Options{Shape: engine.Release116()}).Sync(b.Context(), cluster); err != nil {
		b.Fatal(err)
	}
	if err := w.Sync(b.Context()); err != nil {
		b.Fatal(err)
	}
	w.agent = startAgent(b, w.Node("n1"))
	return w
}

// admit commits that the client is in the address set, or is not.
func (w *world) admit(admitted bool) {
	w.Helper()
	mutator := "delete"
	if admitted {
		mutator = "insert"
	}
	if _, err := w.Transact(w.Context(), fixture.Operation{"op": "mutate", "table": "Address_Set", "where": fixture.NameIs(allowedSet),
		"mutations": []any{[]any{"addresses", mutator, fixture.Set(w.client.IP().String())}}}); err != nil {
		w.Fatal(err)
	}
}

// awaitAcknowledged counts the northbound database up and returns how long it
// took until all nodes had acknowledged that.
func (w *world) awaitAcknowledged() time.Duration {
	w.Helper()
	began := time.Now()
	global := fixture.Operation{"op": "select", "table": "NB_Global", "where": []any{}, "columns": []string{"nb_cfg", "hv_cfg"}}
	results, err := w.Transact(w.Context(),
		fixture.Operation{"op": "mutate", "table": "NB_Global", "where": []any{}, "mutations": []any{[]any{"nb_cfg", "+=", 1}}}, global)
	if err != nil {
		w.Fatal(err)
	}
	for want := results[1].Rows[0]["nb_cfg"].(float64); ; time.Sleep(500 * time.Microsecond) {
		if results, err = w.Transact(w.Context(), global); err != nil {
			w.Fatal(err)
		}
		if results[0].Rows[0]["hv_cfg"].(float64) >= want {
			return time.Since(began)
		}
	}
}

// agent is the dataplane of a node's agent, which counts what it asks vswitchd.
type agent struct {
	*ovn.Dataplane
	noticed chan struct{}

	mu     sync.Mutex // guards what follows
	traces int
	// waited is how long the waits for the flow cache took that have ended.
	waited time.Duration
}

func startAgent(b *testing.B, n *fixture.Node) *agent {
	b.Helper()
	a := &agent{noticed: make(chan struct{}, 1)}
	client, err := ovsdb.New(ovsdb.Options{
		Endpoints: []string{"unix:" + filepath.Join(n.RunDir(), "db.sock")}, Database: ovn.DatabaseName, Tables: ovn.Tables(),
		Clock: clock.RealClock{}, Changed: func() { a.Changed() },
	})
	if err != nil {
		b.Fatal(err)
	}
	connect := ovn.Connector(n.RunDir(), clock.RealClock{})
	a.Dataplane = ovn.New(ovn.Options{
		Connect: func(ctx context.Context) (ovn.Session, error) {
			s, err := connect(ctx)
			return counted{s, a}, err
		},
		Database: ovn.NewView(client), Routes: routesOf{n}, Clock: clock.RealClock{}, Registerer: prometheus.NewRegistry(),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := client.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	running.Go(func() {
		a.Watch(ctx, func(string) {
			select {
			case a.noticed <- struct{}{}:
			default:
			}
		})
	})
	b.Cleanup(func() {
		cancel()
		running.Wait()
		a.Close()
	})
	for {
		if _, err := client.View(); err == nil {
			return a
		}
		time.Sleep(time.Millisecond)
	}
}

// counted is a session whose calls are counted.
type counted struct {
	ovn.Session
	agent *agent
}

// Trace implements ovn.Session.
func (c counted) Trace(ctx context.Context, bridge, flow string) (string, error) {
	c.agent.mu.Lock()
	c.agent.traces++
	c.agent.mu.Unlock()
	return c.Session.Trace(ctx, bridge, flow)
}

// WaitRevalidators implements ovn.Session.
func (c counted) WaitRevalidators(ctx context.Context) error {
	began := time.Now()
	err := c.Session.WaitRevalidators(ctx)
	c.agent.mu.Lock()
	c.agent.waited += time.Since(began)
	c.agent.mu.Unlock()
	return err
}

// spent returns how many traces there were, and how long waits took, so far.
func (a *agent) spent() (traces int, waited time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.traces, a.waited
}

// routesOf are those of a node's namespace.
type routesOf struct{ node *fixture.Node }

// NextHop implements ovn.Routes.
func (r routesOf) NextHop(device string, to netip.Addr) (hop, own netip.Addr, err error) {
	r.node.Enter(func() { hop, own, err = ovn.KernelRoutes{}.NextHop(device, to) })
	return hop, own, err
}

// percentile returns one of some times, in milliseconds.
func percentile(times []time.Duration, p float64) float64 {
	times = slices.Sorted(slices.Values(times))
	return float64(times[int(p*float64(len(times)-1))]) / float64(time.Millisecond)
}
