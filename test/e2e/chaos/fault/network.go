// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"math/rand/v2"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
)

// nodesOn returns the nodes that are on; there is one.
func nodesOn(bed *testbed.Testbed) ([]*cluster.Node, error) {
	var on []*cluster.Node
	for _, n := range bed.Cluster.Nodes() {
		if n.Running() {
			on = append(on, n)
		}
	}
	if len(on) == 0 {
		return nil, errors.New("no node is on")
	}
	return on, nil
}

// pairCut cuts two nodes from each other, which still reach all others.
func pairCut(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	nodes, err := nodesOn(bed)
	if err != nil {
		return nil, err
	}
	if len(nodes) < 2 {
		return nil, errors.New("there are no two nodes")
	}
	random.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	a, b := nodes[0], nodes[1]
	f, err := cut(ctx, bed, a, b)
	if err != nil {
		return nil, err
	}
	f.Target = a.Name + " and " + b.Name
	f.Severs = pair(a.Name, b.Name)
	return f, nil
}

// nodeCut cuts a node from everything. Its engine catches up when it ends with
// what happened meanwhile.
func nodeCut(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	nodes, err := nodesOn(bed)
	if err != nil {
		return nil, err
	}
	n := oneOf(random, nodes)
	f, err := cut(ctx, bed, n, nil)
	if err != nil {
		return nil, err
	}
	f.Target = n.Name
	f.Severs = around(n.Name)
	f.Rewrites = []string{n.Name}
	return f, nil
}

func cut(ctx context.Context, bed *testbed.Testbed, a, b *cluster.Node) (*Fault, error) {
	mend, err := bed.Cluster.Cut(ctx, a, b)
	if err != nil {
		return nil, err
	}
	return &Fault{End: func(ctx context.Context) error {
		ctx, cancel := mending(ctx)
		defer cancel()
		return mend(ctx)
	}}, nil
}

// pair severs two nodes from each other.
func pair(x, y string) func(a, b string) bool {
	return func(a, b string) bool { return a == x && b == y || a == y && b == x }
}

// around severs a node from every other one.
func around(x string) func(a, b string) bool {
	return func(a, b string) bool { return a != b && (a == x || b == x) }
}

// without severs everybody from a node that is off, its own Pods too.
func without(x string) func(a, b string) bool {
	return func(a, b string) bool { return a == x || b == x }
}
