// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package coverage

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// A city of size 1 has 5,000 Pods, 500 policies and 100 nodes; one of size 10
// has ten times as many, in namespaces of the same size: a Pod's span stays
// what it was.
const (
	cityNamespaces = 50
	cityPods       = 100 // of each namespace
	cityPolicies   = 10  // of each namespace
	cityNodes      = 100
	// cityHeld are the Pods that wait for their gates, in a city of any size.
	cityHeld = 100
)

type city struct {
	*api
	size     int
	policies map[string]*networkingv1.NetworkPolicy
}

// newCity: in each namespace policy i selects app i and admits app i+1; the
// last ones of the first five namespaces admit a whole team as well.
func newCity(size int) *city {
	c := &city{api: newAPI(), size: size, policies: map[string]*networkingv1.NetworkPolicy{}}
	for n := range cityNodes * size {
		c.node(cityNode(n), fmt.Sprintf("10.%d.%d.0/24", n/250, n%250))
	}
	for ns := range cityNamespaces * size {
		c.namespace(fmt.Sprintf("ns%d", ns))
		for q := range cityPolicies {
			name := fmt.Sprintf("ns%d/q%d", ns, q)
			peer := pods(fmt.Sprintf("app%d", (q+1)%cityPolicies))
			if ns < 5 && q == cityPolicies-1 {
				peer = podsOfTeam("infra", "app0")
			}
			c.policies[name] = c.policy(name, fmt.Sprintf("app%d", q), peer)
		}
	}
	on := make([]int, cityNodes*size)
	for i := range cityPods * cityNamespaces * size {
		ns := i / cityPods
		node := placed(ns, i, len(on))
		on[node]++
		c.pod(fmt.Sprintf("ns%d/p%d", ns, i), cityNode(node), fmt.Sprintf("10.%d.%d.%d", node/250, node%250, on[node]),
			app(fmt.Sprintf("app%d", i%cityPolicies)))
	}
	for i := range cityHeld {
		ns := i % cityNamespaces
		node := placed(ns, i, len(on))
		on[node]++
		c.pod(fmt.Sprintf("ns%d/held%d", ns, i), cityNode(node), fmt.Sprintf("10.%d.%d.%d", node/250, node%250, on[node]),
			app(fmt.Sprintf("app%d", i%cityPolicies)), gated)
	}
	c.compute()
	return c
}

// placed spreads the Pods of a namespace over 20 nodes, on each of which are
// those of ten namespaces.
func placed(ns, i, nodes int) int { return (2*ns + i%20) % nodes }

func cityNode(n int) string { return fmt.Sprintf("n%d", n) }

// compute computes what is affected, and says for how many.
func (c *city) compute() int {
	affected := c.x.Affected()
	for _, uid := range affected {
		c.x.Assignment(uid)
	}
	return len(affected)
}

// BenchmarkEvent is what one event costs, with all the assignments that it
// makes necessary, at one size and ten times that size of everything. The ratio
// is the claim.
func BenchmarkEvent(b *testing.B) {
	cities := map[int]*city{1: newCity(1), 10: newCity(10)}
	for _, tc := range []struct {
		name  string
		event func(c *city) func()
	}{
		{"gated pod", gatedPod},
		{"ungated pod", ungatedPod},
		{"relabelled pod", relabelledPod},
		{"policy edit", policyEdit},
		{"namespace label", namespaceLabel},
		{"namespace label that rules name", teamLabel},
		{"node not ready", nodeNotReady},
		{"node heartbeat", nodeHeartbeat},
	} {
		b.Run(tc.name, func(b *testing.B) {
			events := map[int]func(){1: tc.event(cities[1]), 10: tc.event(cities[10])}
			took := map[int]time.Duration{}
			affected := map[int]int{}
			rounds := 0
			for b.Loop() {
				rounds++
				for size, c := range cities {
					begin := time.Now()
					events[size]()
					affected[size] += c.compute()
					took[size] += time.Since(begin)
				}
			}
			for size, d := range took {
				b.ReportMetric(float64(d.Nanoseconds())/float64(rounds), fmt.Sprintf("ns/event-%dx", size))
				b.ReportMetric(float64(affected[size])/float64(rounds), fmt.Sprintf("affected-%dx", size))
			}
			b.ReportMetric(float64(took[10])/float64(took[1]), "ratio")
			b.ReportMetric(0, "ns/op") // both sizes together say nothing
		})
	}
}

