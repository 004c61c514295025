// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build apiserver

package apiserver_test

import (
	"context"
	"testing"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/policygate/policygate/test/bench/apiserver"
)

const (
	nodes, standing, gated = 20, 100, 30
	replicas               = 2
	// rate is low enough for a busy machine.
	rate = 10
	// promptly is how long a Pod waits before a message is written about it.
	promptly = 3 * time.Second
	// quiet is longer than any period after which the manager writes something.
	quiet = 5 * time.Second
	// limit is for a machine that does much else.
	limit = 4 * time.Minute
)

// TestManagerAgainstAPIServer runs two replicas of the manager's own binary
// against a real API server, with agents that have real tokens.
func TestManagerAgainstAPIServer(t *testing.T) {
	ctrl.SetLogger(logr.Discard())
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cluster, err := apiserver.Start(ctx, apiserver.Options{
		Shape:    apiserver.Shape{Nodes: nodes, Pods: standing},
		Replicas: replicas,
		Least:    20 * time.Millisecond, Most: 200 * time.Millisecond,
		Dir:      t.TempDir(),
		Progress: func(what string) { t.Log(what) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cluster.Close(); err != nil {
			t.Error(err)
		}
	})
	load := func(halfway func() error) {
		t.Helper()
		loaded, err := cluster.Load(ctx, apiserver.Load{Pods: gated, Rate: rate, Halfway: halfway, Pause: true})
		if err != nil {
			t.Fatal(err)
		}
		check(t, loaded)
	}
	t.Log("both replicas run")
	load(nil)

	t.Log("the leader is killed")
	leader, err := cluster.Leader(ctx)
	if err != nil {
		t.Fatal(err)
	}
	load(func() error { cluster.Kill(leader); return nil })

	t.Log("every replica is restarted")
	if err := cluster.Restart(ctx, leader); err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Storm(ctx); err != nil {
		t.Fatal(err)
	}
	// Who becomes the leader says so with an Event.
	if _, err := cluster.Leader(ctx); err != nil {
		t.Fatal(err)
	}
	load(nil)

	t.Log("nothing happens")
	idle, err := cluster.Idle(ctx, quiet)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range idle.Writes {
		t.Errorf("while nothing happens: %s, %s %s, %d times", w.Account, w.Verb, w.Resource, w.Count)
	}
}

// check holds what a load came to against what must hold however slow the
// machine is. That every gate is open is what Load waits for.
func check(t *testing.T, l *apiserver.Loaded) {
	t.Helper()
	if l.Ungated != 0 || len(l.Gated) != gated {
		t.Errorf("%d Pods have a gate and %d have none, want %d and none", len(l.Gated), l.Ungated, gated)
	}
	held := 0
	for i := range l.Gated {
		g := &l.Gated[i]
		if g.Held {
			held++
		}
		if g.Openings != 1 {
			t.Errorf("%s/%s: its gate was written %d times, want once", g.Namespace, g.Name, g.Openings)
		}
		if g.Messages != 0 && g.Latency() < promptly {
			t.Errorf("%s/%s: %d messages, though it was open after %s", g.Namespace, g.Name, g.Messages, g.Latency())
		}
	}
	if held != gated/2 {
		t.Errorf("%d Pods have a hold, want %d", held, gated/2)
	}
	for requests, pods := range l.Patches {
		if requests < 1 || requests > replicas {
			t.Errorf("%d Pods took %d patches each: want one, or one for each release", pods, requests)
		}
	}
	if l.Judged.Gates == 0 || l.Judged.Flows == 0 || l.Judged.WrongGates != 0 {
		t.Errorf("%d of %d gates were opened wrongly, by %d flows: %q", l.Judged.WrongGates, l.Judged.Gates, l.Judged.Flows, l.Judged.Wrong)
	}
	// One a second, and one at either end.
	most := int(l.Ended.Sub(l.Began)/time.Second) + 2
	if len(l.Lists) == 0 {
		t.Error("no barrier has listed anything")
	}
	for _, x := range l.Lists {
		if x.Count > most {
			t.Errorf("%s listed %s %d times in %s, want one a second at most", x.Replica, x.Kind, x.Count, l.Ended.Sub(l.Began))
		}
	}
}
