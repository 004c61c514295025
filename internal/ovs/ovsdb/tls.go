// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package ovsdb

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/policygate/policygate/internal/ovs/jsonrpc"
)

// TLS names the PEM files of the client's certificate and private key and of
// the CA that signed the servers'. They are read anew for each connection, so
// they may be replaced.
//
// A server is believed if the CA signed its certificate, whatever name is in
// it: OVN's certificates name no hosts, and OVS' own clients ask no more. So
// the CA must sign nothing but OVN's.
type TLS struct {
	Certificate, PrivateKey, CA string
}

// config returns what to dial the endpoint with, which is nil if that is not
// secure.
func (t *TLS) config(e jsonrpc.Endpoint) (*tls.Config, error) {
	if !e.Secure() {
		return nil, nil //nolint:nilnil // Dial wants none.
	}
	own, err := tls.LoadX509KeyPair(t.Certificate, t.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("the certificate %s and private key %s: %w", t.Certificate, t.PrivateKey, err)
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("the CA certificate: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA certificate: %s holds none in PEM form", t.CA)
	}
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		Certificates:       []tls.Certificate{own},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies all but the name.
		VerifyConnection: func(state tls.ConnectionState) error {
			return verify(state.PeerCertificates, roots)
		},
	}, nil
}

// verify returns an error unless one of the roots signed the chain's first.
func verify(chain []*x509.Certificate, roots *x509.CertPool) error {
	if len(chain) == 0 {
		return errors.New("the server has no certificate")
	}
	others := x509.NewCertPool()
	for _, c := range chain[1:] {
		others.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: others,
		// Certificates of ovs-pki say nothing of what they are for.
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}
