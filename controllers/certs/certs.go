// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package certs makes, rotates and serves the certificates of the webhook and
// of the hub, so that nothing else need be installed for them.
//
// # Objects
//
// All of them are shipped empty, since the right to create cannot be limited
// to a name:
//   - Secret policygate-ca: the authority, its key, which never leaves the
//     Secret, and the certificates of former authorities.
//   - Secret policygate-tls: the serving certificate that all replicas share.
//   - ConfigMap policygate-ca, key ca.crt: the bundle that agents trust.
//   - the MutatingWebhookConfiguration: the same bundle for the API server.
//
// # Rotation
//
// The leader alone writes, in this order: a new authority is stored, then
// published beside the former one, then, after Options.Overlap, signs the
// serving certificate; after another Overlap the former one is dropped. So a
// client that learns of a bundle, and a replica that learns of a certificate,
// within Overlap always agree. Every step is stored before the next begins, so
// that another leader can go on from any of them.
//
// # Permissions
//
// They stand beside the code that needs them. Each list and watch names its
// object by a field selector, which a rule with resourceNames admits.
package certs

import (
	"context"
	"errors"
	"fmt"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

// Names of the objects in Options.Namespace.
const (
	SecretCA    = "policygate-ca"
	SecretTLS   = "policygate-tls" //nolint:gosec // the name of a Secret, not what it holds
	ConfigMapCA = "policygate-ca"
)

// AnnotationRotate of ConfigMapCA has a new authority made: whenever its value
// is another than the one that was there when the authority in use was made. It
// is read there since the ConfigMap is watched, and the authority's Secret not.
const AnnotationRotate = "policygate.io/rotate"

// BundleKey is the key of ConfigMapCA under which agents find the certificates
// of every authority to trust, in PEM.
const BundleKey = "ca.crt"

// Options are the names and lifetimes. All fields are required; start from
// DefaultOptions.
type Options struct {
	// Namespace holds the Secrets and the ConfigMap.
	Namespace string
	// WebhookConfiguration is the MutatingWebhookConfiguration to publish to.
	// While there is none, nothing is published there.
	WebhookConfiguration string
	// DNSNames are those that the serving certificate is for.
	DNSNames []string
	// CALife and LeafLife are how long a certificate is valid. Each is
	// replaced when two thirds are over.
	CALife, LeafLife time.Duration
	// Overlap is the longest that clients may take to learn of a bundle, and
	// replicas of a certificate. It is less than a third of LeafLife.
	Overlap time.Duration
}

// DefaultOptions returns the options for an installation in namespace, with
// the names of the Services policygate-webhook and policygate-hub.
func DefaultOptions(namespace string) Options {
	const day = 24 * time.Hour
	o := Options{
		Namespace:            namespace,
		WebhookConfiguration: "policygate",
		CALife:               5 * 365 * day,
		LeafLife:             90 * day,
		// Watches take milliseconds and a kubelet's ConfigMap volumes two
		// minutes; a day also outlasts a node that is down over night.
		Overlap: day,
	}
	for _, service := range []string{"policygate-webhook", "policygate-hub"} {
		name := service + "." + namespace + ".svc"
		o.DNSNames = append(o.DNSNames, name, name+".cluster.local")
	}
	return o
}

// Validate returns an error that names each option that is missing or cannot
// work, or nil.
func (o Options) Validate() error {
	var errs []error
	if o.Namespace == "" {
		errs = append(errs, errors.New("namespace is empty: want that of the Secrets"))
	}
	if o.WebhookConfiguration == "" {
		errs = append(errs, errors.New("webhook configuration is empty: want its name"))
	}
	if len(o.DNSNames) == 0 {
		errs = append(errs, errors.New("DNS names are empty: want those of the Services"))
	}
	if o.Overlap <= 0 || o.LeafLife/3 <= o.Overlap {
		errs = append(errs, fmt.Errorf("overlap %s: want above 0 and less than a third of the serving certificate's life, %s",
			o.Overlap, o.LeafLife))
	}
	if o.CALife/3 <= o.LeafLife {
		errs = append(errs, fmt.Errorf("life %s of the authority: want more than three times the serving certificate's, %s",
			o.CALife, o.LeafLife))
	}
	return errors.Join(errs...)
}

// everywhere makes a cache run on every replica. One of several kinds does not
// say by itself that it needs no leader election, and the manager would start
// it on the leader alone.
type everywhere struct{ cache.Cache }

var _ manager.LeaderElectionRunnable = everywhere{}

// NeedLeaderElection returns false.
func (everywhere) NeedLeaderElection() bool { return false }

// AddToManager makes the manager's leader write the certificates and makes
// serving, which NewServing returned, follow them on every replica. It reads
// through a cache of its own that holds these objects and no others.
func AddToManager(mgr manager.Manager, o Options, serving *Serving, clk clock.PassiveClock) error {
	if err := o.Validate(); err != nil {
		return fmt.Errorf("options of the certificates: %w", err)
	}
	named := func(name string) fields.Selector { return fields.OneTermEqualSelector("metadata.name", name) }
	inNamespace := func(name string) cache.ByObject {
		return cache.ByObject{Namespaces: map[string]cache.Config{o.Namespace: {FieldSelector: named(name)}}}
	}
	objects, err := cache.New(mgr.GetConfig(), cache.Options{
		HTTPClient: mgr.GetHTTPClient(),
		Scheme:     mgr.GetScheme(),
		Mapper:     mgr.GetRESTMapper(),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Secret{}:    inNamespace(SecretTLS),
			&corev1.ConfigMap{}: inNamespace(ConfigMapCA),
			&admissionregistrationv1.MutatingWebhookConfiguration{}: {Field: named(o.WebhookConfiguration)},
		},
	})
	if err != nil {
		return fmt.Errorf("make the cache of certificates: %w", err)
	}
	if err := mgr.Add(everywhere{objects}); err != nil {
		return fmt.Errorf("add the cache of certificates: %w", err)
	}
	if err := mgr.Add(&follower{cache: objects, serving: serving}); err != nil {
		return fmt.Errorf("add the follower of the serving certificate: %w", err)
	}

	// The manager's own client would read from its cache, which must not hold
	// the cluster's Secrets.
	direct, err := client.New(mgr.GetConfig(), client.Options{
		HTTPClient: mgr.GetHTTPClient(),
		Scheme:     mgr.GetScheme(),
		Mapper:     mgr.GetRESTMapper(),
	})
	if err != nil {
		return fmt.Errorf("make the client for certificates: %w", err)
	}
	all := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{request()}
	})
	err = builder.ControllerManagedBy(mgr).
		Named("certificates").
		WatchesRawSource(source.Func(start)).
		WatchesRawSource(source.Kind[client.Object](objects, &corev1.Secret{}, all)).
		WatchesRawSource(source.Kind[client.Object](objects, &corev1.ConfigMap{}, all)).
		WatchesRawSource(source.Kind[client.Object](objects, &admissionregistrationv1.MutatingWebhookConfiguration{}, all)).
		Complete(&writer{client: direct, options: o, clock: clk})
	if err != nil {
		return fmt.Errorf("add the writer of certificates: %w", err)
	}
	return nil
}
