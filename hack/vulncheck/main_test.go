// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// write makes files below a directory that it returns.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestRun(t *testing.T) {
	// The module's own code calls what the entry is about: a symbol of the
	// standard library, so that nothing has to be downloaded.
	module := write(t, map[string]string{
		"go.mod":  "module example.com/a\n\ngo 1.26\n",
		"main.go": "package main\n\nimport \"net/netip\"\n\nfunc main() { _, _ = netip.ParseAddr(\"\") }\n",
	})
	entry := func(symbol string) string {
		return fmt.Sprintf(`{"schema_version":"1.3.1","id":"GO-2026-9999","modified":"2026-01-01T00:00:00Z","published":"2026-01-01T00:00:00Z",
			"summary":"Made up for a test","details":"Made up for a test","affected":[{"package":{"name":"stdlib","ecosystem":"Go"},
			"ranges":[{"type":"SEMVER","events":[{"introduced":"0"}]}],
			"ecosystem_specific":{"imports":[{"path":"net/netip","symbols":[%q]}]}}]}`, symbol)
	}
	reached := "file://" + write(t, map[string]string{"GO-2026-9999.json": entry("ParseAddr")})
	beyond := "file://" + write(t, map[string]string{"GO-2026-9999.json": entry("ParsePrefix")})
	// Nothing listens at port 1, so that the public database is out of reach.
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	t.Setenv("NO_PROXY", "")
	cases := map[string]struct {
		modules []string
		env     map[string]string
		want    int
		says    string
	}{
		"a vulnerability in reach fails":                {modules: []string{module}, env: map[string]string{"GOVULNDB": reached}, want: 1, says: "GO-2026-9999"},
		"one out of reach does not":                     {modules: []string{module}, env: map[string]string{"GOVULNDB": beyond}, says: "No vulnerabilities found"},
		"without a database nothing is checked, loudly": {modules: []string{module, module}, says: "NOTHING WAS CHECKED"},
		"which fails where it is required": {
			modules: []string{module}, env: map[string]string{"VULNCHECK": "required"}, want: 1, says: "NOTHING WAS CHECKED",
		},
		"a module that cannot be read fails":         {modules: []string{t.TempDir()}, env: map[string]string{"GOVULNDB": beyond}, want: 1, says: "vulncheck: module"},
		"no module is a mistake":                     {want: 2, says: "want directories"},
		"another word for it is a mistake":           {modules: []string{module}, env: map[string]string{"VULNCHECK": "yes"}, want: 2, says: `VULNCHECK="yes"`},
		"a failure of one module is one of all":      {modules: []string{module, module}, env: map[string]string{"GOVULNDB": reached}, want: 1, says: "GO-2026-9999"},
		"a database that is named and is none fails": {modules: []string{module}, env: map[string]string{"GOVULNDB": "file:///no/such/database"}, want: 1, says: "vulncheck"},
	}
	t.Chdir("../..")
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var said bytes.Buffer
			if got := run(tc.modules, func(key string) string { return tc.env[key] }, &said, &said); got != tc.want {
				t.Errorf("exit status %d, want %d; it said:\n%s", got, tc.want, &said)
			}
			if !strings.Contains(said.String(), tc.says) {
				t.Errorf("it said %q, want %q in it", &said, tc.says)
			}
		})
	}
}
