// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package expect_test

import (
	"fmt"
	"maps"
	"net/netip"
	"syscall"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/expect/scan"
)

// city is a cluster that is told to the index and to the scan.
type city struct {
	*expect.Cluster
	world *scan.World
	seq   uint64
}

func newCity(nodes int) *city {
	c := &city{Cluster: expect.NewCluster(), world: scan.New()}
	for i := range nodes {
		n := &expect.Node{
			Name:      fmt.Sprintf("n%d", i),
			PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
		}
		c.SetNode(n)
		c.world.NodesByName[n.Name] = n
	}
	return c
}

func (c *city) namespace(name string, labels map[string]string) {
	ns := &expect.Namespace{Name: name, Inject: true, Labels: map[string]string{"name": name}}
	maps.Copy(ns.Labels, labels)
	c.SetNamespace(ns)
	c.world.Namespaces[name] = ns
}

// pod returns the i-th Pod, which is not there yet.
func (c *city) pod(namespace, app string, node, i int) *expect.Pod {
	c.seq++
	return &expect.Pod{
		UID: types.UID(fmt.Sprintf("%s/p%d", namespace, i)), Namespace: namespace, Name: fmt.Sprintf("p%d", i),
		Labels:  map[string]string{"app": app},
		Node:    fmt.Sprintf("n%d", node),
		IPs:     []netip.Addr{netip.AddrFrom4([4]byte{10, byte(node >> 8), byte(node), byte(1 + i%250)})},
		Created: time.Unix(int64(c.seq), 0), Seq: c.seq,
	}
}

func (c *city) add(p *expect.Pod) {
	c.SetPod(p)
	c.world.Pods[p.UID] = p
}

func (c *city) policy(b *testing.B, namespace, name string, spec networkingv1.NetworkPolicySpec) *expect.Policy {
	b.Helper()
	q, err := expect.NewPolicy(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec})
	if err != nil {
		b.Fatal(err)
	}
	c.SetPolicy(q)
	c.world.Policies[types.NamespacedName{Namespace: namespace, Name: name}] = q
	return q
}

// admit is a policy that lets app=from into app=to.
func admit(to, from string) networkingv1.NetworkPolicySpec {
	port := intstr.FromInt32(3306)
	return networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": to}},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress: []networkingv1.NetworkPolicyIngressRule{{
			From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": from}}}},
			Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
		}},
	}
}

// metropolis is size times 5,000 Pods and 500 policies on 100 nodes, each
// namespace the same: 100 Pods of ten apps, ten policies.
func metropolis(b *testing.B, size int) *city {
	b.Helper()
	c := newCity(100 * size)
	for ns := range 50 * size {
		name := fmt.Sprintf("ns%d", ns)
		c.namespace(name, map[string]string{"tier": fmt.Sprint(ns % 5)})
		for q := range 10 {
			c.policy(b, name, fmt.Sprintf("q%d", q), admit(fmt.Sprintf("app%d", q), fmt.Sprintf("app%d", (q+1)%10)))
		}
	}
	for i := range 5000 * size {
		// Each namespace on a hundred nodes, each node with fifty Pods.
		c.add(c.pod(fmt.Sprintf("ns%d", i%(50*size)), fmt.Sprintf("app%d", i/(50*size)%10), i%(100*size), i/(100*size)+250*(i%(50*size))))
	}
	return c
}

// spending is the processor time that a benchmark takes, which says more than
// the clock on a machine that does other things too.
type spending struct {
	b     *testing.B
	start time.Duration
}

func processTime(b *testing.B) spending {
	b.Helper()
	return spending{b, cpu(b)}
}

func (s spending) report() {
	s.b.ReportMetric(float64(cpu(s.b)-s.start)/float64(s.b.N), "cpu-ns/op")
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

var sizes = []int{1, 10}

func BenchmarkExpect(b *testing.B) {
	for _, size := range sizes {
		c := metropolis(b, size)
		subject := c.pod("ns3", "app4", 7, 249)
		c.add(subject)
		b.Run(fmt.Sprintf("%dx", size), func(b *testing.B) {
			reportFlows(b, func() expect.Result { return c.Expect(expect.Subject{Pod: subject}, expect.DefaultOptions()) })
		})
	}
}

func reportFlows(b *testing.B, compute func() expect.Result) {
	b.Helper()
	b.ReportAllocs()
	flows, r := 0, expect.Result{}
	spent := processTime(b)
	for b.Loop() {
		r = compute()
	}
	spent.report()
	for _, list := range r.Nodes {
		flows += len(list)
	}
	b.ReportMetric(float64(flows), "flows")
	b.ReportMetric(float64(len(r.Span)), "nodes")
}

// BenchmarkBigNamespace is one Pod in a namespace where everybody may talk to
// everybody, of Pods with equal labels, and of Pods with labels of their own.
func BenchmarkBigNamespace(b *testing.B) {
	for _, kind := range []string{"equal", "unique"} {
		for _, n := range []int{300, 3000} {
			c := newCity(100)
			c.namespace("big", nil)
			c.namespace("other", nil)
			for i := range 20 {
				c.add(c.pod("other", "x", i, 240))
			}
			c.policy(b, "big", "default-deny", networkingv1.NetworkPolicySpec{
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			})
			own := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}}
			c.policy(b, "big", "allow-same-namespace", networkingv1.NetworkPolicySpec{
				PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
				Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{own}}},
				Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{own}}},
			})
			for i := range n {
				p := c.pod("big", "x", i%100, i/100)
				p.UID = types.UID(fmt.Sprintf("big/%d", i))
				if kind == "unique" {
					p.Labels["pod"] = string(p.UID)
				}
				c.add(p)
			}
			subject := c.pod("big", "x", 7, 230)
			c.add(subject)
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				reportFlows(b, func() expect.Result { return c.Expect(expect.Subject{Pod: subject}, expect.DefaultOptions()) })
			})
		}
	}
}

