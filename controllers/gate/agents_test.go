// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	hubv1 "github.com/policygate/policygate/api/hub/v1"
	"github.com/policygate/policygate/api/v1alpha1"
	"github.com/policygate/policygate/controllers/barrier"
	"github.com/policygate/policygate/controllers/coverage"
	"github.com/policygate/policygate/controllers/hub"
)

// nodeTokens reviews a token as the name of the node that it is of.
type nodeTokens struct{}

func (nodeTokens) Review(_ context.Context, token string) (hub.Identity, error) {
	return hub.Identity{Node: token}, nil
}

// listed is a barrier.Lister of what the API server has.
type listed func() []barrier.Version

func (l listed) Kind() barrier.Kind { return barrier.NetworkPolicies }

func (l listed) List(context.Context) ([]barrier.Version, error) { return l(), nil }

// heldVersions is an index as package barrier consumes it.
type heldVersions struct{ *coverage.Index }

func (h heldVersions) Holds(v barrier.Version) bool {
	return h.Has(coverage.KindNetworkPolicy, v.UID, "30")
}

// testAgent what the test says.
type testAgent struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[hubv1.AgentMessage, hubv1.HubMessage]
}

// next receives until want says that a message is the one.
func (a testAgent) next(want func(*hubv1.HubMessage) bool) *hubv1.HubMessage {
	a.t.Helper()
	for {
		m, err := a.stream.Recv()
		if err != nil {
			a.t.Fatal(err)
		}
		if want(m) {
			return m
		}
	}
}

func (a testAgent) assigned() *hubv1.Assign {
	a.t.Helper()
	return a.next(func(m *hubv1.HubMessage) bool { return m.GetAssign() != nil }).GetAssign()
}

func (a testAgent) confirm(assign *hubv1.Assign) {
	a.t.Helper()
	a.report(&hubv1.Report{Uid: assign.GetSubject().GetUid(), Generation: assign.GetGeneration(), Confirmed: true})
}

func (a testAgent) report(r *hubv1.Report) {
	a.t.Helper()
	err := a.stream.Send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Report{Report: r}})
	if err != nil {
		a.t.Fatal(err)
	}
}

// TestAgentsOpenAGate runs index, barrier, ledger and hub together, with two
// agents over TLS: a client on n1, and on n2 a server whose policy admits it.
// The index hears of that policy only after the client is confirmed on n1.
func TestAgentsOpenAGate(t *testing.T) {
	index := coverage.New(coverage.DefaultOptions())
	policy := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "allow", UID: "allow", ResourceVersion: "30", Generation: 1},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": "server"}},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{
				PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
			}}}},
		},
	}
	behind := barrier.New(barrier.Options{
		Listers: []barrier.Lister{listed(func() []barrier.Version {
			return []barrier.Version{{Kind: barrier.NetworkPolicies, UID: policy.UID, ResourceVersion: 30}}
		})},
		Index: heldVersions{index}, Clock: clock.RealClock{}, Log: logr.Discard(),
	})
	messages := NewMessages(&fakePatcher{}, nil, v1alpha1.ConditionProgrammed, clock.RealClock{}, logr.Discard())
	ledger := New(Options{
		Coverage: FromIndex(index), Barrier: behind, Teller: messages, Clock: clock.RealClock{}, Log: logr.Discard(),
		Metrics: NewMetrics(prometheus.NewRegistry()), ConditionType: v1alpha1.ConditionProgrammed,
	})
	certificate, roots := serverCertificate(t)
	sessions := hub.New(hub.Options{
		Reviewer: nodeTokens{}, Sink: ledger, Clock: clock.RealClock{}, Log: logr.Discard(), Address: "127.0.0.1:0",
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, nil },
	})
	ledger.SetHub(sessions)
	start(t, behind.Start, ledger.Start, sessions.Start)

	index.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop", UID: "shop", ResourceVersion: "1"}})
	for _, name := range []string{"n1", "n2"} {
		index.SetNode(&corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Status:     corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{BootID: "boot"}},
		})
		ledger.NodeChanged(name, "boot")
	}
	index.SetPod(runningPod("server", "n2", "10.0.2.1", "20"))
	for deadline := time.Now().Add(10 * time.Second); sessions.Listening() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hub does not listen")
		}
	}
	n1, n2 := dial(t, sessions, roots, "n1"), dial(t, sessions, roots, "n2")

	client := runningPod("client", "n1", "10.0.1.1", "40")
	client.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: v1alpha1.ConditionProgrammed}}
	index.SetPod(client)
	ledger.PodChanged(client)
	n1.confirm(n1.assigned())

	index.SetPolicy(policy)
	far := n2.assigned()
	if !far.GetExcuseFamilies() {
		t.Error("by default a node may leave out a family that its engine does not enforce, n2 was not told")
	}
	n2.report(&hubv1.Report{
		Uid: far.GetSubject().GetUid(), Generation: far.GetGeneration(), Confirmed: true, Ipv6Unenforced: true,
	})
	var released *hubv1.Release
	n1.next(func(m *hubv1.HubMessage) bool {
		if a := m.GetAssign(); a != nil {
			n1.confirm(a)
		}
		released = m.GetRelease()
		return released != nil
	})
	if released.GetReason() != v1alpha1.ReasonConfirmed ||
		!strings.HasPrefix(released.GetMessage(), "confirmed on 2/2 nodes in ") ||
		!strings.HasSuffix(released.GetMessage(), "; v6 not enforced on n2") {
		t.Errorf("released with %s: %q", released.GetReason(), released.GetMessage())
	}
	if diff := cmp.Diff([]string{"10.0.1.1"}, released.GetSubject().GetIps()); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	if released.GetBasis().GetNetworkPolicies() != 30 {
		t.Errorf("basis = %v, want the policy's version in it", released.GetBasis())
	}

	opened("10.0.1.1", "boot")(client)
	client.ResourceVersion = "41"
	index.SetPod(client)
	ledger.PodChanged(client)
	for _, a := range []testAgent{n1, n2} {
		a.next(func(m *hubv1.HubMessage) bool { return m.GetWithdraw().GetUid() == "client" })
	}
}

func runningPod(name, node, ip, version string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID(name), ResourceVersion: version,
			Labels: map[string]string{"app": name}, Annotations: map[string]string{},
		},
		Spec:   corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "main"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: ip}}},
	}
}

// start runs the parts until the test ends.
func start(t *testing.T, parts ...func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, len(parts))
	for _, run := range parts {
		go func() { done <- run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range parts {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

func dial(t *testing.T, h *hub.Hub, roots *x509.CertPool, node string) testAgent {
	t.Helper()
	conn, err := grpc.NewClient(h.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{RootCAs: roots, ServerName: "hub", MinVersion: tls.VersionTLS13})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	stream, err := hubv1.NewHubClient(conn).Session(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+node))
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&hubv1.AgentMessage{Message: &hubv1.AgentMessage_Hello{Hello: &hubv1.Hello{BootId: "boot"}}})
	if err != nil {
		t.Fatal(err)
	}
	return testAgent{t, stream}
}

// serverCertificate returns a self-signed certificate for "hub".
func serverCertificate(t *testing.T) (*tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"hub"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
