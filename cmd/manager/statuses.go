// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/policystatus"
)

// newScheme returns the kinds that the manager reads and writes.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("make the scheme: %w", err)
	}
	return scheme, nil
}

// statuses is all that keeps PolicyStatus objects.
type statuses struct {
	ledger *policystatus.Ledger
	writer *policystatus.Statuses
	// objects passes their events on. It is apart from the feed that gates wait
	// for: none waits for what is said of policies.
	objects *feed
}

// newStatuses returns what keeps PolicyStatus objects. Its ledger needs a hub.
func newStatuses(ctx context.Context, mgr manager.Manager, index *coverage.Index, log logr.Logger) (*statuses, error) {
	clk := clock.RealClock{}
	counted := policystatus.NewMetrics(metrics.Registry)
	writer := policystatus.NewStatuses(policystatus.APIObjects{Client: mgr.GetClient()}, counted, clk, log)
	ledger := policystatus.New(policystatus.Options{
		Coverage: index, Statuses: writer, Metrics: counted, Clock: clk, Elected: mgr.Elected(), Log: log,
		Events: policystatus.NewEvents(policyEvents{mgr.GetEventRecorder(reportingController)}, clk),
	})
	informer, err := mgr.GetCache().GetInformer(ctx, &v1alpha1.PolicyStatus{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch PolicyStatus, whose CustomResourceDefinition is in config/crd: %w", err)
	}
	registration, err := informer.AddEventHandler(handler(ledger.ObjectChanged, ledger.ObjectDeleted))
	if err != nil {
		return nil, fmt.Errorf("watch PolicyStatus: %w", err)
	}
	return &statuses{ledger: ledger, writer: writer, objects: &feed{synced: []toolscache.InformerSynced{registration.HasSynced}}}, nil
}

// runnables returns what is to run behind the given feed.
func (s *statuses) runnables(behind *feed) []manager.Runnable {
	return []manager.Runnable{behind.after(s.objects.after(s.ledger)), s.writer}
}

// policyEvents is the manager's recorder as package policystatus consumes it.
// It queues what it writes, and drops it if that queue is full.
type policyEvents struct{ events.EventRecorder }

// Record implements policystatus.Recorder.
func (r policyEvents) Record(e policystatus.Event) {
	regarding := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: e.Policy.Name.Namespace, Name: e.Policy.Name.Name, UID: e.Policy.UID},
	}
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	r.Eventf(regarding, nil, kind, e.Reason, confirming, "%s", e.Note)
}
