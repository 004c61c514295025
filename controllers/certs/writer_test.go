// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

// shipped returns the objects as they are installed.
func shipped() []client.Object {
	named := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Namespace: "policygate-system", Name: name}
	}
	service := &admissionregistrationv1.ServiceReference{Namespace: "policygate-system", Name: "policygate-webhook"}
	return []client.Object{
		&corev1.Secret{ObjectMeta: named(SecretCA)},
		&corev1.Secret{ObjectMeta: named(SecretTLS)},
		&corev1.ConfigMap{ObjectMeta: named(ConfigMapCA)},
		&admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "policygate"},
			Webhooks: []admissionregistrationv1.MutatingWebhook{
				{Name: "namespace.inject.policygate.io", ClientConfig: admissionregistrationv1.WebhookClientConfig{Service: service}},
				{Name: "pod.inject.policygate.io", ClientConfig: admissionregistrationv1.WebhookClientConfig{Service: service}},
			},
		},
	}
}

// cluster is what a client and a replica see of the API.
type cluster struct {
	client client.Client
	clock  *clocktesting.FakePassiveClock
	writer *writer
	// updates counts the writes.
	updates int
	// fail makes the write of the named object fail.
	fail string
}

func newCluster(objects ...client.Object) *cluster {
	c := &cluster{clock: clocktesting.NewFakePassiveClock(epoch())}
	count := func(obj client.Object) error {
		if fmt.Sprintf("%T %s", obj, obj.GetName()) == c.fail {
			return errors.New("refused")
		}
		c.updates++
		return nil
	}
	c.client = fake.NewClientBuilder().WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Update: func(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			if err := count(obj); err != nil {
				return err
			}
			return w.Update(ctx, obj, opts...)
		},
		Patch: func(ctx context.Context, w client.WithWatch, obj client.Object, p client.Patch, opts ...client.PatchOption) error {
			if err := count(obj); err != nil {
				return err
			}
			return w.Patch(ctx, obj, p, opts...)
		},
	}).Build()
	c.writer = &writer{client: c.client, options: testOptions(), clock: c.clock}
	return c
}

func (c *cluster) reconcile(t *testing.T) time.Duration {
	t.Helper()
	result, err := c.writer.Reconcile(t.Context(), request())
	if err != nil {
		t.Fatalf("Reconcile at %s: %v", c.clock.Now(), err)
	}
	return result.RequeueAfter
}

func (c *cluster) get(t *testing.T, name string, obj client.Object) {
	t.Helper()
	key := types.NamespacedName{Name: name}
	if _, clusterWide := obj.(*admissionregistrationv1.MutatingWebhookConfiguration); !clusterWide {
		key.Namespace = "policygate-system"
	}
	if err := c.client.Get(t.Context(), key, obj); err != nil {
		t.Fatal(err)
	}
}

// bundle returns what agents trust, having seen that the API server trusts the
// same.
func (c *cluster) bundle(t *testing.T) []byte {
	t.Helper()
	var agents corev1.ConfigMap
	var hooks admissionregistrationv1.MutatingWebhookConfiguration
	c.get(t, ConfigMapCA, &agents)
	c.get(t, "policygate", &hooks)
	for _, h := range hooks.Webhooks {
		if string(h.ClientConfig.CABundle) != agents.Data[BundleKey] {
			t.Errorf("the API server trusts for %s another bundle than the agents", h.Name)
		}
		if h.ClientConfig.Service == nil {
			t.Errorf("the service of %s is gone", h.Name)
		}
	}
	return []byte(agents.Data[BundleKey])
}

// served returns what a replica loads now.
func (c *cluster) served(t *testing.T) *x509.Certificate {
	t.Helper()
	var secret corev1.Secret
	c.get(t, SecretTLS, &secret)
	serving := NewServing(c.clock)
	if err := serving.load(&secret); err != nil {
		t.Fatal(err)
	}
	if err := serving.Ready(nil); err != nil {
		t.Fatalf("not ready at %s: %v", c.clock.Now(), err)
	}
	got, err := serving.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return got.Leaf
}

// verify returns why a client with bundle does not accept leaf at now.
func verify(bundle []byte, leaf *x509.Certificate, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, name := range testOptions().DNSNames {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, DNSName: name}); err != nil {
			return err
		}
	}
	return nil
}

