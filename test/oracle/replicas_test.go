// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/policygate/policygate/controllers/expect"
)

// What a tally counts.
const (
	sameResults = "results that two replicas share"
	sameFlows   = "flows in them"
)

// TestReplicasThatLearnInAnyOrderExpectTheSame: what a Cluster went through
// does not matter, but for the order in which Pods got their addresses.
func TestReplicasThatLearnInAnyOrderExpectTheSame(t *testing.T) {
	run(t, 200, replicas, tally{sameResults: 2000, sameFlows: 10_000})
}

func replicas(w *world, r *rand.Rand, counts tally) string {
	if r != nil {
		return w.compareReplicas(r, counts)
	}
	// There is no end of orders: some have to do.
	for seed := range uint64(10) {
		if disagreement := w.compareReplicas(rand.New(rand.NewPCG(seed, 0x0c)), counts); disagreement != "" {
			return disagreement
		}
	}
	return ""
}

func (w *world) compareReplicas(r *rand.Rand, counts tally) string {
	straight, err := w.cluster()
	if err != nil {
		return err.Error()
	}
	devious, err := w.detour(r)
	if err != nil {
		return err.Error()
	}
	for _, p := range w.pods {
		for _, how := range ways() {
			subject, options := how.of(w, p)
			one, other := straight.Expect(subject, options), devious.Expect(subject, options)
			// Its order is not promised, and label sets are of one Cluster.
			one.Footprint, other.Footprint = expect.Footprint{}, expect.Footprint{}
			if diff := cmp.Diff(one, other, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
				return fmt.Sprintf("%s, %s: a replica that learned in another order expects something else (-one +other):\n%s", p.UID, how.name, diff)
			}
			counts[sameResults]++
			for _, list := range one.Nodes {
				counts[sameFlows] += len(list)
			}
		}
	}
	return ""
}

// detour returns a Cluster that held another world before, whose objects give
// way to those of w in a random order.
func (w *world) detour(r *rand.Rand) (*expect.Cluster, error) {
	c := expect.NewCluster()
	before := randomWorld(r.Uint64())
	first, err := before.feed(c)
	if err != nil {
		return nil, err
	}
	then, err := w.feed(c)
	if err != nil {
		return nil, err
	}
	then = append(then, w.drop(c, before)...)
	for _, steps := range [][]func(){first, then} {
		r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		for _, step := range steps {
			step()
		}
	}
	return c, nil
}

// drop removes from one Cluster what before has and w has not.
func (w *world) drop(c *expect.Cluster, before *world) []func() {
	keep := map[string]bool{}
	for _, p := range w.pods {
		keep["pod "+string(p.UID)] = true
	}
	for _, np := range w.policies {
		keep["policy "+string(np.UID)] = true
	}
	for _, ns := range w.namespaces {
		keep["namespace "+ns.Name] = true
	}
	for _, n := range w.nodes {
		keep["node "+n.Name] = true
	}
	var steps []func()
	drop := func(key string, step func()) {
		if !keep[key] {
			steps = append(steps, step)
		}
	}
	for _, p := range before.pods {
		drop("pod "+string(p.UID), func() { c.DeletePod(p.UID) })
	}
	for _, np := range before.policies {
		drop("policy "+string(np.UID), func() { c.DeletePolicy(np.Namespace, np.Name) })
	}
	for _, ns := range before.namespaces {
		drop("namespace "+ns.Name, func() { c.DeleteNamespace(ns.Name) })
	}
	for _, n := range before.nodes {
		drop("node "+n.Name, func() { c.DeleteNode(n.Name) })
	}
	return steps
}
