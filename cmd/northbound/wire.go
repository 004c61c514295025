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
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/policygate/policygate/agent/confirm"
	"github.com/policygate/policygate/agent/dataplane"
	"github.com/policygate/policygate/agent/northbound"
	"github.com/policygate/policygate/agent/northbound/services"
	"github.com/policygate/policygate/agent/serve"
	"github.com/policygate/policygate/agent/session"
	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/internal/apiclient"
	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

// noBoot stands in the place of a node's boot id: nothing runs on a node of the
// name, and no gate is opened there.
const noBoot = "none"

// runNorthbound wires the parts together and runs them until ctx ends or one
// fails.
func runNorthbound(ctx context.Context, o *options, log logr.Logger) error {
	config, err := apiclient.Config(o.Kubeconfig)
	if err != nil {
		return fmt.Errorf("configure the client: %w", err)
	}
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	var database *northbound.Dataplane // made below, and before any change
	client, err := ovsdb.New(ovsdb.Options{
		Endpoints: o.Northbound, TLS: o.tls(), Database: northbound.Database, Tables: northbound.Tables(), Leader: true,
		Clock: clock.RealClock{}, Log: log.WithName("ovsdb"), Changed: func() { database.Changed() },
	})
	if err != nil {
		return fmt.Errorf("make the database's client: %w", err)
	}
	database = northbound.New(northbound.Views(client))
	bumper := northbound.NewBumper(northbound.Increments(client), clock.RealClock{})

	var surveyor confirm.Surveyor = database
	watch := func(context.Context) error { return nil }
	if o.Services {
		linking := services.New(database, api)
		surveyor, watch = linking, linking.Run
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var confirmer *confirm.Confirmer // made below, and before any session
	sessions := session.New(session.Options{
		ServerName: o.Hub.ServerName(),
		TokenFile:  o.Hub.TokenFile,
		Hello: func(ctx context.Context) *hubv1.Hello {
			return &hubv1.Hello{Version: version(), BootId: noBoot, State: confirmer.State(ctx)}
		},
		Traces: traces{database},
		Clock:  clock.RealClock{}, Log: log.WithName("session"), Registerer: registry,
	})
	confirmer = confirm.New(confirm.Options{
		Dataplane: part{database}, Reports: sessions,
		Surveyor: surveyor, States: sessions,
		Notices: database, Coverer: bumper,
		Clock: clock.RealClock{}, Log: log.WithName("confirm"), Registerer: registry,
	})
	discovery := &session.Discovery{
		CoreV1: api.CoreV1().RESTClient(), DiscoveryV1: api.DiscoveryV1().RESTClient(),
		Namespace: o.Hub.Namespace, Service: o.Hub.Service, ConfigMap: o.Hub.CAConfigMap, Log: log.WithName("discovery"),
	}
	ready := func() error {
		if err := sessions.Ready(); err != nil {
			return err
		}
		_, err := client.View()
		return err
	}
	metrics := promhttp.HandlerFor(registry, promhttp.HandlerOpts{})

	log.Info("It starts", "version", version(), "northbound", o.Northbound)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return client.Run(ctx) })
	group.Go(func() error { return bumper.Run(ctx) })
	group.Go(func() error { return watch(ctx) })
	group.Go(func() error { return confirmer.Run(ctx) })
	group.Go(func() error { return sessions.Run(ctx, confirmer, releases{log.WithName("session")}) })
	group.Go(func() error { return discovery.Run(ctx, sessions) })
	group.Go(func() error { return serve.Serve(ctx, o.MetricsBindAddress, serve.Handler(metrics, ready)) })
	return group.Wait()
}

// releases are those of gates, of which there are none here.
type releases struct{ log logr.Logger }

// Release implements session.Releases.
func (r releases) Release(m *hubv1.Release) {
	r.log.Info("A release came, and is dropped: no Pod runs on the northbound database", "uid", m.GetSubject().GetUid())
}

// part is the northbound database as package confirm consumes it.
type part struct{ *northbound.Dataplane }

// Look implements confirm.Dataplane.
func (p part) Look(ctx context.Context) (confirm.Look, error) {
	return dataplane.Look[northbound.Question, northbound.Answer](p.Dataplane.Look(ctx))
}

// version is that of the build, for people.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}
