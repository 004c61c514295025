// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controlplane starts an etcd and an API server for a test that needs
// no node. Clusters with nodes are test/cluster's.
package controlplane

import (
	"os"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// assetsVariable names the directory of the commands, as envtest has it.
const assetsVariable = "KUBEBUILDER_ASSETS"

// Assets returns the directory that holds etcd, kube-apiserver and kubectl.
// Without one the test fails: it is not skipped.
func Assets(tb testing.TB) string {
	tb.Helper()
	assets := os.Getenv(assetsVariable)
	if assets == "" {
		tb.Fatal(assetsVariable + " is not set: want a directory with etcd, kube-apiserver and kubectl")
	}
	return assets
}

// Start starts both until the test's end, with the CustomResourceDefinitions of
// these directories. Config of what it returns is an administrator's.
func Start(tb testing.TB, definitions ...string) *envtest.Environment {
	tb.Helper()
	Assets(tb)
	env := &envtest.Environment{
		ControlPlaneStartTimeout: time.Minute,
		CRDInstallOptions:        envtest.CRDInstallOptions{Paths: definitions, ErrorIfPathMissing: true},
	}
	if _, err := env.Start(); err != nil {
		tb.Fatalf("start the API server: %v", err)
	}
	tb.Cleanup(func() {
		if err := env.Stop(); err != nil {
			tb.Errorf("stop the API server: %v", err)
		}
	})
	return env
}
