// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Package linked tells which modules are linked into commands, and under which
// licences they are. It asks the go command and reads the module cache; what
// only tests or tools need is not linked.
package linked

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/policygate/policygate/hack/licence"
)

// Standard is the Path of the standard library; its Version is Go's.
const Standard = "stdlib"

// Module is a module that is linked.
type Module struct {
	Path, Version string
	// Sum is as in go.sum, empty for the standard library.
	Sum string
	// Licences are the SPDX identifiers of all that is linked of it, sorted.
	Licences []string
}

// Build is what is built and for what: packages in the repository, and GOOS.
type Build struct {
	Packages []string
	GOOS     string
}

// Builds are all that is shipped: the image's commands, and the plugin for
// where people are.
func Builds() []Build {
	plugin := []string{"./cmd/kubectl-policygate"}
	return []Build{
		{Packages: []string{"./cmd/manager", "./cmd/agent", "./cmd/hold", "./cmd/northbound", "./cmd/kubectl-policygate"}, GOOS: "linux"},
		{Packages: plugin, GOOS: "darwin"},
		{Packages: plugin, GOOS: "windows"},
	}
}

// goPackage is what is asked of go list.
type goPackage struct {
	ImportPath, Dir string
	Standard        bool
	Module          *struct {
		Path, Version, Sum string
		Main               bool
		Replace            *struct{ Path string }
	}
}

// moduleDir returns the directory of p's module; go list does not say it of a
// vendored one.
func (p *goPackage) moduleDir() string {
	return strings.TrimSuffix(p.Dir, filepath.FromSlash(strings.TrimPrefix(p.ImportPath, p.Module.Path)))
}

// Modules returns the modules that b links, by their paths, without the
// repository's own. A module whose licences are not all known is in the error;
// the others are returned all the same.
func Modules(ctx context.Context, root string, b Build) ([]Module, error) {
	known, err := licence.Load()
	if err != nil {
		return nil, err
	}
	packages, err := list(ctx, root, b)
	if err != nil {
		return nil, err
	}
	goroot, err := command(ctx, root, []string{"env", "GOROOT", "GOVERSION"})
	if err != nil {
		return nil, err
	}
	dir, version, _ := strings.Cut(strings.TrimSpace(string(goroot)), "\n")
	modules := map[string]*Module{Standard: {Path: Standard, Version: strings.TrimPrefix(version, "go")}}
	files := map[string]map[string]bool{Standard: {filepath.Join(dir, "LICENSE"): true}}
	for _, p := range packages {
		if p.Standard || p.Module == nil || p.Module.Main {
			continue
		}
		m := Module{Path: p.Module.Path, Version: p.Module.Version, Sum: p.Module.Sum}
		if r := p.Module.Replace; r != nil {
			return nil, fmt.Errorf("module %s is replaced by %s: want none, as what is shipped could not be told from its name", m.Path, r.Path)
		}
		if modules[m.Path] == nil {
			modules[m.Path], files[m.Path] = &m, map[string]bool{}
		}
		if err := addFiles(files[m.Path], p.Dir, p.moduleDir()); err != nil {
			return nil, err
		}
	}
	var out []Module
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		m := modules[path]
		if m.Licences, err = licences(known, slices.Sorted(maps.Keys(files[path]))); err != nil {
			errs = append(errs, fmt.Errorf("module %s %s: %w", m.Path, m.Version, err))
		}
		out = append(out, *m)
	}
	return out, errors.Join(errs...)
}

func list(ctx context.Context, root string, b Build) ([]goPackage, error) {
	out, err := command(ctx, root, append([]string{"list", "-deps", "-json=ImportPath,Dir,Standard,Module"}, b.Packages...), "GOOS="+b.GOOS)
	if err != nil {
		return nil, err
	}
	var packages []goPackage
	decoder := json.NewDecoder(bytes.NewReader(out))
	for {
		var p goPackage
		switch err := decoder.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages, nil
		case err != nil:
			return nil, fmt.Errorf("what go list says: %w", err)
		}
		packages = append(packages, p)
	}
}

// addFiles adds the licences that lie in a package's directory and in those
// above it, up to its module's.
func addFiles(files map[string]bool, dir, module string) error {
	name := regexp.MustCompile(`(?i)^(licen[cs]e|copying|unlicense)([-._].*)?$`)
	within := func() bool {
		rest, err := filepath.Rel(module, dir)
		return err == nil && filepath.IsLocal(rest)
	}
	for ; within(); dir = filepath.Dir(dir) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() && name.MatchString(e.Name()) && filepath.Ext(e.Name()) != ".go" {
				files[filepath.Join(dir, e.Name())] = true
			}
		}
	}
	return nil
}

// licences returns all licences of some files.
func licences(known *licence.Known, files []string) ([]string, error) {
	if len(files) == 0 {
		return nil, errors.New("it has no file with a licence")
	}
	var all []string
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		ids, err := known.In(string(text))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", file, err))
		}
		all = append(all, ids...)
	}
	slices.Sort(all)
	return slices.Compact(all), errors.Join(errs...)
}

// command returns what the go command prints, as for a static build.
func command(ctx context.Context, root string, args []string, env ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = root
	c.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off"), env...)
	var problem strings.Builder
	c.Stderr = &problem
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, problem.String())
	}
	return out, nil
}