func TestFirstStart(t *testing.T) {
	c := newCluster(shipped()...)
	wait := c.reconcile(t)
	if wait != 12*time.Hour {
		t.Errorf("next look after %s, want 12h, should the clock be set", wait)
	}
	if err := verify(c.bundle(t), c.served(t), c.clock.Now()); err != nil {
		t.Errorf("a client does not accept what is served: %v", err)
	}
	var agents corev1.ConfigMap
	c.get(t, ConfigMapCA, &agents)
	for key, text := range agents.Data {
		if strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("ConfigMap key %s holds a private key", key)
		}
	}
	var leaf corev1.Secret
	c.get(t, SecretTLS, &leaf)
	var ca corev1.Secret
	c.get(t, SecretCA, &ca)
	for key, text := range leaf.Data {
		if bytes.Contains(text, ca.Data[keyKey]) {
			t.Errorf("the authority's key is in the serving Secret's %s", key)
		}
	}

	before := c.updates
	c.reconcile(t)
	if c.updates != before {
		t.Errorf("a second look wrote %d times, want none", c.updates-before)
	}
}

// Whatever the lag of a client and of a replica within the overlap, the client
// accepts the replica, at every step of eight years of rotations.
func TestRotationNeverLocksAClientOut(t *testing.T) {
	c := newCluster(shipped()...)
	const steps = 10 // kept of the history, more than fit into the overlap
	type state struct {
		at     time.Time
		bundle []byte
		leaf   *x509.Certificate
	}
	var history []state
	// at returns the state that was in force at a time.
	at := func(when time.Time) state {
		found := history[0]
		for _, s := range history {
			if !s.at.After(when) {
				found = s
			}
		}
		return found
	}
	authorities, leaves := map[string]bool{}, map[string]bool{}
	for c.clock.Now().Before(epoch().Add(8 * 365 * day)) {
		before := c.updates
		c.reconcile(t)
		now := c.clock.Now()
		history = append(history, state{at: now, bundle: c.bundle(t), leaf: c.served(t)})
		history = history[max(0, len(history)-steps):]
		for _, ca := range parseBundle(history[len(history)-1].bundle) {
			authorities[ca.SerialNumber.String()] = true
		}
		leaves[c.served(t).SerialNumber.String()] = true

		lag := testOptions().Overlap - time.Second
		for _, client := range []time.Duration{0, lag} {
			for _, replica := range []time.Duration{0, lag} {
				if err := verify(at(now.Add(-client)).bundle, at(now.Add(-replica)).leaf, now); err != nil {
					t.Fatalf("at %s a client %s behind refuses a replica %s behind: %v", now, client, replica, err)
				}
			}
		}
		if c.updates != before {
			// The watch of what was written asks for another look.
			c.clock.SetTime(now.Add(time.Second))
			continue
		}
		var ca, leaf corev1.Secret
		c.get(t, SecretCA, &ca)
		c.get(t, SecretTLS, &leaf)
		c.clock.SetTime(now.Add(readMaterial(ca.Data, leaf.Data, "").next(now, testOptions().Overlap)))
	}
	// 8 years hold two ends of 3 1/3 years, and 48 serving certificates of 60
	// days plus those that the rotations of the authority cut short.
	if len(authorities) != 3 {
		t.Errorf("%d authorities, want 3", len(authorities))
	}
	if len(leaves) < 48 || len(leaves) > 53 {
		t.Errorf("%d serving certificates, want about 50", len(leaves))
	}
	if got := len(parseBundle(c.bundle(t))); got != 1 {
		t.Errorf("%d authorities are trusted at the end, want 1", got)
	}
}

func TestLostAuthorityDoesNotLockClientsOut(t *testing.T) {
	c := newCluster(shipped()...)
	c.reconcile(t)
	bundle, leaf := c.bundle(t), c.served(t)

	c.clock.SetTime(epoch().Add(day))
	var ca corev1.Secret
	c.get(t, SecretCA, &ca)
	ca.Data = nil
	if err := c.client.Update(t.Context(), &ca); err != nil {
		t.Fatal(err)
	}
	c.reconcile(t)
	if err := verify(bundle, c.served(t), c.clock.Now()); err != nil {
		t.Errorf("a client with the bundle of before refuses what is served: %v", err)
	}
	if err := verify(c.bundle(t), leaf, c.clock.Now()); err != nil {
		t.Errorf("a client with the new bundle refuses what was served before: %v", err)
	}
	c.clock.SetTime(epoch().Add(2 * day))
	c.reconcile(t)
	if c.served(t).Equal(leaf) {
		t.Error("the certificate of the lost authority is still served after the overlap")
	}
}

// requestRotation does what the documentation tells an administrator to do.
func (c *cluster) requestRotation(t *testing.T, value string) {
	t.Helper()
	var bundle corev1.ConfigMap
	c.get(t, ConfigMapCA, &bundle)
	metav1.SetMetaDataAnnotation(&bundle.ObjectMeta, AnnotationRotate, value)
	if err := c.client.Update(t.Context(), &bundle); err != nil {
		t.Fatal(err)
	}
}

