// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/agent/kernel"
	"github.com/policygate/policygate/agent/reporter"
	"github.com/policygate/policygate/agent/serve"
	"github.com/policygate/policygate/agent/session"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// runAgent wires the parts together and runs them until ctx ends or one fails.
func runAgent(ctx context.Context, o *options, log logr.Logger) error {
	config, err := clientConfig(o.Kubeconfig)
	if err != nil {
		return fmt.Errorf("configure the client: %w", err)
	}
	api, err := newClients(config)
	if err != nil {
		return fmt.Errorf("make the clients: %w", err)
	}
	bootID, err := kernel.BootID()
	if err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	node, err := openDataplanes(ctx, o, log, registry)
	if err != nil {
		return fmt.Errorf("open the dataplane: %w", err)
	}
	defer func() {
		if err := node.close(); err != nil {
			log.Error(err, "The dataplane could not be closed")
		}
	}()
	var confirmer *confirm.Confirmer // made below, and before any session
	sessions := session.New(session.Options{
		ServerName: o.Hub.ServerName(),
		TokenFile:  o.Hub.TokenFile,
		Hello: func(ctx context.Context) *hubv1.Hello {
			return &hubv1.Hello{Version: version(), BootId: bootID, State: confirmer.State(ctx)}
		},
		Traces: node.traces,
		Clock:  clock.RealClock{}, Log: log.WithName("session"), Registerer: registry,
	})
	confirmer = confirm.New(confirm.Options{
		Dataplane: node, Reports: sessions,
		Surveyor: node, States: sessions,
		Notices: node.notices, Blind: node.ovn != nil,
		Clock: clock.RealClock{}, Log: log.WithName("confirm"), Registerer: registry,
	})
	gates := reporter.New(reporter.Options{
		Subjects: confirmer, Pods: reporter.ClientPods(api.coreV1),
		ConditionType: corev1.PodConditionType(o.ConditionType), BootID: bootID,
		Clock: clock.RealClock{}, Log: log.WithName("reporter"), Registerer: registry,
	})
	discovery := &session.Discovery{
		CoreV1: api.coreV1, DiscoveryV1: api.discoveryV1,
		Namespace: o.Hub.Namespace, Service: o.Hub.Service, ConfigMap: o.Hub.CAConfigMap, Log: log.WithName("discovery"),
	}

	log.Info("The agent starts", "version", version(), "bootID", bootID)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return node.run(ctx) })
	group.Go(func() error { return confirmer.Run(ctx) })
	group.Go(func() error { return gates.Run(ctx) })
	group.Go(func() error { return sessions.Run(ctx, confirmer, gates) })
	group.Go(func() error { return discovery.Run(ctx, sessions) })
	// A compressor takes more memory than all of the metrics, which are read on
	// the node or near it.
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{DisableCompression: true})
	group.Go(func() error { return serve.Serve(ctx, o.MetricsBindAddress, serve.Handler(metrics, sessions.Ready)) })
	return group.Wait()
}

// version is that of the build, for people.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}
