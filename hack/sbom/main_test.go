// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/policygate/policygate/hack/linked"
)

// made runs the command on this repository.
func made(t *testing.T) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "below", "sbom.json")
	var said bytes.Buffer
	if got := run([]string{"-root", "../..", "-version", "v1.2.3", "-o", file}, &said); got != 0 {
		t.Fatalf("exit status %d: %s", got, &said)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func TestWhatIsWritten(t *testing.T) {
	content := made(t)
	if !bytes.Equal(content, made(t)) {
		t.Error("equal sources make files that are not equal")
	}
	var doc bom
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	refs := map[string]component{}
	for _, c := range doc.Components {
		if _, twice := refs[c.Ref]; twice {
			t.Errorf("%s is there twice", c.Ref)
		}
		refs[c.Ref] = c
		if c.Version == "" || len(c.Licences) != 1 || c.Type == "library" && len(c.Hashes) != 1 && c.Name != linked.Standard {
			t.Errorf("component %+v: want a version, licences and a checksum", c)
		}
	}
	links := map[string][]string{}
	for _, d := range doc.Dependencies {
		for _, ref := range d.DependsOn {
			if refs[ref].Ref == "" {
				t.Errorf("%s depends on %s, which is no component", d.Ref, ref)
			}
		}
		links[refs[d.Ref].Name] = d.DependsOn
	}
	if len(links["hold"]) != 1 || !strings.HasPrefix(links["hold"][0], "pkg:golang/stdlib@1.") {
		t.Errorf("the hold has %q: want the standard library alone", links["hold"])
	}
	for _, name := range []string{"manager", "agent", "kubectl-policygate"} {
		if !slices.ContainsFunc(links[name], func(ref string) bool { return strings.HasPrefix(ref, "pkg:golang/google.golang.org/grpc@v") }) {
			t.Errorf("%s has %q: want gRPC among it", name, links[name])
		}
	}
	theAgentsFileSaysTheSame(t, links["agent"])
}

// theAgentsFileSaysTheSame holds the document against what the linker wrote into
// an executable.
func theAgentsFileSaysTheSame(t *testing.T, refs []string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent")
	command := exec.CommandContext(t.Context(), "go", "build", "-o", file, "./cmd/agent")
	command.Dir, command.Env = "../..", append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{packageURL(linked.Standard, strings.TrimPrefix(info.GoVersion, "go"))}
	for _, m := range info.Deps {
		want = append(want, packageURL(m.Path, m.Version))
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, refs); diff != "" {
		t.Errorf("modules of the agent (-in the executable +in the document):\n%s", diff)
	}
}

func TestLibrary(t *testing.T) {
	cases := map[string]struct {
		module  linked.Module
		want    component
		wantErr string
	}{
		"two licences are an expression, and a plus sign is escaped": {
			module: linked.Module{Path: "example.com/a", Version: "v2.0.0+incompatible", Sum: "h1:AAEC", Licences: []string{"Apache-2.0", "MIT"}},
			want: component{
				Ref: "pkg:golang/example.com/a@v2.0.0%2Bincompatible", Type: "library", Name: "example.com/a", Version: "v2.0.0+incompatible",
				PURL:   "pkg:golang/example.com/a@v2.0.0%2Bincompatible",
				Hashes: []hash{{"SHA-256", "000102"}}, Licences: []licenceChoice{{Expression: "Apache-2.0 AND MIT"}},
			},
		},
		"a module without a checksum is an error": {module: linked.Module{Path: "example.com/a", Version: "v1.0.0"}, wantErr: `checksum ""`},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			got, err := library(tc.module)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("component (-want +got):\n%s", diff)
			}
			if (err == nil) != (tc.wantErr == "") || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Errorf("error %v, want %q", err, tc.wantErr)
			}
		})
	}
}
