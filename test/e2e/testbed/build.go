// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/policygate/policygate/test/cluster/image"
)

// The images that a testbed's nodes have.
const (
	// GateImage is the product: manager, agent and hold.
	GateImage = "policygate.test/policygate:e2e"
	// ProbeImage is cmd/probe.
	ProbeImage = "policygate.test/probe:e2e"
	// DatabaseImage has Debian's MariaDB, server and clients.
	DatabaseImage = "policygate.test/mariadb:e2e"
)

// databasePackages are MariaDB and what its installation script and the demo's
// need of a shell: essential packages are nobody's dependencies.
var databasePackages = []string{"mariadb-server", "mariadb-client", "dash", "coreutils", "sed", "grep"}

// artifacts is what is built once for all clusters of a run.
type artifacts struct {
	root   string // the repository's
	kube   string // the directory with the cluster's commands
	engine string // the test engine's executable
	images map[string]string
}

// repositoryRoot returns the directory that holds the product's go.mod: this
// module's tests and commands run somewhere below it.
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

// build compiles the product, the test engine and the probe, and packs the
// images that are asked for. Go's build cache makes a repeated one cheap.
func build(ctx context.Context, progress func(string), database bool) (artifacts, error) {
	root, err := repositoryRoot()
	if err != nil {
		return artifacts{}, err
	}
	out := filepath.Join(root, "build", "e2e")
	bin := filepath.Join(out, "bin")
	a := artifacts{
		root:   root,
		kube:   filepath.Join(root, "build", "kube"),
		engine: filepath.Join(bin, "engine"),
		images: map[string]string{},
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return a, err
	}
	// Two clusters at a time build the same.
	lock, err := os.Open(bin)
	if err != nil {
		return a, err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return a, fmt.Errorf("lock %s: %w", bin, err)
	}
	progress("building the cluster's binary (minutes the first time, seconds after)")
	if err := a.run(ctx, filepath.Join(root, "test", "cluster"), "go", "run", "./cmd/cluster", "build"); err != nil {
		return a, err
	}
	progress("building manager, agent, hold, the kubectl plugin, the test engine and the probe")
	if err := a.goBuild(ctx, root, bin, "./cmd/manager", "./cmd/agent", "./cmd/hold", "./cmd/northbound", "./cmd/kubectl-policygate",
		"./test/engine/cmd/engine"); err != nil {
		return a, err
	}
	if err := a.goBuild(ctx, filepath.Join(root, "test", "e2e"), bin, "./cmd/probe"); err != nil {
		return a, err
	}
	progress("packing images")
	return a, a.pack(ctx, out, bin, database)
}

func (a artifacts) pack(ctx context.Context, out, bin string, database bool) error {
	specs := []image.Spec{
		{
			Ref: GateImage, User: "65532:65532",
			Files: map[string]string{
				"/manager":    filepath.Join(bin, "manager"),
				"/agent":      filepath.Join(bin, "agent"),
				"/hold":       filepath.Join(bin, "hold"),
				"/northbound": filepath.Join(bin, "northbound"),
			},
		},
		{
			Ref: ProbeImage, User: "65532:65532", Entrypoint: []string{"/probe"},
			Files: map[string]string{"/probe": filepath.Join(bin, "probe")},
		},
	}
	if database {
		mariadb, err := image.Rootfs(ctx, filepath.Join(a.root, "build", "rootfs"), databasePackages...)
		if err != nil {
			return err
		}
		specs = append(specs, image.Spec{Ref: DatabaseImage, Rootfs: mariadb})
	}
	for i, spec := range specs {
		tar := filepath.Join(out, fmt.Sprintf("image-%d.tar", i))
		if err := image.Write(ctx, tar, spec); err != nil {
			return err
		}
		a.images[spec.Ref] = tar
	}
	return nil
}

func (a artifacts) goBuild(ctx context.Context, dir, bin string, packages ...string) error {
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", bin + "/"}, packages...)
	return a.run(ctx, dir, "go", args...)
}

// run runs a command whose output is shown only if it fails.
func (a artifacts) run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}
