// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// certificateLife is how long a cluster's certificates are valid: longer than any kept
// cluster is of use.
const certificateLife = 365 * 24 * time.Hour

// authority signs a cluster's certificates and writes them to files.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newAuthority makes a self-signed authority and writes dir/name.crt and dir/name.key.
func newAuthority(dir, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour), // clocks step
		NotAfter:              time.Now().Add(certificateLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	a := &authority{dir: dir, cert: template, key: key}
	raw, err := a.sign(template, key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	if a.cert, err = x509.ParseCertificate(raw); err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	return a, writeKeyPair(dir, name, raw, key)
}

// issue writes dir/name.crt and dir/name.key: a certificate for the user or host
// subject.CommonName, and for the given DNS names and addresses.
func (a *authority) issue(name string, subject pkix.Name, hosts []string, addrs []netip.Addr) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key of %s: %w", name, err)
	}
	template := &x509.Certificate{
		Subject:     subject,
		NotBefore:   a.cert.NotBefore,
		NotAfter:    a.cert.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    hosts,
	}
	for _, addr := range addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	raw, err := a.sign(template, key)
	if err != nil {
		return fmt.Errorf("sign %s: %w", name, err)
	}
	return writeKeyPair(a.dir, name, raw, key)
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	return x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
}

// writeKeyPair writes a certificate and its key to dir/name.crt and dir/name.key.
func writeKeyPair(dir, name string, cert []byte, key *ecdsa.PrivateKey) error {
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	if err := os.WriteFile(filepath.Join(dir, name+".crt"), block, 0o644); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return writeKey(dir, name, key)
}

// writeKey writes a private key to dir/name.key.
func writeKey(dir, name string, key *ecdsa.PrivateKey) error {
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("write key %s: %w", name, err)
	}
	block := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	if err := os.WriteFile(filepath.Join(dir, name+".key"), block, 0o600); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

// writePKI makes all keys and certificates of a cluster, and a kubeconfig for each of its
// users, in dir. They are the ones that kubeadm makes, under its names.
func writePKI(dir string, plan Plan, nodes int, server string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write certificates: %w", err)
	}
	ca, err := newAuthority(dir, "ca")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(dir, "front-proxy-ca")
	if err != nil {
		return err
	}
	if err := frontProxy.issue("front-proxy-client", pkix.Name{CommonName: "front-proxy-client"}, nil, nil); err != nil {
		return err
	}
	serviceAccounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key of service accounts: %w", err)
	}
	if err := writeKey(dir, "sa", serviceAccounts); err != nil {
		return err
	}
	names := []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"}
	addrs := append(plan.ControlPlane(), netip.MustParseAddr(apiService4), netip.MustParseAddr("127.0.0.1"))
	if err := ca.issue("apiserver", pkix.Name{CommonName: "kube-apiserver"}, names, addrs); err != nil {
		return err
	}
	admins := []string{"system:masters"}
	users := map[string]pkix.Name{
		"admin":                    {CommonName: "kubernetes-admin", Organization: admins},
		"apiserver-kubelet-client": {CommonName: "kube-apiserver-kubelet-client", Organization: admins},
		"controller-manager":       {CommonName: "system:kube-controller-manager"},
		"scheduler":                {CommonName: "system:kube-scheduler"},
		"proxy":                    {CommonName: "system:kube-proxy"},
	}
	for i := range nodes {
		node := plan.Node(i)
		users["kubelet-"+node.Name] = pkix.Name{CommonName: "system:node:" + node.Name, Organization: []string{"system:nodes"}}
		serving := pkix.Name{CommonName: "system:node:" + node.Name, Organization: []string{"system:nodes"}}
		if err := ca.issue("kubelet-serving-"+node.Name, serving, []string{node.Name}, node.IPs); err != nil {
			return err
		}
	}
	for name, subject := range users {
		if err := ca.issue(name, subject, nil, nil); err != nil {
			return err
		}
		if err := writeKubeconfig(dir, name, server); err != nil {
			return err
		}
	}
	return nil
}

// writeKubeconfig writes dir/user.kubeconfig, complete in itself, from the files that issue
// wrote.
func writeKubeconfig(dir, user, server string) error {
	var content [3][]byte
	for i, file := range []string{"ca.crt", user + ".crt", user + ".key"} {
		var err error
		if content[i], err = os.ReadFile(filepath.Join(dir, file)); err != nil {
			return fmt.Errorf("write kubeconfig of %s: %w", user, err)
		}
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["cluster"] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: content[0]}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: content[1], ClientKeyData: content[2]}
	config.Contexts["default"] = &clientcmdapi.Context{Cluster: "cluster", AuthInfo: user}
	config.CurrentContext = "default"
	if err := clientcmd.WriteToFile(*config, filepath.Join(dir, user+".kubeconfig")); err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", user, err)
	}
	return nil
}
