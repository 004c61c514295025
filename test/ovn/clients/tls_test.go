// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/policygate/policygate/internal/ovs/ovsdb"
)

// authority is a CA that signs in the way of ovs-pki: names of no hosts, and
// nothing of what a key is for.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: directory(t)}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "switchca"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	a.key = newKey(t)
	a.cert = template
	der := a.sign(template, &a.key.PublicKey)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.file = writePEM(t, a.dir, "ca.pem", "CERTIFICATE", der)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writePEM(t *testing.T, dir, name, kind string, der []byte) string {
	t.Helper()
	return writeFile(t, dir, name, string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PublicKey) []byte {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return der
}

// issue returns the files of a new certificate and its key.
func (a *authority) issue(name string) ovsdb.TLS {
	a.t.Helper()
	key := newKey(a.t)
	der := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, &key.PublicKey)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return ovsdb.TLS{
		Certificate: writePEM(a.t, a.dir, name+"-cert.pem", "CERTIFICATE", der),
		PrivateKey:  writePEM(a.t, a.dir, name+"-privkey.pem", "PRIVATE KEY", private),
		CA:          a.file,
	}
}

// freePort returns a TCP port of the loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestServerWithTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	of := ours.issue("ovn-nb")
	port := freePort(t)
	s := serve(t, northboundSchema, "--private-key="+of.PrivateKey, "--certificate="+of.Certificate, "--ca-cert="+of.CA, "--remote=pssl:"+port+":127.0.0.1")
	s.transact(object{"op": "insert", "table": "NB_Global", "row": object{}})
	good, foreign := ours.issue("policygate"), others.issue("policygate")

	t.Run("a client of the same CA is let in", func(t *testing.T) {
		c := follow(t, ovsdb.Options{Endpoints: []string{"ssl:[127.0.0.1]:" + port}, TLS: &good, Leader: true})
		c.awaitView("it is in sync", whatever)
		if n, err := c.Increment(t.Context(), "NB_Global", "nb_cfg"); n != 1 || err != nil {
			t.Errorf("increment: %d, %v", n, err)
		}
	})
	t.Run("a server of another CA is not believed", func(t *testing.T) {
		c := follow(t, ovsdb.Options{Endpoints: []string{"ssl:127.0.0.1:" + port}, TLS: &foreign})
		c.awaitError("certificate signed by unknown authority")
	})
	t.Run("a client of another CA is not let in", func(t *testing.T) {
		mixed := ovsdb.TLS{Certificate: foreign.Certificate, PrivateKey: foreign.PrivateKey, CA: good.CA}
		c := follow(t, ovsdb.Options{Endpoints: []string{"ssl:127.0.0.1:" + port}, TLS: &mixed})
		c.awaitError("remote error: tls:")
	})
	t.Run("a server without TLS is not spoken to", func(t *testing.T) {
		plain := freePort(t)
		other := serve(t, northboundSchema, "--remote=ptcp:"+plain+":127.0.0.1")
		c := follow(t, ovsdb.Options{Endpoints: []string{"ssl:127.0.0.1:" + plain}, TLS: &good})
		c.awaitError("tls handshake")
		open := follow(t, ovsdb.Options{Endpoints: []string{"tcp:127.0.0.1:" + plain}})
		open.awaitView("it is in sync without TLS", whatever)
		other.kill()
	})
	t.Run("files that were replaced are read anew", func(t *testing.T) {
		files := ovsdb.TLS{
			Certificate: filepath.Join(ours.dir, "later-cert.pem"), PrivateKey: filepath.Join(ours.dir, "later-privkey.pem"), CA: ours.file,
		}
		c := follow(t, ovsdb.Options{Endpoints: []string{"ssl:127.0.0.1:" + port}, TLS: &files})
		c.awaitError("later-cert.pem")
		ours.issue("later")
		c.awaitView("the certificate has come", whatever)
	})
}

func TestCertificatesOfOvsPki(t *testing.T) {
	dir := directory(t)
	pki := func(args ...string) {
		run(t, "sh", append([]string{"-c", `cd "$0" && exec ovs-pki --dir="$0/pki" --log="$0/log" --force "$@"`, dir}, args...)...)
	}
	pki("init")
	pki("req+sign", "ovn", "controller")
	files := ovsdb.TLS{
		Certificate: filepath.Join(dir, "ovn-cert.pem"), PrivateKey: filepath.Join(dir, "ovn-privkey.pem"),
		CA: filepath.Join(dir, "pki", "controllerca", "cacert.pem"),
	}
	port := freePort(t)
	serve(t, northboundSchema, "--private-key="+files.PrivateKey, "--certificate="+files.Certificate, "--ca-cert="+files.CA, "--remote=pssl:"+port+":127.0.0.1")
	c := follow(t, ovsdb.Options{Endpoints: []string{"ssl:127.0.0.1:" + port}, TLS: &files})
	c.awaitView("it is in sync", whatever)
	if text := readFile(t, files.Certificate); !strings.Contains(text, "BEGIN CERTIFICATE") {
		t.Errorf("ovs-pki wrote no certificate: %s", text)
	}
}
