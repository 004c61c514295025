// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestServingIsNotReadyWithoutAValidCertificate(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(epoch())
	serving := NewServing(clock)
	refused := func(want string) {
		t.Helper()
		if err := serving.Ready(nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Ready() = %v, want an error that says %q", err, want)
		}
	}
	refused("no serving certificate")
	if _, err := serving.GetCertificate(nil); err == nil {
		t.Error("GetCertificate gave a certificate before one was loaded")
	}
	if err := serving.load(&corev1.Secret{}); err != nil {
		t.Errorf("the Secret as it is shipped: %v", err)
	}
	refused("no serving certificate")

	leaf := leafAt(t, authorityAt(t, epoch()), epoch())
	if err := serving.load(&corev1.Secret{Data: leafData(leaf)}); err != nil {
		t.Fatal(err)
	}
	if err := serving.Ready(nil); err != nil {
		t.Errorf("Ready() = %v with a valid certificate", err)
	}
	if err := serving.load(&corev1.Secret{Data: with(leafData(leaf), keyTLSKey, "spoilt")}); err == nil {
		t.Error("a spoilt Secret is no error")
	}
	if err := serving.Ready(nil); err != nil {
		t.Errorf("Ready() = %v, want the certificate of before to stay", err)
	}
	clock.SetTime(leaf.cert.NotAfter)
	refused("it expired at")
}

func TestServingChangesTheCertificateOfARunningServer(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(epoch())
	serving := NewServing(clock)
	config := &tls.Config{Time: clock.Now}
	serving.Configure(config)

	ca := authorityAt(t, epoch())
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for range 2 {
		leaf := leafAt(t, ca, epoch())
		if err := serving.load(&corev1.Secret{Data: leafData(leaf)}); err != nil {
			t.Fatal(err)
		}
		here, there := net.Pipe()
		server := tls.Server(here, config)
		served := make(chan error, 1)
		go func() { served <- server.HandshakeContext(t.Context()) }()
		dialer := tls.Client(there, &tls.Config{
			RootCAs: roots, ServerName: "policygate-hub.policygate-system.svc", Time: clock.Now,
			MinVersion: tls.VersionTLS13,
		})
		if err := dialer.HandshakeContext(t.Context()); err != nil {
			t.Fatalf("client: %v", err)
		}
		if err := <-served; err != nil {
			t.Fatalf("server: %v", err)
		}
		if !dialer.ConnectionState().PeerCertificates[0].Equal(leaf.cert) {
			t.Error("the server does not serve the certificate that was loaded last")
		}
		for _, conn := range []net.Conn{here, there} {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
