// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

// Command sbom writes what is linked into manager, agent, hold and the kubectl
// plugin as a CycloneDX bill of materials: which modules, at which version, with
// which checksum and under which licences, and which command has which.
//
//	go run ./hack/sbom -version v0.1.0 -o build/sbom.cdx.json
//
// Equal sources make equal files: it has no time and no number of its own.
package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/policygate/policygate/hack/linked"
)

// bom is a CycloneDX 1.6 document, as far as it is needed here:
// https://cyclonedx.org/docs/1.6/json/.
type bom struct {
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Ref      string          `json:"bom-ref"`
	Type     string          `json:"type"`
	Name     string          `json:"name"`
	Version  string          `json:"version"`
	Hashes   []hash          `json:"hashes,omitempty"`
	Licences []licenceChoice `json:"licenses"`
	PURL     string          `json:"purl,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

// licenceChoice is one licence, or an expression of several.
type licenceChoice struct {
	Licence    *licenceID `json:"license,omitempty"`
	Expression string     `json:"expression,omitempty"`
}

type licenceID struct {
	ID string `json:"id"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

const (
	// product is the module, and own its licence.
	product = "github.com/policygate/policygate"
	own     = "Apache-2.0"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stderr))
}

// run is main with an exit status, so that what is deferred happens.
func run(args []string, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	flags.SetOutput(stderr)
	root := flags.String("root", ".", "the repository")
	version := flags.String("version", "dev", "the version of what is described")
	file := flags.String("o", "build/sbom.cdx.json", "the file to write")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if err := write(ctx, *root, *version, *file); err != nil {
		_, _ = fmt.Fprintln(stderr, "sbom:", err)
		return 1
	}
	return 0
}

func write(ctx context.Context, root, version, file string) error {
	doc, err := describe(ctx, root, version, linked.Builds())
	if err != nil {
		return err
	}
	content, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // a build's directory, for everybody to read
		return err
	}
	return os.WriteFile(file, append(content, '\n'), 0o644) //nolint:gosec // it is published
}

// describe makes the document. A command that is built for several systems has
// what any of them links.
func describe(ctx context.Context, root, version string, builds []linked.Build) (*bom, error) {
	libraries := map[string]component{}
	commands := map[string]map[string]bool{}
	for _, b := range builds {
		for _, pkg := range b.Packages {
			modules, err := linked.Modules(ctx, root, linked.Build{Packages: []string{pkg}, GOOS: b.GOOS})
			if err != nil {
				return nil, fmt.Errorf("%s for %s: %w", pkg, b.GOOS, err)
			}
			name := path.Base(pkg)
			if commands[name] == nil {
				commands[name] = map[string]bool{}
			}
			for _, m := range modules {
				c, err := library(m)
				if err != nil {
					return nil, err
				}
				libraries[c.Ref], commands[name][c.Ref] = c, true
			}
		}
	}
	whole := ours("application", "policygate", version)
	doc := &bom{Format: "CycloneDX", SpecVersion: "1.6", Version: 1, Metadata: metadata{Component: whole}}
	all := dependency{Ref: whole.Ref}
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		c := ours("application", name, version)
		doc.Components = append(doc.Components, c)
		doc.Dependencies = append(doc.Dependencies, dependency{c.Ref, slices.Sorted(maps.Keys(commands[name]))})
		all.DependsOn = append(all.DependsOn, c.Ref)
	}
	for _, ref := range slices.Sorted(maps.Keys(libraries)) {
		doc.Components = append(doc.Components, libraries[ref])
	}
	doc.Dependencies = append(doc.Dependencies, all)
	return doc, nil
}

// ours returns a component of this repository.
func ours(kind, name, version string) component {
	purl := packageURL(product, version)
	if name != path.Base(product) {
		purl += "#cmd/" + name
	}
	return component{
		Ref: purl, Type: kind, Name: name, Version: version, PURL: purl, Licences: licences([]string{own}),
	}
}

// library returns a module as a component. Its hash is the one in go.sum, of a
// list of its files' hashes (golang.org/x/mod/sumdb/dirhash), as other tools
// give it for Go modules.
func library(m linked.Module) (component, error) {
	purl := packageURL(m.Path, m.Version)
	c := component{Ref: purl, Type: "library", Name: m.Path, Version: m.Version, PURL: purl, Licences: licences(m.Licences)}
	if m.Path == linked.Standard {
		return c, nil
	}
	encoded, ok := strings.CutPrefix(m.Sum, "h1:")
	sum, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil {
		return component{}, fmt.Errorf("module %s: checksum %q: want h1 and base64", m.Path, m.Sum)
	}
	c.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum)}}
	return c, nil
}

func licences(ids []string) []licenceChoice {
	if len(ids) == 1 {
		return []licenceChoice{{Licence: &licenceID{ids[0]}}}
	}
	return []licenceChoice{{Expression: strings.Join(ids, " AND ")}}
}

// packageURL returns a module's: https://github.com/package-url/purl-spec.
// Of what versions of modules consist of it escapes the plus sign alone.
func packageURL(module, version string) string {
	return "pkg:golang/" + module + "@" + strings.ReplaceAll(version, "+", "%2B")
}
