// Copyright The Policy Gate Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// repository writes a module with a function that holds and one that does not.
func repository(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":           "module example.com/a\n\ngo 1.26\n",
		"a_test.go":        "package a\n\nimport \"testing\"\n\nfunc FuzzHolds(f *testing.F) { f.Fuzz(func(*testing.T, int) {}) }\n",
		"none/n_test.go":   "package none\n\nimport \"testing\"\n\nfunc TestNone(*testing.T) {}\n",
		"test/b/go.mod":    "module example.com/b\n\ngo 1.26\n",
		"test/b/b_test.go": "package b\n\nimport \"testing\"\n\nfunc FuzzBreaks(f *testing.F) { f.Add(1); f.Fuzz(func(t *testing.T, _ int) { t.Fatal(\"broken\") }) }\n",
	} {
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
	root := repository(t)
	cases := map[string]struct {
		args []string
		want int
		says []string
	}{
		"every function of every module is run, and a failure of one is one of all": {
			want: 1, says: []string{"1 of 2: FuzzHolds in example.com/a", "2 of 2: FuzzBreaks in example.com/b", "fuzz: FuzzBreaks"},
		},
		"functions that hold are no failure":      {args: []string{"-run", "Holds"}, says: []string{"1 of 1: FuzzHolds"}},
		"a name that no function has is an error": {args: []string{"-run", "FuzzNothing"}, want: 1, says: []string{`-run "FuzzNothing"`}},
		"a pattern that is none is an error":      {args: []string{"-run", "("}, want: 1, says: []string{`-run "("`}},
		"a time of nothing is an error":           {args: []string{"-time", "0s"}, want: 1, says: []string{"-time 0s"}},
		"a flag that does not exist is an error":  {args: []string{"-for", "1s"}, want: 2, says: []string{"-for"}},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var said bytes.Buffer
			// Long enough to come past the seeds.
			args := append([]string{"-root", root, "-time", "2s"}, tc.args...)
			if got := run(args, &said, &said); got != tc.want {
				t.Errorf("exit status %d, want %d; it said:\n%s", got, tc.want, &said)
			}
			for _, want := range tc.says {
				if !strings.Contains(said.String(), want) {
					t.Errorf("it said %q, want %q in it", &said, want)
				}
			}
		})
	}
}