// gatedPod comes again and again.
func gatedPod(c *city) func() {
	p := c.pod("ns3/job", "n7", "10.0.7.210", app("app1"), gated)
	return func() {
		c.x.DeletePod(p.UID)
		c.x.SetPod(p)
	}
}

// ungatedPod moves to and fro, in a namespace in which two Pods are held.
func ungatedPod(c *city) func() {
	p := c.pod("ns3/other", "n8", "10.0.8.211", app("app2"))
	moved := withIP(p, "10.0.8.212")
	return func() {
		p, moved = moved, p
		c.x.SetPod(p)
	}
}

func withIP(p *corev1.Pod, ip string) *corev1.Pod {
	p = p.DeepCopy()
	p.Status.PodIPs[0].IP = ip
	return p
}

func relabelledPod(c *city) func() {
	p := c.pod("ns3/label", "n9", "10.0.9.213", app("app2"))
	other := p.DeepCopy()
	other.Labels["app"] = "app3"
	return func() {
		p, other = other, p
		c.x.SetPod(p)
	}
}

// policyEdit changes a port.
func policyEdit(c *city) func() {
	q := c.policies["ns3/q3"]
	return func() {
		q = q.DeepCopy()
		q.Generation++
		port := &q.Spec.Ingress[0].Ports[0].Port.IntVal
		*port = 3306 + (*port+1)%2
		c.x.SetPolicy(q)
	}
}

// namespaceLabel is one that no rule names.
func namespaceLabel(c *city) func() {
	i := 0
	return func() {
		i++
		c.namespace("ns3", "stage", fmt.Sprint(i%2))
	}
}

// teamLabel has a namespace join and leave a team that five namespaces admit.
func teamLabel(c *city) func() {
	i := 0
	return func() {
		i++
		c.namespace("ns7", "team", []string{"infra", "none"}[i%2])
	}
}

// nodeNotReady is one that has not been for too long, and comes back.
func nodeNotReady(c *city) func() {
	i := 0
	return func() {
		i++
		if i%2 == 0 {
			c.node("n50", "10.0.50.0/24")
			return
		}
		c.before(func() {
			c.node("n50", "10.0.50.0/24", func(n *corev1.Node) {
				n.Status.Conditions = []corev1.NodeCondition{{
					Type: corev1.NodeReady, Status: corev1.ConditionUnknown, LastTransitionTime: metav1.NewTime(epoch.Add(-time.Hour)),
				}}
			})
		})
	}
}

func nodeHeartbeat(c *city) func() {
	return func() { c.node("n50", "10.0.50.0/24") }
}

// The founding case: one namespace of 300 Pods under 100 policies, in which
// 100 Services are created and deleted.
const (
	foundingPods     = 300
	foundingPolicies = 100
	foundingServices = 100
	foundingApps     = 30
)

type founding struct {
	*api
	pods []*corev1.Pod
	// selectors are those of each policy: whom it selects and whom it means.
	selectors [][2]labels.Selector
}

// newFounding: policy i selects app i and admits app i+15, of 30; every Pod
// is held.
func newFounding(services bool) *founding {
	f := &founding{api: newAPI()}
	f.x.options.Services = services
	for n := range 10 {
		f.node(cityNode(n), fmt.Sprintf("10.0.%d.0/24", n))
	}
	f.namespace("shop")
	for i := range foundingPolicies {
		selected, meant := foundingApp(i), foundingApp(i+15)
		f.policy(fmt.Sprintf("shop/q%d", i), selected, pods(meant))
		f.selectors = append(f.selectors, [2]labels.Selector{
			labels.SelectorFromSet(labels.Set{"app": selected}), labels.SelectorFromSet(labels.Set{"app": meant}),
		})
	}
	for i := range foundingPods {
		f.pods = append(f.pods, f.pod(fmt.Sprintf("shop/p%d", i), cityNode(i%10), fmt.Sprintf("10.0.%d.%d", i%10, 1+i/10), app(foundingApp(i)), gated))
	}
	f.recompute()
	return f
}

func foundingApp(i int) string { return fmt.Sprintf("app%d", i%foundingApps) }

func (f *founding) recompute() []types.UID {
	affected := f.x.Affected()
	for _, uid := range affected {
		f.x.Assignment(uid)
	}
	return affected
}

