// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

const (
	// assetsVariable names the directory with etcd, kube-apiserver and kubectl.
	assetsVariable = "KUBEBUILDER_ASSETS"
	// startTimeout is for a machine that others use, too.
	startTimeout = 2 * time.Minute
	// testQPS does not bound the test's own requests.
	testQPS = 10_000
)

// auditPolicy records each request of the product's ServiceAccounts, without
// contents.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: ["RequestReceived", "ResponseStarted"]
rules:
- level: Metadata
  userGroups: ["system:serviceaccounts:policygate-system"]
- level: None
`

// controlPlane is an etcd and an API server.
type controlPlane struct {
	env *envtest.Environment
	// config and client are an administrator's.
	config *rest.Config
	client *kubernetes.Clientset
	// kubeconfig is the path of the administrator's kubeconfig.
	kubeconfig string
	// audit is the path of the audit log.
	audit string
}

// startControlPlane starts one that keeps its files in dir, but for those of
// envtest's own.
func startControlPlane(dir string) (*controlPlane, error) {
	c := &controlPlane{
		env:        &envtest.Environment{ControlPlaneStartTimeout: startTimeout, ControlPlaneStopTimeout: startTimeout},
		kubeconfig: filepath.Join(dir, "admin.kubeconfig"),
		audit:      filepath.Join(dir, "audit.log"),
	}
	policy := filepath.Join(dir, "audit-policy.yaml")
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return nil, err
	}
	// envtest has etcd not wait for the disk.
	c.env.ControlPlane.GetAPIServer().Configure().
		Set("audit-policy-file", policy).
		Set("audit-log-path", c.audit).
		Set("audit-log-maxsize", "4096") // MiB: it is read as one file
	config, err := c.env.Start()
	if err != nil {
		return nil, fmt.Errorf("start the API server: %w", errors.Join(err, c.env.Stop()))
	}
	config.QPS, config.Burst = testQPS, testQPS
	c.config = config
	c.client, err = kubernetes.NewForConfig(config)
	if err == nil {
		err = os.WriteFile(c.kubeconfig, c.env.KubeConfig, 0o600)
	}
	if err != nil {
		return nil, errors.Join(err, c.env.Stop())
	}
	return c, nil
}

// asset returns the path of one of the control plane's executables.
func asset(name string) string { return filepath.Join(os.Getenv(assetsVariable), name) }

// checkAssets returns an error that says what is missing, or nil.
func checkAssets() error {
	if os.Getenv(assetsVariable) == "" {
		return errors.New(assetsVariable + " is not set: want a directory with etcd, kube-apiserver and kubectl")
	}
	var errs []error
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if _, err := os.Stat(asset(name)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", assetsVariable, err))
		}
	}
	return errors.Join(errs...)
}

// close ends both.
func (c *controlPlane) close() error { return c.env.Stop() }
