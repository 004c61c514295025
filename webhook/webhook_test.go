// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/webhook/inject"
)

// knownNamespaces is a fake that counts its calls.
type knownNamespaces struct {
	mu    sync.Mutex
	calls int
	// knownFrom is the call from which on the namespace is known; 0 is never.
	knownFrom   int
	annotations map[string]string
	err         error
}

func (k *knownNamespaces) Annotations(context.Context, string) (map[string]string, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.calls++
	return k.annotations, k.knownFrom > 0 && k.calls >= k.knownFrom, k.err
}

func newDefaulter(n Namespaces) *PodDefaulter {
	return &PodDefaulter{
		Namespaces: n,
		Metrics:    NewMetrics(prometheus.NewRegistry()),
		Clock:      clock.RealClock{},
		Options: inject.Options{
			ConditionType: v1alpha1.ConditionProgrammed,
			Image:         "policygate:test",
			PullPolicy:    corev1.PullIfNotPresent,
			Defaults:      v1alpha1.DefaultSettings(),
		},
	}
}

// request is the admission of raw, a Pod's JSON, in namespace shop.
func request(raw string) admission.Request {
	dryRun := true
	return admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
		UID:       "1",
		Operation: admissionv1.Create,
		Namespace: "shop",
		Resource:  metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
		DryRun:    &dryRun,
		Object:    runtime.RawExtension{Raw: []byte(raw)},
	}}
}

const jobPod = `{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"backup-","annotations":` +
	`{"policygate.io/programmed":"forged"}},"spec":{"restartPolicy":"Never",` +
	`"fieldOfTheFuture":{"a":1},"containers":[{"name":"app","image":"app:1"}]}}`

func TestHandlePatchesAPod(t *testing.T) {
	namespaces := &knownNamespaces{knownFrom: 1, annotations: map[string]string{v1alpha1.KeyOnTimeout: "fail"}}
	handler := admission.WithDefaulter(scheme.Scheme, newDefaulter(namespaces))
	resp := handler.Handle(t.Context(), request(jobPod))
	if !resp.Allowed {
		t.Fatalf("denied: %v", resp.Result)
	}
	paths := map[string]string{}
	for _, p := range resp.Patches {
		value, err := json.Marshal(p.Value)
		if err != nil {
			t.Fatal(err)
		}
		paths[p.Operation+" "+p.Path] = string(value)
	}
	for _, want := range []string{
		"remove /metadata/annotations/policygate.io~1programmed",
		"add /metadata/annotations/policygate.io~1on-timeout",
		"add /spec/initContainers",
		"add /spec/readinessGates",
		"add /spec/volumes",
	} {
		if _, ok := paths[want]; !ok {
			t.Errorf("patch lacks %q; it is %v", want, paths)
		}
	}
	if got := paths["add /metadata/annotations/policygate.io~1on-timeout"]; got != `"fail"` {
		t.Errorf("on-timeout = %s, want the namespace's", got)
	}
	for op := range paths {
		if strings.Contains(op, "fieldOfTheFuture") {
			t.Errorf("patch touches a field that is unknown here: %s", op)
		}
	}
}

func TestHandleDenies(t *testing.T) {
	tests := map[string]struct {
		namespaces *knownNamespaces
		raw        string
		wantCode   int32
		wantText   []string
	}{
		"a malformed annotation, named with its value and what is valid": {
			namespaces: &knownNamespaces{knownFrom: 1},
			raw: `{"metadata":{"generateName":"backup-","annotations":{"policygate.io/timeout":"1"}},` +
				`"spec":{"restartPolicy":"Never","containers":[{"name":"app"}]}}`,
			wantCode: http.StatusUnprocessableEntity,
			wantText: []string{`"backup-"`, "policygate.io/timeout", `"1"`, "from 1s to 10m0s"},
		},
		"a malformed annotation of the namespace": {
			namespaces: &knownNamespaces{knownFrom: 1, annotations: map[string]string{v1alpha1.KeyScope: "node"}},
			raw:        jobPod,
			wantCode:   http.StatusUnprocessableEntity,
			wantText:   []string{"namespace(shop)", "policygate.io/scope", `"node"`, `"peers", "local"`},
		},
		"a Pod while namespaces cannot be looked up": {
			namespaces: &knownNamespaces{err: errors.New("the cache is not started")},
			raw:        jobPod,
			wantCode:   http.StatusServiceUnavailable,
			wantText:   []string{`"shop"`, "the cache is not started"},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			handler := admission.WithDefaulter(scheme.Scheme, newDefaulter(tc.namespaces))
			resp := handler.Handle(t.Context(), request(tc.raw))
			if resp.Allowed || len(resp.Patches) > 0 {
				t.Fatalf("allowed with patch %v, want a denial", resp.Patches)
			}
			if resp.Result.Code != tc.wantCode {
				t.Errorf("code = %d, want %d", resp.Result.Code, tc.wantCode)
			}
			for _, text := range tc.wantText {
				if !strings.Contains(resp.Result.Message, text) {
					t.Errorf("message %q does not say %s", resp.Result.Message, text)
				}
			}
		})
	}
}

func TestNamespaceThatTheWatchDeliversLate(t *testing.T) {
	tests := map[string]struct {
		knownFrom int
		wantWait  time.Duration
		wantErr   string
	}{
		"is waited for":                      {knownFrom: 3, wantWait: 2 * namespacePoll},
		"is not guessed if it does not come": {wantWait: namespaceWait, wantErr: `namespace "shop" and its policygate.io annotations are not known`},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				namespaces := &knownNamespaces{
					knownFrom: tc.knownFrom, annotations: map[string]string{v1alpha1.KeyTimeout: "5s"},
				}
				pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}}
				start := time.Now()
				err := newDefaulter(namespaces).Default(t.Context(), pod)
				if waited := time.Since(start); waited != tc.wantWait {
					t.Errorf("waited %s, want %s", waited, tc.wantWait)
				}
				if tc.wantErr != "" {
					if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
						t.Fatalf("error = %v, want one that says %q", err, tc.wantErr)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := pod.Annotations[v1alpha1.KeyTimeout]; got != "5s" {
					t.Errorf("timeout = %q, want the namespace's", got)
				}
			})
		})
	}
}

func TestCachedNamespaces(t *testing.T) {
	reader := fake.NewClientBuilder().WithObjects(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: "shop", Annotations: map[string]string{v1alpha1.KeyScope: "local"},
	}}).Build()
	namespaces := CachedNamespaces{Reader: reader}
	got, known, err := namespaces.Annotations(t.Context(), "shop")
	if err != nil || !known {
		t.Fatalf("Annotations(shop) = known %t, %v", known, err)
	}
	if diff := cmp.Diff(map[string]string{v1alpha1.KeyScope: "local"}, got); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	if _, known, err = namespaces.Annotations(t.Context(), "absent"); known || err != nil {
		t.Errorf("Annotations(absent) = known %t, %v, want neither", known, err)
	}
}
