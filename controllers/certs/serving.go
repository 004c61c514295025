// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// errNotLoaded is the state between the start and the first certificate.
var errNotLoaded = errors.New("no serving certificate has been loaded from Secret " + SecretTLS + " yet")

// Serving is the certificate that this replica serves. It is safe for
// concurrent use.
type Serving struct {
	clock   clock.PassiveClock
	current atomic.Pointer[tls.Certificate]
}

// NewServing returns a Serving that has no certificate until AddToManager's
// manager has loaded one.
func NewServing(c clock.PassiveClock) *Serving { return &Serving{clock: c} }

// Configure makes a server with this configuration serve the newest
// certificate in each handshake.
func (s *Serving) Configure(c *tls.Config) {
	c.GetCertificate = s.GetCertificate
	c.MinVersion = tls.VersionTLS13
}

// GetCertificate is for tls.Config. It returns an error until a certificate
// has been loaded.
func (s *Serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c := s.current.Load()
	if c == nil {
		return nil, errNotLoaded
	}
	return c, nil
}

// Ready is a readiness check: it returns an error until a certificate has been
// loaded, and once that is not valid any more. So no Pod is sent to a webhook
// that cannot answer.
func (s *Serving) Ready(*http.Request) error {
	c := s.current.Load()
	if c == nil {
		return errNotLoaded
	}
	if why := invalid(c.Leaf, s.clock.Now()); why != "" {
		return fmt.Errorf("the serving certificate is not valid: %s", why)
	}
	return nil
}

// load takes over the certificate of the Secret. On an error the one before
// stays. A Secret without data, as it is shipped, is no error.
func (s *Serving) load(secret *corev1.Secret) error {
	if len(secret.Data[keyTLSCert]) == 0 && len(secret.Data[keyTLSKey]) == 0 {
		return nil
	}
	c, err := tls.X509KeyPair(secret.Data[keyTLSCert], secret.Data[keyTLSKey])
	if err != nil {
		return fmt.Errorf("load the serving certificate of Secret %s: %w", secret.Name, err)
	}
	s.current.Store(&c)
	return nil
}

// Serves the certificate, on every replica.
// +kubebuilder:rbac:groups="",resources=secrets,resourceNames=policygate-tls,verbs=list;watch,namespace=policygate-system,roleName=policygate-manager

// follower loads the serving certificate on every replica, the leader or not.
type follower struct {
	cache   cache.Informers
	serving *Serving
}

var _ manager.LeaderElectionRunnable = (*follower)(nil)

// NeedLeaderElection returns false.
func (f *follower) NeedLeaderElection() bool { return false }

// Start follows the Secret until ctx is done. A Secret that is deleted or
// spoilt leaves in place what was loaded.
func (f *follower) Start(ctx context.Context) error {
	logger := log.FromContext(ctx).WithName("certificates")
	informer, err := f.cache.GetInformer(ctx, &corev1.Secret{})
	if err != nil {
		return fmt.Errorf("watch the serving certificate: %w", err)
	}
	load := func(obj any) {
		secret, ok := obj.(*corev1.Secret)
		if !ok || secret.Name != SecretTLS {
			return
		}
		if err := f.serving.load(secret); err != nil {
			logger.Error(err, "Kept the serving certificate that was loaded before")
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    load,
		UpdateFunc: func(_, obj any) { load(obj) },
	})
	if err != nil {
		return fmt.Errorf("watch the serving certificate: %w", err)
	}
	<-ctx.Done()
	return nil
}