// BenchmarkEvents are the index's own costs: each iteration does and undoes.
func BenchmarkEvents(b *testing.B) {
	for _, size := range sizes {
		c := metropolis(b, size)
		for _, tc := range []struct {
			name string
			do   func()
		}{
			{"PodOfAKnownSet", func() {
				p := c.pod("ns3", "app4", 7, 248)
				c.SetPod(p)
				c.DeletePod(p.UID)
			}},
			{"PodOfANewSet", func() {
				p := c.pod("ns3", "app4", 7, 248)
				p.Labels["job"] = fmt.Sprint(c.seq)
				c.SetPod(p)
				c.DeletePod(p.UID)
			}},
			{"Policy", func() {
				q := c.policy(b, "ns3", "extra", admit("app1", "app7"))
				c.DeletePolicy(q.Namespace, q.Name)
			}},
			{"NamespaceLabel", func() {
				c.namespace("ns3", map[string]string{"tier": "9"})
				c.namespace("ns3", map[string]string{"tier": "3"})
			}},
			{"NodeOutAndBack", func() {
				n := *c.Node("n3")
				n.Out = true
				c.SetNode(&n)
				n2 := n
				n2.Out = false
				c.SetNode(&n2)
			}},
		} {
			b.Run(fmt.Sprintf("%s/%dx", tc.name, size), func(b *testing.B) {
				b.ReportAllocs()
				spent := processTime(b)
				for b.Loop() {
					tc.do()
				}
				spent.report()
			})
		}
	}
}

// BenchmarkNaive is what the index spares: every policy matched with every Pod.
func BenchmarkNaive(b *testing.B) {
	for _, size := range sizes {
		c := metropolis(b, size)
		policies := c.world.Sorted()
		b.Run(fmt.Sprintf("AllPodsAllPolicies/%dx", size), func(b *testing.B) {
			for b.Loop() {
				matches := 0
				for _, p := range c.world.Pods {
					for _, q := range policies {
						if q.Selects(p) {
							matches++
						}
					}
				}
				b.ReportMetric(float64(matches), "matches")
			}
		})
		if size > 1 {
			continue
		}
		subject := c.pod("ns3", "app4", 7, 249)
		c.add(subject)
		b.Run(fmt.Sprintf("Expect/%dx", size), func(b *testing.B) {
			reportFlows(b, func() expect.Result {
				return expect.Expect(c.world, expect.Subject{Pod: subject}, expect.DefaultOptions())
			})
		})
	}
}

// BenchmarkExpectPolicy is a policy that lets the Pods of a namespace talk to
// each other, on few nodes and on many: it costs by nodes, and little by Pods.
func BenchmarkExpectPolicy(b *testing.B) {
	for _, tc := range []struct{ nodes, pods int }{{10, 20}, {10, 2000}, {100, 2000}, {1000, 2000}} {
		c := newCity(1000)
		c.namespace("big", nil)
		c.namespace("other", nil)
		for i := range 20 {
			c.add(c.pod("other", "x", i, 240))
		}
		own := networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{}}
		q := c.policy(b, "big", "allow-same-namespace", networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{own}}},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{own}}},
		})
		for i := range tc.pods {
			p := c.pod("big", "x", i%tc.nodes, i/tc.nodes)
			p.UID = types.UID(fmt.Sprintf("big/%d", i))
			c.add(p)
		}
		b.Run(fmt.Sprintf("%dnodes/%dpods", tc.nodes, tc.pods), func(b *testing.B) {
			b.ReportAllocs()
			flows := 0
			spent := processTime(b)
			for b.Loop() {
				r := c.ExpectPolicy(expect.PolicySubject{Policy: q, Horizon: c.seq}, expect.DefaultOptions())
				flows = 0
				for _, list := range r.Nodes {
					flows += len(list)
				}
			}
			spent.report()
			b.ReportMetric(float64(flows), "flows")
		})
	}
}
