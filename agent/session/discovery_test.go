// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

func endpoints(ports []discoveryv1.EndpointPort, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: "policygate-hub-x", Namespace: "policygate-system",
			Labels: map[string]string{discoveryv1.LabelServiceName: "policygate-hub"},
		},
		Endpoints: endpoints,
		Ports:     ports,
	}
}

func hubPort(name string, port int32) discoveryv1.EndpointPort {
	return discoveryv1.EndpointPort{Name: new(name), Port: new(port)}
}

func endpoint(pod, address string, ready *bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ready}}
	if pod != "" {
		e.TargetRef = &corev1.ObjectReference{Kind: "Pod", Name: pod}
	}
	return e
}

func TestReplicasIn(t *testing.T) {
	hubPorts := []discoveryv1.EndpointPort{hubPort("hub", 9444)}
	for name, tc := range map[string]struct {
		objects []any
		want    []Replica
	}{
		"no slice": {want: []Replica{}},
		"ready, not ready and not said": {
			objects: []any{endpoints(hubPorts,
				endpoint("a", "10.0.0.1", new(true)), endpoint("b", "10.0.0.2", new(false)), endpoint("c", "10.0.0.3", nil))},
			want: []Replica{{"a", "10.0.0.1:9444", true}, {"b", "10.0.0.2:9444", false}, {"c", "10.0.0.3:9444", true}},
		},
		"one Pod in the slices of both families": {
			objects: []any{
				endpoints(hubPorts, endpoint("a", "fd00::1", nil)),
				endpoints(hubPorts, endpoint("a", "10.0.0.1", nil)),
			},
			want: []Replica{{"a", "10.0.0.1:9444", true}},
		},
		"the address that is ready is taken": {
			objects: []any{
				endpoints(hubPorts, endpoint("a", "fd00::1", new(true))),
				endpoints(hubPorts, endpoint("a", "10.0.0.1", new(false))),
			},
			want: []Replica{{"a", "[fd00::1]:9444", true}},
		},
		"the port that is named for the hub": {
			objects: []any{endpoints([]discoveryv1.EndpointPort{hubPort("metrics", 1), hubPort("hub", 7)}, endpoint("a", "10.0.0.1", nil))},
			want:    []Replica{{"a", "10.0.0.1:7", true}},
		},
		"the only port": {
			objects: []any{endpoints([]discoveryv1.EndpointPort{hubPort("grpc", 7)}, endpoint("a", "10.0.0.1", nil))},
			want:    []Replica{{"a", "10.0.0.1:7", true}},
		},
		"the default where ports say nothing": {
			objects: []any{endpoints([]discoveryv1.EndpointPort{hubPort("x", 1), hubPort("y", 2), {}}, endpoint("", "10.0.0.1", nil))},
			want:    []Replica{{"10.0.0.1", "10.0.0.1:9444", true}},
		},
		"an endpoint without address, an object of another kind": {
			objects: []any{endpoints(hubPorts, discoveryv1.Endpoint{}), &corev1.Pod{}},
			want:    []Replica{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, replicasIn(tc.objects)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRootsIn(t *testing.T) {
	for name, tc := range map[string]struct {
		data map[string]string
		want string
	}{
		"no key":         {want: "key ca.crt is empty"},
		"no certificate": {data: map[string]string{"ca.crt": "x"}, want: "key ca.crt holds no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rootsIn(&corev1.ConfigMap{Data: tc.data})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

// apiServer is as much of an API server as Discovery needs: it lists and
// watches one EndpointSlice and one ConfigMap, and knows only the present.
type apiServer struct {
	mu      sync.Mutex
	slices  []discoveryv1.EndpointSlice
	bundles []corev1.ConfigMap
	version int
	// watches are those under way, by the path of what they watch.
	watches map[string][]chan metav1.WatchEvent
	// wrong are requests for more than there is to know.
	wrong []string
}

const (
	slicesPath  = "/apis/discovery.k8s.io/v1/namespaces/policygate-system/endpointslices"
	bundlesPath = "/api/v1/namespaces/policygate-system/configmaps"
)

// serveAPI serves the objects and returns Discovery's clients of them.
func serveAPI(t *testing.T, slice *discoveryv1.EndpointSlice, bundle *corev1.ConfigMap) (*apiServer, kubernetes.Interface) {
	t.Helper()
	a := &apiServer{
		slices: []discoveryv1.EndpointSlice{*slice}, bundles: []corev1.ConfigMap{*bundle},
		version: 1, watches: make(map[string][]chan metav1.WatchEvent),
	}
	server := httptest.NewServer(a)
	t.Cleanup(func() {
		a.cut()
		server.Close()
		if len(a.wrong) > 0 {
			t.Errorf("requests %q: want none but for the Service's slices and the one ConfigMap", a.wrong)
		}
	})
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL})
	must(t, err)
	return a, client
}

// ServeHTTP implements http.Handler.
func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	a.mu.Lock()
	defer a.mu.Unlock()
	meta := metav1.ListMeta{ResourceVersion: strconv.Itoa(a.version)}
	var list any
	switch r.URL.Path + "?" + query.Get("labelSelector") + query.Get("fieldSelector") {
	case slicesPath + "?kubernetes.io/service-name=policygate-hub":
		list = &discoveryv1.EndpointSliceList{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"}, ListMeta: meta, Items: a.slices,
		}
	case bundlesPath + "?metadata.name=policygate-ca":
		list = &corev1.ConfigMapList{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"}, ListMeta: meta, Items: a.bundles,
		}
	default:
		a.wrong = append(a.wrong, r.URL.String())
		http.NotFound(w, r)
		return
	}
	switch {
	case query.Get("sendInitialEvents") != "":
		// As one that does not know it: the client lists.
		refuse(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case query.Get("watch") == "":
		_ = json.NewEncoder(w).Encode(list)
	case query.Get("resourceVersion") != meta.ResourceVersion:
		refuse(w, http.StatusGone, metav1.StatusReasonExpired)
	default:
		events := make(chan metav1.WatchEvent, 16)
		a.watches[r.URL.Path] = append(a.watches[r.URL.Path], events)
		a.mu.Unlock()
		defer a.mu.Lock()
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		for e := range events {
			_ = json.NewEncoder(w).Encode(e)
			_ = http.NewResponseController(w).Flush()
		}
	}
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(&metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Reason: reason, Code: int32(code),
	})
}

// change makes a change that watches of the path are told of, if there is an
// event of it.
func (a *apiServer) change(path, event string, object runtime.Object, change func(version string)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	change(strconv.Itoa(a.version))
	for _, w := range a.watches[path] {
		w <- metav1.WatchEvent{Type: event, Object: runtime.RawExtension{Object: object}}
	}
}

// cut ends all watches.
func (a *apiServer) cut() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, watches := range a.watches {
		for _, w := range watches {
			close(w)
		}
	}
	clear(a.watches)
}

// watched waits until both are watched.
func (a *apiServer) watched(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(time.Millisecond) {
		a.mu.Lock()
		both := len(a.watches[slicesPath]) > 0 && len(a.watches[bundlesPath]) > 0
		a.mu.Unlock()
		if both {
			return
		}
	}
	t.Fatal("not both are watched within 10 s")
}

// bundleOf returns the ConfigMap with the authorities' certificates.
func bundleOf(authorities ...*authority) *corev1.ConfigMap {
	var text []byte
	for _, a := range authorities {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
	}
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: "policygate-ca", Namespace: "policygate-system", ResourceVersion: "1"},
		Data:       map[string]string{"ca.crt": string(text)},
	}
}

// hubSlice returns the EndpointSlice of one replica.
func hubSlice(t *testing.T, h *hub, pod string) *discoveryv1.EndpointSlice {
	t.Helper()
	host, port, _ := strings.Cut(h.address, ":")
	slice := endpoints([]discoveryv1.EndpointPort{hubPort("hub", int32(portNumber(t, port)))}, endpoint(pod, host, nil))
	slice.TypeMeta = metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}
	slice.ResourceVersion = "1"
	return slice
}

