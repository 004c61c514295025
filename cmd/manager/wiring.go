// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/barrier"
	"github.com/policygate/policygate/controllers/certs"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/expect"
	"github.com/policygate/policygate/controllers/explain"
	"github.com/policygate/policygate/controllers/gate"
	"github.com/policygate/policygate/controllers/hub"
	"github.com/policygate/policygate/controllers/ungated"
	"github.com/policygate/policygate/webhook"
)

// One replica writes messages and certificates; creating cannot be limited to
// a name.
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,verbs=create,namespace=policygate-system,roleName=policygate-manager

// Takes the Lease, renews it and gives it back.
// +kubebuilder:rbac:groups=coordination.k8s.io,resources=leases,resourceNames=policygate-leader,verbs=get;update,namespace=policygate-system,roleName=policygate-manager

// Says who leads.
// +kubebuilder:rbac:groups="",resources=events,verbs=create,namespace=policygate-system,roleName=policygate-manager

// leaseName is that of the Lease by which replicas elect a leader. The
// manager's role names it.
const leaseName = "policygate-leader"

// clientQPS and clientBurst bound all requests of a replica: token reviews
// when every agent of a cluster connects again, besides 20 messages a second.
const (
	clientQPS   = 100
	clientBurst = 200
)

// newManager returns the manager with everything in it. Ctx bounds the making
// of it alone.
func newManager(ctx context.Context, config *rest.Config, o *options, ending *shutdown, log logr.Logger) (manager.Manager, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = clientQPS, clientBurst
	serving := certs.NewServing(clock.RealClock{})
	byObject := map[client.Object]cache.ByObject{}
	shared := newSharing()
	for _, kind := range []client.Object{&corev1.Pod{}, &corev1.Namespace{}, &corev1.Node{}, &networkingv1.NetworkPolicy{}, &corev1.Service{}} {
		byObject[kind] = cache.ByObject{Transform: shared.trim}
	}
	byObject[&v1alpha1.PolicyStatus{}] = cache.ByObject{Transform: trim}
	scheme, err := newScheme()
	if err != nil {
		return nil, err
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme: scheme,
		Logger: log,
		Cache:  cache.Options{ByObject: byObject, ReaderFailOnMissingInformer: true},
		// The webhook's port is the only thing that needs the certificate here.
		WebhookServer: ending.drains(ctrlwebhook.NewServer(ctrlwebhook.Options{
			Port:    o.webhookPort,
			TLSOpts: []func(*tls.Config){serving.Configure},
		})),
		Metrics:                       metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress:        o.healthAddress,
		LeaderElection:                o.leaderElect,
		LeaderElectionID:              leaseName,
		LeaderElectionNamespace:       o.namespace,
		LeaderElectionReleaseOnCancel: true, // main ends when Start returns
	})
	if err != nil {
		return nil, fmt.Errorf("make the manager: %w", err)
	}
	if err := certs.AddToManager(mgr, o.certificates(), serving, clock.RealClock{}); err != nil {
		return nil, err
	}
	defaulter := &webhook.PodDefaulter{
		Namespaces: webhook.CachedNamespaces{Reader: mgr.GetCache()},
		Options:    o.injection(),
		Metrics:    webhook.NewMetrics(metrics.Registry),
		Clock:      clock.RealClock{},
	}
	if err := defaulter.SetupWithManager(mgr); err != nil {
		return nil, fmt.Errorf("add the webhook: %w", err)
	}
	check := func(*http.Request) error { return ending.ready() }
	if err := mgr.AddReadyzCheck("shutdown", check); err != nil {
		return nil, fmt.Errorf("add to the manager: %w", err)
	}
	return mgr, addGates(ctx, mgr, o, serving, log)
}

