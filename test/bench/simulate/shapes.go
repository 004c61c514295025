// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/test/bench/store"
)

// Shape is what a cluster looks like and what its users do.
type Shape struct {
	// Name is what it is called on the command line, About what it is.
	Name, About string
	// furnish makes what is there from the beginning.
	furnish func(c *cluster, rng *rand.Rand)
	// next returns the next gated Pod.
	next func(c *cluster, rng *rand.Rand) job
	// every is how long gated Pods are collected to be created in one instant.
	// 0: each in its time.
	every time.Duration
	// disturb is done each so often; nil: nothing is.
	disturb func(c *cluster, rng *rand.Rand)
	often   time.Duration
}

// Shapes are all shapes, by what they are called.
func Shapes() []Shape {
	return []Shape{
		{
			Name: "small", About: "many small namespaces, default-deny and allow-same-namespace in each",
			furnish: furnishSmall, next: nextSmall,
		},
		{
			Name: "big", About: "four big namespaces, an app's policy admits its Jobs to its database",
			furnish: furnishBig, next: nextBig,
		},
		{
			Name: "cron", About: "as small, but all Jobs of five seconds are created in one instant",
			furnish: furnishSmall, next: nextSmall, every: 5 * time.Second,
		},
		{
			Name: "flips", About: "as small, with a shared namespace that admits teams; every half second a namespace changes its team",
			furnish: furnishTeams, next: nextSmall, disturb: flipTeam, often: 500 * time.Millisecond,
		},
		{
			Name: "rolling", About: "as big, but the gated Pods are servers of rolling Deployments, that policies select",
			furnish: furnishBig, next: nextServer,
		},
		{
			Name: "edits", About: "as small without default-deny; five times a second a policy comes, goes or is edited",
			furnish: furnishOpen, next: nextEdited, disturb: editPolicy, often: 200 * time.Millisecond,
		},
	}
}

// ShapeOf returns the shape of that name.
func ShapeOf(name string) (Shape, error) {
	var known []string
	for _, s := range Shapes() {
		if s.Name == name {
			return s, nil
		}
		known = append(known, s.Name)
	}
	return Shape{}, fmt.Errorf("shape %q: want one of %s", name, strings.Join(known, ", "))
}

const (
	// standing is how many Pods without a gate there are per node.
	standing = 5
	// smallPods are the standing Pods of a small namespace.
	smallPods = 5
	// bigNamespaces, and apps of each.
	bigNamespaces, apps = 4, 25
	// databases are the Pods of an app that its policy selects.
	databases = 3
	// jobLife is how long a Job runs.
	jobLife = time.Second
	// serverLife is how long a server stands until the next rollout.
	serverLife = 5 * time.Second
)

// smallNamespaces returns how many small namespaces a cluster has.
func smallNamespaces(c *cluster) int { return max(c.options.Nodes*standing/smallPods, 1) }

func (c *cluster) addNamespace(name string, labels map[string]string) {
	all := map[string]string{"kubernetes.io/metadata.name": name, v1alpha1.KeyInject: v1alpha1.InjectNamespace}
	maps.Copy(all, labels)
	c.store.Create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: all}})
}

func (c *cluster) addPolicy(namespace, name string, spec networkingv1.NetworkPolicySpec) {
	c.store.Create(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec})
}

func selecting(labels map[string]string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: labels}
}

func tcp(number int) networkingv1.NetworkPolicyPort {
	protocol, port := corev1.ProtocolTCP, intstr.FromInt(number)
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port}
}

var bothTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}

func smallName(i int) string { return fmt.Sprintf("small-%04d", i) }

func furnishOpen(c *cluster, rng *rand.Rand) {
	for i := range smallNamespaces(c) {
		c.addNamespace(smallName(i), map[string]string{"team": fmt.Sprintf("t%d", i%8)})
		for n := range smallPods {
			c.stand(job{namespace: smallName(i), labels: map[string]string{"app": "web", "part": fmt.Sprint(n % 2)}}, rng.IntN(c.options.Nodes))
		}
	}
}

func furnishSmall(c *cluster, rng *rand.Rand) {
	furnishOpen(c, rng)
	everyone := networkingv1.NetworkPolicyPeer{PodSelector: selecting(nil)}
	for i := range smallNamespaces(c) {
		c.addPolicy(smallName(i), "default-deny", networkingv1.NetworkPolicySpec{PolicyTypes: bothTypes})
		c.addPolicy(smallName(i), "allow-same-namespace", networkingv1.NetworkPolicySpec{
			PolicyTypes: bothTypes,
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{everyone}}},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{everyone}}},
		})
	}
}

func nextSmall(c *cluster, rng *rand.Rand) job {
	return job{namespace: smallName(rng.IntN(smallNamespaces(c))), labels: map[string]string{"app": "job"}, life: jobLife}
}