// discover runs Discovery for c until the test ends.
func discover(t *testing.T, client kubernetes.Interface, c *Client) {
	t.Helper()
	d := &Discovery{
		CoreV1: client.CoreV1().RESTClient(), DiscoveryV1: client.DiscoveryV1().RESTClient(),
		Namespace: "policygate-system", Service: "policygate-hub", ConfigMap: "policygate-ca", Log: testr.New(t),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, c) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
}

func TestDiscoveryFindsReplicasAndRoots(t *testing.T) {
	old, ca := newAuthority(t), newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	slice := hubSlice(t, h, "manager-1")
	api, client := serveAPI(t, slice, bundleOf(old))
	f := start(t, nil)
	discover(t, client, f.Client)

	// The old authority alone is of no use; beside it the new one is.
	api.watched(t)
	both := bundleOf(old, ca)
	api.change(bundlesPath, "MODIFIED", both, func(version string) {
		both.ResourceVersion = version
		api.bundles = []corev1.ConfigMap{*both}
	})
	s := h.next(t)
	s.send(t, assignOf("u", 1))
	f.await(t, "manager-1 assign u 1")
	api.change(slicesPath, "DELETED", slice, func(version string) {
		slice.ResourceVersion = version
		api.slices = nil
	})
	f.await(t, "manager-1 forget all")
}

func TestDiscoveryLearnsWhatChangedWhileNothingWasWatched(t *testing.T) {
	ca := newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	api, client := serveAPI(t, hubSlice(t, h, "manager-1"), bundleOf(ca))
	f := start(t, nil)
	discover(t, client, f.Client)
	s := h.next(t)
	s.send(t, assignOf("u", 1))
	f.await(t, "manager-1 assign u 1")

	// No watch is told, and the version that they know is one too old.
	api.watched(t)
	api.change("", "", nil, func(version string) {
		slice := hubSlice(t, h, "manager-2")
		slice.ResourceVersion = version
		api.slices = []discoveryv1.EndpointSlice{*slice}
	})
	api.cut()
	f.await(t, "manager-1 forget all")
	h.next(t)
	api.watched(t)
}

func portNumber(t *testing.T, text string) int {
	t.Helper()
	n := 0
	for _, digit := range text {
		n = 10*n + int(digit-'0')
	}
	if n == 0 {
		t.Fatalf("port %q", text)
	}
	return n
}
