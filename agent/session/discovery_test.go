// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
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

func TestDiscoveryFindsReplicasAndRoots(t *testing.T) {
	old, ca := newAuthority(t), newAuthority(t)
	h := serve(t, "", ca.leaf(t, serverName))
	host, port, _ := strings.Cut(h.address, ":")
	slice := endpoints([]discoveryv1.EndpointPort{hubPort("hub", int32(portNumber(t, port)))}, endpoint("manager-1", host, nil))
	bundle := func(authorities ...*authority) *corev1.ConfigMap {
		var text []byte
		for _, a := range authorities {
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})...)
		}
		return &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "policygate-ca", Namespace: "policygate-system"},
			Data:       map[string]string{"ca.crt": string(text)},
		}
	}
	client := fake.NewClientset(slice, bundle(old))
	f := start(t, nil)
	d := &Discovery{
		Client: client, Namespace: "policygate-system", Service: "policygate-hub", ConfigMap: "policygate-ca", Log: testr.New(t),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx, f.Client) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})

	// The old authority alone is of no use; beside it the new one is.
	_, err := client.CoreV1().ConfigMaps("policygate-system").Update(t.Context(), bundle(old, ca), metav1.UpdateOptions{})
	must(t, err)
	s := h.next(t)
	s.send(t, assignOf("u", 1))
	f.await(t, "manager-1 assign u 1")
	must(t, client.DiscoveryV1().EndpointSlices("policygate-system").Delete(t.Context(), slice.Name, metav1.DeleteOptions{}))
	f.await(t, "manager-1 forget all")
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
