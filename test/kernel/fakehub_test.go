// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package kernel_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
)

// fakeHub is a replica of the manager that assigns what it is told to.
type fakeHub struct {
	hubv1.UnimplementedHubServer

	port int32
	// opened is closed when the first session is.
	opened  chan struct{}
	send    chan *hubv1.HubMessage
	reports chan *hubv1.Report
}

// serveHub serves a hub on the caller's loopback and returns whom to trust, in
// PEM.
func serveHub(b *testing.B) (*fakeHub, string, error) {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"policygate-hub.policygate-system.svc"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, "", err
	}
	listener, err := listen(b)
	if err != nil {
		return nil, "", err
	}
	h := &fakeHub{
		port: int32(listener.Addr().(*net.TCPAddr).Port), opened: make(chan struct{}), //nolint:forcetypeassert // It listens for TCP.
		send: make(chan *hubv1.HubMessage, 64), reports: make(chan *hubv1.Report, 4096),
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
	})), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}))
	hubv1.RegisterHubServer(server, h)
	go func() { _ = server.Serve(listener) }()
	b.Cleanup(server.Stop)
	return h, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), nil
}

// Session implements hubv1.HubServer for the one agent that there is.
func (h *fakeHub) Session(stream grpc.BidiStreamingServer[hubv1.AgentMessage, hubv1.HubMessage]) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	if err := stream.Send(&hubv1.HubMessage{Message: &hubv1.HubMessage_Synced{Synced: &hubv1.Synced{}}}); err != nil {
		return err
	}
	close(h.opened)
	go func() {
		for m, err := stream.Recv(); err == nil; m, err = stream.Recv() {
			if r := m.GetReport(); r != nil {
				h.reports <- r
			}
		}
	}()
	for {
		select {
		case m := <-h.send:
			if err := stream.Send(m); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// serveAPI serves what an agent asks an API server for: where the hub is and
// whom to trust. It returns a kubeconfig.
func serveAPI(b *testing.B, port int32, roots string) (string, error) {
	b.Helper()
	name, meta := "hub", metav1.ObjectMeta{
		Name: "policygate-hub-1", Namespace: "policygate-system", UID: "1", ResourceVersion: "1",
		Labels: map[string]string{discoveryv1.LabelServiceName: "policygate-hub"},
	}
	ca := meta
	ca.Name = "policygate-ca"
	lists := map[string]any{
		"/apis/discovery.k8s.io/v1/namespaces/policygate-system/endpointslices": &discoveryv1.EndpointSliceList{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSliceList"},
			ListMeta: metav1.ListMeta{ResourceVersion: "1"},
			Items: []discoveryv1.EndpointSlice{{
				ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4,
				Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"127.0.0.1"}}},
				Ports:     []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
			}},
		},
		"/api/v1/namespaces/policygate-system/configmaps": &corev1.ConfigMapList{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"},
			ListMeta: metav1.ListMeta{ResourceVersion: "1"},
			Items:    []corev1.ConfigMap{{ObjectMeta: ca, Data: map[string]string{"ca.crt": roots}}},
		},
	}
	listener, err := listen(b)
	if err != nil {
		return "", err
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		list, query := lists[r.URL.Path], r.URL.Query()
		switch {
		case list == nil:
			http.NotFound(w, r)
		case query.Get("sendInitialEvents") != "":
			// As an API server that does not know it: the client lists.
			w.WriteHeader(http.StatusUnprocessableEntity)
			_ = json.NewEncoder(w).Encode(&metav1.Status{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
				Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity,
			})
		case query.Get("watch") != "":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			_ = json.NewEncoder(w).Encode(list)
		}
	})}
	go func() { _ = server.Serve(listener) }()
	b.Cleanup(func() { _ = server.Close() })
	return strings.TrimSpace(fmt.Sprintf(`
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "http://%s"}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
users: [{name: u, user: {}}]
current-context: c
`, listener.Addr())), nil
}

// listen listens on the loopback of the caller's namespace.
func listen(b *testing.B) (net.Listener, error) {
	b.Helper()
	var config net.ListenConfig
	return config.Listen(b.Context(), "tcp", "127.0.0.1:0")
}
