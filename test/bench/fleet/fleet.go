// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"crypto/x509"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/agent/reporter"
	"github.com/policygate/policygate/agent/session"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/test/bench/world"
)

// Node is one node with an agent.
type Node struct {
	Name string
	// BootID is what the Node's status.nodeInfo.bootID says, too.
	BootID string
	// TokenFile holds the token that proves the node to the hub.
	TokenFile string
}

// Options are what a Fleet is made of.
type Options struct {
	// World is asked what the kernels do.
	World *world.World
	// Pods takes the patches that open gates.
	Pods reporter.Pods
	// ServerName is what the replicas' certificates are for.
	ServerName    string
	ConditionType corev1.PodConditionType
	Clock         clock.WithTicker
	// Log is for all agents; the zero Logger drops all.
	Log logr.Logger
}

// Fleet is the agents. It is made by New and safe for concurrent use.
type Fleet struct {
	agents []*agent
	times  *times
}

// agent is one of them.
type agent struct {
	sessions  *session.Client
	confirmer *confirm.Confirmer
	reporter  *reporter.Reporter
	releases  *releases
}

// New returns agents that know no replicas: see SetReplicas and SetRoots.
func New(o Options, nodes []Node) *Fleet {
	f := &Fleet{times: newTimes(o.Clock)}
	for _, n := range nodes {
		f.agents = append(f.agents, newAgent(o, n, f.times))
	}
	return f
}

func newAgent(o Options, n Node, t *times) *agent {
	log := o.Log.WithValues("node", n.Name)
	sessions := session.New(session.Options{
		ServerName: o.ServerName,
		TokenFile:  n.TokenFile,
		Hello: func(context.Context) *hubv1.Hello {
			return &hubv1.Hello{Version: "simulated", BootId: n.BootID}
		},
		Clock: o.Clock, Log: log.WithName("session"),
	})
	confirmer := confirm.New(confirm.Options{
		Dataplane: &dataplane{world: o.World, node: n.Name, clock: o.Clock},
		Reports:   &reports{to: sessions, times: t},
		Clock:     o.Clock, Log: log.WithName("confirm"),
	})
	gates := reporter.New(reporter.Options{
		Subjects: confirmer, Pods: o.Pods,
		ConditionType: o.ConditionType, BootID: n.BootID,
		Clock: o.Clock, Log: log.WithName("reporter"),
	})
	return &agent{
		sessions: sessions, confirmer: confirmer, reporter: gates,
		releases: &releases{to: gates, times: t},
	}
}

// SetReplicas tells every agent the manager's replicas.
func (f *Fleet) SetReplicas(replicas []session.Replica) {
	for _, a := range f.agents {
		a.sessions.SetReplicas(replicas)
	}
}

// SetRoots tells every agent whom to trust.
func (f *Fleet) SetRoots(roots *x509.CertPool) {
	for _, a := range f.agents {
		a.sessions.SetRoots(roots)
	}
}

// Synced returns how many agents have a session that is past its full sync.
func (f *Fleet) Synced() int {
	n := 0
	for _, a := range f.agents {
		if a.sessions.Synced() {
			n++
		}
	}
	return n
}

// Run runs the agents until ctx ends; then it returns nil.
func (f *Fleet) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, a := range f.agents {
		group.Go(func() error { return a.confirmer.Run(ctx) })
		group.Go(func() error { return a.reporter.Run(ctx) })
		group.Go(func() error { return a.sessions.Run(ctx, a.confirmer, a.releases) })
	}
	return group.Wait()
}
