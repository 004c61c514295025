// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/policygate/policygate/agent/reporter"
)

// answering returns clients of an API server that answers each request alike,
// and its first requests, in words.
func answering(t *testing.T, code int, body string) (c clients, asked <-chan string) {
	t.Helper()
	requests := make(chan string, 4)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent, _ := io.ReadAll(r.Body)
		requests <- strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.URL, r.Header.Get("Content-Type"), sent))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	c, err := newClients(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c, requests
}

func TestClientsDecodeWhatTheAgentWatches(t *testing.T) {
	for resource, tc := range map[string]struct {
		group  string
		client func(clients) cache.Getter
		// kind is what a list is of, item an object, in JSON without braces.
		kind, item string
		list, want runtime.Object
	}{
		"endpointslices": {
			group: "/apis/discovery.k8s.io/v1", client: func(c clients) cache.Getter { return c.discoveryV1 },
			kind: `"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1"`,
			item: `"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"hub-1"},` +
				`"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}]`,
			want: &discoveryv1.EndpointSlice{
				ObjectMeta:  metav1.ObjectMeta{Name: "hub-1"},
				AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}},
			},
			list: &discoveryv1.EndpointSliceList{
				ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []discoveryv1.EndpointSlice{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}},
			},
		},
		"configmaps": {
			group: "/api/v1", client: func(c clients) cache.Getter { return c.coreV1 },
			kind: `"kind":"ConfigMapList","apiVersion":"v1"`,
			item: `"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"ca"},"data":{"ca.crt":"x"}`,
			want: &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: "ca"}, Data: map[string]string{"ca.crt": "x"},
			},
			list: &corev1.ConfigMapList{
				ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []corev1.ConfigMap{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}},
			},
		},
	} {
		t.Run(resource, func(t *testing.T) {
			c, asked := answering(t, http.StatusOK, `{`+tc.kind+`,"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"}}]}`)
			list, err := cache.NewListWatchFromClient(tc.client(c), resource, "system", fields.Everything()).
				ListWithContext(t.Context(), metav1.ListOptions{Limit: 5})
			if err != nil {
				t.Fatalf("list: %v", err)
			}
			if diff := cmp.Diff(tc.list, list); diff != "" {
				t.Errorf("list (-want +got):\n%s", diff)
			}
			if got, want := <-asked, "GET "+tc.group+"/namespaces/system/"+resource+"?limit=5"; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}

			c, asked = answering(t, http.StatusOK, `{"type":"ADDED","object":{`+tc.item+`}}`)
			w, err := cache.NewListWatchFromClient(tc.client(c), resource, "system", fields.Everything()).
				WatchWithContext(t.Context(), metav1.ListOptions{ResourceVersion: "7"})
			if err != nil {
				t.Fatalf("watch: %v", err)
			}
			defer w.Stop()
			if diff := cmp.Diff(watch.Event{Type: watch.Added, Object: tc.want}, <-w.ResultChan()); diff != "" {
				t.Errorf("event (-want +got):\n%s", diff)
			}
			if got, want := <-asked, "GET "+tc.group+"/namespaces/system/"+resource+"?resourceVersion=7&watch=true"; got != want {
				t.Errorf("asked %q, want %q", got, want)
			}
		})
	}
}

func TestClientsPatchTheStatusOfAPod(t *testing.T) {
	const asks = `PATCH /api/v1/namespaces/jobs/pods/backup/status?fieldManager=policygate-agent application/strategic-merge-patch+json {"a":1}`
	for name, tc := range map[string]struct {
		code int
		body string
		is   func(error) bool
	}{
		// The agent does not know the type that it gets back.
		"written": {http.StatusOK, `{"kind":"Pod","apiVersion":"v1"}`, func(err error) bool { return err == nil }},
		"no such Pod": {
			http.StatusNotFound, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`,
			apierrors.IsNotFound,
		},
		"another UID": {
			http.StatusUnprocessableEntity, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422,` +
				`"details":{"causes":[{"reason":"FieldValueInvalid","field":"metadata.uid"}]}}`,
			func(err error) bool { return apierrors.HasStatusCause(err, metav1.CauseTypeFieldValueInvalid) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, asked := answering(t, tc.code, tc.body)
			err := reporter.ClientPods(c.coreV1).PatchStatus(t.Context(), "jobs", "backup", []byte(`{"a":1}`))
			if !tc.is(err) {
				t.Errorf("error %v", err)
			}
			if got := <-asked; got != asks {
				t.Errorf("asked %q, want %q", got, asks)
			}
		})
	}
}