// furnishTeams adds a namespace whose databases admit teams.
func furnishTeams(c *cluster, rng *rand.Rand) {
	furnishSmall(c, rng)
	c.addNamespace("shared", nil)
	for i := range 8 {
		app := map[string]string{"app": fmt.Sprintf("db-%d", i)}
		for range databases {
			c.stand(job{namespace: "shared", labels: app}, rng.IntN(c.options.Nodes))
		}
		c.addPolicy("shared", fmt.Sprintf("admit-t%d", i), networkingv1.NetworkPolicySpec{
			PodSelector: *selecting(app),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{
					NamespaceSelector: selecting(map[string]string{"team": fmt.Sprintf("t%d", i)}),
					PodSelector:       selecting(map[string]string{"app": "job"}),
				}},
				Ports: []networkingv1.NetworkPolicyPort{tcp(5432)},
			}},
		})
	}
}

// flipTeam gives a namespace another team.
func flipTeam(c *cluster, rng *rand.Rand) {
	team := fmt.Sprintf("t%d", rng.IntN(8))
	c.store.UpdateNamespace(smallName(rng.IntN(smallNamespaces(c))), func(ns *corev1.Namespace) { ns.Labels["team"] = team })
}

func bigName(i int) string { return fmt.Sprintf("big-%d", i) }

func furnishBig(c *cluster, rng *rand.Rand) {
	perNamespace := c.options.Nodes * standing / bigNamespaces
	for i := range bigNamespaces {
		c.addNamespace(bigName(i), nil)
		c.addPolicy(bigName(i), "default-deny", networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		})
		for a := range apps {
			app := fmt.Sprintf("app-%02d", a)
			for range databases {
				c.stand(job{namespace: bigName(i), labels: map[string]string{"app": app, "role": "db"}}, rng.IntN(c.options.Nodes))
			}
			for range max(perNamespace/apps-databases, 0) {
				c.stand(job{namespace: bigName(i), labels: map[string]string{"app": app, "role": "web"}}, rng.IntN(c.options.Nodes))
			}
			for _, rule := range []struct {
				to, from string
				port     int
			}{{"db", "job", 5432}, {"server", "job", 8080}} {
				c.addPolicy(bigName(i), app+"-"+rule.to, networkingv1.NetworkPolicySpec{
					PodSelector: *selecting(map[string]string{"app": app, "role": rule.to}),
					PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
					Ingress: []networkingv1.NetworkPolicyIngressRule{{
						From: []networkingv1.NetworkPolicyPeer{{
							PodSelector: selecting(map[string]string{"app": app, "role": rule.from}),
						}},
						Ports: []networkingv1.NetworkPolicyPort{tcp(rule.port)},
					}},
				})
			}
		}
	}
}

func nextBig(_ *cluster, rng *rand.Rand) job {
	return job{
		namespace: bigName(rng.IntN(bigNamespaces)), life: jobLife,
		labels: map[string]string{"app": fmt.Sprintf("app-%02d", rng.IntN(apps)), "role": "job"},
	}
}

func nextServer(c *cluster, rng *rand.Rand) job {
	j := nextBig(c, rng)
	if rng.IntN(2) == 0 {
		j.labels["role"], j.life = "server", serverLife
	}
	return j
}

// edited is how many namespaces have their policies edited, and most Jobs: so
// that edits and Jobs meet.
const edited = 20

func nextEdited(c *cluster, rng *rand.Rand) job {
	j := nextSmall(c, rng)
	if rng.IntN(4) > 0 {
		j.namespace = smallName(rng.IntN(min(edited, smallNamespaces(c))))
	}
	return j
}

// editPolicy adds a policy to a namespace, edits one or takes one away.
func editPolicy(c *cluster, rng *rand.Rand) {
	namespace := smallName(rng.IntN(min(edited, smallNamespaces(c))))
	name := fmt.Sprintf("edited-%d", rng.IntN(2))
	key := types.NamespacedName{Namespace: namespace, Name: name}
	switch rng.IntN(4) {
	case 0:
		c.store.Delete(store.NetworkPolicies, key)
	case 1:
		c.store.UpdatePolicy(key, func(np *networkingv1.NetworkPolicy) {
			for i := range np.Spec.Ingress {
				np.Spec.Ingress[i].Ports = slices.Clone(np.Spec.Ingress[i].Ports)
				np.Spec.Ingress[i].Ports[0] = tcp(5000 + rng.IntN(100))
			}
		})
	default:
		c.addPolicy(namespace, name, networkingv1.NetworkPolicySpec{
			PodSelector: *selecting(map[string]string{"app": []string{"web", "job"}[rng.IntN(2)]}),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From:  []networkingv1.NetworkPolicyPeer{{PodSelector: selecting(map[string]string{"app": "job"})}},
				Ports: []networkingv1.NetworkPolicyPort{tcp(5000 + rng.IntN(100))},
			}},
		})
	}
}