// storm creates and deletes the Services, which select three apps, computes
// after each event what is affected, and returns how often each subject was.
func (f *founding) storm() map[types.UID]int {
	recomputed := map[types.UID]int{}
	count := func() {
		for _, uid := range f.recompute() {
			recomputed[uid]++
		}
	}
	for i := range foundingServices {
		s := f.service(fmt.Sprintf("shop/s%d", i), foundingApp(i%3))
		count()
		f.x.DeleteService(s)
		count()
	}
	return recomputed
}

func TestTheFoundingCaseRecomputesWhatServicesAffect(t *testing.T) {
	if got := newFounding(false).storm(); len(got) != 0 {
		t.Errorf("%d subjects are recomputed for an engine that knows no Services, want none", len(got))
	}
	f := newFounding(true)
	got := f.storm()
	for i, p := range f.pods {
		// Apps 0 to 2 are selected, and 15 to 17 have policies that mean them
		// and are meant by theirs.
		want := 0
		if i%15 < 3 {
			want = 1
		}
		if got[p.UID] != want {
			t.Errorf("%s of %s is recomputed %d times, want %d", p.UID, p.Labels["app"], got[p.UID], want)
		}
	}
}

// BenchmarkFounding is the storm of 200 events in both modes, beside what it
// would cost to match all Pods with all policies at each: the matching alone,
// with nothing computed. Of a burst of the same events it says how long is waited
// in the queue either way.
func BenchmarkFounding(b *testing.B) {
	var netfilter, kubeOVN, naive time.Duration
	var none, some, matches int
	for b.Loop() {
		for _, services := range []bool{false, true} {
			b.StopTimer()
			f := newFounding(services)
			b.StartTimer()
			begin := time.Now()
			recomputed := len(f.storm())
			if services {
				kubeOVN += time.Since(begin)
				some = recomputed
			} else {
				netfilter += time.Since(begin)
				none = recomputed
				begin = time.Now()
				for range 2 * foundingServices {
					matches = f.matchAll()
				}
				naive += time.Since(begin)
			}
		}
	}
	if matches == 0 {
		b.Fatal("nothing matches")
	}
	b.StopTimer()
	reportQueue(b, "kubeovn", newFounding(true).burst())
	reportQueue(b, "naive", newFounding(false).naiveBurst())
	b.ReportMetric(float64(none), "recomputed-netfilter")
	b.ReportMetric(float64(some), "recomputed-kubeovn")
	b.ReportMetric(float64(netfilter.Nanoseconds())/float64(b.N), "ns/storm-netfilter")
	b.ReportMetric(float64(kubeOVN.Nanoseconds())/float64(b.N), "ns/storm-kubeovn")
	b.ReportMetric(float64(naive.Nanoseconds())/float64(b.N), "ns/storm-naive")
	b.ReportMetric(float64(naive)/float64(kubeOVN), "naive/kubeovn")
	b.ReportMetric(0, "ns/op")
}

// burst makes all events of the storm at once and computes what they affect. It
// returns how long each subject waited since the burst began.
func (f *founding) burst() (waited []time.Duration) {
	begin := time.Now()
	for i := range foundingServices {
		f.x.DeleteService(f.service(fmt.Sprintf("shop/s%d", i), foundingApp(i%3)))
	}
	for _, uid := range f.x.Affected() {
		f.x.Assignment(uid)
		waited = append(waited, time.Since(begin))
	}
	return waited
}

// naiveBurst returns how long each event waits, since the burst began, where all
// Pods are matched with all policies for each: the matching alone.
func (f *founding) naiveBurst() (waited []time.Duration) {
	begin := time.Now()
	for range 2 * foundingServices {
		f.matchAll()
		waited = append(waited, time.Since(begin))
	}
	return waited
}

// reportQueue reports how long was waited in a queue.
func reportQueue(b *testing.B, who string, waited []time.Duration) {
	b.Helper()
	if len(waited) == 0 {
		b.Fatalf("%s: nobody waited", who)
	}
	slices.Sort(waited)
	for _, percent := range []int{50, 95} {
		at := waited[(len(waited)-1)*percent/100]
		b.ReportMetric(float64(at.Microseconds()), fmt.Sprintf("us/queue-p%d-%s", percent, who))
	}
}

// matchAll asks of every Pod whether every policy selects it or means it, with
// selectors that are compiled once.
func (f *founding) matchAll() (matches int) {
	for _, p := range f.pods {
		for _, s := range f.selectors {
			if s[0].Matches(labels.Set(p.Labels)) || s[1].Matches(labels.Set(p.Labels)) {
				matches++
			}
		}
	}
	return matches
}
