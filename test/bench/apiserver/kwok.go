// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed stages.yaml
var stages []byte

// buildKwok builds kwok at the version of hack/kwok.mod, unless Go's build
// cache has it, and returns the path of its executable.
func buildKwok(ctx context.Context, root string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", "-modfile=hack/kwok.mod", "kwok")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("build kwok: %w\n%s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// buildManager builds the product's manager into dir, as a release does, and
// returns the path of its executable.
func buildManager(ctx context.Context, root, dir string) (string, error) {
	path := filepath.Join(dir, "manager")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./cmd/manager")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the manager: %w\n%s", err, out)
	}
	return path, nil
}

// startKwok runs the lifecycle of all Nodes and Pods. Leases of nodes are left
// out: nobody reads them here, and 1,000 nodes renew 100 a second.
func startKwok(dir, executable, kubeconfig string) (*process, error) {
	config := filepath.Join(dir, "stages.yaml")
	if err := os.WriteFile(config, stages, 0o600); err != nil {
		return nil, err
	}
	return start(dir, "kwok", []string{
		executable, "--kubeconfig=" + kubeconfig, "--config=" + config, "--manage-all-nodes",
		"--node-lease-duration-seconds=0", "--node-ip=127.0.0.1",
	}, nil)
}

// repositoryRoot returns the directory that holds the product's go.mod, below
// which tests and commands run.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "PROJECT")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no directory above the current one holds PROJECT: run from within the repository")
		}
	}
}
