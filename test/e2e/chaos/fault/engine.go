// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/policygate/policygate/test/cluster"
	"github.com/policygate/policygate/test/e2e/testbed"
	"github.com/policygate/policygate/test/engine"
)

// syncTimeout is for how long an engine is waited for to write: the test
// engine's longest lag in the chaos test, several times. Half of it is not yet a
// fault that lasts.
const syncTimeout = 5 * time.Second

// nodeEngine is an engine and the node that it runs on.
type nodeEngine struct {
	*testbed.Engine
	node *cluster.Node
}

// oneEngine returns an engine that runs.
func oneEngine(bed *testbed.Testbed, random *rand.Rand) (nodeEngine, error) {
	nodes, err := nodesOn(bed)
	if err != nil {
		return nodeEngine{}, err
	}
	random.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	for _, n := range nodes {
		if e := bed.Engine(n.Name); e != nil && !e.Process().Exited() {
			return nodeEngine{e, n}, nil
		}
	}
	return nodeEngine{}, errors.New("no engine runs")
}

// engineKilled kills an engine, which nobody starts again but End.
func engineKilled(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	e, err := oneEngine(bed, random)
	if err != nil {
		return nil, err
	}
	if err := e.Kill(ctx); err != nil {
		return nil, err
	}
	return e.down(), nil
}

// down is the fault of an engine that was killed. One that starts begins with a
// full sync.
func (e nodeEngine) down() *Fault {
	return &Fault{Target: e.node.Name, Rewrites: []string{e.node.Name}, End: func(ctx context.Context) error {
		ctx, cancel := mending(ctx)
		defer cancel()
		err := e.Start(ctx)
		if err != nil && !e.node.Running() {
			return nil // another fault's: the node's start starts it
		}
		return err
	}}
}

// engineFrozen freezes an engine. What it has missed it catches up with when
// the fault ends.
func engineFrozen(_ context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	e, err := oneEngine(bed, random)
	if err != nil {
		return nil, err
	}
	process := e.Process()
	if err := process.Freeze(); err != nil {
		return nil, err
	}
	return &Fault{
		Target: e.node.Name, Rewrites: []string{e.node.Name},
		End: func(context.Context) error { return unlessDone(process.Thaw()) },
	}, nil
}

// engineKilledInSync kills an engine when it has written its sets and not yet
// its rules. One that writes nothing for syncTimeout is killed then.
func engineKilledInSync(ctx context.Context, bed *testbed.Testbed, random *rand.Rand) (*Fault, error) {
	e, err := oneEngine(bed, random)
	if err != nil {
		return nil, err
	}
	if bed.EngineKind == testbed.EngineTest {
		err = e.crash(ctx)
	} else {
		err = e.killBetween(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, e.down().End(ctx))
	}
	return e.down(), nil
}

// crash has the test engine end by itself, by its switch.
func (e nodeEngine) crash(ctx context.Context) error {
	before := e.Control()
	crashing := before
	crashing.Crash = engine.CrashBetween
	if err := e.Set(crashing); err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	// Its status is 1, which is no error here.
	_ = e.Process().Wait(waiting)
	// Also if ctx has ended: the next one is to find the switch as it was.
	return errors.Join(e.Kill(context.WithoutCancel(ctx)), e.Set(before))
}

// killBetween kills an engine that has just seen its ipset end.
func (e nodeEngine) killBetween(ctx context.Context) error {
	const pace = time.Millisecond // ipset needs several, and the engine's next step too
	var seen moment
	pid := e.Process().Pid()
	err := wait.PollUntilContextTimeout(ctx, pace, syncTimeout, true, func(context.Context) (bool, error) {
		commands, err := children(pid)
		return err == nil && seen.between(commands), err
	})
	if err != nil && !wait.Interrupted(err) {
		return fmt.Errorf("watch the engine on %s: %w", e.node.Name, err)
	}
	return e.Kill(context.WithoutCancel(ctx))
}
