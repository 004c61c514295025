// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// module is the path of the module that holds the commands that Build makes.
const module = "github.com/policygate/policygate/test/cluster"

// components is the names that the executable of Build answers to.
var components = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
}

// Build makes what a cluster consists of, with the go command: dir/kube, which is all of
// Kubernetes in one executable, dir/pause, and dir/bin with a symbolic link to kube for each
// component, usable as KUBEBUILDER_ASSETS. It returns the path of kube, for
// Options.KubeBinary. The first time takes minutes, the next are a look at go's cache. It must
// be called within a module that is, or requires, this one. What go says goes to progress,
// unless that is nil.
func Build(ctx context.Context, dir string, progress io.Writer) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	source, err := moduleDir(ctx)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return "", fmt.Errorf("build: %w", err)
	}
	flags, err := versionFlags(ctx, source)
	if err != nil {
		return "", err
	}
	kube := filepath.Join(dir, "kube")
	if err := goBuild(ctx, source, "./kube", kube, flags, progress); err != nil {
		return "", err
	}
	if err := goBuild(ctx, source, "./cmd/pause", filepath.Join(dir, "pause"), "-s -w", progress); err != nil {
		return "", err
	}
	for _, name := range components {
		err := os.Symlink("../kube", filepath.Join(dir, "bin", name))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("build: %w", err)
		}
	}
	return kube, nil
}

// goBuild builds one static executable.
func goBuild(ctx context.Context, source, pkg, output, ldflags string, progress io.Writer) error {
	// Version control is left out: a commit would link 140 MB anew.
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-ldflags="+ldflags, "-o", output, pkg)
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if progress != nil {
		cmd.Stdout = io.MultiWriter(&said, progress)
		cmd.Stderr = cmd.Stdout
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, said.String())
	}
	return nil
}

// moduleDir returns the directory of this module's source.
func moduleDir(ctx context.Context) (string, error) {
	dir, err := output(exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module))
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return dir, nil
}

// versionFlags returns the linker flags that tell the components their version. Without them
// they call themselves v0.0.0, and clients that compare versions fail.
func versionFlags(ctx context.Context, source string) (string, error) {
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	list.Dir = source
	list.Env = append(os.Environ(), "GOWORK=off")
	version, err := output(list)
	if err != nil {
		return "", fmt.Errorf("find version of Kubernetes: %w", err)
	}
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	flags := []string{"-s", "-w"}
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags, "-X", pkg+".gitVersion="+version, "-X", pkg+".gitMajor="+major, "-X", pkg+".gitMinor="+minor)
	}
	return strings.Join(flags, " "), nil
}

// output runs a command and returns what it printed, without the spaces around it; the error
// has what it complained of.
func output(cmd *exec.Cmd) (string, error) {
	content, err := cmd.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return "", fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", err
	}
	return strings.TrimSpace(string(content)), nil
}
