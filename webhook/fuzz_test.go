// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/policygate/policygate/api/v1alpha1"
)

// served returns what answers at Path, as a manager serves it.
func served(tb testing.TB) http.Handler {
	tb.Helper()
	log.SetLogger(logr.Discard())
	mgr, err := manager.New(&rest.Config{Host: "127.0.0.1:1"}, manager.Options{
		Scheme: scheme.Scheme, Metrics: server.Options{BindAddress: "0"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	namespaces := &knownNamespaces{knownFrom: 1, annotations: map[string]string{v1alpha1.KeyOnTimeout: "fail"}}
	if err := newDefaulter(namespaces).SetupWithManager(mgr); err != nil {
		tb.Fatal(err)
	}
	return mgr.GetWebhookServer().WebhookMux()
}

// post sends a body and returns the answer, which must be a well-formed review.
func post(t *testing.T, handler http.Handler, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, Path, bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, req)
	var review admissionv1.AdmissionReview
	decoder := json.NewDecoder(answer.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&review); err != nil || review.Response == nil || decoder.More() {
		t.Fatalf("the answer, of status %d, is not one review: %v", answer.Code, err)
	}
	resp := review.Response
	if answer.Code != http.StatusOK {
		t.Fatalf("HTTP status %d: the API server takes a review of 200 only", answer.Code)
	}
	if resp.Allowed {
		if len(resp.Patch) > 0 && (resp.PatchType == nil || *resp.PatchType != admissionv1.PatchTypeJSONPatch) {
			t.Fatalf("a patch of type %v", resp.PatchType)
		}
		return resp
	}
	if len(resp.Patch) > 0 || resp.Result == nil || resp.Result.Code < 400 || resp.Result.Message == "" {
		t.Fatalf("refused with %+v: want a reason and no patch", resp)
	}
	if resp.Result.Code == http.StatusInternalServerError {
		t.Fatalf("refused with %+v: want no panic, and the fault where it is", resp.Result)
	}
	return resp
}

func reviewOf(tb testing.TB, req *admissionv1.AdmissionRequest) []byte {
	tb.Helper()
	body, err := json.Marshal(&admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: req,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

func FuzzReviewBody(f *testing.F) {
	r := request(jobPod)
	body := string(reviewOf(f, &r.AdmissionRequest))
	for _, seed := range []string{
		"", "{", "null", "[]", `{"kind":"AdmissionReview"}`, body, body[:len(body)/2], body + body,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`,
		`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}`,
		`{"apiVersion":"v1","kind":"Pod"}`,
		strings.ReplaceAll(body, "admission.k8s.io/v1", "admission.k8s.io/v1beta1"),
		strings.ReplaceAll(body, "admission.k8s.io/v1", "admission.k8s.io/v9"),
		strings.ReplaceAll(body, `"CREATE"`, `"DELETE"`),
		strings.ReplaceAll(body, `"spec":{`, `"spec":[{`),
		strings.ReplaceAll(body, `"app:1"`, `"app:1","resources":{"limits":{"cpu":"1e999999999"}}`),
	} {
		f.Add([]byte(seed))
	}
	handler := served(f)
	f.Fuzz(func(t *testing.T, body []byte) { post(t, handler, body) })
}

func FuzzReview(f *testing.F) {
	f.Add("1", "shop", "CREATE", []byte(jobPod))
	f.Add("", "", "", []byte(`{"spec":{}}`))
	f.Add("\x00", "\u202e", "CONNECT", []byte(`{"metadata":{"annotations":{"policygate.io/timeout":"1"}}}`))
	handler := served(f)
	f.Fuzz(func(t *testing.T, uid, namespace, operation string, object []byte) {
		var pod corev1.Pod
		if json.Unmarshal(object, &pod) != nil {
			return
		}
		// As an API server sends it, so that nothing is put in order by the way.
		object, err := json.Marshal(&pod)
		if err != nil {
			t.Fatal(err)
		}
		req := &admissionv1.AdmissionRequest{
			UID: types.UID(strings.ToValidUTF8(uid, "?")), Namespace: namespace, Operation: admissionv1.Operation(operation),
			Object: runtime.RawExtension{Raw: object},
		}
		answers := map[bool]*admissionv1.AdmissionResponse{}
		for _, dry := range []bool{false, true} {
			req.DryRun = &dry
			answers[dry] = post(t, handler, reviewOf(t, req))
			if answers[dry].UID != req.UID {
				t.Fatalf("the answer is for request %q: want %q", answers[dry].UID, req.UID)
			}
		}
		if was, dry := answers[false], answers[true]; was.Allowed != dry.Allowed || !bytes.Equal(sorted(t, was.Patch), sorted(t, dry.Patch)) {
			t.Fatalf("a dry run is answered otherwise:\n%s\n%s", was.Patch, dry.Patch)
		}
		touchesOnlyOurs(t, answers[false].Patch)
	})
}

// operation is one of a JSON patch.
type operation struct {
	Op    string          `json:"op"`
	Path  string          `json:"path"`
	Value json.RawMessage `json:"value,omitempty"`
}

func operations(t *testing.T, patch []byte) []operation {
	t.Helper()
	if len(patch) == 0 {
		return nil
	}
	var ops []operation
	if err := json.Unmarshal(patch, &ops); err != nil {
		t.Fatalf("patch %s: %v", patch, err)
	}
	return ops
}

// sorted returns what a patch does to each path, in one order: that of the
// operations on a map is not fixed.
func sorted(t *testing.T, patch []byte) []byte {
	t.Helper()
	byPath := map[string][]operation{}
	for _, op := range operations(t, patch) {
		byPath[op.Path] = append(byPath[op.Path], op)
	}
	out, err := json.Marshal(byPath)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// touchesOnlyOurs fails if a patch touches more than annotations, the gates,
// the init containers and the volumes.
func touchesOnlyOurs(t *testing.T, patch []byte) {
	t.Helper()
	for _, op := range operations(t, patch) {
		ours := false
		for _, path := range []string{"/metadata/annotations", "/spec/readinessGates", "/spec/initContainers", "/spec/volumes"} {
			ours = ours || op.Path == path || strings.HasPrefix(op.Path, path+"/")
		}
		if !ours {
			t.Fatalf("the patch touches %s", op.Path)
		}
	}
}

func TestABodyIsBounded(t *testing.T) {
	// Twice what etcd would take, for a Pod and what surrounds it.
	const limit = 7 << 20
	handler := served(t)
	read := 0
	endless := readerFunc(func(p []byte) (int, error) {
		read += len(p)
		for i := range p {
			p[i] = ' '
		}
		return len(p), nil
	})
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, Path, endless)
	req.Header.Set("Content-Type", "application/json")
	answer := httptest.NewRecorder()
	handler.ServeHTTP(answer, req)
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(answer.Body.Bytes(), &review); err != nil || review.Response == nil {
		t.Fatalf("the answer %q is no review: %v", answer.Body, err)
	}
	if review.Response.Allowed || review.Response.Result.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("an endless body is answered %+v: want %d", review.Response, http.StatusRequestEntityTooLarge)
	}
	if read > limit+1<<20 {
		t.Errorf("%d bytes were read: want not much more than %d", read, limit)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
