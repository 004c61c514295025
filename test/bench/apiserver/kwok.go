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

	"github.com/policygate/policygate/test/installation"
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

// startKwok runs the lifecycle of all Nodes and Pods. Leases of nodes are left
// out: nobody reads them here, and 1,000 nodes renew 100 a second.
func startKwok(dir, executable, kubeconfig string) (*installation.Process, error) {
	config := filepath.Join(dir, "stages.yaml")
	if err := os.WriteFile(config, stages, 0o600); err != nil {
		return nil, err
	}
	return installation.Start(dir, installation.Command{Name: "kwok", Argv: []string{
		executable, "--kubeconfig=" + kubeconfig, "--config=" + config, "--manage-all-nodes",
		"--node-lease-duration-seconds=0", "--node-ip=127.0.0.1",
	}})
}
