// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// testCluster returns a cluster that is not started, with one dual-stack node.
func testCluster(t *testing.T) *Cluster {
	t.Helper()
	o := Options{Name: "a", Dir: t.TempDir(), Nodes: 1, DualStack: true, KubeBinary: "/kube", IPTables: IPTablesNFT}
	c := &Cluster{state: state{Options: o, Slot: 1}}
	c.nodes = []*Node{{PlannedNode: c.state.plan().Node(0), NetNS: "ns", cluster: c, dir: c.path("n1")}}
	return c
}

func TestConfigurationParses(t *testing.T) {
	n := testCluster(t).nodes[0]
	for name, content := range map[string]string{"kubelet": kubeletConfig(n), "kube-proxy": kubeProxyConfig(n)} {
		var parsed map[string]any
		if err := yaml.UnmarshalStrict([]byte(content), &parsed); err != nil {
			t.Errorf("%s: %v:\n%s", name, err, content)
		}
	}
	var cni struct {
		Plugins []struct {
			Bridge string
			IPAM   struct{ Ranges [][]struct{ Subnet string } }
		}
	}
	if err := json.Unmarshal([]byte(cniConfig(n)), &cni); err != nil {
		t.Fatal(err)
	}
	if cni.Plugins[0].Bridge != "kube-bridge" || len(cni.Plugins[0].IPAM.Ranges) != 2 || cni.Plugins[0].IPAM.Ranges[1][0].Subnet != "fd00:10:128:100::/64" {
		t.Errorf("CNI configuration is %+v", cni)
	}
}

func TestCertificatesVerify(t *testing.T) {
	plan := Plan{Slot: 1, DualStack: true}
	dir := t.TempDir()
	if err := writePKI(dir, plan, 1, "https://"+apiServerAddr(plan)); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(readCertificate(t, filepath.Join(dir, "ca.crt")))
	for name, hosts := range map[string][]string{
		"apiserver":          {"10.99.1.2", "10.96.0.1", "127.0.0.1", "fd00:10:99:100::2", "kubernetes.default.svc"},
		"kubelet-serving-n1": {"n1", "10.99.1.11", "fd00:10:99:100::b"},
	} {
		for _, host := range hosts {
			if _, err := readCertificate(t, filepath.Join(dir, name+".crt")).Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
				t.Errorf("%s for %s: %v", name, host, err)
			}
		}
	}
	kubelet := readCertificate(t, filepath.Join(dir, "kubelet-n1.crt"))
	if kubelet.Subject.CommonName != "system:node:n1" || kubelet.Subject.Organization[0] != "system:nodes" {
		t.Errorf("kubelet's identity is %v, which the Node authorizer does not know", kubelet.Subject)
	}
	config, err := restConfig(filepath.Join(dir, "kubelet-n1.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://10.99.1.2:6443" || len(config.CAData) == 0 || len(config.KeyData) == 0 {
		t.Errorf("kubeconfig gives %v", config)
	}
	if info, err := os.Stat(filepath.Join(dir, "admin.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of a key: %v, %v", info.Mode(), err)
	}
}

func readCertificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestReady(t *testing.T) {
	isReady := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue}
	notReady := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Message: "no CNI"}
	taint := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
	for name, tc := range map[string]struct {
		conditions []corev1.NodeCondition
		taints     []corev1.Taint
		want       string
	}{
		"registered":              {nil, nil, "no Ready condition yet"},
		"not ready":               {[]corev1.NodeCondition{notReady}, nil, "not Ready: no CNI"},
		"ready":                   {[]corev1.NodeCondition{isReady}, nil, ""},
		"ready, taint stays":      {[]corev1.NodeCondition{isReady}, []corev1.Taint{taint}, "taint node.kubernetes.io/not-ready:NoSchedule"},
		"ready, taint of another": {[]corev1.NodeCondition{isReady}, []corev1.Taint{{Key: "example.org/start-up", Effect: corev1.TaintEffectNoSchedule}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := ready(&corev1.Node{Spec: corev1.NodeSpec{Taints: tc.taints}, Status: corev1.NodeStatus{Conditions: tc.conditions}})
			if got := errorText(err); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
