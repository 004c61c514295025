// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	tracev1 "github.com/policygate/policygate/api/trace/v1"
)

const namespace = "policygate-system"

func tracing(account string) *asking {
	return &asking{path: tracev1.Path, role: "policygate-trace-user", installNamespace: namespace, serviceAccount: account}
}

func TestTheTokenIsForTheManagerAlone(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("create", "serviceaccounts", func(action clienttesting.Action) (bool, runtime.Object, error) {
		if action.GetSubresource() != "token" || action.GetNamespace() != namespace {
			return false, nil, nil
		}
		request := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		want := authenticationv1.TokenRequestSpec{Audiences: []string{"policygate-trace"}, ExpirationSeconds: new(int64(600))}
		if diff := cmp.Diff(want, request.Spec); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		return true, &authenticationv1.TokenRequest{Status: authenticationv1.TokenRequestStatus{Token: "t"}}, nil
	})
	if got, err := tracing("policygate-tracer").newToken(t.Context(), client); err != nil || got != "t" {
		t.Errorf("token %q, %v", got, err)
	}
}

func TestErrorsOfTheAPISayWhatToDo(t *testing.T) {
	resource := schema.GroupResource{Resource: "x"}
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"forbidden":        {apierrors.NewForbidden(resource, "y", nil), "Role policygate-trace-user in namespace policygate-system allows it"},
		"not found":        {apierrors.NewNotFound(resource, "y"), "is Policy Gate installed in namespace policygate-system?"},
		"any other":        {apierrors.NewTimeoutError("slow", 1), "slow"},
		"keeps what it is": {apierrors.NewForbidden(resource, "y", nil), `x "y" is forbidden`},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset()
			client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, tc.err })
			_, tokenErr := tracing("a").newToken(t.Context(), client)
			_, rootsErr := tracing("a").roots(t.Context(), client)
			_, managerErr := tracing("a").findManagers(t.Context(), client)
			for _, err := range []error{tokenErr, rootsErr, managerErr} {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error %v, want one with %q", err, tc.want)
				}
			}
		})
	}
}

func TestRootsOfAnEmptyBundleAreAnError(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "policygate-ca"}})
	if _, err := tracing("a").roots(t.Context(), client); err == nil || !strings.Contains(err.Error(), "has the manager started?") {
		t.Errorf("error %v", err)
	}
}

func TestReadyManagers(t *testing.T) {
	pod := func(name string, ready bool, port string, change func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
				{Name: "hub", ContainerPort: 1}, {Name: port, ContainerPort: 9446},
			}}}},
		}
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	ends := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)} }
	for name, tc := range map[string]struct {
		pods    []corev1.Pod
		want    []string
		problem string
	}{
		"those that are ready": {pods: []corev1.Pod{pod("c", true, "trace", nil), pod("b", true, "trace", nil), pod("a", false, "trace", nil)}, want: []string{"b", "c"}},
		"not one that ends":    {pods: []corev1.Pod{pod("a", true, "trace", ends), pod("b", true, "trace", nil)}, want: []string{"b"}},
		"nor an older one":     {pods: []corev1.Pod{pod("a", true, "x", nil), pod("b", true, "trace", nil)}, want: []string{"b"}},
		"none there":           {problem: "is Policy Gate installed there?"},
		"none ready":           {pods: []corev1.Pod{pod("a", false, "trace", nil)}, problem: "none of the manager's 1 Pods"},
		"none with the port":   {pods: []corev1.Pod{pod("a", true, "x", nil)}, problem: "has a port named trace"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := readyManagers(tc.pods, namespace)
			if tc.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("error %v, want one with %q", err, tc.problem)
				}
				return
			}
			var want []manager
			for _, name := range tc.want {
				want = append(want, manager{namespace: namespace, name: name, port: 9446})
			}
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%v, %v; want %v", got, err, want)
			}
		})
	}
}

func TestPost(t *testing.T) {
	question := tracev1.Question{Source: "a/b", Destination: "c/d", Port: 1, Protocol: "tcp"}
	answer := tracev1.NewAnswer([]tracev1.Flow{{Source: "10.0.0.1", Verdict: tracev1.Denied}})
	for name, tc := range map[string]struct {
		status  int
		body    string
		problem string
	}{
		"an answer":            {status: 200, body: mustJSON(t, answer)},
		"a refusal":            {status: 403, body: `{"error":"you may not\u001b"}`, problem: "the manager answers 403 Forbidden: you may not? (the ClusterRole policygate-tracer allows it"},
		"an error of somebody": {status: 502, body: "<html>", problem: "502 Bad Gateway: no reason given"},
		"an older manager":     {status: 404, body: "404 page not found", problem: "does not know /trace: is it older"},
		"garbage":              {status: 200, body: "garbage", problem: "read the manager's answer"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var got tracev1.Question
				if err := json.NewDecoder(r.Body).Decode(&got); err != nil || got != question || r.Header.Get("Authorization") != "Bearer t" {
					t.Errorf("asked %v (%v) with authorization %q", got, err, r.Header.Get("Authorization"))
				}
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			}))
			defer server.Close()
			c := &counter{asking: &asking{path: tracev1.Path, clusterRole: "policygate-tracer"}, token: "t"}
			got := &tracev1.Answer{}
			err := c.post(t.Context(), server.Client(), server.URL+tracev1.Path, question, got)
			if tc.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tc.problem) {
					t.Errorf("error %v, want one with %q", err, tc.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(answer, got); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
		})
	}
}

// The bundle is the one that the manager publishes, in PEM.
func TestRootsTrustWhatTheBundleHolds(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	bundle := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	client := fake.NewClientset(&corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "policygate-ca"}, Data: map[string]string{"ca.crt": string(bundle)},
	})
	pool, err := tracing("a").roots(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Certificate().Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Error(err)
	}
}

func mustJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