// addGates adds all that opens gates, and the health checks.
func addGates(ctx context.Context, mgr manager.Manager, o *options, serving *certs.Serving, log logr.Logger) error {
	conditionType := corev1.PodConditionType(o.conditionType)
	clients, err := kubernetes.NewForConfigAndClient(mgr.GetConfig(), mgr.GetHTTPClient())
	if err != nil {
		return fmt.Errorf("make the client: %w", err)
	}
	metadataConfig := metadata.ConfigFor(mgr.GetConfig())
	lists, err := metadata.NewForConfig(metadataConfig)
	if err != nil {
		return fmt.Errorf("make the metadata client: %w", err)
	}

	expectations := expect.DefaultOptions()
	expectations.Families = expect.Families(o.families)
	expectations.MaxForeignNodes = o.maxForeignNodes
	if o.kubeOVN {
		expectations.Northbound = hubv1.Northbound
	}
	covered := coverage.DefaultOptions()
	covered.ConditionType, covered.Expect, covered.Services = conditionType, expectations, o.watchServices
	covered.NotReadyLimit = o.notReadyLimit
	index := coverage.New(covered)

	ordered := barrier.New(barrier.Options{
		Listers: barrier.MetadataListers(lists), Index: versions{index},
		Clock: clock.RealClock{}, Log: log.WithName("barrier"), Registerer: metrics.Registry,
	})
	warnings := gate.NewWarnings(eventRecorder{mgr.GetEventRecorder(reportingController)}, clock.RealClock{})
	messages := gate.NewMessages(podStatus{clients}, warnings, conditionType, clock.RealClock{}, log.WithName("messages"))
	gates := gate.New(gate.Options{
		Coverage: gate.FromIndex(index), Barrier: ordered, Teller: messages,
		Metrics: gate.NewMetrics(metrics.Registry), Clock: clock.RealClock{}, Log: log.WithName("gate"),
		ConditionType: conditionType, Warnings: warnings, StalledAfter: o.stalledAfter,
		Northbound: corev1.ObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Namespace: o.namespace, Name: northboundName},
	})
	policies, err := newStatuses(ctx, mgr, index, log.WithName("policystatus"))
	if err != nil {
		return err
	}
	startup, err := newStartup(ctx, mgr, o, log.WithName("startup"))
	if err != nil {
		return err
	}
	sessions := hub.New(hub.Options{
		Reviewer: hub.NewTokenReviewer(clients.AuthenticationV1().TokenReviews(), o.accounts()),
		Sink:     append(sinks{gates, policies.ledger}, startup...), Clock: clock.RealClock{}, Log: log.WithName("hub"),
		Address: o.hubAddress, GetCertificate: serving.GetCertificate, Registerer: metrics.Registry,
	})
	gates.SetHub(sessions)
	policies.ledger.SetHub(sessions)
	withoutGate := ungated.New(conditionType, metav1.NamespaceSystem, o.namespace)
	exposeUngated(metrics.Registry, withoutGate)
	events := &feed{
		index: index, ledger: gates, ungated: withoutGate,
		counter: newEventCounter(metrics.Registry), services: o.watchServices,
	}
	if err := events.watch(ctx, mgr.GetCache()); err != nil {
		return err
	}
	var errs []error
	if o.traceAddress != addressOff {
		questions, err := newQuestions(ctx, mgr, o, clients, explain.Options{
			GetCertificate: serving.GetCertificate, Agents: sessions, Sessions: sessions,
			Accounts: gates, Ungated: withoutGate, Northbound: o.kubeOVN, Log: log.WithName("explain"),
		})
		if err != nil {
			return err
		}
		errs = append(errs, mgr.Add(events.after(questions)))
	}
	notifier := ungated.NewNotifier(withoutGate, ungatedTeller{warnings}, clock.RealClock{})
	for _, r := range append(policies.runnables(events), ordered, events.after(gates), sessions, messages, warnings, notifier) {
		errs = append(errs, mgr.Add(r))
	}
	check := func(f func() error) healthz.Checker { return func(*http.Request) error { return f() } }
	errs = append(errs,
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("certificates", serving.Ready),
		mgr.AddReadyzCheck("webhook", mgr.GetWebhookServer().StartedChecker()),
		mgr.AddReadyzCheck("hub", check(sessions.Listening)),
		mgr.AddReadyzCheck("caches", check(events.ready)),
	)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("add to the manager: %w", err)
	}
	return nil
}

// newQuestions returns what answers people's questions, from what is known
// elsewhere in the manager.
func newQuestions(ctx context.Context, mgr manager.Manager, o *options, clients kubernetes.Interface, known explain.Options) (manager.Runnable, error) {
	if err := explain.IndexAddresses(ctx, mgr.GetFieldIndexer()); err != nil {
		return nil, err
	}
	cluster := explain.CachedCluster{Reader: mgr.GetCache()}
	known.Address = o.traceAddress
	known.TokenReviews = clients.AuthenticationV1().TokenReviews()
	known.AccessReviews = clients.AuthorizationV1().SubjectAccessReviews()
	known.Cluster, known.Inventory = cluster, cluster
	known.ConditionType = corev1.PodConditionType(o.conditionType)
	known.Version, known.Clock = version(), clock.RealClock{}
	return explain.New(known), nil
}

// versions is the index as package barrier consumes it.
type versions struct{ *coverage.Index }

// Holds implements barrier.Index.
func (v versions) Holds(o barrier.Version) bool {
	kind := coverage.KindNetworkPolicy
	if o.Kind == barrier.Namespaces {
		kind = coverage.KindNamespace
	}
	return v.Has(kind, o.UID, strconv.FormatUint(o.ResourceVersion, 10))
}

// podStatus is the client as package gate consumes it.
type podStatus struct{ kubernetes.Interface }

// PatchStatus implements gate.StatusPatcher.
func (p podStatus) PatchStatus(ctx context.Context, namespace, name string, patch []byte) error {
	_, err := p.CoreV1().Pods(namespace).Patch(ctx, name, types.StrategicMergePatchType, patch,
		metav1.PatchOptions{FieldManager: "policygate-manager"}, "status")
	return err
}
