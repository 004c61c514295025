// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/policygate/policygate/hack/linked"
)

func TestRun(t *testing.T) {
	mit, err := os.ReadFile("../licence/texts/MIT.txt")
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		// files are those of the module that is linked.
		files map[string]string
		want  int
		says  string
	}{
		"a known licence":               {files: map[string]string{"LICENSE": string(mit)}, says: "example.com/dep v1.0.0: MIT"},
		"a module without a licence":    {want: 1, says: "module example.com/dep v1.0.0: it has no file with a licence"},
		"a licence that is not known":   {files: map[string]string{"COPYING": "GNU GENERAL PUBLIC LICENSE"}, want: 1, says: "gnu general public license"},
		"another one of a part of it":   {files: map[string]string{"LICENSE": string(mit), "LICENSE-data.txt": "Not for sale."}, want: 1, says: "not for sale"},
		"one next to what is linked":    {files: map[string]string{"LICENSE": string(mit), "part/LICENCE.md": "Not for sale."}, want: 1, says: "not for sale"},
		"one of what is not linked":     {files: map[string]string{"LICENSE": string(mit), "unused/LICENSE": "Not for sale."}, says: "example.com/dep v1.0.0: MIT"},
		"the standard library is there": {files: map[string]string{"LICENSE": string(mit)}, says: "stdlib 1."},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{
				"go.mod":  "module example.com/main\n\ngo 1.26\n\nrequire example.com/dep v1.0.0\n",
				"main.go": "package main\n\nimport _ \"example.com/dep/part\"\n\nfunc main() {}\n",
				// Vendored, so that nothing has to be downloaded.
				"vendor/modules.txt":                  "# example.com/dep v1.0.0\n## explicit\nexample.com/dep/part\n",
				"vendor/example.com/dep/part/part.go": "package part\n",
			}
			for file, text := range tc.files {
				files["vendor/example.com/dep/"+file] = text
			}
			for file, text := range files {
				path := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var said bytes.Buffer
			got := run([]string{"-root", root}, []linked.Build{{Packages: []string{"."}, GOOS: "linux"}}, &said, &said)
			if got != tc.want || !strings.Contains(said.String(), tc.says) {
				t.Errorf("exit status %d, want %d with %q; it said:\n%s", got, tc.want, tc.says, &said)
			}
		})
	}
}
