// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// backdate is how much earlier than now a certificate says that it begins, so
// that nodes whose clocks are late accept it.
const backdate = time.Hour

// pair is a certificate and its key. It is not changed once made.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
	// certPEM and keyPEM are what is stored.
	certPEM, keyPEM []byte
}

// parsePair returns the pair that the PEM texts hold, or an error if either is
// missing or malformed, or if they do not belong together.
func parsePair(certPEM, keyPEM []byte) (*pair, error) {
	if len(certPEM) == 0 && len(keyPEM) == 0 {
		return nil, errors.New("there is none")
	}
	both, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	key, ok := both.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("its key is a %T, which cannot sign", both.PrivateKey)
	}
	return &pair{cert: both.Leaf, key: key, certPEM: certPEM, keyPEM: keyPEM}, nil
}

// newAuthority returns a new authority that is valid for life from now on.
func newAuthority(now time.Time, life time.Duration) (*pair, error) {
	return issue(nil, &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Policy Gate authority"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	})
}

// newLeaf returns a serving certificate for names that authority has signed.
// It ends with the authority at the latest.
func newLeaf(authority *pair, names []string, now time.Time, life time.Duration) (*pair, error) {
	end := now.Add(life)
	if end.After(authority.cert.NotAfter) {
		end = authority.cert.NotAfter
	}
	return issue(authority, &x509.Certificate{
		Subject:     pkix.Name{CommonName: "policygate"},
		DNSNames:    names,
		NotBefore:   now.Add(-backdate),
		NotAfter:    end,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
}

// issue makes a key and a certificate for it after template, signed by
// authority, or by itself if authority is nil.
func issue(authority *pair, template *x509.Certificate) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	parent, signer := template, crypto.Signer(key)
	if authority != nil {
		parent, signer = authority.cert, authority.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("sign a certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return parsePair(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	)
}

// issued returns when a certificate of this package was made.
func issued(c *x509.Certificate) time.Time { return c.NotBefore.Add(backdate) }

// renewal returns when two thirds of the life of a certificate are over.
func renewal(c *x509.Certificate) time.Time {
	from := issued(c)
	return from.Add(c.NotAfter.Sub(from) / 3 * 2)
}

// invalid returns why c is not valid at a time, or "". A beginning less than
// backdate ahead is that of another replica, whose clock is early.
func invalid(c *x509.Certificate, now time.Time) string {
	switch {
	case !now.Before(c.NotAfter):
		return "it expired at " + c.NotAfter.Format(time.RFC3339)
	case now.Add(backdate).Before(c.NotBefore):
		return "it begins only at " + c.NotBefore.Format(time.RFC3339)
	}
	return ""
}

// parseBundle returns the certificates of a PEM text in their order, leaving
// out what is malformed and what is no certificate.
func parseBundle(text []byte) []*x509.Certificate {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return certs
		}
		if c, err := x509.ParseCertificate(block.Bytes); err == nil && block.Type == "CERTIFICATE" {
			certs = append(certs, c)
		}
	}
}

// encodeBundle is the inverse of parseBundle.
func encodeBundle(certs []*x509.Certificate) []byte {
	var out bytes.Buffer
	for _, c := range certs {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.Bytes()
}
