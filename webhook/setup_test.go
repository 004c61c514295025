// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	"github.com/policygate/policygate/webhook/inject"
)

// A path that is not served answers 404, which failurePolicy Ignore turns into
// Pods that start ungated.
func TestTheConfigurationNamesThePathThatIsServed(t *testing.T) {
	text, err := os.ReadFile("../config/webhook/manifests.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var config admissionregistrationv1.MutatingWebhookConfiguration
	if err := yaml.UnmarshalStrict(text, &config); err != nil {
		t.Fatal(err)
	}

	// Nothing is asked of the server before the manager starts.
	mgr, err := manager.New(&rest.Config{Host: "127.0.0.1:1"}, manager.Options{
		Scheme: scheme.Scheme, Metrics: server.Options{BindAddress: "0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := newDefaulter(&knownNamespaces{}).SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	mux := mgr.GetWebhookServer().WebhookMux()
	for _, w := range config.Webhooks {
		path := *w.ClientConfig.Service.Path
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, http.NoBody)
		if _, pattern := mux.Handler(req); pattern != path {
			t.Errorf("%s is sent to %s, which is served by %q", w.Name, path, pattern)
		}
		if w.FailurePolicy == nil || *w.FailurePolicy != admissionregistrationv1.Ignore {
			t.Errorf("failurePolicy of %s = %v, want Ignore", w.Name, w.FailurePolicy)
		}
		if timeout := time.Duration(*w.TimeoutSeconds) * time.Second; timeout < 2*namespaceWait {
			t.Errorf("timeout of %s = %s, want at least twice the wait for a namespace, %s", w.Name, timeout, namespaceWait)
		}
		var operations []admissionregistrationv1.OperationType
		for _, r := range w.Rules {
			operations = append(operations, r.Operations...)
		}
		if diff := cmp.Diff([]admissionregistrationv1.OperationType{admissionregistrationv1.Create}, operations); diff != "" {
			t.Errorf("operations of %s (-want +got):\n%s", w.Name, diff)
		}
	}
}

func TestSetupRefusesOptionsThatAreNotValid(t *testing.T) {
	d := newDefaulter(&knownNamespaces{})
	d.Options = inject.Options{}
	if err := d.SetupWithManager(nil); err == nil {
		t.Error("SetupWithManager took options without an image")
	}
}
