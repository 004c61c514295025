// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// lookInterval is the longest between two looks: a timer does not see that the
// clock was set.
const lookInterval = 12 * time.Hour

// request returns the one request that there is: whatever changed, the whole
// is looked at.
func request() reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: "certificates"}}
}

// start asks for a first look, even if none of the objects exists: then the
// look's error says which is missing.
func start(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	queue.Add(request())
	return nil
}

// The certificate authority, which the leader alone reads; shipped empty, so no
// right to create is needed.
// +kubebuilder:rbac:groups="",resources=secrets,resourceNames=policygate-ca,verbs=get;update,namespace=policygate-system,roleName=policygate-manager

// Renews the serving certificate, as the leader.
// +kubebuilder:rbac:groups="",resources=secrets,resourceNames=policygate-tls,verbs=get;update,namespace=policygate-system,roleName=policygate-manager

// Publishes the authority's certificates to the agents.
// +kubebuilder:rbac:groups="",resources=configmaps,resourceNames=policygate-ca,verbs=get;list;watch;update,namespace=policygate-system,roleName=policygate-manager

// Publishes the authority's certificates to the API server, in this one object.
// The admission policy policygate-webhook-writers forbids to change more of it.
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,resourceNames=policygate,verbs=get;list;watch;patch,roleName=policygate-manager

// writer brings the objects of the package to what is due. It runs on the
// leader; should two run for a moment, the resourceVersions of their updates
// let one win.
type writer struct {
	// client reads from the API server itself: what a cache still shows could
	// make a second authority.
	client  client.Client
	options Options
	clock   clock.PassiveClock
}

var _ reconcile.Reconciler = (*writer)(nil)

// Reconcile does what is due and asks to be called when something is again.
func (w *writer) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	logger := log.FromContext(ctx)
	now := w.clock.Now()
	var ca, leaf corev1.Secret
	var bundle corev1.ConfigMap
	if err := w.get(ctx, SecretCA, &ca); err != nil {
		return reconcile.Result{}, err
	}
	if err := w.get(ctx, SecretTLS, &leaf); err != nil {
		return reconcile.Result{}, err
	}
	if err := w.get(ctx, ConfigMapCA, &bundle); err != nil {
		return reconcile.Result{}, err
	}

	m := readMaterial(ca.Data, leaf.Data, bundle.Data[BundleKey])
	requested := bundle.Annotations[AnnotationRotate]
	if why := m.authorityDue(now, requested); why != "" {
		authority, err := newAuthority(now, w.options.CALife)
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("make a certificate authority: %w", err)
		}
		m = m.withAuthority(authority, requested)
		logger.Info("Made a certificate authority", "reason", why, "former", len(m.previous))
	}
	m = m.prune(now, w.options.Overlap)
	if err := w.storeAuthority(ctx, &ca, m); err != nil {
		return reconcile.Result{}, err
	}
	if err := w.publish(ctx, &bundle, encodeBundle(m.trusted())); err != nil {
		return reconcile.Result{}, err
	}
	if m.published.IsZero() {
		m.published = now
		if err := w.storeAuthority(ctx, &ca, m); err != nil {
			return reconcile.Result{}, err
		}
	}
	if why := m.leafDue(now, w.options.DNSNames, w.options.Overlap); why != "" {
		signed, err := newLeaf(m.ca, w.options.DNSNames, now, w.options.LeafLife)
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("make a serving certificate: %w", err)
		}
		m.leaf, m.leafProblem = signed, ""
		logger.Info("Made a serving certificate", "reason", why, "expires", signed.cert.NotAfter)
	}
	if err := w.store(ctx, &leaf, map[string][]byte{keyTLSCert: m.leaf.certPEM, keyTLSKey: m.leaf.keyPEM}); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: min(m.next(now, w.options.Overlap), lookInterval)}, nil
}

// get reads an object of the namespace.
func (w *writer) get(ctx context.Context, name string, obj client.Object) error {
	err := w.client.Get(ctx, types.NamespacedName{Namespace: w.options.Namespace, Name: name}, obj)
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%w: it is installed empty with Policy Gate; apply its manifests again", err)
	}
	return err
}

// storeAuthority writes the authority's part of m.
func (w *writer) storeAuthority(ctx context.Context, secret *corev1.Secret, m material) error {
	data := map[string][]byte{keyCert: m.ca.certPEM, keyKey: m.ca.keyPEM}
	if len(m.previous) > 0 {
		data[keyPrevious] = encodeBundle(m.previous)
	}
	if !m.published.IsZero() {
		data[keyPublished] = []byte(m.published.UTC().Format(time.RFC3339))
	}
	if m.rotated != "" {
		data[keyRotated] = []byte(m.rotated)
	}
	return w.store(ctx, secret, data)
}

// store makes data the whole of the Secret's, if it is not yet.
func (w *writer) store(ctx context.Context, secret *corev1.Secret, data map[string][]byte) error {
	if maps.EqualFunc(secret.Data, data, bytes.Equal) {
		return nil
	}
	secret.Data = data
	if err := w.client.Update(ctx, secret); err != nil {
		return fmt.Errorf("update Secret %s: %w", secret.Name, err)
	}
	return nil
}

// publish makes bundle what agents and the API server trust.
func (w *writer) publish(ctx context.Context, agents *corev1.ConfigMap, bundle []byte) error {
	if agents.Data[BundleKey] != string(bundle) {
		if agents.Data == nil {
			agents.Data = map[string]string{}
		}
		agents.Data[BundleKey] = string(bundle)
		if err := w.client.Update(ctx, agents); err != nil {
			return fmt.Errorf("update ConfigMap %s: %w", agents.Name, err)
		}
	}

	var hooks admissionregistrationv1.MutatingWebhookConfiguration
	err := w.client.Get(ctx, types.NamespacedName{Name: w.options.WebhookConfiguration}, &hooks)
	if apierrors.IsNotFound(err) {
		// An uninstallation takes it away first; agents are still served.
		return nil
	}
	if err != nil {
		return err
	}
	before := hooks.DeepCopy()
	changed := false
	for i := range hooks.Webhooks {
		c := &hooks.Webhooks[i].ClientConfig
		if !bytes.Equal(c.CABundle, bundle) {
			c.CABundle = bundle
			changed = true
		}
	}
	if !changed {
		return nil
	}
	// A patch of nothing else: an update would drop fields of a newer API.
	patch := client.StrategicMergeFrom(before, client.MergeFromWithOptimisticLock{})
	if err := w.client.Patch(ctx, &hooks, patch); err != nil {
		return fmt.Errorf("patch MutatingWebhookConfiguration %s: %w", hooks.Name, err)
	}
	return nil
}