// A request is met once, by a whole rotation; one that comes meanwhile waits.
func TestRotationByRequest(t *testing.T) {
	c := newCluster(shipped()...)
	authorities := func() int { return len(parseBundle(c.bundle(t))) }
	c.requestRotation(t, "0")
	c.reconcile(t)
	if authorities() != 1 {
		t.Fatalf("%d authorities after the first start, want one whatever is requested", authorities())
	}
	first, leaf := c.bundle(t), c.served(t)
	now := epoch().Add(day)
	for _, value := range []string{"1", "2"} {
		c.clock.SetTime(now)
		c.requestRotation(t, value)
		c.reconcile(t)
		if authorities() != 2 {
			t.Fatalf("%d authorities after request %s, want two", authorities(), value)
		}
		if err := verify(c.bundle(t), leaf, now); err != nil {
			t.Errorf("what is served is refused after request %s: %v", value, err)
		}
		before := c.updates
		c.requestRotation(t, value+" again")
		c.requestRotation(t, value)
		c.reconcile(t)
		if c.updates != before+2 { // the requests themselves
			t.Errorf("%d writes after requests in the middle of a rotation, want none", c.updates-before-2)
		}
		for range 2 { // the new authority signs, the former one goes
			now = now.Add(testOptions().Overlap)
			c.clock.SetTime(now)
			c.reconcile(t)
		}
		if authorities() != 1 || c.served(t).Equal(leaf) {
			t.Errorf("%d authorities, another serving certificate %t: want one and another", authorities(), !c.served(t).Equal(leaf))
		}
		leaf = c.served(t)
	}
	if bytes.Equal(c.bundle(t), first) {
		t.Error("the first authority is still there")
	}
}

func TestWriterHealsWhatOthersSpoil(t *testing.T) {
	c := newCluster(shipped()...)
	c.reconcile(t)
	want := c.bundle(t)

	var agents corev1.ConfigMap
	c.get(t, ConfigMapCA, &agents)
	agents.Data = map[string]string{BundleKey: "nonsense", "note": "someone's"}
	if err := c.client.Update(t.Context(), &agents); err != nil {
		t.Fatal(err)
	}
	var hooks admissionregistrationv1.MutatingWebhookConfiguration
	c.get(t, "policygate", &hooks)
	hooks.Webhooks[1].ClientConfig.CABundle = nil
	if err := c.client.Update(t.Context(), &hooks); err != nil {
		t.Fatal(err)
	}
	c.reconcile(t)
	if got := c.bundle(t); !bytes.Equal(got, want) {
		t.Errorf("bundle = %s, want the one of before", got)
	}
	c.get(t, ConfigMapCA, &agents)
	if agents.Data["note"] != "someone's" {
		t.Error("a key of somebody else is gone from the ConfigMap")
	}
}

func TestNothingIsSignedBeforeItsAuthorityIsPublished(t *testing.T) {
	for _, fail := range []string{
		"*v1.Secret policygate-ca", "*v1.ConfigMap policygate-ca", "*v1.MutatingWebhookConfiguration policygate",
	} {
		t.Run(fail, func(t *testing.T) {
			c := newCluster(shipped()...)
			c.fail = fail
			if _, err := c.writer.Reconcile(t.Context(), request()); err == nil || !strings.Contains(err.Error(), "refused") {
				t.Fatalf("Reconcile = %v, want the error of the write", err)
			}
			var leaf corev1.Secret
			c.get(t, SecretTLS, &leaf)
			if len(leaf.Data) > 0 {
				t.Error("a serving certificate was made")
			}

			// The next leader goes on from there.
			c.fail = ""
			c.reconcile(t)
			if err := verify(c.bundle(t), c.served(t), c.clock.Now()); err != nil {
				t.Errorf("after another try: %v", err)
			}
		})
	}
}

func TestMissingObjects(t *testing.T) {
	for i, missing := range []string{SecretCA, SecretTLS, ConfigMapCA} {
		t.Run(fmt.Sprintf("%d %s", i, missing), func(t *testing.T) {
			objects := shipped()
			c := newCluster(append(objects[:i:i], objects[i+1:]...)...)
			_, err := c.writer.Reconcile(t.Context(), request())
			if err == nil || !strings.Contains(err.Error(), missing) || !strings.Contains(err.Error(), "manifests") {
				t.Errorf("Reconcile = %v, want an error that names %s and what to do", err, missing)
			}
		})
	}
	t.Run("without a webhook configuration agents are served", func(t *testing.T) {
		c := newCluster(shipped()[:3]...)
		c.reconcile(t)
		var agents corev1.ConfigMap
		c.get(t, ConfigMapCA, &agents)
		if err := verify([]byte(agents.Data[BundleKey]), c.served(t), c.clock.Now()); err != nil {
			t.Error(err)
		}
	})
}
