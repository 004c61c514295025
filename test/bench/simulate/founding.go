// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package simulate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The founding case: what one Service made a policy engine compute anew.
const (
	stormPods     = 300
	stormPolicies = 100
	stormSpace    = "storm"
	stormTeam     = "team"
	// darkNodes have no agent, so that Pods on them stay held: nothing excuses a
	// Pod's own node.
	darkNodes = 10
	// stormEvery is how often the storm comes.
	stormEvery = 2 * time.Second
)

// Storm is what a storm does to Pods that have nothing to do with it.
type Storm struct {
	// Calm is before the storm, Storm during it; both of unrelated Pods alone.
	Calm, Storm Outcome
	// Held is how many Pods the storm touches each time, and Assigned how many
	// assignments the replica made of them in all.
	Held, Assigned int
}

// Founding holds 300 Pods under 100 policies of one namespace, lets a stream of
// unrelated Pods run beside them, and then has the namespace's label flipped
// and all policies edited again and again. Services that come and go make no
// event at all: the manager watches none.
func Founding(ctx context.Context, o Options, s Shape, l Load) (_ *Storm, err error) {
	c, err := start(ctx, o, func(c *cluster) {
		rng := rand.New(rand.NewPCG(o.Seed, 0))
		s.furnish(c, rng)
		for i := range darkNodes {
			c.addNode(fmt.Sprintf("dark-%02d", i), "unknown")
		}
		furnishStorm(c)
	})
	if err != nil {
		return nil, err
	}
	held, letGo := context.WithCancel(ctx)
	defer func() {
		letGo()
		c.held.Wait()
		err = c.join(err)
	}()
	out := &Storm{Held: stormPods}
	c.holdStorm(held)
	if !sleep(ctx, 2*sandboxMost) {
		return nil, ctx.Err()
	}
	for _, phase := range []struct {
		storm bool
		into  *Outcome
	}{{false, &out.Calm}, {true, &out.Storm}} {
		before, err := c.assigned(ctx)
		if err != nil {
			return nil, err
		}
		done, err := c.measured(ctx, func(ctx context.Context, _ *outcome) error {
			ctx, cancel := context.WithTimeout(ctx, l.Lasts)
			defer cancel()
			if phase.storm {
				go c.storm(ctx)
			}
			c.stream(ctx, s, l.Rate, o.Seed)
			return nil
		})
		if err != nil {
			return nil, err
		}
		*phase.into = done.Outcome
		after, err := c.assigned(ctx)
		if err != nil {
			return nil, err
		}
		out.Assigned = after - before
	}
	return out, nil
}

// assigned returns how many assignments the first replica has made.
func (c *cluster) assigned(ctx context.Context) (int, error) {
	told, err := c.running()[0].Tell(ctx)
	if err != nil {
		return 0, err
	}
	return told.Assigns, nil
}

func stormApp(i int) map[string]string {
	return map[string]string{"app": fmt.Sprintf("app-%03d", i%stormPolicies)}
}

// furnishStorm makes the namespace, its policies and a Pod of each app, which
// the next app's are to reach.
func furnishStorm(c *cluster) {
	c.addNamespace(stormSpace, map[string]string{stormTeam: "a"})
	for i := range stormPolicies {
		c.stand(job{namespace: stormSpace, labels: stormApp(i)}, i%c.options.Nodes)
		c.addPolicy(stormSpace, fmt.Sprintf("policy-%03d", i), stormPolicy(i, 5000))
	}
}

func stormPolicy(i, port int) networkingv1.NetworkPolicySpec {
	// The namespace's label decides nothing, and has to be looked at.
	peers := []networkingv1.NetworkPolicyPeer{
		{PodSelector: selecting(stormApp(i + 1))},
		{PodSelector: selecting(stormApp(i + 1)), NamespaceSelector: selecting(map[string]string{stormTeam: "a"})},
	}
	return networkingv1.NetworkPolicySpec{
		PodSelector: *selecting(stormApp(i)),
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress: []networkingv1.NetworkPolicyIngressRule{{
			From: peers, Ports: []networkingv1.NetworkPolicyPort{tcp(port)},
		}},
	}
}

// holdStorm creates the Pods that are held until ctx ends.
func (c *cluster) holdStorm(ctx context.Context) {
	for i := range stormPods {
		rng := rand.New(rand.NewPCG(c.options.Seed, uint64(i)))
		c.held.Go(func() {
			c.pods.live(ctx, job{
				namespace: stormSpace, labels: stormApp(i), held: true, node: c.options.Nodes + i%darkNodes,
			}, rng)
		})
	}
}

// storm touches every held Pod, again and again.
func (c *cluster) storm(ctx context.Context) {
	for round := 1; sleep(ctx, stormEvery); round++ {
		if round%2 == 0 {
			c.store.UpdateNamespace(stormSpace, func(ns *corev1.Namespace) {
				ns.Labels[stormTeam] = []string{"a", "b"}[round/2%2]
			})
			continue
		}
		for i := range stormPolicies {
			key := types.NamespacedName{Namespace: stormSpace, Name: fmt.Sprintf("policy-%03d", i)}
			c.store.UpdatePolicy(key, func(np *networkingv1.NetworkPolicy) { np.Spec = stormPolicy(i, 5000+round) })
		}
	}
}
